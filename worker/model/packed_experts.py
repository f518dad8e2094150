"""Puts packed products in place of the experts of a mixture, on a CPU.

`worker/model/packed.py` asks for it. Only modules are taken that transformers itself runs by exchangeable functions,
whose attributes say how their weights lie; gates and routers stay transformers' own. What a token comes to depends on
that token alone: its experts' outputs are added in the order in which the router names them.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.cpu.linear import Products
from kernels.cpu.weights import Linear, Packed, pack_linears


class PackedExperts(torch.nn.Module):
    """The experts of one layer with their weights in panels."""

    def __init__(self, experts: Any, products: Products) -> None:
        """Takes the weights out of `experts`, which goes on to gate."""
        super().__init__()
        # Not a child: what is left there are no weights.
        self._gate = (experts._apply_gate,) if experts.has_gate else (experts.act_fn,)
        self._products = products
        self._up = _pack(experts, "gate_up_proj" if experts.has_gate else "up_proj", products)
        self._down = _pack(experts, "down_proj", products)

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in (*self._up, *self._down))

    @property
    def num_products(self) -> int:
        return len(self._up) + len(self._down)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, hidden]; index and weights [tokens, experts of a token]. Returns [tokens, hidden]."""
        tokens, num_top = top_k_index.shape
        expert, order = top_k_index.reshape(-1).sort(stable=True)
        rows = hidden_states[order // num_top]
        out = torch.zeros_like(rows)
        begin = 0
        for number, count in enumerate(expert.bincount(minlength=len(self._up)).tolist()):
            if count and number < len(self._up):
                inner = self._products.run(rows[begin : begin + count], self._up[number])
                out[begin : begin + count] = self._products.run(self._gate[0](inner), self._down[number])
            begin += count
        weighted = out * top_k_weights.reshape(-1)[order, None]
        in_place = torch.empty_like(weighted)
        in_place[order] = weighted
        return in_place.view(tokens, num_top, -1).sum(dim=1).to(hidden_states.dtype)


def depths(module: Any, dtype: torch.dtype) -> list[int]:
    """The depths of the products of a module of experts that can be packed; none if it can't or is no such module."""
    names = ("has_gate", "has_bias", "is_transposed", "num_experts", "down_proj")
    if not all(hasattr(module, name) for name in names) or not hasattr(type(module).forward, "__wrapped__"):
        return []
    if getattr(module, "has_post_expert_norm", False) or getattr(module, "_is_expert_parallel", False):
        return []
    up = getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None)
    weights: list[Any] = [up, module.down_proj]
    if any(not isinstance(weight, torch.nn.Parameter) or weight.dim() != 3 for weight in weights):
        return []
    found = [int(weight.shape[1 if module.is_transposed else 2]) for weight in weights]
    odd = dtype == torch.bfloat16 and any(depth % 2 for depth in found)
    return [] if odd or any(weight.dtype != dtype for weight in weights) else found


def _pack(experts: Any, name: str, products: Products) -> list[Packed]:
    """The products of all experts under this name, whose weights are let go."""
    weight = getattr(experts, name).detach()
    bias = getattr(experts, f"{name}_bias").detach() if experts.has_bias else None
    packed = []
    for number in range(experts.num_experts):
        one = weight[number].T if experts.is_transposed else weight[number]
        packed.append(pack_linears([Linear(one, None if bias is None else bias[number])], products.shape))
    delattr(experts, name)
    return packed
