"""What a cluster of a thousand pools costs the scheduler beside one of ten: rows of `quire bench scheduler`.

Every pool has cached the same prefix of 2,048 tokens, and one of them runs 256 sequences. Timed, as processor time: a
request admitted, a turn of a replica that drains, a preemption's search for the cheapest way out, a transfer in the
register of one pool, and the next victim among 40,000 cached blocks; counted: the bytes of a join.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from cluster.bench.report import Report
from cluster.centre.allocators import make_allocator
from cluster.centre.scheduler import Scheduler
from cluster.hashing import HASH_BYTES
from cluster.messages import Advances, Drain, Event, Plan, ReplicaJoined, Result, Start, Submit, ids
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Carrier, Reservation, TransferKey, TransferName, layout_of
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from cluster.wire.control import directory_to

Cell: TypeAlias = str | int | float | bool | None

SIZE = 16
PREFIX = 2048 // SIZE
NUM_SEQS = 256
NUM_BLOCKS = 4096
FEW, MANY = 10, 1000
CACHED = 40_000


def _name(number: int) -> bytes:
    return number.to_bytes(HASH_BYTES, "little")


def _submit(number: int, names: list[bytes], max_tokens: int) -> Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Submit(f"q{number}", "g", number, "m", "t", ids(range(len(names) * SIZE + 1)), tuple(names), sampling)


def new_cluster(num_pools: int, max_batch: int = NUM_SEQS) -> Scheduler:
    """Pools that have all cached the prefix, and run nothing."""
    scheduler = Scheduler(SchedulerSettings(prefix_caching=True, balance_every_s=1e9))
    joins: list[Event] = [
        ReplicaJoined(
            f"r{pool}", 1, f"n{pool}", "m", NUM_BLOCKS, SIZE, 1 << 21, "f", max_batch, 8192,
            prefill_tokens_per_s=10_000.0, bytes_per_s=1e10,
        )
        for pool in range(num_pools)
    ]  # fmt: skip
    scheduler.turn(joins, 0.0)
    names = [*map(_name, range(1, PREFIX + 1))]
    for replica in scheduler.replicas.values():
        blocks = replica.ledger.allocate(PREFIX, 0)
        assert blocks is not None
        replica.ledger.set_names(blocks, names)
        replica.ledger.release(blocks, 0)
    return scheduler


def _ms(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e3


def admission_ms(num_pools: int, count: int = 64) -> float:
    """Submit and Start of one request whose whole prefix every pool holds, in the median."""
    scheduler = new_cluster(num_pools)
    names = [_name(number) for number in range(1, PREFIX + 1)]
    found = []
    for number in range(count):
        asked = _submit(number, names, 64)
        found.append(_ms(lambda asked=asked: scheduler.turn([asked], 0.0)))  # type: ignore[misc]
    assert all(request.replica is not None for request in scheduler.requests.values())
    return statistics.median(found)


def fill_first(scheduler: Scheduler) -> None:
    """The first replica runs 256 sequences, each of which has written its prompt; the others run none."""
    first = scheduler.replicas["r0"]
    others = [replica for replica in scheduler.replicas.values() if replica is not first]
    for replica in others:
        replica.is_draining = True
        scheduler.boards.refresh(replica)
    asked = [_submit(10_000 + number, [_name((number + 2) << 32 | at) for at in range(8)], 64) for number in range(256)]
    starts: list[Start] = []
    for order in scheduler.turn(asked, 0.0):
        if isinstance(order, Plan):
            starts += order.starts
    assert len(starts) == NUM_SEQS
    zeros = ids([0] * len(starts))
    ends = ids(len(start.tokens) - 1 for start in starts)
    advances = Advances(array("q", (start.seq for start in starts)), ends, zeros, ids(), zeros)
    told = Result("r0", 1, scheduler.epoch, 1, first.last_plan, 1, advances, step_seconds=0.02)
    scheduler.turn([told], 0.1)
    for replica in others:
        replica.is_draining = False
        scheduler.boards.refresh(replica)


def drain_ms(num_pools: int) -> float:
    """The turn in which a replica with 256 sequences begins to drain."""
    scheduler = new_cluster(num_pools)
    fill_first(scheduler)
    took = _ms(lambda: scheduler.turn([Drain("r0", True)], 0.2))
    assert scheduler.counters["moves begun"]
    return took


def preemption_ms(num_pools: int, count: int = 16) -> float:
    """The search for the cheapest way out, whatever it finds, in the median."""
    scheduler = new_cluster(num_pools)
    fill_first(scheduler)
    running = list(scheduler.replicas["r0"].requests.values())[-count:]
    return statistics.median(
        _ms(lambda one=one: scheduler.pressure.preempt(one, "a bench", "memory"))  # type: ignore[misc]
        for one in running
    )


def transfer_us(num_pools: int, count: int = 256) -> float:
    """One more transfer of a pool that has one under way with every other pool and remembers four of each: reserved,
    committed, and what is due looked for, in the median."""
    layout = layout_of("f", 1 << 16)
    register = Register(layout, NUM_BLOCKS, 1, RegisterSettings(), own_content=True)
    numbers = iter(range(1, 1 << 30))

    def reserve(pool: int) -> TransferName:
        name = TransferName(TransferKey(1, next(numbers), 0, f"pool {pool}"), 1, 1)
        blocks = np.array([pool], np.int32)
        register.reserve(Reservation(name, False, layout, blocks, Carrier.SOCKET, 60.0), b"", 0.0)
        return name

    for pool in range(num_pools):
        for _ in range(4):
            register.commit(reserve(pool), 0.0)
    for pool in range(num_pools):
        reserve(pool)

    def transfer(pool: int) -> None:
        register.commit(reserve(pool), 1.0)
        register.expire(1.0)

    found = [_ms(lambda pool=at % num_pools: transfer(pool)) for at in range(count)]  # type: ignore[misc]
    register.check()
    return 1e3 * statistics.median(found)


def victim_us() -> float:
    """The next block of a pool in which nothing is free and 40,000 blocks are cached."""
    unheld = make_allocator("lru", CACHED)
    blocks, _ = unheld.take(CACHED, -1)
    for block in blocks:
        unheld.put_cached(block)
    count = CACHED // 2

    def take() -> None:
        for _ in range(count):
            unheld.take(1, -1)

    return _ms(take) * 1e3 / count


def join_bytes(num_pools: int) -> int:
    """What is told of the directory when one more pool joins: all of it to that one, the change to all."""
    addresses = {f"replica-{number}": f"10.0.{number >> 8}.{number & 255}:50051" for number in range(num_pools)}
    change = directory_to({"replica-0": addresses["replica-0"]}, is_whole=False)
    return len(directory_to(addresses, is_whole=True)) + num_pools * len(change)


def report_many_pools(report: Report) -> None:
    report.table(
        f"what {MANY:,} pools cost beside {FEW} (every pool holds the prefix)",
        [
            _row("admission of a 2,048-token prefix, ms", admission_ms, MANY, 1.0),
            _row("a drain's turn, ms", drain_ms, 500, 10.0),
            _row("a preemption's search, ms", preemption_ms, MANY, 1.0),
            _row("a transfer in one pool's register, us", transfer_us, MANY, 100.0),
        ],
    )
    report.table(
        "other costs of size",
        [
            {"what": "a join among 1,000, bytes of the directory", "cost": join_bytes(MANY), "at most": 100_000},
            {"what": f"the next LRU victim at {CACHED:,} cached blocks, us", "cost": victim_us(), "at most": 3.0},
        ],
    )


def _row(what: str, measure: Callable[[int], float], most: int, bound: float) -> dict[str, Cell]:
    few, many = measure(FEW), measure(most)
    return {"what": what, "10 pools": few, "pools": most, "cost": many, "at most": bound, "times": many / few}
