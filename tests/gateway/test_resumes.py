"""Clients that come back to a door, and schedulers that are new to it."""

import pytest

from cluster.errors import InvalidRequest, NotFound, QueueFull, Unavailable
from cluster.gateway.door.kept import ROUTE_BITS
from cluster.gateway.door.notices import HANDED_S
from cluster.messages import (
    Adopt,
    Cancel,
    Claim,
    Closed,
    Find,
    Found,
    GatewayState,
    HandOver,
    Pin,
    Reason,
    Refused,
    Replay,
    Seal,
    Sealed,
    Tokens,
    ids,
)
from tests.gateway.doors import At, accepted, done, other, submit


def begun(**how) -> tuple[At, object]:
    at = At()
    reader = at.ask(submit(**how), grace_s=5.0)
    at.take(accepted(reader.entry))
    at.said.clear()
    return at, reader


def test_a_resume_gets_the_rest_and_the_stream_before_it_nothing_more():
    at, reader = begun()
    at.tokens(reader.entry, 0, 1, 2, 3)
    at.read(reader)
    again = at.resume(positions=[2])
    at.tokens(reader.entry, 3, 4)
    at.got.clear()
    at.read(again)
    assert at.got == {0: [3, 4]} and at.said == [Claim("t/q", "a", reader.entry.route)]
    with pytest.raises(AssertionError, match="was followed"):
        at.read(reader)


def test_a_client_that_was_elsewhere_may_have_more_than_is_here():
    at, reader = begun()
    at.tokens(reader.entry, 0, 1, 2)
    at.leave(reader)
    again = at.resume(positions=[4])
    at.take(accepted(reader.entry, turn=3))
    at.tokens(reader.entry, 2, 3, 4)
    at.read(again)
    assert at.got == {} and at.door.unread.total == 0
    at.tokens(reader.entry, 4, 5)
    at.read(again)
    assert at.got == {0: [5]}
    with pytest.raises(InvalidRequest, match=r"positions\[0\]: is 51, and 50 tokens can have come"):
        at.resume(positions=[51])
    at.tokens(reader.entry, 5, 6, reason=Reason.LENGTH)
    at.take(done(reader.entry))
    with pytest.raises(InvalidRequest, match="is 7, and 6 tokens can have come"):
        at.resume(positions=[7])


def test_another_request_of_the_name_is_refused_by_the_field():
    at, _ = begun()
    with pytest.raises(InvalidRequest) as caught:
        at.resume(other(submit(), max_tokens=51))
    assert caught.value.field == "sampling.max_tokens" and at.said == []


def test_of_two_that_ask_for_a_name_the_scheduler_says_which_is_the_request():
    at = At()
    wrong = at.resume(other(submit(), seed=9))
    right = at.resume()
    assert [type(event) for event in at.said] == [Adopt, Adopt]
    at.take(accepted(right.entry), Refused("a", wrong.entry.route, "t/q", "INVALID_ARGUMENT", "is 9", 0.0, "seed"))
    assert at.door.by_id["t/q"] is right.entry and list(at.door.entries) == [right.entry.route]
    at = At()
    right, wrong = at.resume(), at.resume(other(submit(), seed=9))
    at.take(Refused("a", wrong.entry.route, "t/q", "INVALID_ARGUMENT", "is 9"), accepted(right.entry))
    assert at.door.by_id["t/q"] is right.entry


def test_what_is_handed_over_is_told_and_remembered_until_its_new_owner_must_have_it():
    """The scheduler died before the new owner had heard of the end, and nobody knew the request any more."""
    at, reader = begun()
    entry = reader.entry
    at.tokens(entry, 0, 1, 2, reason=Reason.STOP)
    place = "t/q", "a", entry.route
    assert at.take(HandOver("a", entry.route, "t/q")) == [Sealed(*place, 0, (ids([1, 2]),), (Reason.STOP,))]
    at.read(reader)
    assert reader.is_told and isinstance(entry.failure, Unavailable) and not at.door.entries
    ((state,),) = [at.meet()]
    assert isinstance(state, GatewayState)
    (told,) = state.requests
    assert (told.outputs, told.finished, told.submit.route) == ((ids([1, 2]),), (Reason.STOP,), entry.route)
    # The scheduler that took it for this gateway's must not forget it: its new owner may be about to tell.
    assert at.take(done_at(entry.route)) == []
    assert at.take(Seal("a", entry.route, "t/q", 7, b"")) == [Sealed(*place, 7, (ids([1, 2]),), (Reason.STOP,))]
    assert at.wait(HANDED_S) == [Closed(*place)] and not at.door.handed
    assert at.take(Seal("a", entry.route, "t/q", 8, b"")) == [Sealed(*place, 8, (), ())]


def test_a_new_scheduler_is_told_with_which_weights_a_request_goes_on():
    at, reader = begun()
    at.take(Seal("a", reader.entry.route, "t/q", 1, b"others"))
    ((state,),) = [at.meet()]
    assert (state.requests[0].submit.digest, state.requests[0].submit.hashes) == (b"others", ())


def test_a_hand_over_that_a_claim_has_overtaken_is_not_obeyed():
    at, reader = begun()
    at.leave(reader)
    again = at.resume()
    assert at.take(HandOver("a", reader.entry.route, "t/q")) == [] and at.door.entries
    at.take(accepted(reader.entry, turn=2, claim=1))
    assert [type(event) for event in at.take(HandOver("a", reader.entry.route, "t/q"))] == [Sealed]
    at.read(again)
    assert again.is_told and not at.door.entries


def test_what_answers_a_state_answers_no_claim():
    """The door thought its claim answered, handed over what the claim then gave it, and the request was forgotten."""
    at, reader = begun()
    at.leave(reader)
    at.resume()
    assert [type(event) for event in at.meet()] == [GatewayState, Claim]
    at.take(accepted(reader.entry))
    assert at.take(HandOver("a", reader.entry.route, "t/q")) == [] and at.door.entries
    at.take(accepted(reader.entry, turn=2, claim=1))
    assert at.meet()[1:] == []


def test_a_new_scheduler_is_told_all_and_what_a_state_does_not_say():
    at = At()
    runs, leaves, comes_back = (at.ask(submit(f"t/{name}"), grace_s=9.0) for name in ("runs", "leaves", "back"))
    for reader in (runs, leaves, comes_back):
        at.take(accepted(reader.entry))
    at.door.cancel("t/leaves", at.now)
    at.step()
    at.resume(submit("t/back"))
    asks = at.resume(submit("t/asks"))
    at.tokens(runs.entry, 0, 5, attempt=3)
    at.take(Seal("a", runs.entry.route, "t/runs", 3, runs.entry.submit.digest))
    route = at.door.pin(Pin("t/p", "", 0, "m", "t", ids([1]), (), 0.0), at.now)
    at.step()
    state, *others = at.meet()
    told = {request.submit.request_id: request for request in state.requests}
    assert list(told) == ["t/runs", "t/leaves", "t/back"] and told["t/runs"].attempt == 4
    assert others == [
        Cancel("t/leaves", "a", leaves.entry.route),
        Claim("t/back", "a", comes_back.entry.route),
        Adopt(asks.entry.submit),
        at.door.pins[route],
    ]


def test_what_a_client_names_is_looked_for_until_it_is_found_or_refused():
    at = At()
    routes = [at.door.find(f"t/{name}") for name in ("found", "refused", "left")]
    at.step()
    finds = [Find(f"t/{name}", "a", route) for name, route in zip(("found", "refused", "left"), routes, strict=True)]
    assert at.said == finds
    # A new scheduler may never have heard of it.
    assert at.meet()[1:] == finds
    asked = submit("t/found", n=2)
    at.door.take(Found("a", routes[0], asked), at.now)
    at.door.take(Refused("a", routes[1], "t/refused", "NOT_FOUND", "no such request"), at.now)
    at.door.leave_find(routes[2])
    orders = at.step()
    (found, refused) = orders.found
    assert found == (routes[0], Found("a", routes[0], asked))
    assert refused[0] == routes[1] and isinstance(refused[1], NotFound)
    assert orders.events == [Cancel("t/left", "a", routes[2])] and not at.door.finds
    at.door.take(Found("a", routes[0], asked), at.now)
    assert not at.step().found and not at.meet()[1:]
    reader = at.resume(asked, positions=[3, 0])
    assert at.said[-1] == Adopt(reader.entry.submit)


def test_no_more_are_looked_for_than_may_be_open():
    at = At(max_open=2)
    at.ask()
    at.door.find("t/other")
    for more in (at.ask, lambda: at.door.find("t/third")):
        with pytest.raises(QueueFull):
            more()


def test_a_tenant_looks_for_no_more_than_it_may_have_and_others_look_on():
    at = At(max_open=10)
    for name in ("a", "b"):
        at.door.find(f"t/{name}", 2)
    with pytest.raises(QueueFull, match="2 requests are looked for"):
        at.door.find("t/c", 2)
    at.door.find("tt/c", 2)
    at.door.leave_find(next(iter(at.door.finds)))
    at.door.find("t/c", 2)
    # Prefixes that are being warmed take places as well.
    for number in range(7):
        at.door.pin(Pin(f"t/p{number}", "", 0, "m", "t", ids([1]), (), at.now + 60.0), at.now)
    with pytest.raises(QueueFull):
        at.ask()


def test_a_new_scheduler_is_told_why_the_one_before_ended_a_request():
    """A client that resumed it elsewhere was told that it had been cancelled, which nobody had done."""
    at = At()
    entry = at.ask(grace_s=9.0).entry
    at.take(accepted(entry), Refused("a", entry.route, "t/q", "DEADLINE_EXCEEDED", "it is late"))
    at.step()
    assert at.meet()[1:] == [Cancel("t/q", "a", entry.route, "DEADLINE_EXCEEDED", "it is late")]


def test_one_that_has_ended_is_told_to_a_new_scheduler_as_long_as_it_is_kept():
    """Its client may come back through another gateway, which asks for it."""
    at, reader = begun()
    at.tokens(reader.entry, 0, 5, reason=Reason.STOP)
    at.take(done(reader.entry))
    at.leave(reader)
    (state,) = at.meet()
    assert [request.finished for request in state.requests] == [(Reason.STOP,)]


def test_routes_of_an_earlier_life_mean_nobody():
    at = At(life=2)
    reader = at.ask()
    assert reader.entry.route >> ROUTE_BITS == 2
    old = (1 << ROUTE_BITS) + (reader.entry.route & 0xFFFF)
    assert at.take(done_at(old)) == [], "its client may be about to come back for it"
    assert at.take(done_at(reader.entry.route + 9)) == [Closed("t/x", "a", reader.entry.route + 9)]
    late = Tokens(old, 0, 1, 0, ids([1]))
    assert at.door.fresh(late, at.now) is None and at.door.num_stale == 1


def done_at(route: int):
    entry = type("Entry", (), {"route": route, "request_id": "t/x"})
    return done(entry)  # type: ignore[arg-type]


def test_a_replay_ends_what_was_dropped_and_a_worker_does_not():
    at, reader = begun(n=2)
    at.tokens(reader.entry, 0, 5, reason=Reason.DROPPED)
    assert reader.entry.log.reasons == (Reason.NONE, Reason.NONE)
    at.take(Replay("a", Tokens(reader.entry.route, 0, 1, 0, ids([5]), Reason.DROPPED)))
    assert reader.entry.log.reasons == (Reason.DROPPED, Reason.NONE)


def test_a_pin_is_answered_once_and_cancelled_when_nobody_waits():
    at = At()
    pin = Pin("t/p", "", 0, "m", "t", ids([1]), (), 0.0)
    first, second, third = (at.door.pin(pin, at.now) for _ in range(3))
    at.step()
    at.take(done_at(first), Refused("a", second, "t/p", "RESOURCE_EXHAUSTED", "t/p is too much", 2.0))
    (one, none), (two, error) = at.pins
    assert (one, two, none) == (first, second, None) and isinstance(error, QueueFull)
    at.said.clear()
    for route in (first, second, third):
        at.door.leave_pin(route)
    at.step()
    assert at.said == [Cancel("t/p")]


def test_who_cancels_claims_nothing_any_more():
    """The claim had been lost with the scheduler, and no hand over was obeyed any more."""
    at, reader = begun()
    at.resume()
    at.door.cancel("t/q", at.now)
    at.step()
    at.meet()
    at.take(HandOver("a", reader.entry.route, "t/q"))
    assert not at.door.entries and not at.door.handed


def test_a_resume_that_was_cancelled_while_a_new_scheduler_heard_cancels_what_it_then_hears_of():
    """The word went to a scheduler that did not know the request yet; it ran on to its end, for nobody."""
    at = At()
    entry = at.resume().entry
    assert at.door.cancel("t/q", at.now)
    at.step()
    assert at.said[-1] == Cancel("t/q")
    assert at.take(accepted(entry, turn=3)) == [Cancel("t/q", "a", entry.route)]
    at.take(done(entry))
    at.read(entry.reader)
    assert entry.reader.is_told and entry.failure is None
