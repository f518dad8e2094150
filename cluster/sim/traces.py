"""Lengths and arrivals as public traces have them: log-normals and bursts, drawn from a seeded source.

Figures from public traces: Azure 2023 (conversation, code), Mooncake, ShareGPT, Alpaca. Histories scale the lengths
down to their small pools; capacity planning takes them as they are. Nothing here knows the cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Trace:
    """Log-normal lengths (mu, sigma) of prompts and outputs, requests/s, and how bursty their arrival is (CV)."""

    name: str
    prompt: tuple[float, float]
    output: tuple[float, float]
    rate: float
    cv: float


def _from_mean(mean: float, sigma: float) -> tuple[float, float]:
    return math.log(mean) - sigma * sigma / 2, sigma


TRACES: dict[str, Trace] = {
    trace.name: trace
    for trace in (
        Trace("azure-conv", (6.63, 0.99), (5.02, 0.86), 5.5, 1.1),
        Trace("azure-code", (7.00, 1.36), (2.79, 0.85), 2.6, 13.0),
        Trace("mooncake-conv", (8.74, 1.20), (5.34, 1.36), 3.4, 3.0),
        # Of these two only the means are public; the spread is that of conversations.
        Trace("sharegpt", _from_mean(161, 1.0), _from_mean(338, 0.9), 2.0, 1.0),
        Trace("alpaca", _from_mean(19, 0.6), _from_mean(58, 0.8), 10.0, 1.0),
    )
}


def length(random: Random, shape: tuple[float, float], scale: float, low: int, high: int) -> int:
    """A log-normal length divided by `scale`, within bounds."""
    mu, sigma = shape
    return max(low, min(high, round(random.lognormvariate(mu, sigma) / scale)))


def gap(random: Random, rate: float, cv: float) -> float:
    """Seconds to the next arrival: gamma-distributed with this coefficient of variation."""
    shape = 1.0 / (cv * cv)
    return random.gammavariate(shape, 1.0 / (rate * shape))
