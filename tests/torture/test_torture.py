"""The short form of `quire torture`, and the judge that says what it found."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cluster.torture.fires import Fire
from cluster.torture.report import Verdict
from cluster.torture.run import Torture, torture
from cluster.torture.streams import Pause, Seen


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


@pytest.mark.timeout(600)
def test_streams_survive_kills_and_stops(seed: int) -> None:
    began = time.monotonic()
    verdict = torture(Torture(seed, minutes=1.5, num_streams=12, num_asks=20, every_s=4.0), print)
    print("\n".join(verdict.lines()))
    assert verdict.holds, "\n".join(verdict.lines())
    assert len(verdict.fires) >= 5, f"{len(verdict.fires)} fires in {time.monotonic() - began:.0f} s"
