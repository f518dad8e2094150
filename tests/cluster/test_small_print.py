"""What is promised at the edges: cleared tenants after a rebuild, names used again, pins, cuts, deadlines far away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.centre.deadlines import FEW
from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Closed,
    Done,
    Event,
    GatewayLost,
    GatewayState,
    OpenRequest,
    Order,
    Pin,
    Plan,
    Reason,
    Refused,
    ReplicaLost,
    ReplicaState,
    Resident,
    Road,
    Seal,
    StopAt,
    Transfer,
    ids,
)
from cluster.settings import SchedulerSettings
from tests.cluster.test_scheduler import HASHER, Driver, joined, starts, submit


class Taking:
    """A scheduler that takes over from one before it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(SchedulerSettings(clear_tenants=("secret",)), epoch=2)
        self.now = 0.0

    def turn(self, *events: Event) -> Plan:
        self.now += 0.01
        orders = self.scheduler.turn(events, self.now)
        self.scheduler.check()
        plans = [order for order in orders if isinstance(order, Plan)]
        return plans[0] if plans else Plan("r0", 1, 2, 0, 4, 0)


def test_after_a_rebuild_all_that_nobody_holds_is_overwritten_where_a_tenant_wants_that() -> None:
    first = Driver(SchedulerSettings(clear_tenants=("secret",)))
    start = starts(first.turn(submit("q", range(20), 30, "secret")))["q"]
    resident = Resident(start.seq, 0, start, ids([*start.tokens, 7]), 20, start.table, start.lease_end)
    transfer = Transfer(5, Road.WRITE, "h0", 1, ids([10, 11]), ids([0, 1]), 1.0)
    state = ReplicaState(joined(), (resident,), ((5, b"n" * 16),), (transfer,))
    taking = Taking()
    plan = taking.turn(state)
    unheld = set(range(64)) - set(start.table) - {10, 11}
    assert set(plan.clears) == unheld, "whose content that was nobody knows, what was cached included"
    # The one that only its worker has told of may be that tenant's: what it leaves is overwritten, too.
    request = taking.scheduler.requests["q"]
    assert request.tenant.is_cleared and not request.tenant.name
    submitted = submit("q", range(20), 30, "secret")
    taking.turn(GatewayState("g", (OpenRequest(submitted, 1, (ids([7]),), (Reason.NONE,)),)))
    assert taking.scheduler.requests["q"].tenant.name == "secret"


@pytest.mark.parametrize("tenant", ["secret", "open"])
def test_only_blocks_of_such_tenants_are_overwritten(tenant: str) -> None:
    driver = Driver(SchedulerSettings(clear_tenants=("secret",)))
    start = starts(driver.turn(submit("q", range(20), 30, tenant)))["q"]
    orders = driver.result(stopped=[(start, Reason.STOP, 22, 3)])
    cleared = [block for order in orders if isinstance(order, Plan) for block in order.clears]
    assert set(cleared) == (set(start.table) if tenant == "secret" else set())


def test_a_name_that_is_used_again_is_the_new_requests() -> None:
    driver = Driver()
    first = starts(driver.turn(submit("q", range(40), 4)))["q"]
    driver.result(stopped=[(first, Reason.LENGTH, 43, 4)])
    again = replace(submit("q", range(500, 540), 4), gateway="g2")
    second = starts(driver.turn(again))["q"]
    driver.result(stopped=[(second, Reason.LENGTH, 43, 4)])
    kept = driver.scheduler.unclosed["q"]
    assert kept.gateway == "g2" and list(kept.prompt) == list(range(500, 540))
    # Its worker dies with the last tokens: the gateway that is asked is the one that still lacks them.
    (seal,) = [order for order in driver.turn(ReplicaLost("r0", 1)) if isinstance(order, Seal)]
    assert seal.gateway == "g2"
    driver.turn(Closed("q", "g2", again.route))
    assert not driver.scheduler.unclosed


def test_a_pin_whose_replica_dies_is_computed_on_another_before_it_is_answered() -> None:
    driver = Driver()
    driver.turn(joined("r1"))
    prompt = ids(range(32))
    start = starts(driver.turn(Pin("pin", "g", 1, "m", "t", prompt, HASHER.prompt(prompt), until=100.0)))["pin"]
    assert start.attempt == 1
    orders: list[Order] = driver.turn(ReplicaLost("r0", 1))
    assert not any(isinstance(order, Done) for order in orders), "nothing is warm"
    assert starts(orders)["pin"].attempt == 2 and not driver.scheduler.books.pinned


def test_a_pin_that_a_gateway_tells_again_is_the_same_pin() -> None:
    """It was refused as under way, though it was this very one: the gateway had been given up, and lived."""
    driver = Driver()
    prompt = ids(range(32))
    pin = Pin("pin", "g", 1, "m", "t", prompt, HASHER.prompt(prompt), until=100.0)
    again = GatewayLost("g"), GatewayState("g", ()), pin
    start = starts(driver.turn(pin))["pin"]
    assert driver.turn(*again) == []
    (done,) = driver.result(stopped=[(start, Reason.LENGTH, 32, 1)])
    # That word may have been lost with the gateway's session.
    assert driver.turn(*again) == [done] and isinstance(done, Done)
    (refused,) = driver.turn(replace(pin, route=2))
    assert isinstance(refused, Refused) and refused.code == "ALREADY_EXISTS"


def test_tokens_behind_a_cut_are_not_billed() -> None:
    driver = Driver()
    start = starts(driver.turn(submit("q", range(10), 30, "t")))["q"]
    driver.turn(StopAt("q", 0, 3))
    driver.result(stopped=[(start, Reason.DROPPED, 16, 7)])
    (tenant,) = driver.scheduler.tenants
    assert tenant.output_tokens == 3 and tenant.service >= 17, "they were computed, and count for who goes next"


@pytest.mark.parametrize("deadline", [float("inf"), 1e9])
def test_deadlines_far_away_keep_nothing_of_what_has_ended(deadline: float) -> None:
    driver = Driver()
    for number in range(4 * FEW):
        name = f"q{number}"
        start = starts(driver.turn(replace(submit(name, range(10), 4), deadline=deadline)))[name]
        driver.result(stopped=[(start, Reason.LENGTH, 13, 4)])
        driver.turn(Closed(name, start.gateway, start.route))
    assert len(driver.scheduler.deadlines) <= FEW + 1
    alive = replace(submit("alive", range(10), 4), deadline=driver.now + 5.0)
    driver.turn(alive)
    assert driver.scheduler.next_deadline is not None
    driver.now += 6.0
    driver.turn()
    assert driver.scheduler.requests["alive"].is_cancelled
