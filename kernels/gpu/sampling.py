"""Filters and draw on a GPU: four passes over the vocabulary, each row shared among several programs, nothing for the
host to wait for.

Twin of `cpu/sampling.py`, and the tokens are those of `sampling.py` but where sums round to another side of a cut. One
pass finds the best value; two weigh what stands above each of some cuts and so narrow down where a row's cut lies; the
last one lets all that is surely kept race and lists what is close to the cut, of which one program then makes an end
(`race.py`, `cuts.py`). A row of which too much is close, because thousands of tokens are equal or wanted, takes longer
(`halving.py`). The worker's sampler calls `draw`.
"""

from __future__ import annotations

import numpy as np
import torch
import triton

from kernels import sampling
from kernels.gpu.choices import device_facts
from kernels.gpu.cuts import MOST_PARTS, NUM_CUTS, NUM_LISTED
from kernels.gpu.issuing import issue
from kernels.gpu.race import finish_kernel, race_kernel, top_kernel, weigh_kernel
from kernels.sampling import MIN_TEMPERATURE, DrawSettings

# Tokens that one program has at least, and tokens of one round of its loops.
PART, SPAN, WEIGH_SPAN, FINISH_SPAN = 4096, 1024, 128, 64
WARPS, WEIGH_WARPS = 4, 8
PROGRAMS_PER_SM = 4


class Scratch:
    """What the passes leave for one another, used again by every draw of a device: draws follow each other in the order
    of one stream."""

    def __init__(self, device: torch.device, rows: int, num_sms: int) -> None:
        self.rows, self.num_sms = rows, num_sms
        # No way to share rows makes more parts of them.
        parts = rows + PROGRAMS_PER_SM * num_sms

        def floats(count: int) -> torch.Tensor:
            return torch.empty(count, device=device)

        def ints(count: int) -> torch.Tensor:
            return torch.empty(count, dtype=torch.int32, device=device)

        self.tops, self.lows, self.times = (floats(parts) for _ in range(3))
        self.best, self.strange, self.winners = (ints(parts) for _ in range(3))
        self.counts, self.masses = ints(2 * parts * NUM_CUTS), floats(2 * parts * NUM_CUTS)
        self.values, self.tokens = floats(rows * NUM_LISTED), ints(rows * NUM_LISTED)


_scratch: dict[torch.device, Scratch] = {}


def scratch_for(device: torch.device, rows: int) -> Scratch:
    """For draws of up to so many rows. A graph that draws holds it."""
    found = _scratch.get(device)
    if found is None or rows > found.rows:
        num_sms = device_facts(device).num_sms
        found = _scratch[device] = Scratch(device, triton.next_power_of_2(rows), num_sms)
    return found


def draw(logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [rows] and broken bool [rows], as `sampling.draw`."""
    if (settings.temperature < MIN_TEMPERATURE).all():
        return sampling.draw(logits, settings)
    rows, device = len(logits), logits.device
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    packed = np.empty((6, rows), np.int32)
    settings.pack(packed)
    ids = torch.empty(rows, dtype=torch.int64, device=device)
    broken = torch.empty(rows, dtype=torch.bool, device=device)
    filters = bool(((settings.top_k > 0) | (settings.top_p < 1.0)).any())
    draw_packed(logits, sampling.send(packed, device), ids, broken, scratch_for(device, rows), filters=filters)
    return ids, broken


def draw_packed(
    logits: torch.Tensor,  # [rows, vocabulary], dense in a row
    settings: torch.Tensor,  # int32 [6, rows] dense: see `DrawSettings.pack`
    ids: torch.Tensor,  # int64 [rows], written
    broken: torch.Tensor,  # bool or int64 [rows], written
    own: Scratch,
    *,
    filters: bool = True,
) -> None:
    """A draw whose settings are on the device. `filters`: some row may have top-k or top-p."""
    rows, vocabulary = logits.shape
    stride = logits.stride(0)
    parts, spans = shares(rows, vocabulary, own.num_sms)
    grid = (parts, rows)
    issue(
        top_kernel, grid, logits, own.tops, own.lows, own.best, own.strange, parts, spans, vocabulary, stride,
        SPAN=SPAN, num_warps=WARPS,
    )  # fmt: skip
    known = (logits, settings, own.tops, own.lows, own.counts, own.masses)
    sizes = (rows, parts, spans, vocabulary, stride)
    if filters:
        for second in (False, True):
            spans_of = {"SECOND": second, "SPAN": SPAN, "WEIGH_SPAN": WEIGH_SPAN}
            issue(weigh_kernel, grid, *known, *sizes, **spans_of, num_warps=WEIGH_WARPS)
    raced = (own.times, own.winners, own.values, own.tokens)
    issue(race_kernel, grid, *known, *raced, *sizes, SPAN=SPAN, num_warps=WARPS)
    issue(
        finish_kernel, (rows,), logits, settings, own.tops, own.lows, own.best, own.strange, own.counts, own.masses,
        *raced, ids, broken, rows, parts, vocabulary, stride, SPAN=SPAN, WEIGH_SPAN=FINISH_SPAN, num_warps=WARPS,
    )  # fmt: skip


def shares(rows: int, vocabulary: int, num_sms: int) -> tuple[int, int]:
    """Into how many parts a row is cut, and of how many spans each is."""
    wanted = -(-PROGRAMS_PER_SM * num_sms // rows)
    parts = max(1, min(MOST_PARTS, wanted, -(-vocabulary // PART)))
    spans = -(-vocabulary // (parts * SPAN))
    return -(-vocabulary // (spans * SPAN)), spans
