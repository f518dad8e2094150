"""Reads decoders whose positions are learned and whose norms are layer norms: GPT-2 and OPT.

`worker/model/fused.py` asks for it. As there, what is not recognised to the last detail is refused with the reason.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.cpu.product import Activation
from kernels.cpu.weights import DecoderWeights, LayerWeights, Linear, Norm
from worker.model.loading import Loaded
from worker.model.probe import LayerCall

# Functions of a product's sums that a program knows, by transformers' names.
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def why_not_gpt2(loaded: Loaded) -> str:
    config = loaded.config
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        return "its layers scale their scores in ways of their own"
    return _why_not_activation(config.activation_function)


def why_not_opt(loaded: Loaded) -> str:
    config, decoder = loaded.config, _opt_decoder(loaded)
    if not config.do_layer_norm_before or decoder.final_layer_norm is None or decoder.project_in is not None:
        return "its norms come after its products, or its embeddings are narrower than its layers"
    if not config.layer_norm_elementwise_affine:
        return "its norms have no weights"
    return _why_not_activation(config.activation_function)


def gpt2(loaded: Loaded, calls: list[LayerCall]) -> DecoderWeights:
    module: Any = loaded.module
    inner = module.transformer
    return _decoder(
        loaded,
        calls,
        places=inner.wpe.weight.detach(),
        embedding=inner.wte.weight.detach(),
        layers=[_gpt2_layer(layer) for layer in inner.h],
        norm=inner.ln_f,
    )


def opt(loaded: Loaded, calls: list[LayerCall]) -> DecoderWeights:
    decoder = _opt_decoder(loaded)
    return _decoder(
        loaded,
        calls,
        # The first rows stand for what is padded.
        places=decoder.embed_positions.weight.detach()[decoder.embed_positions.offset :],
        embedding=decoder.embed_tokens.weight.detach(),
        layers=[_opt_layer(layer) for layer in decoder.layers],
        norm=decoder.final_layer_norm,
    )


def _decoder(
    loaded: Loaded,
    calls: list[LayerCall],
    *,
    places: torch.Tensor,
    embedding: torch.Tensor,
    layers: list[LayerWeights],
    norm: Any,
) -> DecoderWeights:
    module: Any = loaded.module
    call = calls[0]
    half = call.shape.head_dim // 2
    return DecoderWeights(
        embedding=embedding,
        places=places.contiguous(),
        layers=layers,
        activation=_ACTIVATIONS[loaded.config.activation_function],
        norm=_norm(norm),
        head=Linear(module.lm_head.weight.detach()),
        num_heads=call.num_heads,
        num_kv_heads=call.shape.num_kv_heads,
        head_dim=call.shape.head_dim,
        epsilon=float(norm.eps),
        # OPT scales its queries, which comes to the same.
        scale=float(call.shape.head_dim**-0.5),
        # Nothing is rotated.
        cosines=torch.ones(1, half),
        sines=torch.zeros(1, half),
    )


def _gpt2_layer(layer: Any) -> LayerWeights:
    merged = _conv(layer.attn.c_attn)
    query, key, value = split(merged, [merged.weight.shape[0] // 3] * 3)
    return LayerWeights(
        input_norm=_norm(layer.ln_1),
        query=query,
        key=key,
        value=value,
        output=_conv(layer.attn.c_proj),
        query_norm=None,
        key_norm=None,
        post_norm=_norm(layer.ln_2),
        gate=None,
        up=_conv(layer.mlp.c_fc),
        down=_conv(layer.mlp.c_proj),
    )


def _opt_layer(layer: Any) -> LayerWeights:
    attention = layer.self_attn
    return LayerWeights(
        input_norm=_norm(layer.self_attn_layer_norm),
        query=linear(attention.q_proj),
        key=linear(attention.k_proj),
        value=linear(attention.v_proj),
        output=linear(attention.out_proj),
        query_norm=None,
        key_norm=None,
        post_norm=_norm(layer.final_layer_norm),
        gate=None,
        up=linear(layer.fc1),
        down=linear(layer.fc2),
    )


def _opt_decoder(loaded: Loaded) -> Any:
    module: Any = loaded.module
    return module.model.decoder


def _why_not_activation(name: str) -> str:
    return "" if name in _ACTIVATIONS else f"its activation is {name}"


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.bias.detach())


def linear(module: Any) -> Linear:
    return Linear(module.weight.detach(), None if module.bias is None else module.bias.detach())


def split(whole: Linear, sizes: list[int]) -> list[Linear]:
    """Several products that a checkpoint keeps in one."""
    biases = [None] * len(sizes) if whole.bias is None else whole.bias.split_with_sizes(sizes)
    return [Linear(weight, bias) for weight, bias in zip(whole.weight.split_with_sizes(sizes), biases, strict=True)]


def _conv(module: Any) -> Linear:
    """Conv1D keeps its weight the other way round."""
    return Linear(module.weight.detach().T, module.bias.detach())
