"""Recognises decoders of the Llama and the GPT-2 kind and makes the one call that stands for all their modules.

`worker/model/model.py` asks for it once the model is loaded and probed. What is not recognised to the last detail keeps
transformers' own modules: this file only ever says no, and why. The arithmetic is in `kernels/cpu/decoder.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.cpu.backend import CpuBackend
from kernels.cpu.decoder import CpuDecoder, why_not
from kernels.cpu.weights import DecoderWeights, LayerWeights, Linear, Norm
from worker.model import fused_learned
from worker.model.fused_learned import linear, split
from worker.model.loading import Loaded
from worker.model.probe import LayerCall

# Their layers differ in biases, norms of heads and windows only, all of which are read from the modules.
_LLAMAS = {"LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
# How each is refused, and how it is read.
_LEARNED = {
    "GPT2LMHeadModel": (fused_learned.why_not_gpt2, fused_learned.gpt2),
    "OPTForCausalLM": (fused_learned.why_not_opt, fused_learned.opt),
}
# Rotations whose angles depend on the position alone.
_ROTATIONS = {"default", "linear", "llama3", "yarn"}
# Tables of angles larger than this are not worth their memory.
_MAX_POSITIONS = 1 << 18


def fuse(loaded: Loaded, calls: list[LayerCall], backend: object, max_tokens: int) -> CpuDecoder | str:
    """The fused decoder for a loaded model, whose own weights are let go; or why there is none."""
    if not isinstance(backend, CpuBackend):
        return "only CPU kernels have one"
    reason = _not_known(loaded, calls)
    if reason:
        return reason
    learned = _LEARNED.get(type(loaded.module).__name__)
    weights = _weights(loaded, calls) if learned is None else learned[1](loaded, calls)
    reason = why_not(weights, backend)
    if reason:
        return reason
    _let_go_of_the_file(weights)
    return CpuDecoder(weights, backend, max_tokens)


def _not_known(loaded: Loaded, calls: list[LayerCall]) -> str:
    module: Any = loaded.module
    config = loaded.config
    name = type(module).__name__
    if name not in _LLAMAS and name not in _LEARNED:
        return f"{name} is not one of {', '.join(sorted({*_LLAMAS, *_LEARNED}))}"
    if len({(call.num_heads, call.shape) for call in calls}) > 1 or any(c.softcap or c.has_sinks for c in calls):
        return "its layers differ, or attention does more than softmax"
    if loaded.max_model_len > _MAX_POSITIONS:
        return f"it has {loaded.max_model_len:,} positions"
    if name in _LEARNED:
        return _LEARNED[name][0](loaded)
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _ROTATIONS or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its rotation is {rope}"
    return ""


def _let_go_of_the_file(weights: DecoderWeights) -> None:
    """What stays as it is gets memory of its own: a part of a mapped file would keep all of the file mapped."""
    weights.embedding = weights.embedding.clone()
    weights.places = None if weights.places is None else weights.places.clone()
    weights.norm = _own(weights.norm)
    for layer in weights.layers:
        layer.input_norm, layer.post_norm = _own(layer.input_norm), _own(layer.post_norm)
        layer.query_norm = None if layer.query_norm is None else layer.query_norm.clone()
        layer.key_norm = None if layer.key_norm is None else layer.key_norm.clone()


def _own(norm: Norm) -> Norm:
    return Norm(norm.weight.clone(), None if norm.bias is None else norm.bias.clone())


@torch.inference_mode()
def _weights(loaded: Loaded, calls: list[LayerCall]) -> DecoderWeights:
    module: Any = loaded.module
    inner, config, call = module.model, loaded.config, calls[0]
    positions = torch.arange(loaded.max_model_len)[None]
    cosines, sines = inner.rotary_emb(torch.zeros(1, dtype=torch.float32), positions)
    half = call.shape.head_dim // 2
    assert cosines.shape[-1] == 2 * half, "the rotation covers a part of each head"
    return DecoderWeights(
        embedding=inner.embed_tokens.weight.detach(),
        places=None,
        layers=[_layer(layer, call) for layer, call in zip(inner.layers, calls, strict=True)],
        activation="silu_mul",
        norm=Norm(inner.norm.weight.detach()),
        head=linear(module.lm_head),
        num_heads=call.num_heads,
        num_kv_heads=call.shape.num_kv_heads,
        head_dim=call.shape.head_dim,
        epsilon=float(config.rms_norm_eps),
        scale=float(inner.layers[0].self_attn.scaling),
        cosines=cosines[0, :, :half].float().contiguous(),
        sines=sines[0, :, :half].float().contiguous(),
    )


def _layer(layer: Any, call: LayerCall) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value = _heads(attention, call)
    gate, up = _gate_and_up(mlp)
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return LayerWeights(
        input_norm=Norm(layer.input_layernorm.weight.detach()),
        query=query,
        key=key,
        value=value,
        output=linear(attention.o_proj),
        query_norm=None if query_norm is None else query_norm.weight.detach(),
        key_norm=None if key_norm is None else key_norm.weight.detach(),
        post_norm=Norm(layer.post_attention_layernorm.weight.detach()),
        gate=gate,
        up=up,
        down=linear(mlp.down_proj),
        window=call.window,
    )


def _heads(attention: Any, call: LayerCall) -> list[Linear]:
    """Queries, keys and values, which some checkpoints keep in one."""
    packed = getattr(attention, "qkv_proj", None)
    if packed is None:
        return [linear(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    kv_width = call.shape.num_kv_heads * call.shape.head_dim
    return split(linear(packed), [call.num_heads * call.shape.head_dim, kv_width, kv_width])


def _gate_and_up(mlp: Any) -> list[Linear]:
    packed = getattr(mlp, "gate_up_proj", None)
    if packed is None:
        return [linear(mlp.gate_proj), linear(mlp.up_proj)]
    return split(linear(packed), [packed.weight.shape[0] // 2] * 2)
