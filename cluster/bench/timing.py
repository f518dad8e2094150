"""Times competing ways of doing the same thing so that the ratio can be trusted: alternating, medians, bounded.

Benchmarks hand over callables; the rounds go through all of them in turn, so that a slow spell of the machine hits each
alike. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    before: Callable[[], object] | None = None,
    wait: Callable[[], object] | None = None,
) -> dict[str, float]:
    """The median seconds of one call of each candidate, over at least `min_rounds` alternating rounds.

    Rounds go on until `budget_s` is spent or `max_rounds` are done, after one round that does not count. `before` is
    called before each call, outside the time (to empty caches, say); `wait` after each, inside the time, for devices
    that run behind the caller's back.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    ends_at = None
    for number in range(-1, max_rounds):
        for name, call in candidates.items():
            if before is not None:
                before()
            started = time.perf_counter()
            call()
            if wait is not None:
                wait()
            if number >= 0:
                times[name].append(time.perf_counter() - started)
        if ends_at is None:
            ends_at = time.perf_counter() + budget_s
        elif number + 1 >= min_rounds and time.perf_counter() >= ends_at:
            break
    return {name: median(values) for name, values in times.items()}
