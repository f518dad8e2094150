"""Demand of four times the device pool for a while, with a host pool that is full, dies and comes back."""

from __future__ import annotations

from statistics import median

import pytest

from tests.bench.swap import storm


@pytest.mark.parametrize("seconds", [15, pytest.param(120, marks=pytest.mark.trust)], ids=["short", "two minutes"])
@pytest.mark.timeout(400)
def test_a_storm_slows_things_down_and_nothing_else(seconds: int, seed: int) -> None:
    found = storm(seconds, seed)
    assert not found.storm.problems and not found.fitting.problems, (found.storm.problems, found.fitting.problems)
    assert len(found.storm.took_s) >= 8
    assert not found.left, found.left
    assert found.counters["host pools lost"] == 1
    assert found.counters["preempted swap"] and found.counters["transfer read done"], found.counters
    assert found.counters["out of host memory"], found.counters
    assert median(found.storm.preemptions) <= 3, sorted(found.storm.preemptions)
