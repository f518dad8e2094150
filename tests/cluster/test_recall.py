"""A gateway and the scheduler died at once: what a new scheduler still knows of what had left its replica just then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Accepted,
    Adopt,
    Closed,
    Departed,
    Done,
    Event,
    Find,
    Found,
    GatewayState,
    OpenRequest,
    Order,
    Reason,
    Refused,
    Replay,
    ReplicaState,
    Resident,
    Seal,
    Sealed,
    Start,
    TurnAway,
    ids,
)
from cluster.settings import SchedulerSettings
from tests.cluster.test_adoption import at, of, running
from tests.cluster.test_scheduler import Driver, joined, starts

SETTINGS = SchedulerSettings(rebuild_s=2.0, orphan_grace_s=10.0)


def left(start: Start, reason: Reason, num_outputs: int, index: int = 0) -> Departed:
    """A sequence that has left its replica, as `cluster/desk/departures.py` tells it."""
    told = replace(start, tokens=ids([*start.tokens[:40], *[7] * num_outputs]), table=ids(), forks=(), grace_s=30.0)
    return Departed(start.seq + index, index, told, reason)


def new_scheduler(*departed: Departed, residents: tuple[Resident, ...] = ()) -> Scheduler:
    """One that has heard its replica, and nobody else, for as long as it listens."""
    new = Scheduler(SETTINGS, epoch=2)
    new.turn([ReplicaState(joined("r0"), residents, (), (), departed)], 10.0)
    new.turn([], 12.0)
    return new


def turn(new: Scheduler, now: float, *events: Event) -> list[Order]:
    orders = new.turn(list(events), now)
    new.check()
    return orders


def test_what_had_ended_is_told_again_to_who_comes_back_for_it() -> None:
    asked, start = running(Driver())
    new = new_scheduler(left(start, Reason.LENGTH, 30))
    assert not new.requests and not new.unclosed, "nobody has asked for it, and most of it is over"
    orders = turn(new, 15.0, Adopt(at("b", 1, asked)))
    (replay,), (done,) = of(Replay, orders), of(Done, orders)
    assert isinstance(replay, Replay) and isinstance(done, Done) and len(of(Accepted, orders)) == 1
    assert (replay.gateway, replay.tokens.ids, replay.tokens.reason) == ("b", ids([7] * 30), Reason.LENGTH)
    assert new.unclosed["t/q"].tenant.name == "t" and new.counters["requests recalled"] == 1


def test_what_waited_to_start_again_goes_on_from_what_it_had() -> None:
    asked, start = running(Driver())
    new = new_scheduler(left(start, Reason.DROPPED, 12))
    (seal,) = of(Seal, turn(new, 15.0, Adopt(at("b", 1, asked))))
    assert isinstance(seal, Seal) and seal.gateway == "b"
    again = starts(turn(new, 15.1, Sealed("t/q", "b", 1, seal.attempt, (ids(),), (Reason.NONE,))))["t/q"]
    assert len(again.tokens) == 40 + 12 and again.attempt > start.attempt


def test_beams_that_had_ended_are_searched_for_again() -> None:
    driver = Driver()
    asked, start = running(driver, n=2)
    sampling = replace(asked.sampling, beam_width=2)
    asked, start = replace(asked, sampling=sampling), replace(start, sampling=sampling)
    new = new_scheduler(left(start, Reason.LENGTH, 0))
    orders = turn(new, 15.0, Adopt(at("b", 1, asked)))
    (seal,) = of(Seal, orders)
    assert isinstance(seal, Seal)
    nothing = (ids(), ids()), (Reason.NONE, Reason.NONE)
    assert len(starts(turn(new, 15.1, Sealed("t/q", "b", 1, seal.attempt, *nothing)))["t/q"].tokens) == 40


def test_of_a_request_that_runs_the_sequences_that_had_ended_are_told_as_well() -> None:
    asked, start = running(Driver(), n=2)
    tokens = ids([*start.tokens, 7, 7])
    fork = start.forks[0]
    still = Resident(fork.seq, 1, start, tokens, len(tokens) - 1, fork.table, fork.lease_end)
    new = new_scheduler(left(start, Reason.STOP, 3), residents=(still,))
    request = new.requests["t/q"]
    assert not request.is_partial and [len(one.outputs) for one in request.sequences] == [3, 2]
    (replay,) = of(Replay, turn(new, 15.0, Adopt(at("b", 1, asked))))
    assert isinstance(replay, Replay) and (replay.tokens.index, replay.tokens.reason) == (0, Reason.STOP)
    # What had ended of another attempt is not of this one.
    other = left(replace(start, attempt=5), Reason.STOP, 3)
    assert new_scheduler(other, residents=(still,)).requests["t/q"].is_partial


@pytest.mark.parametrize("first", ["replica", "gateway"])
def test_a_gateway_that_came_to_it_later_is_told_what_had_ended_before(first: str) -> None:
    """Its worker told another one of it, and the scheduler that passed it on is dead."""
    asked, start = running(Driver(), n=2)
    tokens, fork = ids([*start.tokens, 7, 7]), start.forks[0]
    still = Resident(fork.seq, 1, start, tokens, len(tokens) - 1, fork.table, fork.lease_end)
    nothing = (ids(), ids()), (Reason.NONE, Reason.NONE)
    told = [
        ReplicaState(joined("r0"), (still,), (), (), (left(start, Reason.STOP, 3),)),
        GatewayState("b", (OpenRequest(at("b", 5, asked), 1, *nothing, turn=1 << 20),)),
    ]
    new = Scheduler(SETTINGS, epoch=2)
    orders = [order for event in told[:: 1 if first == "replica" else -1] for order in turn(new, 10.0, event)]
    (replay,) = of(Replay, orders)
    assert isinstance(replay, Replay) and (replay.gateway, replay.tokens.route) == ("b", 5)
    assert (replay.tokens.index, replay.tokens.ids, replay.tokens.reason) == (0, ids([7] * 3), Reason.STOP)


def test_the_last_attempt_counts_whichever_replica_tells_of_it() -> None:
    asked, start = running(Driver())
    later = replace(start, seq=start.seq + 9, attempt=2)
    for first, second in ((start, later), (later, start)):
        new = new_scheduler(left(first, Reason.DROPPED, 4 + 4 * first.attempt))
        new.turn(
            [ReplicaState(joined("r1"), (), (), (), (left(second, Reason.DROPPED, 4 + 4 * second.attempt),))], 13.0
        )
        new.turn([], 16.0)
        turn(new, 17.0, Adopt(at("b", 1, asked)))
        assert len(new.requests["t/q"].sequences[0].outputs) == 12


def test_nothing_is_recalled_before_everybody_had_time_to_tell_nor_for_ever_nor_for_another_request() -> None:
    asked, start = running(Driver())
    state = ReplicaState(joined("r0"), (), (), (), (left(start, Reason.LENGTH, 30),))
    new = Scheduler(SETTINGS, epoch=2)
    turn(new, 10.0, state, Adopt(at("b", 1, asked)))
    assert not new.unclosed
    # Its gateway may be late, and knows what it has sent.
    turn(new, 11.0, GatewayState("a", (OpenRequest(asked, 1, (ids([7] * 30),), (Reason.LENGTH,)),)))
    assert new.requests["t/q"].state.name == "SEALING"
    # A client waits no longer than that, and another of its name asks for something else.
    new = Scheduler(SETTINGS, epoch=2)
    turn(new, 10.0, state, Adopt(at("b", 1, asked)))
    assert of(Replay, turn(new, 12.0))
    new = new_scheduler(left(start, Reason.LENGTH, 30))
    turn(new, 15.0, Adopt(at("b", 1, replace(asked, prompt=ids(range(1, 41))))))
    assert not new.unclosed
    new = new_scheduler(left(start, Reason.LENGTH, 30))
    (refused,) = of(Refused, turn(new, 10.0 + 2.0 + 30.0 + 0.1, Adopt(at("b", 2, asked))))
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND"


@pytest.mark.parametrize("first", ["replica", "gateway"])
def test_what_a_gateway_has_told_of_is_not_recalled_once_it_has_ended(first: str) -> None:
    """An attempt before, of another replica, may have had other tokens."""
    asked, start = running(Driver())
    outputs, ends = (ids([7] * 30),), (Reason.LENGTH,)
    of_gateway = GatewayState("a", (OpenRequest(asked, start.attempt + 1, outputs, ends),))
    of_replica = ReplicaState(joined("r0"), (), (), (), (left(start, Reason.DROPPED, 12),))
    new = Scheduler(SETTINGS, epoch=2)
    turn(new, 10.0, of_gateway if first == "gateway" else of_replica)
    turn(new, 10.1, of_replica if first == "gateway" else of_gateway)
    (seal,) = of(Seal, turn(new, 12.1))
    assert isinstance(seal, Seal)
    turn(new, 12.2, Sealed("t/q", "a", 1, seal.attempt, outputs, ends), Closed("t/q", "a", 1))
    assert not new.requests and not new.unclosed
    orders = turn(new, 12.3, Adopt(at("b", 1, asked)))
    orders += turn(new, 30.0)
    assert not of(Accepted, orders) and of(Refused, orders) and not new.books.departed


def test_by_its_name_alone_it_is_not_found_and_is_kept_for_its_client_who_says_it_whole() -> None:
    asked, start = running(Driver())
    new = new_scheduler(left(start, Reason.LENGTH, 30))
    turn(new, 15.0, Find("t/q", "b", 7))
    orders = turn(new, 17.0)
    (refused,) = of(Refused, orders)
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND" and not of(Found, orders)
    assert of(Replay, turn(new, 17.1, Adopt(at("b", 8, asked))))
    # One that nobody comes back for is over with the grace that its client wished.
    new = new_scheduler(left(start, Reason.LENGTH, 30))
    turn(new, 15.0, Find("t/q", "b", 7))
    assert new.unclosed
    turn(new, 46.0)
    assert not new.unclosed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"index": 1}, "index is 1"),
        ({"reason": Reason.NONE}, "without a reason"),
        ({"seq": 0}, "seq is 0"),
        ({"num": 31}, "71 tokens, and 30"),
        ({"count": 1025}, "1,025 sequences"),
    ],
)
def test_a_replica_that_remembers_what_cannot_be_is_turned_away(change: dict[str, int], said: str) -> None:
    _, start = running(Driver())
    one = left(start, Reason.LENGTH, change.pop("num", 30))
    departed = (replace(one, **{key: value for key, value in change.items() if key != "count"}),)
    state = ReplicaState(joined("r0"), (), (), (), departed * change.get("count", 1))
    (turned,) = of(TurnAway, Scheduler(SETTINGS, epoch=2).turn([state], 10.0))
    assert isinstance(turned, TurnAway) and said in turned.detail
