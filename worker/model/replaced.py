"""Recognised modules of a decoder replaced in place on a GPU: merged products, norms, rotation and cache write in one
launch each.

`worker/model/model.py` asks for it, `worker/model/proof.py` then compares logits, and where they differ everything is
taken back. Only attention, MLP and norm modules of the Llama kind are taken; what is around them stays transformers'
own. A merged weight is one that the modules' weights are views of (`side_by_side.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

from kernels.gpu.backend import TritonBackend
from kernels.gpu.rows import rms_norm, silu_gate
from worker.model.attention import layer_of
from worker.model.side_by_side import KINDS, PARTS, merged_weight

# Biases and norms of heads, in which they differ, are read from the modules.
_NAMES = {f"{kind}{part}": part for kind in KINDS for part in (*PARTS, "RMSNorm")}

Forward = Callable[..., Any]


class Replaced:
    """What was recognised in one model; `on` puts it to work, `off` gives the modules their own way again."""

    def __init__(self, model: torch.nn.Module) -> None:
        make: dict[str, Callable[[Any], Forward | None]] = {"Attention": _attention, "MLP": _mlp, "RMSNorm": _norm}
        self._forwards: list[tuple[torch.nn.Module, Forward]] = []
        for module in model.modules():
            part = _NAMES.get(type(module).__name__)
            forward = make[part](module) if part is not None else None
            if forward is not None:
                self._forwards.append((module, forward))
        self.on()

    def __len__(self) -> int:
        return len(self._forwards)

    def on(self) -> None:
        for module, forward in self._forwards:
            module.forward = forward

    def off(self) -> None:
        for module, _ in self._forwards:
            del module.forward


def _norm(module: Any) -> Forward:
    weight, epsilon = module.weight.detach(), float(module.variance_epsilon)

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.reshape(-1, 1, hidden_states.shape[-1])
        return rms_norm(rows, weight, epsilon).view(hidden_states.shape)

    return forward


def _mlp(module: Any) -> Forward | None:
    if module.config.hidden_act != "silu":
        return None
    weight, bias = _merged([module.gate_proj, module.up_proj])
    down = module.down_proj

    def forward(x: torch.Tensor) -> torch.Tensor:
        opened = silu_gate(linear(x.reshape(-1, x.shape[-1]), weight, bias))
        return linear(opened, down.weight, down.bias).view(*x.shape[:-1], -1)

    return forward


def _attention(module: Any) -> Forward:
    weight, bias = _merged([module.q_proj, module.k_proj, module.v_proj])
    out_proj, dim, scale = module.o_proj, int(module.head_dim), float(module.scaling)
    sizes = [one.out_features for one in (module.q_proj, module.k_proj, module.v_proj)]
    query_norm, key_norm = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
    layer = layer_of(module)

    def forward(
        hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        assert layer.cache is not None and layer.batch_key is not None, "the pool is not attached"
        context = layer.context
        assert isinstance(context.backend, TritonBackend)
        batch, half = context.batches[layer.batch_key], dim // 2
        tokens = hidden_states.shape[1]
        parts = linear(hidden_states[0], weight, bias).split_with_sizes(sizes, dim=1)
        q, k, v = (part.view(tokens, -1, dim) for part in parts)
        if query_norm is not None and key_norm is not None:
            # Read where the merged product left them; the modules would have them copied together first.
            q, k = (rms_norm(x, one.weight, one.variance_epsilon) for x, one in ((q, query_norm), (k, key_norm)))
        cos, sin = (angles[0, :, :half] for angles in position_embeddings)
        context.backend.rotary_write_kv(q, k, v, cos, sin, layer.cache, batch.slots)
        out = context.backend.attention(q, layer.cache, batch, scale=scale, window=layer.window)
        return linear(out.view(1, tokens, -1), out_proj.weight, out_proj.bias), None

    return forward


def _merged(modules: list[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias for several products of the same rows."""
    weight, sizes = merged_weight(modules), [module.out_features for module in modules]
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return weight, None
    zeros = [weight.new_zeros(size) for size in sizes]
    return weight, torch.cat([zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)])
