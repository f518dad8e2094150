"""The autoscaler in virtual time: it follows load, keeps its bounds, and does not flap."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from cluster.errors import ConfigError
from cluster.lifecycle.autoscale import Autoscaler, ModelPressure, Policy, ScaleBounds

START_S = 8
SEATS = 10.0


class Model:
    """A served model in virtual time: each worker does SEATS of work a second, a new one comes up after START_S."""

    def __init__(self, least: int, most: int, workers: int, policy: Policy | None = None) -> None:
        self.scaler = Autoscaler(ScaleBounds(least, most), policy)
        self.workers = workers
        self.starting: list[int] = []
        self.waiting = 0.0
        self.waited = 0.0
        self.history: list[int] = []

    def run(self, seconds: int, load: Callable[[int], float], begin: int = 0) -> list[int]:
        """`load(t)`: how many seats are wanted. Returns the changes of size that were decided."""
        changes = []
        for now in range(begin, begin + seconds):
            while self.starting and self.starting[0] <= now:
                self.starting.pop(0)
                self.workers += 1
            capacity = SEATS * self.workers
            wanted = load(now)
            self.waiting = max(0.0, self.waiting + (wanted - capacity) * 0.1)
            self.waited = self.waited + 1 if self.waiting else 0.0
            seen = ModelPressure(self.workers, math.ceil(self.waiting), self.waited, min(1.0, wanted / capacity))
            decision = self.scaler.decide(seen, float(now))
            change = decision.workers - self.workers
            if change and not self.starting:
                assert decision.why
                changes.append(change)
                if change > 0:
                    self.starting += [now + START_S] * change
                else:
                    self.workers += change
            self.history.append(self.workers)
        return changes


def test_it_grows_under_load_and_shrinks_after_it() -> None:
    model = Model(1, 20, 1)
    grown = model.run(150, lambda now: 35.0)
    assert 4 <= model.workers <= 8 and all(change > 0 for change in grown)
    assert model.waiting == 0.0
    shrunk = model.run(1500, lambda now: 2.0, begin=150)
    assert model.workers == 1 and all(change == -1 for change in shrunk)


@pytest.mark.parametrize("period", [2, 7, 30, 61, 240])
def test_load_that_swings_around_the_marks_changes_little(period: int) -> None:
    """Whatever the rhythm, three hours of it make a handful of changes, none in each direction by turns."""
    model = Model(1, 6, 3)
    changes = model.run(10_800, lambda now: 24.0 + 6.0 * math.sin(2 * math.pi * now / period))
    assert len(changes) <= 4, changes
    turns = sum(1 for one, other in pairwise(changes) if (one > 0) != (other > 0))
    assert turns <= 1, changes


def test_a_spike_that_is_over_soon_changes_nothing() -> None:
    model = Model(1, 6, 2)
    assert model.run(200, lambda now: 40.0 if now % 100 < 3 else 12.0) == []


def test_a_long_queue_brings_several_at_once_but_never_more_than_the_bound() -> None:
    scaler = Autoscaler(ScaleBounds(1, 5))
    sizes = [scaler.decide(ModelPressure(4, 400, 30.0, 1.0), float(now)).workers for now in range(10)]
    assert sizes.index(5) == 5 and max(sizes) == 5
    doubled = Autoscaler(ScaleBounds(1, 50))
    assert [doubled.decide(ModelPressure(4, 400, 30.0, 1.0), float(now)).workers for now in range(6)][-1] == 8


def test_bounds_are_kept_whatever_is_seen() -> None:
    for workers, expected in ((0, 2), (1, 2), (7, 4)):
        assert Autoscaler(ScaleBounds(2, 4)).decide(ModelPressure(workers, 0, 0.0, 0.0), 0.0).workers == expected
    full = Model(1, 3, 3)
    assert full.run(400, lambda now: 100.0) == [] and set(full.history) == {3}
    idle = Model(2, 3, 2)
    assert idle.run(400, lambda now: 0.0) == []


def test_nobody_leaves_while_the_others_would_be_busy() -> None:
    # 60 % of two workers is 120 % of one.
    assert Model(1, 4, 2).run(2_000, lambda now: 12.0) == []


@pytest.mark.parametrize("wrong", ["3", "4:2", "0:3", "a:b", "1:9999", "-1:2"])
def test_bounds_that_cannot_be_are_one_line(wrong: str) -> None:
    with pytest.raises(ConfigError, match="give LEAST:MOST workers"):
        ScaleBounds.read(wrong)
    assert ScaleBounds.read("") is None and ScaleBounds.read("2:8") == ScaleBounds(2, 8)
