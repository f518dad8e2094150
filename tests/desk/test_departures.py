"""What a desk remembers of who has left, for a scheduler that knows nothing: what, how long, and as it was last."""

from __future__ import annotations

import numpy as np

from cluster.desk import departures
from cluster.desk.departures import Departures
from cluster.desk.desk import Desk
from cluster.desk.rows import RowResident
from cluster.desk.words import DeskSettings, Drawn
from cluster.messages import Departed, Drop, Plan, Reason, Reroute, Start, ids
from cluster.sampling import SamplingParams
from tests.desk.test_forks import JOINED


def start_of(seq: int, name: str, *, max_tokens: int = 3, num_prompt: int = 3, width: int | None = None) -> Start:
    sampling = SamplingParams(n=1, temperature=1.0, seed=1, max_tokens=max_tokens, eos_token_ids=(5,), beam_width=width)
    tokens, table = ids(range(10, 10 + num_prompt)), ids((4 * (seq % 4), 4 * (seq % 4) + 1))
    return Start(seq, name, 0, 1, "g0", seq, tokens, num_prompt, 0, table, 8, seq, sampling, b"s", b"", grace_s=7.0)


def step(desk: Desk, token: int) -> None:
    flight = desk.launched(desk.next())
    count = len(flight.rows)
    desk.retire(flight, Drawn(np.full(count, token), np.zeros(count, np.bool_), np.zeros((0, count), np.int64)))
    desk.check()


def test_who_ended_and_who_was_dropped_is_told_with_all_its_tokens_to_a_new_scheduler() -> None:
    desk = Desk(JOINED, DeskSettings(token_budget=16, vocab_size=100))
    ended, dropped = start_of(1, "ended"), start_of(2, "dropped", max_tokens=9)
    desk.obey(Plan("w0", 1, epoch=1, number=1, ahead=2, result=0, starts=(ended, dropped)))
    assert not desk.hold_for(1).departed
    for _ in range(3):
        step(desk, 50)
    # The last gateway that was told of it counts.
    plan = Plan("w0", 1, epoch=1, number=1, ahead=2, result=0, reroutes=(Reroute(2, "g9", 77),))
    desk.obey(plan)
    desk.obey(Plan("w0", 1, epoch=1, number=2, ahead=2, result=0, drops=(Drop(2),)))
    one, other = desk.hold_for(2).departed
    assert (one.seq, one.reason, one.has_ended) == (1, Reason.LENGTH, True)
    assert one.start.tokens == ids((10, 11, 12, 50, 50, 50)) and one.start.table == ids()
    assert (other.reason, other.has_ended, len(other.start.tokens)) == (Reason.DROPPED, False, 6)
    assert (other.start.gateway, other.start.route, other.start.grace_s) == ("g9", 77, 7.0)
    # It is told to each that comes.
    assert desk.hold_for(3).departed == (one, other)


def noted(kept: Departures, start: Start, reason: Reason, num_outputs: int) -> tuple[Departed, ...]:
    kept.note(RowResident(start.seq, start.index, start), reason, ids([*start.tokens, *[50] * num_outputs]))
    return kept.told()


def test_only_what_somebody_could_go_on_with_is_remembered() -> None:
    kept = Departures()
    assert noted(kept, start_of(1, "failed"), Reason.FAILED, 2) == ()
    assert noted(kept, start_of(2, "not begun"), Reason.DROPPED, 0) == ()
    assert noted(kept, start_of(3, "beams", width=2), Reason.DROPPED, 2) == ()
    (beams,) = noted(kept, start_of(4, "beams", width=2), Reason.STOP, 2)
    assert len(beams.start.tokens) == 3, "of beams nobody knows which of them its client has read"
    # Of one sequence the last attempt.
    noted(kept, start_of(5, "again"), Reason.DROPPED, 1)
    assert [(one.seq, one.start.request_id) for one in noted(kept, start_of(6, "again"), Reason.LENGTH, 3)] == [
        (4, "beams"),
        (6, "again"),
    ]


def test_what_is_remembered_is_bounded_by_sequences_and_by_tokens() -> None:
    kept = Departures()
    for seq in range(1, 200):
        told = noted(kept, start_of(seq, f"r{seq}"), Reason.LENGTH, 3)
    assert [one.seq for one in told] == list(range(200 - departures.MAX_SEQUENCES, 200))
    long = departures.MAX_TOKENS // 3
    for seq in range(200, 210):
        told = noted(kept, start_of(seq, f"r{seq}", num_prompt=long), Reason.LENGTH, 3)
    assert [one.seq for one in told] == [208, 209]
    # One that is longer than all that is kept is kept alone.
    assert [one.seq for one in noted(kept, start_of(300, "r", num_prompt=4 * long), Reason.LENGTH, 1)] == [300]
