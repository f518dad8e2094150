"""Models that come and go: closed ones take nothing new and are gone with their last replica; a name is one model."""

from __future__ import annotations

from array import array

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.hashing import BlockHasher
from cluster.messages import (
    Accepted,
    Advances,
    CloseModel,
    Done,
    Drain,
    HostPoolJoined,
    HostPoolLost,
    Order,
    Plan,
    Reason,
    Refused,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Result,
    Seal,
    Sealed,
    Start,
    Submit,
    TurnAway,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings


def replica(
    name: str, model: str, incarnation: int = 1, *, digest: bytes = b"", block_size: int = 4, seats: int = 1
) -> ReplicaJoined:
    return ReplicaJoined(
        name, incarnation, "n0", model, 16, block_size, 64, "layout", seats, 64, 1000.0, 1e9, digest=digest
    )


def submit(name: str, model: str = "a", digest: bytes = b"", prompt: int = 4) -> Submit:
    tokens = ids(range(prompt))
    names = BlockHasher(b"key", digest, b"", 4).prompt(tokens) if digest else ()
    return Submit(name, "g", int(name), model, "t", tokens, names, sampled(), digest=digest)


def sampled() -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=8)


def kinds(orders: list[Order]) -> list[str]:
    return [type(order).__name__ for order in orders if not isinstance(order, Plan)]


def refusals(orders: list[Order]) -> list[Refused]:
    return [order for order in orders if isinstance(order, Refused)]


def test_a_closed_model_ends_what_it_has_and_takes_nothing_new() -> None:
    scheduler = Scheduler(SchedulerSettings())
    scheduler.turn([replica("r0", "a"), replica("r1", "b")], 0.0)
    # One seat: the first runs, the second waits.
    orders = scheduler.turn([submit("1"), submit("2")], 1.0)
    assert kinds(orders).count(Accepted.__name__) == 2
    scheduler.turn([CloseModel("a")], 2.0)
    (refused,) = refusals(scheduler.turn([submit("3")], 3.0))
    assert refused.code == "NOT_FOUND" and "is being unloaded" in refused.detail
    assert not refusals(scheduler.turn([submit("4", "b")], 3.0))
    assert {"1", "2", "4"} == set(scheduler.requests)
    # What waits still starts while the model has its replica; when that is gone, nobody could ever start it.
    told = {refused.request_id: refused for refused in refusals(scheduler.turn([ReplicaLost("r0", 1)], 4.0))}
    assert told["2"].code == "UNAVAILABLE" and "was unloaded" in told["2"].detail
    (refused,) = refusals(scheduler.turn([submit("5")], 5.0))
    assert refused.detail == "no model a is served here; there is b"
    scheduler.check()


def test_a_model_comes_back_after_it_was_unloaded_and_a_close_is_taken_back() -> None:
    scheduler = Scheduler(SchedulerSettings())
    scheduler.turn([replica("r0", "a")], 0.0)
    scheduler.turn([CloseModel("a"), CloseModel("a", on=False)], 1.0)
    assert not refusals(scheduler.turn([submit("1")], 1.0))
    scheduler.turn([CloseModel("a"), ReplicaLost("r0", 1)], 2.0)
    scheduler.turn([replica("r0", "a", 2)], 3.0)
    assert not refusals(scheduler.turn([submit("2")], 4.0))
    # A name that nobody serves is not remembered as closed.
    scheduler.turn([CloseModel("nobody")], 5.0)
    assert not scheduler.boards.closed
    scheduler.check()


def turned_away(orders: list[Order]) -> list[TurnAway]:
    return [order for order in orders if isinstance(order, TurnAway)]


def starts(orders: list[Order]) -> dict[str, Start]:
    return {start.request_id: start for order in orders if isinstance(order, Plan) for start in order.starts}


def sealed_by(seal: Seal) -> Sealed:
    """Its gateway has nothing of it."""
    return Sealed(seal.request_id, seal.gateway, seal.route, seal.attempt, (ids(),), (Reason.NONE,))


def filled(scheduler: Scheduler, name: str, incarnation: int, start: Start, number: int = 1) -> Result:
    """Its prompt is written, and one token drawn."""
    advances = Advances(array("q", [start.seq]), ids([start.num_prompt]), ids([1]), ids([7]), ids([0]), b"")
    return Result(name, incarnation, scheduler.epoch, number, number, 1, advances)


def test_a_replica_with_other_weights_is_turned_away_until_the_older_ones_are_gone() -> None:
    scheduler = Scheduler(SchedulerSettings())
    assert not turned_away(scheduler.turn([replica("r0", "a", digest=b"old"), replica("r1", "b", digest=b"new")], 0.0))
    newer = replica("r2", "a", digest=b"new")
    for now in (1.0, 2.0):
        (order,) = turned_away(scheduler.turn([newer], now))
        assert (order.replica, order.incarnation) == ("r2", 1)
        for word in (b"old".hex(), b"new".hex(), "of a here", "another name"):
            assert word in order.detail
        assert set(scheduler.replicas) == {"r0", "r1"}
    assert scheduler.counters["replicas turned away"] == 2
    assert [note.kind for note in scheduler.notes.since(0)].count("turned away") == 1, "people are told once"
    # Blocks of another size are no better; so is a state that it tells a scheduler it met before.
    (order,) = turned_away(scheduler.turn([replica("r3", "a", digest=b"old", block_size=8)], 3.0))
    assert "8 tokens" in order.detail
    assert (
        turned_away(scheduler.turn([ReplicaState(newer, (), (), ())], 3.0)) and scheduler.books.hearing.ends_at is None
    )
    # The older one starts again with the newer weights, or goes: then the newer one joins.
    assert not turned_away(scheduler.turn([replica("r0", "a", 2, digest=b"new"), newer], 4.0))
    assert set(scheduler.replicas) == {"r0", "r1", "r2"}
    scheduler.check()


def test_what_began_with_other_weights_ends_and_what_waits_is_named_by_nothing() -> None:
    scheduler = Scheduler(SchedulerSettings(seal_timeout_s=1.0))
    scheduler.turn([replica("r0", "a", digest=b"old")], 0.0)
    orders = scheduler.turn([submit("1", digest=b"old", prompt=9), submit("2", digest=b"old", prompt=9)], 1.0)
    (first,) = starts(orders).values()
    scheduler.turn([filled(scheduler, "r0", 1, first)], 1.5)
    scheduler.turn(
        [ReplicaLost("r0", 1), Sealed("1", first.gateway, first.route, first.attempt, (ids([7]),), (Reason.NONE,))], 2.0
    )
    # Both wait; the one that has sent a token can't go on with other weights, the other begins with them.
    orders = scheduler.turn([replica("r0", "a", 2, digest=b"new", seats=4)], 3.0)
    (refused,) = refusals(orders)
    assert (refused.request_id, refused.code) == ("1", "CANCELLED")
    assert b"old".hex() in refused.detail and b"new".hex() in refused.detail
    (seal,) = [order for order in orders if isinstance(order, Seal)]
    assert (seal.request_id, seal.digest) == ("2", b"new") and not starts(orders), "its gateway knows first"
    second = starts(scheduler.turn([sealed_by(seal)], 3.5))["2"]
    assert not second.position and not second.chain
    scheduler.turn([filled(scheduler, "r0", 2, second)], 4.0)
    # A gateway that has not heard of the change yet names by the old digest: nothing is found, nothing is listed.
    (seal,) = [
        order for order in scheduler.turn([submit("3", digest=b"old", prompt=9)], 5.0) if isinstance(order, Seal)
    ]
    third = starts(scheduler.turn([sealed_by(seal)], 5.5))["3"]
    assert not third.position and not third.chain and not len(scheduler.index)
    # One that has heard of it shares as ever.
    fourth = starts(scheduler.turn([submit("4", digest=b"new", prompt=9)], 6.0))["4"]
    scheduler.turn([filled(scheduler, "r0", 2, fourth, 2)], 7.0)
    assert len(scheduler.index) == 2
    fifth = starts(scheduler.turn([submit("5", digest=b"new", prompt=9)], 8.0))["5"]
    assert fifth.position == 8
    scheduler.check()


def test_notes_tell_of_preemptions_with_their_reason() -> None:
    scheduler = Scheduler(SchedulerSettings())
    scheduler.turn([replica("r0", "a")], 0.0)
    scheduler.turn([submit("1")], 1.0)
    scheduler.turn([ReplicaLost("r0", 1, "its stream broke")], 2.0)
    (note,) = scheduler.notes.since(0)
    assert (note.kind, note.subject) == ("lost", "r0") and "its stream broke; 1 requests" in note.why
    assert scheduler.notes.since(1) == [] and Done not in map(type, scheduler.turn([], 3.0))
    # One that was drained first has left as somebody wanted it.
    scheduler.turn([replica("r1", "a")], 4.0)
    scheduler.turn([Drain("r1"), ReplicaLost("r1", 1, "its stream broke")], 5.0)
    (note,) = scheduler.notes.since(1)
    assert (note.kind, note.subject, note.why) == ("left", "r1", "as ordered: it was drained")


@pytest.mark.parametrize("order", [Drain("r0"), CloseModel("a"), None])
def test_a_host_pool_has_left_only_where_its_last_worker_left_by_order(order: Drain | CloseModel | None) -> None:
    scheduler = Scheduler(SchedulerSettings())
    scheduler.turn([replica("r0", "a"), HostPoolJoined("h", 1, "n0", 8, 64, "layout")], 0.0)
    scheduler.turn([order] if order else [], 1.0)
    scheduler.turn([ReplicaLost("r0", 1, "its stream broke"), HostPoolLost("h", 1, "its stream broke")], 2.0)
    kind = "left" if order else "lost"
    assert [(note.kind, note.subject) for note in scheduler.notes.since(0)] == [(kind, "r0"), (kind, "h")]
    assert all(("as ordered" in note.why) is bool(order) for note in scheduler.notes.since(0))
    assert scheduler.counters[f"host pools {kind}"] == scheduler.counters[f"replicas {kind}"] == 1
