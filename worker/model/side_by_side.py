"""Weights of products that are computed as one, laid side by side on the device as they come from the file.

`worker/model/loading.py` calls it for a model that goes to a device with memory of its own; what takes the merged
weight is `worker/model/replaced.py`. Merged only later, the parts would be copied on the device, and the holes that
they leave there are lost to the pool.
"""

from __future__ import annotations

from typing import Any

import torch

_ATTRIBUTE = "quire_merged"
# Children of one module that are given the same rows, in the order of the merged product.
PARTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def lay_out(model: torch.nn.Module, device: torch.device) -> None:
    """Moves the parts of every merged product to the device, where they become views of one weight."""
    for module in model.modules():
        names = parts_of(module)
        if names:
            _merge([getattr(module, name) for name in names], device)


def parts_of(module: torch.nn.Module) -> tuple[str, ...]:
    """The children of this module whose products may be one; none if it has none such."""
    for names in PARTS:
        found: list[Any] = [module._modules.get(name) for name in names]
        if all(isinstance(part, torch.nn.Linear) for part in found):
            # Ranks hold whole rows of these; what gathers them has a forward of its own.
            kinds = {(part.weight.shape[1], part.weight.dtype) for part in found}
            return names if len(kinds) == 1 and not any("forward" in vars(part) for part in found) else ()
    return ()


def merged_weight(parts: list[Any]) -> torch.Tensor:
    """The weight [all columns, depth] that the weights of these linear modules are views of."""
    weight: torch.Tensor | None = getattr(parts[0], _ATTRIBUTE, None)
    return _merge(parts, parts[0].weight.device) if weight is None else weight


def _merge(parts: list[Any], device: torch.device) -> torch.Tensor:
    like, sizes = parts[0].weight, [part.out_features for part in parts]
    weight = torch.empty((sum(sizes), like.shape[1]), dtype=like.dtype, device=device)
    for part, place in zip(parts, weight.split_with_sizes(sizes), strict=True):
        place.copy_(part.weight.detach())
        part.weight = torch.nn.Parameter(place, requires_grad=False)
    setattr(parts[0], _ATTRIBUTE, weight)
    return weight
