"""Whose a request is, turn by turn: clients that come back elsewhere, gateways that both believe, seals that wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest

from cluster.centre.nouns import State
from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Accepted,
    Adopt,
    Advances,
    Cancel,
    Claim,
    Closed,
    Done,
    Find,
    Found,
    GatewayLost,
    GatewayState,
    HandOver,
    OpenRequest,
    Order,
    Plan,
    Reason,
    Refused,
    Replay,
    ReplicaLost,
    ReplicaState,
    Reroute,
    Resident,
    Result,
    Seal,
    Sealed,
    Start,
    Stopped,
    Submit,
    ids,
)
from cluster.settings import SchedulerSettings
from tests.cluster.test_scheduler import Driver, joined, starts, submit


def at(gateway: str, route: int, asked: Submit) -> Submit:
    return replace(asked, gateway=gateway, route=route)


def reroutes(orders: Sequence[Order]) -> list[Reroute]:
    return [one for order in orders if isinstance(order, Plan) for one in order.reroutes]


def drops(orders: Sequence[Order]) -> list[int]:
    return [drop.seq for order in orders if isinstance(order, Plan) for drop in order.drops]


def of(kind: type, orders: Sequence[Order]) -> list[Order]:
    return [order for order in orders if isinstance(order, kind)]


def running(driver: Driver, **how: int) -> tuple[Submit, Start]:
    asked = at("a", 1, submit("t/q", range(40), 30, **how))
    return asked, starts(driver.turn(asked))["t/q"]


@pytest.mark.parametrize("change", ["n", "max_tokens", "prompt", "priority", "model"])
def test_a_resume_with_other_parameters_is_refused_by_name(change: str) -> None:
    driver = Driver()
    asked, _ = running(driver, n=2)
    other = at("b", 1, asked)
    if change in ("n", "max_tokens"):
        other = replace(other, sampling=replace(asked.sampling, **{change: 3}))
    else:
        other = replace(other, **{change: {"prompt": ids(range(1, 41)), "priority": 5, "model": "other"}[change]})
    orders = driver.turn(Adopt(other))
    (refused,) = of(Refused, orders)
    assert isinstance(refused, Refused)
    assert (refused.gateway, refused.code) == ("b", "INVALID_ARGUMENT") and refused.field.endswith(change)
    assert driver.scheduler.counters["refused resumes"] == 1
    assert not reroutes(orders) and driver.scheduler.requests["t/q"].gateway == "a"


def test_reports_of_another_shape_end_no_scheduler() -> None:
    driver = Driver()
    asked, _ = running(driver, n=2)
    three = (ids(), ids(), ids())
    ended = (Reason.NONE,) * 3
    (seal,) = of(Seal, driver.turn(ReplicaLost("r0", 1), joined("r1")))
    assert isinstance(seal, Seal)
    orders = driver.turn(Sealed("t/q", "a", 1, seal.attempt, three, ended))
    assert driver.scheduler.counters["events refused"] == 1
    # Nobody can say what its client was sent.
    assert [order.code for order in orders if isinstance(order, Refused)] == ["ABORTED"]
    new = Scheduler(SchedulerSettings(), epoch=2)
    new.turn([GatewayState("a", (OpenRequest(asked, 1, three, ended),))], 1.0)
    assert new.counters["events refused"] == 1 and not new.requests
    wrong = replace(asked, sampling=replace(asked.sampling, n=3))
    new.turn([GatewayState("a", (OpenRequest(asked, 1, three[:2], ended[:2]),))], 1.1)
    orders = new.turn([GatewayState("b", (OpenRequest(at("b", 1, wrong), 1, three, ended),))], 1.2)
    assert [order.code for order in orders if isinstance(order, Refused)] == ["ALREADY_EXISTS"]
    assert len(new.requests["t/q"].sequences) == 2


def test_the_last_word_of_the_client_decides_who_is_told() -> None:
    """From a to b and back, while a still holds its answer: words of the route before mean nothing."""
    driver = Driver()
    asked, start = running(driver)
    orders = driver.turn(Adopt(at("b", 1, asked)))
    assert of(HandOver, orders) == [HandOver("a", 1, "t/q")]
    assert reroutes(orders) == [Reroute(start.seq, "b", 1)]
    (accepted,) = of(Accepted, orders)
    assert isinstance(accepted, Accepted) and accepted.turn > 0
    # The grace of the first gateway ends.
    driver.turn(Cancel("t/q", "a", 1))
    assert "t/q" in driver.scheduler.requests and not driver.scheduler.requests["t/q"].is_cancelled
    orders = driver.turn(Claim("t/q", "a", 1))
    assert of(HandOver, orders) == [HandOver("b", 1, "t/q")] and reroutes(orders) == [Reroute(start.seq, "a", 1)]
    (again,) = of(Accepted, orders)
    assert isinstance(again, Accepted) and again.turn > accepted.turn
    # Who is told already and says so again changes nothing.
    orders = driver.turn(Claim("t/q", "a", 1))
    assert orders == [Accepted("a", 1, "t/q", 0, "", again.turn, 1)]
    driver.turn(Closed("t/q", "b", 1))
    assert not driver.scheduler.requests["t/q"].is_cancelled
    driver.turn(Cancel("t/q", "a", 1))
    assert driver.scheduler.requests["t/q"].is_cancelled


def test_an_ended_request_is_kept_until_its_owner_has_it() -> None:
    driver = Driver()
    asked, start = running(driver)
    driver.turn(Adopt(at("b", 1, asked)))
    driver.result(stopped=[(start, Reason.STOP, 44, 5)])
    driver.turn(Closed("t/q", "a", 1))
    orders = driver.turn(Adopt(at("c", 1, asked)))
    assert of(Replay, orders) and of(Done, orders)
    driver.turn(Closed("t/q", "c", 1))
    assert not driver.scheduler.unclosed
    # What nobody knows is refused at once where no scheduler was before.
    (refused,) = driver.turn(Adopt(at("d", 1, asked)))
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND"


def test_a_seal_waits_for_every_gateway_that_may_know_what_was_sent() -> None:
    driver = Driver()
    asked, start = running(driver)
    driver.result(advances=[(start, 47, 8)])
    (seal,) = of(Seal, driver.turn(ReplicaLost("r0", 1), joined("r1")))
    assert isinstance(seal, Seal)
    driver.turn(Adopt(at("b", 1, asked)))
    # b has nothing, and is not asked; a sent 5 tokens more than any report told of.
    orders = driver.turn(Sealed("t/q", "a", 1, seal.attempt, (ids([7] * 13),), (Reason.NONE,)))
    again = starts(orders)["t/q"]
    assert len(again.tokens) == 40 + 13 and (again.gateway, again.route) == ("b", 1)


@pytest.mark.parametrize("order", ["handed over, then ended", "ended, then handed over"])
def test_beams_that_a_client_may_have_read_elsewhere_are_not_searched_for_again(order: str) -> None:
    driver = Driver()
    asked = at("a", 1, submit("t/q", range(40), 30, n=2))
    asked = replace(asked, sampling=replace(asked.sampling, beam_width=2))
    start = starts(driver.turn(asked))["t/q"]
    beams, ended = (ids([7, 8]), ids([7, 9, 9])), (Reason.STOP, Reason.LENGTH)
    handed_over = Sealed("t/q", "a", 1, 0, beams, ended)
    driver.turn(Adopt(at("b", 1, asked)))
    if order == "handed over, then ended":
        driver.turn(handed_over)
    orders = driver.result(stopped=[(start, Reason.STOP, 44, 3)])
    (seal,) = of(Seal, orders)
    assert isinstance(seal, Seal) and seal.gateway == "b"
    orders = driver.turn(Sealed("t/q", "b", 1, seal.attempt, (ids(), ids()), (Reason.NONE, Reason.NONE)))
    if order == "ended, then handed over":
        orders = driver.turn(handed_over)
    replays = [one for one in of(Replay, orders) if isinstance(one, Replay)]
    assert [(one.gateway, one.tokens.route, one.tokens.ids, one.tokens.reason) for one in replays] == [
        ("b", 1, tokens, reason) for tokens, reason in zip(beams, ended, strict=True)
    ]
    assert not starts(orders) and not driver.scheduler.requests


def test_a_seal_waits_for_who_is_silent_until_it_is_lost() -> None:
    """It may have sent more than any worker reported, and another replica may draw other tokens."""
    driver = Driver(SchedulerSettings(seal_timeout_s=5.0))
    asked, start = running(driver)
    driver.result(advances=[(start, 47, 8)])
    driver.turn(Adopt(at("b", 1, asked)))
    (seal,) = of(Seal, driver.turn(ReplicaLost("r0", 1), joined("r1")))
    assert isinstance(seal, Seal) and seal.gateway == "b"
    orders = driver.turn(Sealed("t/q", "b", 1, seal.attempt, (ids(),), (Reason.NONE,)))
    assert not starts(orders), "a has not handed over yet"
    for _ in range(3):
        driver.now += 5.0
        orders = driver.turn()
        assert not starts(orders) and of(Seal, orders) == [Seal("a", 1, "t/q", seal.attempt, b"")]
    orders = driver.turn(GatewayLost("a"))
    assert len(starts(orders)["t/q"].tokens) == 48


def test_who_comes_to_logprobs_while_others_are_asked_is_asked_as_well() -> None:
    """It is told no tokens without them, so what it lacks has to be drawn again."""
    driver = Driver()
    asked = at("a", 1, submit("t/q", range(40), 3))
    asked = replace(asked, sampling=replace(asked.sampling, logprobs=1))
    start = starts(driver.turn(asked))["t/q"]
    driver.result(stopped=[(start, Reason.LENGTH, 42, 3)])
    (seal,) = of(Seal, driver.turn(ReplicaLost("r0", 1), joined("r1")))
    assert isinstance(seal, Seal) and seal.gateway == "a"
    orders = driver.turn(Adopt(at("b", 1, asked)))
    (seal,) = of(Seal, orders)
    assert isinstance(seal, Seal) and seal.gateway == "b" and not of(Replay, orders)
    # The gateway that had it has died, and its next life knows nothing.
    orders = driver.turn(Sealed("t/q", "a", 1, 0, (), ()))
    orders += driver.turn(Sealed("t/q", "b", 1, seal.attempt, (ids(),), (Reason.NONE,)))
    assert len(starts(orders)["t/q"].tokens) == 40


@pytest.mark.parametrize("first", ["replica", "gateway"])
@pytest.mark.parametrize("back", ["same", "other"])
def test_no_attempt_begins_while_its_gateway_is_lost(first: str, back: str) -> None:
    """It lives, and has more of the last attempt than was reported: what another replica draws may not fit to that."""
    driver = Driver(SchedulerSettings(seal_timeout_s=1.0, orphan_grace_s=10.0))
    asked, start = running(driver)
    driver.result(advances=[(start, 47, 8)])
    lost = [ReplicaLost("r0", 1), GatewayLost("a")]
    for event in lost if first == "replica" else lost[::-1]:
        driver.turn(event)
    orders = driver.turn(joined("r1"))
    for _ in range(3):
        driver.now += 2.0
        orders += driver.turn()
    assert not starts(orders) and not of(Seal, orders)
    held = (ids([7] * 13),)
    if back == "same":
        orders = driver.turn(GatewayState("a", (OpenRequest(asked, start.attempt, held, (Reason.NONE,)),)))
    else:
        orders = driver.turn(Adopt(at("b", 1, asked)))
        held = (ids(),)
    (seal,) = of(Seal, orders)
    assert isinstance(seal, Seal) and not starts(orders)
    again = starts(driver.turn(Sealed("t/q", seal.gateway, 1, seal.attempt, held, (Reason.NONE,))))["t/q"]
    # What was reported goes on from there; what the gateway has beyond it stands.
    assert len(again.tokens) == 40 + max(8, len(held[0])) and again.attempt > seal.attempt


def state_of(start: Start, num_outputs: int) -> ReplicaState:
    tokens = ids([*start.tokens, *[7] * num_outputs])
    resident = Resident(start.seq, 0, start, tokens, len(tokens) - 1, start.table, start.lease_end)
    return ReplicaState(joined("r0"), (resident,), (), ())


def test_a_resume_waits_for_a_scheduler_that_is_new() -> None:
    driver = Driver()
    asked, start = running(driver)
    settings = SchedulerSettings(rebuild_s=2.0, orphan_grace_s=10.0)
    for first in ("adopt", "replica"):
        new = Scheduler(settings, epoch=2)
        orders = []
        for event in (Adopt(at("b", 1, asked)), state_of(start, 2))[:: 1 if first == "adopt" else -1]:
            orders += new.turn([event], 10.0 + len(orders))
        assert not of(Refused, orders)
        assert reroutes(orders) == [Reroute(start.seq, "b", 1)], first
        request = new.requests["t/q"]
        assert (request.gateway, request.route, request.tenant.name) == ("b", 1, "t")
        # It is no orphan when the rebuild is over.
        new.turn([], 20.0)
        assert request.orphaned_until is None
        # The gateway that had it before comes late, and believes that it still has it.
        orders = new.turn([GatewayState("a", (OpenRequest(asked, 1, (ids([7]),), (Reason.NONE,), 0),))], 20.1)
        assert of(HandOver, orders) == [HandOver("a", 1, "t/q")] and not reroutes(orders)
        assert (request.gateway, request.route) == ("b", 1)


def test_a_resume_of_what_nobody_knows_is_refused_when_everybody_had_time_to_tell() -> None:
    asked = submit("t/q", range(40), 30)
    new = Scheduler(SchedulerSettings(rebuild_s=2.0, orphan_grace_s=10.0), epoch=2)
    assert new.turn([joined(), Adopt(at("b", 1, asked))], 10.0)[0:0] == []
    assert new.next_deadline == 12.0
    # Its gateway may be late, so that is not the last word.
    (refused,) = of(Refused, new.turn([], 12.0))
    assert isinstance(refused, Refused) and refused.code == "UNAVAILABLE"
    # Much later nobody is expected any more, and nobody waits for a gateway that has gone itself.
    (refused,) = of(Refused, new.turn([Adopt(at("b", 2, asked))], 40.0))
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND"
    late = Scheduler(SchedulerSettings(), epoch=2)
    late.turn([Adopt(at("b", 1, asked)), GatewayLost("b")], 10.0)
    assert not of(Refused, late.turn([], 13.0))


def test_a_deadline_holds_at_the_next_scheduler_whoever_tells_of_the_request_first() -> None:
    asked, start = running(Driver())
    told = GatewayState("a", (OpenRequest(replace(asked, deadline=20.0), 1, (ids([7]),), (Reason.NONE,), 0),))
    for events in ([told], [told, state_of(start, 2)], [state_of(start, 2), told]):
        new = Scheduler(SchedulerSettings(), epoch=2)
        new.turn(events, 10.0)
        new.turn([], 19.0)
        assert not new.requests["t/q"].is_cancelled and new.next_deadline == 20.0
        (refused,) = of(Refused, new.turn([], 20.0))
        assert isinstance(refused, Refused) and refused.code == "DEADLINE_EXCEEDED"


def test_a_request_that_a_client_names_is_found_as_it_was_asked() -> None:
    driver, asked = Driver(), replace(at("a", 1, submit("t/q", range(40), 30, n=2)), look="chat")
    driver.turn(replace(asked, deadline=driver.now + 5.0))
    (found,) = driver.turn(Find("t/q", "b", 7))
    assert isinstance(found, Found) and (found.gateway, found.route) == ("b", 7)
    assert found.submit == asked and 4.9 < found.rest_s < 5.0
    # Nothing has changed hands: that is what Adopt is for.
    assert driver.scheduler.requests["t/q"].gateway == "a"
    orders = driver.turn(Adopt(at("b", 8, found.submit)))
    assert [type(order) for order in orders[:2]] == [HandOver, Accepted]
    (refused,) = driver.turn(Find("t/other", "b", 9))
    assert isinstance(refused, Refused) and (refused.route, refused.code) == (9, "NOT_FOUND")


def test_who_looks_for_a_request_waits_for_a_scheduler_that_is_new() -> None:
    driver = Driver()
    asked, start = running(driver)
    new = Scheduler(SchedulerSettings(rebuild_s=2.0, orphan_grace_s=10.0), epoch=2)
    assert not of(Found, new.turn([Find("t/q", "b", 7)], 10.0))
    # What its replica tells is not all that was asked.
    assert not of(Found, new.turn([state_of(start, 2)], 10.1))
    told = GatewayState("a", (OpenRequest(replace(asked, look="chat"), 1, (ids([7]),), (Reason.NONE,), 0),))
    (found,) = of(Found, new.turn([told], 10.2))
    assert isinstance(found, Found) and found.submit.look == "chat" and found.submit.prompt == asked.prompt
    late = Scheduler(SchedulerSettings(rebuild_s=2.0, orphan_grace_s=10.0), epoch=2)
    late.turn([Find("t/q", "b", 7), state_of(start, 2)], 10.0)
    # It runs, and goes on as soon as its client says what it is.
    (refused,) = of(Refused, late.turn([], 12.0))
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND"
    # That nobody is waited for any more tells nothing of it.
    late.turn([Find("t/q", "b", 8)], 12.5)
    orders = late.turn([], 14.5)
    assert not of(Found, orders) and len(of(Refused, orders)) == 1
    orders = late.turn([Adopt(at("b", 9, replace(asked, look="chat", grace_s=30.0)))], 15.0)
    assert reroutes(orders) == [Reroute(start.seq, "b", 9)] and late.requests["t/q"].tenant.name == "t"
    (found,) = of(Found, late.turn([Find("t/q", "a", 10)], 15.1))
    assert isinstance(found, Found) and (found.submit.look, found.submit.grace_s) == ("chat", 30.0)


@pytest.mark.parametrize("first", ["older", "newer"])
def test_of_two_gateways_that_both_believe_the_later_owner_is_right(first: str) -> None:
    asked = submit("t/q", range(40), 30)
    none = (Reason.NONE,)
    older = GatewayState("a", (OpenRequest(at("a", 1, asked), 1, (ids([7, 7, 7]),), none, 0),))
    newer = GatewayState("b", (OpenRequest(at("b", 9, asked), 1, (ids([7]),), none, 1 << 20),))
    new = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    orders = new.turn([older if first == "older" else newer], 10.0)
    orders += new.turn([newer if first == "older" else older], 10.1)
    assert of(HandOver, orders) == [HandOver("a", 1, "t/q")]
    request = new.requests["t/q"]
    assert (request.gateway, request.route) == ("b", 9)
    orders = new.turn([joined()], 12.2)
    seals = of(Seal, orders)
    assert [(seal.gateway, seal.route) for seal in seals if isinstance(seal, Seal)] == [("b", 9)]
    attempt = seals[0].attempt  # type: ignore[union-attr]
    orders = new.turn([Sealed("t/q", "b", 9, attempt, (ids([7]),), none)], 12.3)
    orders += new.turn([Sealed("t/q", "a", 1, 0, (ids([7, 7, 7]),), none)], 12.4)
    # Nothing that a has sent is lost.
    assert len(starts(orders)["t/q"].tokens) == 43


@pytest.mark.parametrize("first", ["gateway", "replica"])
def test_a_stop_string_that_was_found_while_the_scheduler_was_away_ends_the_sequence(first: str) -> None:
    driver = Driver()
    asked, start = running(driver)
    events = [GatewayState("a", (OpenRequest(asked, 1, (ids([7] * 2),), (Reason.STOP,)),)), state_of(start, 6)]
    new = Scheduler(SchedulerSettings(), epoch=2)
    orders = []
    for event in events if first == "gateway" else events[::-1]:
        orders += new.turn([event], 10.0)
    assert drops(orders) == [start.seq]
    assert new.requests["t/q"].sequences[0].reason is Reason.STOP


def test_what_a_gateway_lacks_of_an_ended_request_is_drawn_again_with_its_logprobs() -> None:
    driver = Driver()
    asked = at("a", 1, submit("t/q", range(40), 5))
    asked = replace(asked, sampling=replace(asked.sampling, logprobs=1))
    start = starts(driver.turn(asked))["t/q"]
    driver.result(stopped=[(start, Reason.LENGTH, 44, 5)])
    driver.turn(GatewayLost("a"))
    held = OpenRequest(asked, start.attempt, (ids([7] * 2),), (Reason.NONE,))
    orders = driver.turn(GatewayState("a", (held,)))
    (seal,) = of(Seal, orders)
    assert isinstance(seal, Seal) and of(Done, orders) and not of(Replay, orders)
    again = starts(driver.turn(Sealed("t/q", "a", 1, seal.attempt, held.outputs, held.finished)))["t/q"]
    assert (again.attempt, len(again.tokens)) == (start.attempt + 1, 42)


@pytest.mark.parametrize("gateway", ["a", "b"])
def test_of_two_sequences_the_one_that_ends_before_its_gateway_is_heard_keeps_its_logprobs(gateway: str) -> None:
    """Its replica tells the gateway that it was started for; only to another one the scheduler tells it."""
    driver = Driver()
    asked = at("a", 1, submit("t/q", range(40), 30, n=2))
    asked = replace(asked, sampling=replace(asked.sampling, logprobs=1))
    start = starts(driver.turn(asked))["t/q"]
    new = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    (first,) = state_of(start, 2).residents
    (fork,) = start.forks
    second = replace(first, seq=fork.seq, index=1, table=fork.table, lease_end=fork.lease_end)
    new.turn([replace(state_of(start, 2), residents=(first, second))], 10.0)
    ended = Stopped(fork.seq, Reason.STOP, 42, ids([8]))
    new.turn([Result("r0", 1, 2, 1, 0, 1, Advances(), (ended,))], 10.1)
    held = OpenRequest(at(gateway, 1, asked), start.attempt, (ids([7]), ids([7])), (Reason.NONE, Reason.NONE))
    orders = new.turn([GatewayState(gateway, (held,))], 10.2)
    told = [(one.gateway, one.tokens.index, list(one.tokens.ids)) for one in of(Replay, orders)]
    assert told == ([] if gateway == "a" else [("b", 1, [7, 7, 8])])


def test_a_gateway_that_was_given_up_tells_what_it_holds_and_goes_on() -> None:
    driver = Driver(SchedulerSettings(orphan_grace_s=0.5))
    asked, start = running(driver)
    held = OpenRequest(asked, start.attempt, (ids([7] * 5),), (Reason.NONE,), 0)
    driver.turn(GatewayLost("a"))
    orders = driver.turn(GatewayState("a", (held,)))
    assert reroutes(orders) == [Reroute(start.seq, "a", 1)]
    # It stays away for longer than anybody waits: the request is made again from what it has.
    driver.turn(GatewayLost("a"))
    driver.now += 1.0
    driver.turn()
    driver.result(stopped=[(start, Reason.DROPPED, 47, 0)])
    assert "t/q" not in driver.scheduler.requests
    driver.turn(GatewayState("a", (held,)))
    driver.now += 3.0
    (seal,) = of(Seal, driver.turn())
    assert isinstance(seal, Seal)
    again = starts(driver.turn(Sealed("t/q", "a", 1, seal.attempt, held.outputs, held.finished)))["t/q"]
    assert len(again.tokens) == 45


def test_what_a_gateway_closed_while_it_was_cut_off_is_forgotten_after_its_grace() -> None:
    driver = Driver(SchedulerSettings(orphan_grace_s=3.0))
    _, start = running(driver)
    driver.result(stopped=[(start, Reason.STOP, 44, 5)])
    driver.turn(GatewayState("a", ()))
    assert driver.scheduler.unclosed, "its Done is on the way"
    driver.turn(GatewayLost("a"), GatewayState("a", ()))
    driver.now += 4.0
    driver.turn()
    assert not driver.scheduler.unclosed


def test_a_gateway_that_was_given_up_while_it_asked_for_a_request_asks_again() -> None:
    """What is asked for is not in a state: the request was taken as closed, and was not found."""
    driver = Driver()
    asked, start = running(driver)
    driver.turn(Adopt(at("b", 2, asked)))
    driver.result(stopped=[(start, Reason.STOP, 44, 5)])
    orders = driver.turn(GatewayLost("b"), GatewayState("b", ()), Adopt(at("b", 2, asked)))
    assert [type(order) for order in orders if not isinstance(order, Plan)] == [Accepted, Replay, Done]


def test_a_gateway_that_was_given_up_meanwhile_is_told_why_a_request_was_broken_off() -> None:
    """Its Done alone made the answer look whole."""
    driver = Driver()
    asked = replace(at("a", 1, submit("t/q", range(40), 30)), deadline=driver.now + 1.0)
    start = starts(driver.turn(asked))["t/q"]
    driver.turn(GatewayLost("a"))
    driver.now += 2.0
    driver.turn()
    driver.result(stopped=[(start, Reason.DROPPED, 42, 3)])
    told = OpenRequest(asked, 1, (ids([0, 1]),), (Reason.NONE,))
    (refused, done) = driver.turn(GatewayState("a", (told,)))
    assert isinstance(refused, Refused) and refused.code == "DEADLINE_EXCEEDED" and isinstance(done, Done)


def test_a_client_may_take_as_long_as_it_said() -> None:
    driver = Driver(SchedulerSettings(orphan_grace_s=1.0))
    asked, _ = running(driver)
    driver.turn(Cancel("t/q"))
    driver = Driver(SchedulerSettings(orphan_grace_s=1.0))
    driver.turn(replace(asked, grace_s=30.0), GatewayLost("a"))
    driver.now += 29.0
    driver.turn()
    assert not driver.scheduler.requests["t/q"].is_cancelled
    driver.now += 2.0
    driver.turn()
    assert driver.scheduler.requests["t/q"].is_cancelled


@pytest.mark.parametrize("first", ["replica", "gateway"])
def test_an_attempt_that_a_later_one_has_followed_is_dropped_and_never_starts_again(first: str) -> None:
    """A replica that had been given up comes back to a new scheduler, which does not know that, with what it ran."""
    driver = Driver()
    asked, start = running(driver)
    later = replace(start, seq=start.seq + 1, attempt=start.attempt + 1)
    new = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    orders = new.turn([state_of(start, 2)], 10.0)
    told = [replace(state_of(later, 1), joined=joined("r1"))]
    gateway = GatewayState("a", (OpenRequest(asked, later.attempt, (ids([7]),), (Reason.NONE,)),))
    for event in [*told, gateway] if first == "replica" else [gateway, *told]:
        orders = [*orders, *new.turn([event], 10.1)]
    assert drops(orders) == [start.seq]
    plan = [order for order in orders if isinstance(order, Plan) and order.replica == "r0"][-1]
    dropped = Stopped(start.seq, Reason.DROPPED, 41, ids())
    orders = new.turn([Result("r0", 1, 2, 1, plan.number, 1, Advances(), (dropped,))], 10.2)
    assert not starts(orders) and not new.waiting.all() and not new.replicas["r0"].requests
    assert list(new.requests) == ["t/q"] and new.requests["t/q"].attempt == later.attempt
    assert {tenant.name: tenant.num_active for tenant in new.tenants} == {"": 0, "t": 1}
    new.check()


@pytest.mark.parametrize("order", list(permutations(("replica", "owner", "before"))), ids="-".join)
def test_an_attempt_that_its_owner_has_sealed_is_dropped_though_an_older_gateway_knows_of_no_seal(
    order: tuple[str, ...],
) -> None:
    """It was sealed where its client had come back; a replica that had been given up still runs it."""
    driver = Driver()
    asked, start = running(driver)
    told = {
        "replica": state_of(start, 2),
        "owner": GatewayState("b", (OpenRequest(at("b", 9, asked), 2, (ids([7]),), (Reason.NONE,), 1 << 20),)),
        "before": GatewayState("a", (OpenRequest(asked, 0, (ids([7, 8]),), (Reason.NONE,), 0),)),
    }
    new = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    orders: list[Order] = []
    for number, name in enumerate(order):
        orders += new.turn([told[name]], 10.0 + number / 10)
    assert drops(orders) == [start.seq] and HandOver("a", 1, "t/q") in orders
    request = new.requests["t/q"]
    assert (request.state, request.gateway, request.attempt) == (State.SEALING, "b", 2)
    # It goes on from all that both have, under a number that was not given yet.
    orders = new.turn([Sealed("t/q", "a", 1, 0, (ids([7, 8]),), (Reason.NONE,))], 12.2)
    dropped = Stopped(start.seq, Reason.DROPPED, 41, ids())
    orders += new.turn([Result("r0", 1, 2, 1, 0, 1, Advances(), (dropped,))], 12.4)
    (seal,) = [one for one in of(Seal, orders) if isinstance(one, Seal) and one.gateway == "b"]
    again = starts(new.turn([Sealed("t/q", "b", 9, seal.attempt, (ids([7]),), (Reason.NONE,))], 12.5))["t/q"]
    assert again.attempt > 2 and list(again.tokens[40:]) == [7, 8]
    new.check()


@pytest.mark.parametrize("first", ["owner", "before"])
def test_the_owner_says_with_which_weights_its_tokens_were_drawn(first: str) -> None:
    """Only it was told that the request began with others than it was asked of."""
    asked = replace(submit("t/q", range(40), 30), digest=b"old")
    owner = GatewayState(
        "b",
        (OpenRequest(replace(at("b", 9, asked), digest=b"new", hashes=()), 1, (ids([7]),), (Reason.NONE,), 1 << 20),),
    )
    before = GatewayState("a", (OpenRequest(at("a", 1, asked), 0, (ids(),), (Reason.NONE,), 0),))
    new = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    for number, told in enumerate((owner, before)[:: 1 if first == "owner" else -1]):
        new.turn([told], 10.0 + number / 10)
    request = new.requests["t/q"]
    assert (request.digest, request.names) == (b"new", b"")


@pytest.mark.parametrize("first", ["owner", "before"])
def test_what_only_the_gateway_before_had_is_told_to_the_owner_by_a_new_scheduler(first: str) -> None:
    """The owner was told that the request had ended, and never its tokens: the scheduler that adopted it had died."""
    asked = submit("t/q", range(40), 3)
    owner = GatewayState("b", (OpenRequest(at("b", 9, asked), 0, (ids(),), (Reason.NONE,), 1 << 20),))
    before = GatewayState("a", (OpenRequest(at("a", 1, asked), 1, (ids([7, 8, 9]),), (Reason.LENGTH,), 0),))
    new = Scheduler(SchedulerSettings(rebuild_s=2.0), epoch=2)
    orders = new.turn([owner if first == "owner" else before], 10.0)
    orders += new.turn([before if first == "owner" else owner], 10.1)
    assert of(HandOver, orders) == [HandOver("a", 1, "t/q")]
    (seal,) = of(Seal, new.turn([joined()], 12.2))
    assert isinstance(seal, Seal) and seal.gateway == "b"
    orders = new.turn([Sealed("t/q", "a", 1, 0, (ids([7, 8, 9]),), (Reason.LENGTH,))], 12.3)
    orders += new.turn([Sealed("t/q", "b", 9, seal.attempt, (ids(),), (Reason.NONE,))], 12.4)
    replays = [one for one in of(Replay, orders) if isinstance(one, Replay)]
    assert [(one.gateway, one.tokens.route, list(one.tokens.ids)) for one in replays][:1] == [("b", 9, [7, 8, 9])]
    assert [order.gateway for order in orders if isinstance(order, Done)] == ["b"]
