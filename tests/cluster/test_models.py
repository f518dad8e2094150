"""Models that are closed: nothing new is taken, what was accepted ends, and with the last replica they are gone."""

from __future__ import annotations

from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Accepted,
    CloseModel,
    Done,
    Drain,
    Order,
    Plan,
    Refused,
    ReplicaJoined,
    ReplicaLost,
    Submit,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings


def replica(name: str, model: str) -> ReplicaJoined:
    return ReplicaJoined(name, 1, "n0", model, 16, 4, 64, "layout", 1, 64)


def submit(name: str, model: str = "a") -> Submit:
    return Submit(name, "g", int(name), model, "t", ids(range(4)), (), sampled())


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
    scheduler.turn([ReplicaJoined("r0", 2, "n0", "a", 16, 4, 64, "layout", 1, 64)], 3.0)
    assert not refusals(scheduler.turn([submit("2")], 4.0))
    # A name that nobody serves is not remembered as closed.
    scheduler.turn([CloseModel("nobody")], 5.0)
    assert not scheduler.admission.closed
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
    assert [(note.kind, note.subject) for note in scheduler.notes.since(1)][-1] == ("left", "r1")
