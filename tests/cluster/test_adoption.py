"""Whose a request is, turn by turn: clients that come back elsewhere, gateways that both believe, seals that wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Accepted,
    Adopt,
    Cancel,
    Claim,
    Closed,
    Done,
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
    Seal,
    Sealed,
    Start,
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
    assert orders == [Accepted("a", 1, "t/q", 0, "", again.turn)]
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


def test_a_seal_does_not_wait_for_the_dead_or_for_ever() -> None:
    for ending in ("lost", "silent"):
        driver = Driver(SchedulerSettings(seal_timeout_s=5.0))
        asked, start = running(driver)
        driver.result(advances=[(start, 47, 8)])
        driver.turn(Adopt(at("b", 1, asked)))
        (seal,) = of(Seal, driver.turn(ReplicaLost("r0", 1), joined("r1")))
        assert isinstance(seal, Seal) and seal.gateway == "b"
        orders = driver.turn(Sealed("t/q", "b", 1, seal.attempt, (ids(),), (Reason.NONE,)))
        assert not starts(orders), "a has not handed over yet"
        if ending == "lost":
            orders = driver.turn(GatewayLost("a"))
        else:
            driver.now += 5.0
            orders = driver.turn()
        assert len(starts(orders)["t/q"].tokens) == 48


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
    (refused,) = of(Refused, new.turn([], 12.0))
    assert isinstance(refused, Refused) and refused.code == "NOT_FOUND"
    # Much later nobody is expected any more, and nobody waits for a gateway that has gone itself.
    assert of(Refused, new.turn([Adopt(at("b", 2, asked))], 40.0))
    late = Scheduler(SchedulerSettings(), epoch=2)
    late.turn([Adopt(at("b", 1, asked)), GatewayLost("b")], 10.0)
    assert not of(Refused, late.turn([], 13.0))


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


def test_what_a_gateway_closed_while_it_was_cut_off_is_forgotten() -> None:
    driver = Driver()
    _, start = running(driver)
    driver.result(stopped=[(start, Reason.STOP, 44, 5)])
    driver.turn(GatewayState("a", ()))
    assert driver.scheduler.unclosed, "its Done is on the way"
    driver.turn(GatewayLost("a"), GatewayState("a", ()))
    assert not driver.scheduler.unclosed


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
