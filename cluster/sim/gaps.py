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
        self._counts = np.zeros(_NUM_BINS, np.int64)
        self._total_s = 0.0
        self._longest_s = 0.0
        self._pending: list[NDArray[np.float64]] = []

    def add(self, seconds: NDArray[np.float64]) -> None:
        """They are counted many at once."""
        if len(seconds):
            self._pending.append(seconds)
            if len(self._pending) > 1000:
                self._count()

    def _count(self) -> None:
        if not self._pending:
            return
        seconds = np.concatenate(self._pending)
        self._pending.clear()
        clipped = np.clip(seconds, SHORTEST_S, LONGEST_S * 0.99)
        bins = (np.log(clipped / SHORTEST_S) / _PER_BIN).astype(np.int64)
        np.add.at(self._counts, bins, 1)
        self._total_s += float(seconds.sum())
        self._longest_s = max(self._longest_s, float(seconds.max()))

    @property
    def counts(self) -> NDArray[np.int64]:
        self._count()
        return self._counts

    @property
    def total_s(self) -> float:
        self._count()
        return self._total_s

    @property
    def longest_s(self) -> float:
        self._count()
        return self._longest_s

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
