"""Where one scheduler ends: what is measured grows with the cluster, and sizes that take too long are said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.bench import __main__ as bench
from cluster.bench.limits import Watched, owned_bytes
from cluster.messages import Event
from cluster.settings import SchedulerSettings
from cluster.sim.capacity import Capacity, PaperSite
from cluster.sim.costs import machine
from cluster.sim.load import ArrivingLoad
from cluster.sim.traces import TRACES


def test_sizes_stand_beside_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = ["limits", "--workers", "2", "8", "--seconds", "3", "--rate", "4", "--block-size", "16", "64"]
    assert bench.run([*argv, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    (rows,) = found["tables"].values()
    assert [(row["block"], row["workers"]) for row in rows] == [(16, 2), (16, 8), (64, 2), (64, 8)]
    small, large, _, coarse = rows
    assert 2 < large["output tokens/s"] / small["output tokens/s"] < 8
    assert large["scheduler MB"] / small["scheduler MB"] == pytest.approx(4, rel=0.1)
    assert large["scheduler MB"] / coarse["scheduler MB"] > 3
    assert all(row["turn p50 ms"] <= row["turn p99 ms"] and row["bytes of a plan"] > 20 for row in rows)
    assert len(found["plots"]) == 5 and len(found["plots"][0]["lines"]) == 2


def test_a_size_that_takes_too_long_is_said_and_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = ["limits", "--workers", "2", "1000", "--seconds", "2", "--rate", "1", "--minutes", "0.05"]
    assert bench.run([*argv, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["workers"] for row in next(iter(found["tables"].values()))] == [2]
    assert found["notes"][0].startswith("1,000 workers in blocks of 16 would take")


def test_every_turn_is_told_with_what_it_took() -> None:
    told: list[tuple[float, int]] = []

    def watch(now: float, seconds: float, events: Sequence[Event], orders: Sequence[object]) -> None:
        assert seconds >= 0 and events
        told.append((now, len(orders)))

    site = PaperSite(1, machine("h100", "1b", 16), max_model_len=1024)
    load = ArrivingLoad(TRACES["alpaca"], 5.0, 1024, 1)
    run = Capacity(site, load, SchedulerSettings(), until_s=None, num_requests=5, watch=watch)
    outcome = run.run()
    assert outcome.finished == 5 and sum(count for _, count in told) >= 10
    assert [now for now, _ in told] == sorted(now for now, _ in told)
    watched = Watched(10.0)
    watched(9.0, 1.0, [], [])
    watched(11.0, 2.0, [], [])
    assert watched.turns == [2.0]


def test_bytes_are_those_of_all_that_is_reached() -> None:
    class Holder:
        def __init__(self) -> None:
            self.shared = bytearray(1_000_000)
            self.twice = [self.shared, bytearray(500_000)]

    assert 1_500_000 < owned_bytes(Holder()) < 1_510_000
