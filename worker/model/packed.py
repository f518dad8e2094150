"""Puts packed products in place of the linear modules and experts of a model that is not fused, on a CPU.

`worker/model/model.py` asks for it after `fused.py` has said no. Only modules of exactly torch's Linear or of
transformers' Conv1D are taken, and experts (`packed_experts.py`); what is around them stays transformers' own. A row's
product depends on that row alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from kernels.cpu.backend import CpuBackend
from kernels.cpu.linear import Products
from kernels.cpu.product import supports
from kernels.cpu.weights import Linear, Packed
from kernels.cpu.weights import pack_linears as pack
from worker.model.packed_experts import PackedExperts, depths


class PackedLinear(torch.nn.Module):
    """A linear module whose weight lies in panels."""

    def __init__(self, packed: Packed, products: Products, like: torch.Tensor) -> None:
        super().__init__()
        self._packed = packed
        self._products = products
        # Modules ask for the weight's dtype and place. Whoever computed with it would get what is no number.
        self.weight = torch.full((1,), float("nan"), dtype=like.dtype).expand(like.shape)

    @property
    def size_bytes(self) -> int:
        return self._packed.size_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._products.run(x.reshape(-1, x.shape[-1]), self._packed)
        return out.view(*x.shape[:-1], out.shape[-1])


def pack_linears(module: torch.nn.Module, dtype: torch.dtype, backend: object) -> int:
    """Replaces what can be replaced, and returns how many products that were."""
    if not isinstance(backend, CpuBackend) or not supports(dtype, backend.target):
        return 0
    found = [(parent, name, child) for parent, name, child in _children(module) if _can_be_packed(child, dtype)]
    mixed = [(parent, name, child) for parent, name, child in _children(module) if depths(child, dtype)]
    most_depths = [_weight(child).shape[1] for _, _, child in found]
    most_depths += [depth for _, _, child in mixed for depth in depths(child, dtype)]
    if not most_depths:
        return 0
    products = Products(dtype, backend.target, max(most_depths))
    for parent, name, child in found:
        packed = pack([Linear(_weight(child), child.bias)], products.shape)
        setattr(parent, name, PackedLinear(packed, products, child.weight.detach()))
        # A tied weight stays with the embedding; any other goes now, before the next is packed.
        del child.weight
    num_packed = len(found)
    for parent, name, child in mixed:
        experts = PackedExperts(child, products)
        setattr(parent, name, experts)
        num_packed += experts.num_products
    return num_packed


def packed_bytes(module: torch.nn.Module) -> int:
    """What the packed products of a model take."""
    return sum(one.size_bytes for one in module.modules() if isinstance(one, PackedLinear | PackedExperts))


def _children(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, Any]]:
    return [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]


def _can_be_packed(module: Any, dtype: torch.dtype) -> bool:
    if type(module) is not torch.nn.Linear and type(module) is not Conv1D:
        return False
    # bf16 is multiplied in pairs along the depth. Hooks and shared modules keep what they are.
    even = dtype != torch.bfloat16 or _weight(module).shape[1] % 2 == 0
    return bool(module.weight.dtype == dtype and even and not module._forward_hooks and not module._forward_pre_hooks)


def _weight(module: Any) -> torch.Tensor:
    """[columns, depth], which Conv1D keeps the other way round."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T if type(module) is Conv1D else weight
