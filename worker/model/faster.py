"""Ways to compute a decoder's modules with few launches: norms, gated MLPs, attention around its products, sums.

Each function looks at what a module has and yields what may be the same; `replaced.py` tries which of them is. None of
them asks the device anything, so that all can be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch.nn.functional import linear

from kernels.batch import Scoring
from kernels.gpu.backend import TritonBackend
from kernels.gpu.rows import Activation, add_rms_norm, gate, rms_norm
from worker.model.attention import find_layer
from worker.model.side_by_side import merged_weight, parts_of

Forward = Callable[..., Any]
Known = Mapping[torch.nn.Module, Forward]

# Activations by transformers' names.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu",
}  # fmt: skip


class FasterNorm:
    """A norm over roots of mean squares, of one of the kinds that there are."""

    def __init__(self, module: Any, *, from_one: bool, rounds_first: bool) -> None:
        self.weight = module.weight.detach()
        self.epsilon = float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
        self.kind = {"from_one": from_one, "rounds_first": rounds_first}

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.rows(hidden_states.reshape(-1, 1, hidden_states.shape[-1])).view(hidden_states.shape)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """x [outer, inner, dim], where a product left it."""
        return rms_norm(x, self.weight, self.epsilon, **self.kind)

    def of_sum(self, x: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x + added, and the sum."""
        rows = [one.reshape(-1, 1, one.shape[-1]) for one in (x, added)]
        normed, whole = add_rms_norm(rows[0], rows[1], self.weight, self.epsilon, **self.kind)
        return normed.view(x.shape), whole.view(x.shape)


def norm_ways(module: Any) -> Iterator[Forward]:
    weight = module._parameters.get("weight")
    has_epsilon = hasattr(module, "variance_epsilon") or isinstance(getattr(module, "eps", None), float)
    if weight is None or weight.dim() != 1 or len(module._parameters) != 1 or module._modules or not has_epsilon:
        return
    for from_one, rounds_first in product((False, True), (True, False)):
        yield FasterNorm(module, from_one=from_one, rounds_first=rounds_first)


def gated_ways(module: Any) -> Iterator[Forward]:
    """MLPs whose gate and what passes it are two products of the same rows, or one with both in it."""
    activation = _activation(module)
    if activation is None or not hasattr(module, "down_proj"):
        return
    down = module.down_proj
    if parts_of(module) == ("gate_proj", "up_proj"):
        weight, bias = _merged([module.gate_proj, module.up_proj])
    elif hasattr(module, "gate_up_proj") and getattr(module.gate_up_proj, "weight", None) is not None:
        weight, bias = module.gate_up_proj.weight.detach(), module.gate_up_proj.bias
    else:
        return

    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        opened = gate(linear(x.reshape(-1, x.shape[-1]), weight, bias), activation)
        # Its own way, which adds up over ranks.
        out: torch.Tensor = down.forward(opened)
        return out.view(*x.shape[:-1], -1)

    yield forward


def _activation(module: Any) -> Activation | None:
    config = getattr(module, "config", None)
    named = [getattr(config, name, None) for name in ("hidden_act", "hidden_activation")]
    kinds = {"SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "gelu_tanh", "GELUActivation": "gelu"}
    for name in ("act_fn", "activation_fn", "act"):
        named.append(kinds.get(type(getattr(module, name, None)).__name__))
    found = [ACTIVATIONS[one] for one in reversed(named) if one in ACTIVATIONS]
    return found[0] if found else None


def attention_ways(module: Any, known: Known) -> Iterator[Forward]:
    """Attention of products for queries, keys and values with a rotation behind them."""
    layer, out_proj = find_layer(module), getattr(module, "o_proj", None) or getattr(module, "dense", None)
    if layer is None or out_proj is None or layer.call is None:
        return
    dim, value_dim = layer.call.shape.head_dim, layer.call.shape.value_dim
    heads, kv_heads = layer.call.num_heads, layer.call.shape.num_kv_heads
    if dim != value_dim:
        return
    sizes = [heads * dim, kv_heads * dim, kv_heads * dim]
    if parts_of(module) == ("q_proj", "k_proj", "v_proj"):
        weight, bias = _merged([module.q_proj, module.k_proj, module.v_proj])
    elif hasattr(module, "qkv_proj"):
        weight, bias = module.qkv_proj.weight.detach(), module.qkv_proj.bias
    else:
        return
    if weight.shape[0] != sum(sizes):
        return
    scale = float(getattr(module, "scaling", dim**-0.5))
    sinks = getattr(module, "sinks", None) if layer.call.has_sinks else None
    scoring = Scoring(scale, layer.window, layer.call.softcap, sinks)
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    for angles, interleaved in ((_half, False), (_half, True), (_every_second, True), (_all, False)):

        def forward(
            hidden_states: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, torch.Tensor],
            *_: Any,
            angles: Callable[[torch.Tensor], torch.Tensor] = angles,
            interleaved: bool = interleaved,
            **__: Any,
        ) -> tuple[torch.Tensor, None]:
            assert layer.cache is not None and layer.batch_key is not None, "the pool is not attached"
            backend = layer.context.backend
            assert isinstance(backend, TritonBackend)
            batch, tokens = layer.context.batches[layer.batch_key], hidden_states.shape[1]
            parts = linear(hidden_states[0], weight, bias).split_with_sizes(sizes, dim=1)
            q, k, v = (part.view(tokens, -1, dim) for part in parts)
            if norms[0] is not None and norms[1] is not None:
                q, k = (_normed(x, norm, known) for x, norm in zip((q, k), norms, strict=True))
            cos, sin = (angles(one[0]) for one in position_embeddings)
            backend.rotary_write_kv(q, k, v, cos, sin, layer.cache, batch.slots, interleaved=interleaved)
            out = backend.attention(q, layer.cache, batch, scoring)
            return out_proj.forward(out.view(1, tokens, -1)), None

        yield forward


def _half(angles: torch.Tensor) -> torch.Tensor:
    return angles[:, : angles.shape[1] // 2]


def _every_second(angles: torch.Tensor) -> torch.Tensor:
    return angles[:, ::2].contiguous()


def _all(angles: torch.Tensor) -> torch.Tensor:
    return angles


def _normed(x: torch.Tensor, module: Any, known: Known) -> torch.Tensor:
    """x [tokens, heads, dim], read where the product left it if the norm is known, normed by head or as a whole."""
    norm = known.get(module)
    width = module.weight.numel()
    rows = x if width == x.shape[2] else x.reshape(x.shape[0], 1, -1)
    made = norm.rows(rows) if isinstance(norm, FasterNorm) else module.forward(rows)
    return made.view(x.shape)


def layer_ways(module: Any, known: Known) -> Iterator[Forward]:
    """Layers that add what attention says, take a norm of the sum, and add what the MLP says to that sum."""
    names = ("input_layernorm", "self_attn", "post_attention_layernorm")
    if not all(hasattr(module, name) for name in names):
        return
    inner = getattr(module, "mlp", None) or getattr(module, "block_sparse_moe", None)
    norm = known.get(module.post_attention_layernorm)
    if inner is None or not isinstance(norm, FasterNorm):
        return
    for is_tuple in (False, True):

        def forward(hidden_states: torch.Tensor, *args: Any, is_tuple: bool = is_tuple, **kwargs: Any) -> Any:
            if args:
                raise TypeError("only called with names")
            said = module.self_attn(hidden_states=module.input_layernorm(hidden_states), **kwargs)[0]
            normed, whole = norm.of_sum(hidden_states, said)
            opened = inner(normed)
            out = whole + (opened[0] if isinstance(opened, tuple) else opened)
            return (out,) if is_tuple else out

        yield forward


def _merged(modules: list[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias for several products of the same rows."""
    weight, sizes = merged_weight(modules), [module.out_features for module in modules]
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return weight, None
    zeros = [weight.new_zeros(size) for size in sizes]
    return weight, torch.cat([zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)])
