"""From records of requests to the figures of a run: percentiles, throughput, goodput under limits.

Pure arithmetic over what the client processes noted; the benchmark prints it, the page draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Limits:
    """A request is good if its first token and its mean inter-token time stay within these. Seconds; None: no limit."""

    first_s: float | None
    gap_s: float | None

    def holds(self, record: dict[str, Any]) -> bool:
        if record["error"] or record["first"] < 0:
            return False
        first_ok = self.first_s is None or record["first"] - record["due"] <= self.first_s
        return first_ok and (self.gap_s is None or mean_gap(record) <= self.gap_s)


@dataclass(frozen=True, slots=True)
class ServeFigures:
    """One run. Times in seconds; arrays hold one entry per request, or per token for `gaps`."""

    name: str
    span_s: float
    num_sent: int
    num_failed: int
    num_good: int
    num_prompt: int
    num_cached: int
    num_output: int
    first: Floats
    gaps: Floats
    whole: Floats
    late: Floats
    cores: float  # of the load generator itself

    @property
    def output_per_s(self) -> float:
        return self.num_output / self.span_s

    @property
    def requests_per_s(self) -> float:
        return len(self.whole) / self.span_s

    @property
    def good_per_s(self) -> float:
        return self.num_good / self.span_s


def mean_gap(record: dict[str, Any]) -> float:
    total: float = sum(seconds * count for seconds, count in record["gaps"])
    return total / max(1, sum(int(count) for _, count in record["gaps"]))


def figures(
    name: str, records: Sequence[dict[str, Any]], warm_up_s: float, limits: Limits, cores: float
) -> ServeFigures:
    """Of requests that were due after the warm-up. The span runs from there to the last end; a request counts from
    when it was due, so that a generator that falls behind does not flatter the server."""
    counted = [record for record in records if record["due"] >= warm_up_s]
    done = [record for record in counted if not record["error"]]
    ends = [record["end"] for record in counted]
    span_s = max(1e-9, max(ends, default=0.0) - warm_up_s)
    gaps = [(seconds, count) for record in done for seconds, count in record["gaps"]]
    return ServeFigures(
        name=name,
        span_s=span_s,
        num_sent=len(counted),
        num_failed=len(counted) - len(done),
        num_good=sum(limits.holds(record) for record in done),
        num_prompt=sum(record["num_prompt"] for record in done),
        num_cached=sum(record["cached"] for record in done),
        num_output=sum(record["num_tokens"] for record in done),
        first=np.array([record["first"] - record["due"] for record in done if record["first"] >= 0]),
        gaps=np.repeat([seconds for seconds, _ in gaps], [count for _, count in gaps]) if gaps else np.zeros(0),
        whole=np.array([record["end"] - record["due"] for record in done]),
        late=np.array([record["sent"] - record["due"] for record in counted]),
        cores=cores,
    )


def percentiles(values: Floats) -> dict[int, float]:
    """Zero where nothing was measured."""
    if not len(values):
        return dict.fromkeys(PERCENTILES, 0.0)
    found = np.percentile(values, PERCENTILES)
    return {each: float(value) for each, value in zip(PERCENTILES, found, strict=True)}


def under_way(records: Sequence[dict[str, Any]], num_points: int = 200) -> tuple[Floats, Floats, Floats]:
    """Over the run: times, requests under way, and output tokens a second (spread evenly over each request)."""
    end = max((record["end"] for record in records), default=1.0)
    times = np.linspace(0.0, end, num_points)
    step = times[1] - times[0]
    open_now, rate = np.zeros(num_points), np.zeros(num_points)
    for record in records:
        open_now += (times >= record["sent"]) & (times <= record["end"])
        if record["first"] >= 0:
            inside = (times >= record["first"] - step / 2) & (times <= record["last"] + step / 2)
            rate[inside] += record["num_tokens"] / max(1, inside.sum()) / step
    return times, open_now, rate
