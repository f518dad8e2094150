"""Blocks that are leased ahead come back before anybody is preempted: what the scheduler orders, and what it makes of
the worker's answers."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Advances,
    Expel,
    Order,
    Plan,
    Reason,
    ReplicaState,
    Resident,
    Result,
    Revoked,
    Seal,
    Start,
    Stopped,
    ids,
)
from cluster.settings import SchedulerSettings
from tests.cluster.test_scheduler import Driver, joined, starts, submit

AHEAD = 20


def tell(
    driver: Driver,
    advanced: Sequence[tuple[Start, int, int]] = (),
    revoked: Sequence[tuple[Start, int]] = (),
    stopped: tuple[Stopped, ...] = (),
) -> list[Order]:
    """Positions of sequences that generate nothing cacheable, and answers to revokes."""
    columns = Advances()
    for start, position, num_ids in advanced:
        columns.seqs.append(start.seq)
        columns.positions.append(position)
        columns.num_ids.append(num_ids)
        columns.ids.extend(ids([7] * num_ids))
        columns.num_hashes.append(0)
    driver.number += 1
    answers = tuple(Revoked(start.seq, end) for start, end in revoked)
    return driver.turn(Result("r0", 1, 1, driver.number, driver.plan, 1, columns, stopped, answers))


def plan_of(orders: list[Order]) -> Plan:
    (plan,) = [order for order in orders if isinstance(order, Plan)]
    return plan


def full_pool() -> tuple[Driver, Start, Start]:
    """Six blocks: `old` holds two of them, `new` four, the last of them ahead of its need."""
    driver = Driver(SchedulerSettings(ahead=AHEAD, prefix_caching=False, admit_reserve=0.0), num_blocks=6)
    started = starts(driver.turn(submit("old", range(8), 80), submit("new", range(100, 130), 60)))
    old, new = started["old"], started["new"]
    assert (len(old.table), old.lease_end, len(new.table), new.lease_end) == (2, 32, 4, 64)
    return driver, old, new


def test_a_block_leased_ahead_comes_back_before_anybody_is_preempted() -> None:
    driver, old, new = full_pool()
    plan = plan_of(tell(driver, [(old, 32, 25)]))
    # Thirty tokens are known of `new`: two blocks stay, two are asked back. Nobody is dropped.
    assert [(revoke.seq, revoke.lease_end) for revoke in plan.revokes] == [(new.seq, 32)] and not plan.drops
    assert plan.ahead == 1, "and nobody gets a block beyond the next step from here on"
    # Its worker was further than the scheduler knew: the block of its last position stays.
    plan = plan_of(tell(driver, [(new, 33, 4)], [(new, 48)]))
    assert list(plan.extends.seqs) == [old.seq] and list(plan.extends.blocks) == [new.table[3]]
    assert list(plan.extends.lease_ends) == [48]
    assert not plan.drops and driver.scheduler.counters["blocks revoked"] == 1
    assert not driver.scheduler.counters["preempted recompute"]


def test_a_lease_is_not_renewed_between_revoke_and_answer() -> None:
    driver, old, new = full_pool()
    assert plan_of(tell(driver, [(old, 32, 25)])).revokes
    # `new` ran to its end meanwhile and asks; the answer, which was sent behind that, gives nothing back.
    orders = tell(driver, [(new, 64, 35)])
    assert not any(order.extends.seqs or order.drops for order in orders if isinstance(order, Plan))
    plan = plan_of(tell(driver, revoked=[(new, 64)]))
    # Now nothing is left to give back, so the later one goes.
    assert [drop.seq for drop in plan.drops] == [new.seq]
    assert driver.scheduler.counters["blocks revoked"] == 0


def test_who_ends_before_the_revoke_arrives_gives_everything() -> None:
    driver, old, new = full_pool()
    tell(driver, [(old, 32, 25)])
    plan = plan_of(tell(driver, stopped=(Stopped(new.seq, Reason.STOP, 40, ids([7] * 11)),)))
    assert list(plan.extends.seqs) == [old.seq]
    assert driver.scheduler.replicas["r0"].is_revoking is False
    # An answer that comes all the same is stale, and counted.
    tell(driver, revoked=[(new, 48)])
    assert driver.scheduler.replicas["r0"].num_stale == 1


def test_an_answer_outside_of_the_lease_ends_its_worker_and_nobody_else() -> None:
    driver, old, new = full_pool()
    tell(driver, [(old, 32, 25)])
    orders = tell(driver, [(new, 33, 4)], [(new, 16)])
    (expelled,) = [order for order in orders if isinstance(order, Expel)]
    assert (expelled.replica, expelled.incarnation) == ("r0", 1) and "leave up to 16" in expelled.detail
    assert {order.request_id for order in orders if isinstance(order, Seal)} == {"old", "new"}


def test_a_new_scheduler_takes_the_lease_as_it_stands_after_a_revoke() -> None:
    driver, old, new = full_pool()
    tell(driver, [(old, 32, 25)])
    resident = Resident(new.seq, 0, new, ids(new.tokens), 30, ids(new.table[:2]), 32)
    second = Scheduler(driver.scheduler.settings, epoch=2)
    (plan, *_) = second.turn((ReplicaState(joined(num_blocks=6), (resident,), (), ()),), 1.0)
    second.check()
    assert isinstance(plan, Plan) and list(plan.extends.firsts) == [2]
