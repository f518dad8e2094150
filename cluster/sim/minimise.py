"""Makes a failing history small: leaves out requests, faults and weather as long as it still fails in the same way.

The network's delays are drawn per stream and not per history, so that most of a history stays as it was when a request
is left out. What comes back fails by itself; it is a scenario like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cluster.sim.history import History, Judgement
from cluster.sim.network import Weather
from cluster.sim.workload import Scenario

T = TypeVar("T")


def kind_of(failure: str) -> str:
    """What makes two failures the same: their type, and the words before the first figure or name."""
    head = failure.split(" ")
    return " ".join(word for word in head[:8] if word.isalpha() or word.endswith(":"))[:40]


def minimise(scenario: Scenario, verdict: Judgement, max_runs: int = 200) -> tuple[Scenario, Judgement]:
    """The smallest scenario found in `max_runs` runs, and its verdict."""
    kind = kind_of(verdict.failure)
    best, best_verdict, runs = scenario, verdict, 0

    def fails(candidate: Scenario) -> bool:
        nonlocal best, best_verdict, runs
        if runs >= max_runs:
            return False
        runs += 1
        found = History(candidate).run()
        if not found.failure or kind_of(found.failure) != kind:
            return False
        best, best_verdict = candidate, found
        return True

    fails(replace(best, full_check=True))
    fails(replace(best, world=replace(best.world, weather=Weather())))
    _shrink(best.faults, lambda faults: fails(replace(best, faults=faults)))
    _shrink(best.warms, lambda warms: fails(replace(best, warms=warms)))
    _shrink(best.asks, lambda asks: fails(replace(best, asks=asks)))
    _shrink(best.faults, lambda faults: fails(replace(best, faults=faults)))
    for number in range(len(best.asks)):
        plain = replace(best.asks[number], cancel_after_s=None, deadline_s=None, priority=0, salt=b"", tenant="t0")
        fails(replace(best, asks=(*best.asks[:number], plain, *best.asks[number + 1 :])))
    return best, best_verdict


def _shrink(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> None:
    """Delta debugging: leaves out runs of items, halving their size, while what is left still fails."""
    kept = tuple(items)
    size = max(1, len(kept) // 2)
    while kept:
        at = 0
        while at < len(kept):
            candidate = kept[:at] + kept[at + size :]
            if fails(candidate):
                kept = candidate
            else:
                at += size
        if size == 1:
            return
        size //= 2
