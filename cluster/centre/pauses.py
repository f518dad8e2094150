"""How long moved requests stood still, in steps of the replica that they left.

`Moves` says when its source had stopped one and by which plan its target goes on. The pause ends when the target has
obeyed that plan, which it tells just before the step that it then takes: that step is one that every token takes, and
not counted. Nothing is decided here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass

from cluster.centre.nouns import Replica
from cluster.messages import Result

# A pause that nobody sees.
SHORT = 3.0
BOUNDS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Standing:
    """One that goes on with this plan of its target, which has not told that it obeys it."""

    target: Replica
    plan: int
    stopped_at: float
    step_s: float


class Pauses:
    """Counts by bound, and the last ones as they were."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self.last: deque[float] = deque(maxlen=1000)
        # One entry more than bounds: what is above all of them.
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self._standing: list[Standing] = []

    def begin(self, target: Replica, stopped_at: float, step_s: float) -> None:
        """It goes on with the plan that is being written for its target."""
        self._standing.append(Standing(target, target.next_plan, stopped_at, step_s))

    def on_result(self, target: Replica, result: Result, now: float) -> None:
        standing, self._standing = self._standing, []
        for one in standing:
            if one.target is target and one.plan <= result.plan:
                self.end(one.stopped_at, one.step_s, now)
            else:
                self._standing.append(one)

    def end(self, stopped_at: float, step_s: float, now: float) -> None:
        """Its first step at the target begins."""
        steps = (now - stopped_at) / step_s if step_s else 0.0
        self.last.append(steps)
        self.counts[bisect_left(BOUNDS, steps)] += 1
        self.total += steps
        self._counters[f"moved within {SHORT:g} steps"] += steps <= SHORT

    def lose_replica(self, target: Replica) -> None:
        self._standing = [one for one in self._standing if one.target is not target]
