"""How many workers a model should have: grows under pressure that lasts, shrinks after a long calm, within bounds.

A pure decision over figures and time, so that it is tested in virtual time; `cluster/lifecycle/autoscale_loop.py`
carries it out. Hysteresis three ways: up and down have thresholds far apart, each must hold for a while, and after a
change nothing is decided until the cluster has settled. A worker only leaves if the others would then stay well below
the upper mark.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScaleBounds:
    """The least and the most workers of each model."""

    least: int
    most: int

    @staticmethod
    def read(text: str) -> ScaleBounds | None:
        """From "2:8"; None for "", which is off. Raises `ConfigError`."""
        if not text:
            return None
        least, colon, most = text.partition(":")
        if not (colon and least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most) <= 4096):
            raise ConfigError(f"autoscale is {text!r}; give LEAST:MOST workers, such as 1:4, or leave it out")
        return ScaleBounds(int(least), int(most))


@dataclass(frozen=True, slots=True)
class ModelPressure:
    """What is seen of one model at one moment."""

    workers: int
    num_waiting: int
    oldest_wait_s: float
    # The share of blocks, or of places in batches, that is held: the larger of the two. Cached blocks are not held.
    used: float


@dataclass(frozen=True, slots=True)
class Policy:
    """Marks and patience. Seconds."""

    used_high: float = 0.85
    used_low: float = 0.5
    wait_high_s: float = 2.0
    grow_after_s: float = 5.0
    shrink_after_s: float = 120.0
    settle_s: float = 20.0
    # Grows by so many at once at most, as a share of what is there.
    max_growth: float = 1.0
    waiting_per_worker: int = 8
    # A queue that has shrunk to this share meanwhile is being worked off, so nobody is called to help.
    draining: float = 0.9


@dataclass(frozen=True, slots=True)
class Decision:
    """`why` is empty where nothing changes."""

    workers: int
    why: str = ""


class Autoscaler:
    """Decides for one model. Called about once a second; it remembers since when pressure or calm have lasted."""

    def __init__(self, bounds: ScaleBounds, policy: Policy | None = None) -> None:
        self._bounds = bounds
        self._policy = policy or Policy()
        self._high_since: float | None = None
        self._low_since: float | None = None
        self._longest_queue = 0
        self._settled_at = 0.0

    def decide(self, seen: ModelPressure, now: float) -> Decision:
        if seen.workers < self._bounds.least:
            return self._change(self._bounds.least, f"{seen.workers} workers are fewer than the least", now)
        if seen.workers > self._bounds.most:
            return self._change(self._bounds.most, f"{seen.workers} workers are more than the most", now)
        high, low = self._is_high(seen), self._is_low(seen)
        if self._high_since is None or self._is_draining(seen):
            # The workers that are there are catching up: the clock starts again with the shorter queue.
            self._high_since, self._longest_queue = None, 0
        self._longest_queue = max(self._longest_queue, seen.num_waiting)
        self._high_since = _since(self._high_since, high, now)
        self._low_since = _since(self._low_since, low, now)
        if now < self._settled_at:
            return Decision(seen.workers)
        policy = self._policy
        if self._high_since is not None and now - self._high_since >= policy.grow_after_s:
            if seen.workers < self._bounds.most:
                return self._change(self._grown(seen), self._why_high(seen), now)
        elif self._low_since is not None and now - self._low_since >= policy.shrink_after_s:
            why = f"{100 * seen.used:.0f} % is used and nothing waits since {now - self._low_since:.0f} s"
            return self._change(max(self._bounds.least, seen.workers - 1), why, now)
        return Decision(seen.workers)

    def _is_high(self, seen: ModelPressure) -> bool:
        waits = seen.num_waiting > 0 and seen.oldest_wait_s >= self._policy.wait_high_s
        return waits or seen.used >= self._policy.used_high

    def _is_draining(self, seen: ModelPressure) -> bool:
        return seen.num_waiting < self._longest_queue * self._policy.draining

    def _is_low(self, seen: ModelPressure) -> bool:
        if seen.num_waiting or seen.workers < 2:
            return False
        # What one worker less would mean for the others.
        return seen.used * seen.workers / (seen.workers - 1) <= self._policy.used_low

    def _why_high(self, seen: ModelPressure) -> str:
        if seen.num_waiting:
            return f"{seen.num_waiting} requests wait, the oldest for {seen.oldest_wait_s:.0f} s"
        return f"{100 * seen.used:.0f} % is used"

    def _grown(self, seen: ModelPressure) -> int:
        policy = self._policy
        wanted = max(1, -(-seen.num_waiting // policy.waiting_per_worker))
        step = min(wanted, max(1, int(seen.workers * policy.max_growth)))
        return min(self._bounds.most, seen.workers + step)

    def _change(self, workers: int, why: str, now: float) -> Decision:
        self._high_since = self._low_since = None
        self._settled_at = now + self._policy.settle_s
        return Decision(workers, why)


def _since(before: float | None, holds: bool, now: float) -> float | None:
    return (now if before is None else before) if holds else None
