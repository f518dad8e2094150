"""Weights of products that are computed as one, laid side by side on the device as they come from the file.

`worker/model/loading.py` calls it for a model that goes to a device with memory of its own; what takes the merged
weight is `worker/model/replaced.py`. Merged only later, the parts would be copied on the device, and the holes that
they leave there are lost to the pool.
"""

from __future__ import annotations

from typing import Any

import torch

_ATTRIBUTE = "quire_merged"
# Their modules differ in biases and norms of heads only.
KINDS = ("Llama", "Mistral", "Qwen2", "Qwen3")
PARTS = {"Attention": ("q_proj", "k_proj", "v_proj"), "MLP": ("gate_proj", "up_proj")}
_NAMES = {f"{kind}{part}": names for kind in KINDS for part, names in PARTS.items()}


def lay_out(model: torch.nn.Module, device: torch.device) -> None:
    """Moves the parts of every merged product to the device, where they become views of one weight."""
    for module in model.modules():
        names = _NAMES.get(type(module).__name__)
        if names is not None:
            _merge([getattr(module, name) for name in names], device)


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
