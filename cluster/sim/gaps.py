"""Times between tokens, millions of them, as counts in bins that are one per cent apart, and their percentiles.

A fleet adds what its steps bring; figures and plots read it. The error of a percentile is that of a bin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SHORTEST_S, LONGEST_S = 1e-5, 1e5
_PER_BIN = math.log(1.01)
_NUM_BINS = int(math.log(LONGEST_S / SHORTEST_S) / _PER_BIN) + 1


class Times:
    """A distribution of seconds."""

    def __init__(self) -> None:
        self.counts = np.zeros(_NUM_BINS, np.int64)
        self.total_s = 0.0
        self.longest_s = 0.0

    def add(self, seconds: NDArray[np.float64]) -> None:
        if not len(seconds):
            return
        clipped = np.clip(seconds, SHORTEST_S, LONGEST_S * 0.99)
        bins = (np.log(clipped / SHORTEST_S) / _PER_BIN).astype(np.int64)
        np.add.at(self.counts, bins, 1)
        self.total_s += float(seconds.sum())
        self.longest_s = max(self.longest_s, float(seconds.max()))

    @property
    def num(self) -> int:
        return int(self.counts.sum())

    def percentile(self, share: float) -> float:
        """Seconds below which this share lies; 0.0 while there is nothing."""
        if not self.num:
            return 0.0
        bin_ = int(np.searchsorted(np.cumsum(self.counts), share * self.num))
        return SHORTEST_S * math.exp((min(bin_, _NUM_BINS - 1) + 0.5) * _PER_BIN)


class Gaps:
    """From a question to its first token, and from each token to the next (pauses of the preempted included)."""

    def __init__(self) -> None:
        self.first = Times()
        self.between = Times()
