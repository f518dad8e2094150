"""Filters and draw in plain torch, for any device: what the fast kernels compute, and the fallback where there is none.

The order is that of transformers: temperature, top-k, top-p, min-p, then the draw. Nothing here waits for the device.
The sampler of the worker calls `draw`, tests call `kept` as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device.seam import device_of
from kernels.noise import token_noise

MIN_TEMPERATURE: Final = 1e-5
"""Below this a row is greedy."""

MASS_SLACK: Final = 5e-7
"""A mass that falls short of top_p by no more than fp32 rounding has reached it."""

_LOWEST: Final = -(2**31)
_MAGNITUDE: Final = 0x7FFFFFFF
# Rows of a large batch are drawn in parts, because the hash needs a few integers per token of the vocabulary.
_PART: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How to draw, one entry per row of logits; on the host, where the choice of a path is made."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int32]  # 0: off
    top_p: NDArray[np.float32]  # 1: off
    min_p: NDArray[np.float32]  # 0: off
    keys: NDArray[np.uint64]  # from noise_keys; for a run of several steps [steps, rows]

    def part(self, first: int, last: int) -> DrawSettings:
        """The settings of rows first to last - 1."""
        rows = slice(first, last)
        return DrawSettings(
            self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_p[rows], self.keys[rows]
        )

    def pack(self, place: NDArray[np.int32]) -> None:
        """Into int32 [6, rows]: bits of temperature, top_p and min_p; top_k; halves of the keys."""
        for at, values in enumerate((self.temperature, self.top_p, self.min_p)):
            place[at] = np.ascontiguousarray(values).view(np.int32)
        place[3] = self.top_k
        place[4:] = np.ascontiguousarray(self.keys).view(np.int32).reshape(-1, 2).T


def draw(logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [rows], and bool [rows]: True where the logits held no finite best value (the id is 0 then).

    logits: [rows, vocabulary] of any floating type; it is not changed. Rows below MIN_TEMPERATURE take the largest
    logit, the lowest id among equals.
    """
    rows, vocabulary = logits.shape
    if (settings.temperature < MIN_TEMPERATURE).all():
        best, ids = logits.max(-1)
        return _unbroken(ids, best)
    step = max(1, _PART // vocabulary)
    if rows > step:
        cuts = range(0, rows, step)
        parts = [draw(logits[at : at + step], settings.part(at, at + step)) for at in cuts]
        return torch.cat([ids for ids, _ in parts]), torch.cat([broken for _, broken in parts])
    values = logits.float()
    best, greedy = values.max(-1)
    kept_mask, weights = kept(values, settings)
    keys = send(settings.keys.view(np.int64), logits.device)
    tokens = torch.arange(vocabulary, device=logits.device)
    race = token_noise(keys, tokens) / weights
    drawn = race.masked_fill_(~kept_mask, torch.inf).argmin(-1)
    is_greedy = send(settings.temperature, logits.device) < MIN_TEMPERATURE
    return _unbroken(torch.where(is_greedy, greedy, drawn), best)


def kept(values: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that survive the filters, bool [rows, vocabulary], and all weights exp((value - best) / temperature).

    As in transformers, top-k keeps all that equal its last value, and top-p, where equals stand at its cut, keeps as
    many of them as it needs. Which of them is left open there; here it is those of the highest ids.
    """
    device = values.device
    temperature = send(settings.temperature, device).clamp_min(MIN_TEMPERATURE)[:, None]
    weights = ((values - values.amax(-1, keepdim=True)) / temperature).exp()
    order = ordered(values)
    keep = values > -torch.inf
    if settings.top_k.any():
        top_k = send(settings.top_k, device)[:, None].clamp_max(values.shape[-1])
        cut = _threshold(order, torch.ones_like(values), top_k.float())
        keep = keep & ((order >= cut) | (top_k <= 0))
    if (settings.top_p < 1).any():
        top_p = send(settings.top_p, device).double()[:, None]
        mass = torch.where(keep, weights, 0).double()
        target = mass.sum(-1, keepdim=True) * (top_p - MASS_SLACK)
        cut = _threshold(order, mass, target)
        above = torch.where(order > cut, mass, 0).sum(-1, keepdim=True)
        at_cut = order == cut
        # How many equals stand behind each, it included, when ids are walked from the highest down.
        number = at_cut.flip(-1).cumsum(-1).flip(-1)
        needed = ((target - above) / torch.where(at_cut, mass, 0).amax(-1, keepdim=True)).ceil().clamp_min(1)
        keep = keep & ((order > cut) | (at_cut & (number <= needed)) | (top_p >= 1))
    if settings.min_p.any():
        keep = keep & (weights >= send(settings.min_p, device)[:, None])
    return keep, weights


def ordered(values: torch.Tensor) -> torch.Tensor:
    """Integers in the order of fp32 values."""
    # Minus zero plus zero is zero, which makes equals of the two.
    bits = (values.contiguous() + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & _MAGNITUDE)


def _threshold(order: torch.Tensor, mass: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The highest cut [rows, 1] for which the mass of all with order >= cut reaches the target."""
    ranked, tokens = order.sort(-1, descending=True)
    num_short = (mass.gather(-1, tokens).cumsum(-1) < target).sum(-1, keepdim=True)
    last = order.shape[-1] - 1
    return torch.where(num_short > last, _LOWEST, ranked.gather(-1, num_short.clamp_max(last)))


def _unbroken(ids: torch.Tensor, best: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    broken = ~torch.isfinite(best)
    return ids.masked_fill(broken, 0), broken


def send(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The array on the device; the host does not wait."""
    return device_of(device).send(array)
