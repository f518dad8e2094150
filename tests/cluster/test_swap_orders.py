"""What the scheduler orders of host memory, turn by turn, without any worker: what goes out, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.messages import (
    Advances,
    Drain,
    GiveUp,
    HostPoolJoined,
    HostPoolLost,
    HostPoolSettled,
    Order,
    Plan,
    Reason,
    ReplicaLost,
    Result,
    Road,
    Start,
    Transfer,
    Transferred,
)
from cluster.settings import SchedulerSettings
from tests.cluster.test_scheduler import Driver, joined, starts, submit, transfers_of

POOL = HostPoolJoined("h0", 7, "node", 64, 4096, "f", 1e9)


def swapping(**replica: int) -> Driver:
    """A scheduler that swaps whenever it can, one replica, one host pool."""
    driver = Driver(SchedulerSettings(preemption="swap"), **replica)
    driver.turn(POOL)
    return driver


def forks_of(start: Start) -> list[Start]:
    """Each fork as if it had been started by itself, to report of it."""
    return [replace(start, seq=fork.seq, index=fork.index) for fork in start.forks]


def ended(driver: Driver, transfer: Transfer, ok: bool = True) -> list[Order]:
    """The worker says how a transfer ended."""
    driver.number += 1
    told = (Transferred(transfer.transfer, ok, "", 1000, 0.001),)
    return driver.turn(Result("r0", 1, 1, driver.number, driver.plan, driver.number, Advances(), transferred=told))


def test_a_fork_that_has_not_begun_is_not_swapped_but_computed_again() -> None:
    """It has no token to go on with: what would come back from host memory could not take a step."""
    driver = swapping()
    start = starts(driver.turn(submit("q", range(14), 40, n=2)))["q"]
    (fork,) = forks_of(start)
    driver.turn(Drain("r0"))
    orders = driver.result(stopped=[(start, Reason.DROPPED, 14, 1), (fork, Reason.DROPPED, 14, 0)])
    assert not transfers_of(orders)
    assert not driver.scheduler.pools["h0"].ledger.counts().held
    again = starts(driver.turn(Drain("r0", on=False)))["q"]
    assert (again.position, len(again.tokens)) == (0, 15)
    assert [list(one.outputs) for one in again.forks] == [[]]


@pytest.mark.parametrize("outputs", [0, 1])
def test_who_has_judged_a_part_of_a_prompt_computes_it_again(outputs: int) -> None:
    """Logprobs of the prompt are told with the first token; until then only the worker knows them."""
    driver = swapping()
    asked = submit("q", range(40), 40)
    start = starts(driver.turn(replace(asked, sampling=replace(asked.sampling, prompt_logprobs=1))))["q"]
    driver.turn(Drain("r0"))
    orders = driver.result(stopped=[(start, Reason.DROPPED, 40 if outputs else 32, outputs)])
    assert len(transfers_of(orders)) == outputs


def test_forks_that_have_begun_go_out_together_and_come_back_as_they_were() -> None:
    driver = swapping()
    start = starts(driver.turn(submit("q", range(40), 40, n=2)))["q"]
    (fork,) = forks_of(start)
    driver.turn(Drain("r0"))
    (out,) = transfers_of(driver.result(stopped=[(start, Reason.DROPPED, 41, 2), (fork, Reason.DROPPED, 40, 1)]))
    # Two full blocks of the prompt go once, and each sequence's own tail.
    assert len(out.mine) == len(out.theirs) == 4
    assert not transfers_of(ended(driver, out))
    orders = driver.turn(Drain("r0", on=False))
    (back,) = transfers_of(orders)
    # The full blocks of the prompt are still cached on the device.
    assert (back.road, sorted(back.theirs)) == (Road.READ, sorted(out.theirs)[2:])
    again = [one for order in orders if isinstance(order, Plan) for one in order.starts]
    assert [(one.index, one.position, len(one.tokens), one.forks) for one in again] == [
        (0, 41, 42, ()),
        (1, 40, 41, ()),
    ]
    assert [one.after for one in again] == [back.transfer] * 2, "they begin once their blocks are there"
    assert list(again[0].table[:2]) == list(again[1].table[:2]), "full prompt blocks are shared again"
    ended(driver, back)
    assert not driver.scheduler.pools["h0"].ledger.counts().held


def gave_up(orders: Sequence[Order]) -> list[GiveUp]:
    return [order for order in orders if isinstance(order, GiveUp)]


def going_out(driver: Driver) -> Transfer:
    """A request whose blocks are on the way to host memory."""
    start = starts(driver.turn(submit("q", range(40), 40)))["q"]
    driver.turn(Drain("r0"))
    (out,) = transfers_of(driver.result(stopped=[(start, Reason.DROPPED, 41, 2)]))
    return out


def test_what_a_write_that_failed_has_left_is_quarantined_until_its_pool_has_settled() -> None:
    driver = swapping()
    out = going_out(driver)
    assert gave_up(ended(driver, out, ok=False)) == [GiveUp("h0", 7, 1, (out.transfer,))]
    host = driver.scheduler.pools["h0"].ledger
    assert (host.counts().quarantined, host.counts().held) == (3, 0)
    assert list(driver.scheduler.host_memory.quarantined) == [("h0", out.transfer)]
    driver.turn(HostPoolSettled("h0", 6, out.transfer))
    assert host.counts().quarantined == 3, "another incarnation of the pool has settled"
    driver.turn(HostPoolSettled("h0", 7, out.transfer))
    assert host.counts().free == 64
    driver.turn(HostPoolSettled("h0", 7, out.transfer))
    assert not driver.scheduler.host_memory.quarantined
    assert starts(driver.turn(Drain("r0", on=False)))["q"].position == 32, "what is cached on the device serves"


def test_what_a_lost_replica_was_writing_is_given_up_with_its_pool() -> None:
    driver = swapping()
    out = going_out(driver)
    orders = driver.turn(ReplicaLost("r0", 1))
    assert gave_up(orders) == [GiveUp("h0", 7, 1, (out.transfer,))]
    assert driver.scheduler.pools["h0"].ledger.counts().quarantined == 3
    driver.turn(HostPoolLost("h0", 7))
    assert not driver.scheduler.host_memory.quarantined, "nothing is left of a pool that is gone"


def test_out_of_host_memory_is_said_with_its_figures() -> None:
    driver = Driver(SchedulerSettings(preemption="swap"))
    driver.turn(replace(POOL, num_blocks=2))
    start = starts(driver.turn(submit("q", range(40), 40)))["q"]
    driver.turn(Drain("r0"))
    request = driver.scheduler.requests["q"]
    assert "out of host memory: 3 blocks are needed, h0 has 2 of 2 left" in request.why_preempted
    assert "recompute" in request.why_preempted
    assert driver.scheduler.counters["out of host memory"] == 1
    (note,) = [note for note in driver.scheduler.notes.since(0) if note.kind == "preempted"]
    assert note.why == request.why_preempted
    assert not transfers_of(driver.result(stopped=[(start, Reason.DROPPED, 41, 2)]))


def test_how_much_was_swapped_and_how_long_it_took_is_counted_by_way() -> None:
    driver = swapping()
    out = going_out(driver)
    ended(driver, out)
    (back,) = transfers_of(driver.turn(Drain("r0", on=False)))
    ended(driver, back, ok=False)
    counters = driver.scheduler.counters
    assert (counters["swapped out bytes"], counters["swapped out microseconds"]) == (1000, 1000)
    assert counters["swapped in bytes"] == 0, "a transfer that failed has moved nothing that counts"
    assert [note.subject for note in driver.scheduler.notes.since(0) if note.kind == "transfer failed"] == ["q"]


def test_what_lies_in_host_memory_outlives_its_replica_and_comes_back_on_another() -> None:
    driver = swapping()
    out = going_out(driver)
    ended(driver, out)
    driver.turn(ReplicaLost("r0", 1))
    assert driver.scheduler.pools["h0"].ledger.counts().held == 3
    orders = driver.turn(joined("r1"))
    (back,) = transfers_of(orders)
    assert (back.road, sorted(back.theirs)) == (Road.READ, sorted(out.theirs))
    assert {order.replica for order in orders if isinstance(order, Plan)} == {"r1"}


def test_transfers_with_a_pool_that_died_are_given_up_at_once() -> None:
    driver = swapping()
    out = going_out(driver)
    (plan,) = [order for order in driver.turn(HostPoolLost("h0", 7)) if isinstance(order, Plan)]
    assert plan.aborts == (out.transfer,)
    ended(driver, out, ok=False)
    again = starts(driver.turn(Drain("r0", on=False)))["q"]
    assert (again.attempt, len(again.tokens)) == (2, 42)
