"""Modules of a decoder replaced in place on a GPU: norms, gated MLPs, attention around its products, sums, experts.

`worker/model/startup.py` asks for it. A module is recognised by what it has, and taken only if it then says the same on
what it is given in a first run; so any decoder profits, whatever its classes are called. `worker/model/proof.py`
compares logits afterwards, and where they differ everything is taken back. A merged weight is one that the modules'
weights are views of (`side_by_side.py`), the ways themselves are in `faster.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from worker.model import replaced_experts
from worker.model.faster import Forward, attention_ways, gated_ways, layer_ways, norm_ways

# How far what a module says may be off, of its length: more than rounding, less than any other function.
ALLOWED = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class Replaced:
    """What was recognised in one model; `on` puts it to work, `off` gives the modules their own way again."""

    def __init__(self, model: torch.nn.Module, run: Callable[[], object]) -> None:
        """`run` computes a few tokens with `model`, over a pool of its own."""
        self._forwards: dict[torch.nn.Module, Forward] = {}
        self._seen: set[torch.nn.Module] = set()
        self._experts = replaced_experts.Experts(model)
        hooks = [
            module.register_forward_hook(self._try, with_kwargs=True)
            for module in model.modules()
            # What has a forward of its own adds up over ranks.
            if "forward" not in vars(module) or self._experts.has(module)
        ]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        self.on()

    def __len__(self) -> int:
        return len(self._forwards) + len(self._experts)

    def on(self) -> None:
        for module, forward in self._forwards.items():
            module.forward = forward
        self._experts.on()

    def off(self) -> None:
        for module in self._forwards:
            if "forward" in vars(module):
                del module.forward
        self._experts.off()

    def _try(self, module: torch.nn.Module, args: Any, kwargs: Any, said: Any) -> None:
        """Behind the first call of a module: whether one of the ways says the same, and which is nearest."""
        if module in self._seen:
            return
        self._seen.add(module)
        if self._experts.has(module):
            if not _is_off(self._experts.way(module), args, kwargs, said):
                self._experts.take(module)
            return
        best = None
        for way in self._ways(module):
            off = _distance(way, args, kwargs, said)
            if off is not None and (best is None or off < best):
                best, self._forwards[module] = off, way

    def _ways(self, module: Any) -> Iterator[Forward]:
        yield from norm_ways(module)
        yield from gated_ways(module)
        yield from attention_ways(module, self._forwards)
        yield from layer_ways(module, self._forwards)


def _is_off(way: Forward, args: Any, kwargs: Any, said: Any) -> bool:
    return _distance(way, args, kwargs, said) is None


def _distance(way: Forward, args: Any, kwargs: Any, said: Any) -> float | None:
    """How far this way is off what the module said; None: too far, or it does not run."""
    try:
        found = way(*args, **kwargs)
    except (AttributeError, TypeError, RuntimeError, ValueError, KeyError, IndexError):
        return None
    if isinstance(found, tuple) != isinstance(said, tuple):
        return None
    one, other = (part[0] if isinstance(part, tuple) else part for part in (found, said))
    if one.shape != other.shape or one.dtype != other.dtype:
        return None
    one, other = one.float(), other.float()
    off, whole = float((one - other).norm()), float(other.norm())
    # A norm that is no number is never small enough.
    return off if whole > 0.0 and off <= ALLOWED[found_dtype(said)] * whole else None


def found_dtype(said: Any) -> torch.dtype:
    tensor: torch.Tensor = said[0] if isinstance(said, tuple) else said
    return tensor.dtype
