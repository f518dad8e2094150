"""A pool that is too small: who goes, by which way, what is written down of it, and that everybody finishes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.messages import Done, Fork, HostPoolJoined, Order, Plan, Reason, Result, Start, Transferred
from cluster.settings import PreemptionName, SchedulerSettings
from tests.cluster.test_scheduler import Driver, starts, submit, transfers_of

PROMPT = 30


def drops_of(orders: Sequence[Order]) -> list[int]:
    return [drop.seq for order in orders if isinstance(order, Plan) for drop in order.drops]


def under_pressure(preemption: PreemptionName, host_blocks: int, rate: float = 0.0) -> tuple[Driver, list[Start]]:
    """Two requests in six blocks; both have written three blocks, and the earlier one needs a fourth."""
    driver = Driver(SchedulerSettings(preemption=preemption, swap_share=0.5), num_blocks=6)
    replica = driver.scheduler.replicas["r0"]
    replica.prefill_tokens_per_s = rate
    if host_blocks:
        driver.turn(HostPoolJoined("h0", 1, "node", host_blocks, 4096, "f", bytes_per_s=4096 * 1000.0))
    found = starts(driver.turn(submit("old", range(PROMPT), 60), submit("new", range(100, 100 + PROMPT), 60)))
    both = [found["old"], found["new"]]
    driver.result([(start, 28, 0) for start in both])
    driver.result([(start, 44, 15) for start in both])
    return driver, both


@pytest.mark.parametrize(
    ("preemption", "host_blocks", "rate", "way"),
    [
        ("recompute", 16, 1000.0, "recompute"),
        ("swap", 16, 1000.0, "swap"),
        ("swap", 2, 1000.0, "recompute"),  # no room there
        # 48 tokens at 1,000 a second are 48 ms; three blocks there and back at 1,000 a second, half of it felt, 3 ms.
        ("cheapest", 16, 1000.0, "swap"),
        ("cheapest", 16, 100_000.0, "recompute"),
        ("cheapest", 16, 0.0, "recompute"),  # a way whose rate is not known is not compared
    ],
)
def test_the_way_out_and_what_is_noted_of_it(
    preemption: PreemptionName, host_blocks: int, rate: float, way: str
) -> None:
    driver, (old, new) = under_pressure(preemption, host_blocks, rate)
    orders = driver.result([(old, 48, 4), (new, 48, 4)])
    assert drops_of(orders) == [new.seq]
    scheduler = driver.scheduler
    request = scheduler.requests["new"]
    assert request.why_preempted.startswith(f"old needs a block and none is free; {way}, estimated ")
    assert scheduler.counters[f"preempted {way}"] == 1 == scheduler.notes.preemptions[way, "memory"]
    (note,) = [note for note in scheduler.notes.since(0) if note.kind == "preempted"]
    assert (note.subject, note.why) == ("new", request.why_preempted)
    # Host room is taken before the worker has even heard of the drop.
    held = sum(pool.ledger.counts().held for pool in scheduler.pools.values())
    assert held == (3 if way == "swap" else 0)


def test_all_sequences_of_a_request_go_together() -> None:
    driver = Driver(num_blocks=9)
    found = starts(driver.turn(submit("old", range(PROMPT), 60), submit("new", range(100, 116), 33, n=3)))
    old, new = found["old"], found["new"]
    driver.result([(old, 28, 0), (new, 16, 0)])
    dropped: list[int] = []
    for position in range(32, 89, 4):
        dropped += drops_of(driver.result([(old, position, 4)]))
    assert sorted(dropped) == sorted([new.seq, *(fork.seq for fork in new.forks)])


def settle(driver: Driver, transfer: int) -> list[Order]:
    driver.number += 1
    done = Transferred(transfer, True, "", 3 * 4096, 0.01)
    return driver.turn(Result("r0", 1, 1, driver.number, driver.plan, driver.number, transferred=(done,)))


def test_what_comes_back_from_the_host_goes_on_where_it_was_and_is_billed_apart() -> None:
    driver, (old, new) = under_pressure("swap", 16)
    driver.result([(old, 48, 4), (new, 48, 4)])
    begun = driver.now
    (out,) = transfers_of(driver.result(stopped=[(new, Reason.DROPPED, 48, 0)]))
    settle(driver, out.transfer)
    orders = driver.result(stopped=[(old, Reason.STOP, 60, 12)])
    (back,) = transfers_of(orders)
    assert list(back.theirs) == list(out.theirs)
    orders = [*orders, *settle(driver, back.transfer)]
    again, held = starts(orders)["new"], driver.now - begun
    # Nothing is computed twice: all but the last token known is written.
    assert (again.attempt, len(again.tokens)) == (2, PROMPT + 19) and max(again.position, 48) == 48
    orders = driver.result(stopped=[(again, Reason.STOP, 60, 12)])
    (done,) = [order for order in orders if isinstance(order, Done)]
    # Three blocks of host memory from their reservation until they were back.
    assert done.host_block_seconds == pytest.approx(3 * held)
    assert done.preemptions == 1 and done.device_block_seconds > 0


@pytest.mark.parametrize("n", [1, 2])
def test_a_request_finishes_alone_in_a_pool_that_just_holds_it(n: int) -> None:
    """Twenty prompt tokens, 45 more: 64 written positions are four blocks, one of them shared by forks."""
    driver = Driver(num_blocks=4 if n == 1 else 1 + 3 * n)
    start = starts(driver.turn(submit("q", range(20), 45, n=n)))["q"]
    every = [start, *(fork_as_start(start, fork) for fork in start.forks)]
    leases = {start.seq: start.lease_end} | {fork.seq: fork.lease_end for fork in start.forks}
    position = 20
    driver.result([(start, 20, 1)])
    while position < 64:
        position = min(position + 4, 64)
        for each in every:
            assert leases[each.seq] >= position, f"no leave for position {position} of [{each.index}]"
        for order in driver.result([(each, position, 4) for each in every]):
            assert isinstance(order, Plan) and not order.drops
            leases |= dict(zip(order.extends.seqs, order.extends.lease_ends, strict=True))
    assert not driver.scheduler.counters["preempted recompute"]


def fork_as_start(start: Start, fork: Fork) -> Start:
    return replace(start, seq=fork.seq, request_id=f"{start.request_id}{fork.index}")


def test_leases_are_given_ahead_again_only_when_twice_as_much_is_free() -> None:
    driver = Driver(SchedulerSettings(pressure=0.25), num_blocks=16)
    replica = driver.scheduler.replicas["r0"]

    def ahead_with(num_available: int) -> int:
        taken = replica.ledger.allocate(replica.ledger.num_available - num_available, 99)
        assert taken is not None
        driver.scheduler.leases.watch_pressure(replica)
        replica.ledger.release(taken, 99)
        return replica.ahead

    assert [ahead_with(count) for count in (8, 4, 3, 4, 7, 8, 5)] == [4, 4, 1, 1, 1, 4, 4]
