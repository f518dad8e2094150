"""The short form of `quire torture`, and the judge that says what it found."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import ClassVar

import pytest

from cluster.errors import Unavailable
from cluster.torture.asks import StreamAsk
from cluster.torture.fires import Fire, Fires
from cluster.torture.report import Verdict
from cluster.torture.run import Torture, torture
from cluster.torture.streams import Pause, Seen
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub


def test_a_verdict_fails_for_whatever_is_lost_wrong_or_left(tmp_path: Path) -> None:
    fire = Fire(10.0, ("worker",), 0.0)
    good = Seen(equal=3, pauses=[Pause("greedy", 9.9, 1.5), Pause("beams", 9.0, 9.0), Pause("greedy", 20.0, 1.0)])
    verdict = Verdict(good, [fire], "", [], 7)
    assert verdict.holds
    # Only the pause in which it burned is its doing, and beams say nothing on their way.
    (row,) = verdict.rows()
    assert (row["fire"], row["streams"], row["longest"]) == ("worker killed", 1, 1.5)
    verdict.write(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["holds"] is True
    for seen, failure, left in (
        (Seen(equal=3, wrong=["x"]), "", []),
        (Seen(equal=3, lost=["x"]), "", []),
        (Seen(equal=3), "nobody came back", []),
        (Seen(equal=3), "", ["a pool"]),
        (Seen(), "", []),
    ):
        assert not Verdict(seen, [fire], failure, left, 7).holds
    unburnt = Verdict(Seen(equal=3), [], "", [], 7)
    assert not unburnt.holds and "nothing burned" in "\n".join(unburnt.lines())


class EmptyHouse:
    """Nobody was ever there, and nobody can say who is."""

    wanted: ClassVar = {"worker": 1, "gateway": 1}
    gateways: ClassVar = ("127.0.0.1:1",)
    http, token, tls = (), None, None

    def asks(self, seed: int, num: int) -> list[StreamAsk]:
        return []

    def pids(self, kind: str) -> list[int]:
        raise KeyError(kind)

    def admin(self) -> AdminServiceStub:
        raise Unavailable("there is none")


def test_fires_that_go_out_by_a_mistake_are_a_failure() -> None:
    fires = Fires(EmptyHouse(), 1, 0.01, print)
    fires.start()
    until = time.monotonic() + 20
    while not fires.failure and time.monotonic() < until:
        time.sleep(0.01)
    fires.stop()
    assert "the fires went out: KeyError" in fires.failure


def test_a_verdict_on_times_fails_for_a_long_pause_and_a_late_first_token() -> None:
    fires = [Fire(10.0, ("gateway",), 0.0), Fire(50.0, ("host pool", "worker"), 0.0), Fire(90.0, ("worker",), 8.0)]
    # What two deaths at once and a stop cost is told, and not judged.
    mild = [Pause("one", 9.9, 1.9), Pause("one", 49.9, 9.0), Pause("one", 89.9, 9.0)]
    assert Verdict(Seen(equal=1, pauses=mild, first_tokens=[(11.0, 4.9)]), fires, "", [], 7, judges_times=True).holds
    late = Verdict(Seen(equal=1, pauses=[Pause("one", 9.9, 2.1)]), fires, "", [], 7, judges_times=True)
    assert not late.holds and late.late == ["gateway killed: p99 2.10 s, at most 2 s"]
    slow = Verdict(Seen(equal=1, first_tokens=[(11.0, 5.1)]), fires, "", [], 7, judges_times=True)
    assert not slow.holds and "first token s, longest 5.10 s" in slow.late[0]
    assert Verdict(Seen(equal=1, first_tokens=[(11.0, 5.1)]), fires, "", [], 7).holds


def test_what_a_stop_costs_is_not_laid_to_a_death_before_or_behind_it() -> None:
    fires = [Fire(10.0, ("worker",), 0.0), Fire(14.0, ("scheduler",), 8.0), Fire(25.0, ("gateway",), 0.0)]
    held = [(13.0, 0.5), (13.9, 9.0), (15.0, 8.0), (25.5, 1.0)]
    pauses = [Pause("one", 9.9, 1.0), Pause("one", 14.1, 12.0), Pause("one", 24.9, 1.0)]
    verdict = Verdict(Seen(equal=1, pauses=pauses, first_tokens=held), fires, "", [], 7, judges_times=True)
    assert verdict.holds, verdict.late
    rows = {row["fire"]: (row["longest"], row["first token s, longest"]) for row in verdict.rows()}
    assert rows["scheduler stopped for 8 s"] == (12.0, 8.0) and rows["gateway killed"] == (1.0, 1.0)
    # A death is judged by all that it held up before anything else burned.
    late = Seen(equal=1, pauses=[Pause("one", 9.9, 20.0)], first_tokens=[(10.0, 30.0), (25.0, 5.1)])
    assert Verdict(late, fires, "", [], 7, judges_times=True).late == [
        "gateway killed: first token s, longest 5.10 s, at most 5 s",
        "worker killed: p99 20.00 s, at most 2 s",
    ]


@pytest.mark.timeout(600)
def test_streams_survive_kills_and_stops(seed: int) -> None:
    began = time.monotonic()
    verdict = torture(Torture(seed, minutes=1.5, num_streams=12, num_asks=20, every_s=4.0), print)
    print("\n".join(verdict.lines()))
    assert verdict.holds, "\n".join(verdict.lines())
    assert len(verdict.fires) >= 5, f"{len(verdict.fires)} fires in {time.monotonic() - began:.0f} s"


@pytest.mark.timeout(600)
def test_paced_streams_survive_kills_and_stops(seed: int) -> None:
    """Without Ray and model; what the times are depends on who else is on this machine, and is told."""
    verdict = torture(Torture(seed, minutes=0.5, num_asks=20, every_s=2.0, is_paced=True), print)
    print("\n".join(verdict.lines()))
    verdict.late.clear()
    assert verdict.holds, "\n".join(verdict.lines())
    assert verdict.fires and set(verdict.seen.by_kind) == {"one", "three"}
