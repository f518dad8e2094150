"""`quire bench scheduler`: what the scheduler costs, on one core, against workers that make up tokens.

The real scheduler with all features on and the garbage collector running; the workers are arrays that advance every
sequence by one token a step, report near the end of a lease and stop at their length, so that hardly any time but the
scheduler's passes. Timed, as processor time of the thread: decoding of results, the turn,
encoding of plans. The same trace also runs with leases of one
step, which is a scheduler that plans every token: what leases save.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cluster.bench.report import Report
from cluster.hashing import HASH_BYTES
from cluster.host import tune_collector
from cluster.messages import (
    Advances,
    Closed,
    Done,
    Event,
    Plan,
    Reason,
    ReplicaJoined,
    Result,
    Stopped,
    Submit,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.scheduler import Scheduler
from cluster.settings import SchedulerSettings
from cluster.wire import decode_result, encode_plan, encode_result

BLOCK_SIZE = 16
MEAN_PROMPT, MEAN_OUTPUT = 161, 338


@dataclass
class Timing:
    """Seconds of each turn, and what was done in them."""

    turns: list[float]
    tokens: int = 0
    blocks: int = 0
    plans: int = 0
    plan_bytes: int = 0
    started: int = 0
    # Slots over all samples: of blocks that are held, of blocks that hold a token, and tokens.
    held: int = 0
    needed: int = 0
    written: int = 0

    @property
    def last_block_waste(self) -> float:
        """Slots without a token in blocks that hold some, as a share of the tokens: the floor of any paging."""
        return (self.needed - self.written) / self.written

    @property
    def leased_ahead(self) -> float:
        """Slots of blocks without a token yet, as a share of the tokens."""
        return (self.held - self.needed) / self.written

    @property
    def seconds(self) -> float:
        return sum(self.turns)

    def percentile(self, share: float) -> float:
        return sorted(self.turns)[min(len(self.turns) - 1, int(share * len(self.turns)))]


class MadeUpWorkers:
    """All workers of a cluster as arrays: [worker, batch row]. Every step each sequence with leave gains a token."""

    def __init__(self, num_workers: int, num_seqs: int, block_size: int, seed: int) -> None:
        self.block_size = block_size
        shape = (num_workers, num_seqs)
        self.seq = np.zeros(shape, np.int64)
        self.position = np.zeros(shape, np.int32)
        self.reported = np.zeros(shape, np.int32)
        self.lease_end = np.zeros(shape, np.int32)
        self.end = np.zeros(shape, np.int32)
        self.asked = np.zeros(shape, np.bool_)
        self.number = [0] * num_workers
        self.plan = [0] * num_workers
        self.ahead = [0] * num_workers
        self.free = [list(range(num_seqs)) for _ in range(num_workers)]
        self.row_of: list[dict[int, int]] = [{} for _ in range(num_workers)]
        self._random = random.Random(seed)

    def obey(self, worker: int, plan: Plan) -> None:
        self.plan[worker], self.ahead[worker] = plan.number, plan.ahead
        rows = self.row_of[worker]
        extends = plan.extends
        for seq, lease_end in zip(extends.seqs, extends.lease_ends, strict=True):
            row = rows[seq]
            self.lease_end[worker, row] = lease_end
            self.asked[worker, row] = False
        for start in plan.starts:
            row = self.free[worker].pop()
            rows[start.seq] = row
            self.seq[worker, row] = start.seq
            self.position[worker, row] = self.reported[worker, row] = len(start.tokens)
            self.lease_end[worker, row] = start.lease_end
            self.end[worker, row] = start.num_prompt + (start.sampling.max_tokens or 1) - 1
            self.asked[worker, row] = False

    def step(self) -> int:
        """One step of every worker; returns the tokens made."""
        runs = (self.seq != 0) & (self.position < self.lease_end)
        self.position += runs
        return int(np.count_nonzero(runs))

    def result(self, worker: int, epoch: int) -> Result | None:
        """What this worker would report after the step."""
        seq, position = self.seq[worker], self.position[worker]
        alive = seq != 0
        ended = np.flatnonzero(alive & (position >= self.end[worker]))
        asks = alive & (self.lease_end[worker] - position <= self.ahead[worker]) & ~self.asked[worker]
        asks[ended] = False
        rows = np.flatnonzero(asks)
        if not len(rows) and not len(ended):
            return None
        self.asked[worker, rows] = True
        counts = position[rows] - self.reported[worker, rows]
        filled = position[rows] // self.block_size - self.reported[worker, rows] // self.block_size
        self.reported[worker, rows] = position[rows]
        num_hashes = int(filled.sum())
        self.number[worker] += 1
        return Result(
            f"r{worker}",
            1,
            epoch,
            self.number[worker],
            self.plan[worker],
            self.number[worker],
            Advances(
                array("q", seq[rows].tobytes()),
                array("i", position[rows].astype(np.int32).tobytes()),
                array("i", counts.astype(np.int32).tobytes()),
                array("i", bytes(4 * int(counts.sum()))),
                array("i", filled.astype(np.int32).tobytes()),
                self._random.randbytes(num_hashes * HASH_BYTES),
            ),
            tuple(self._stop(worker, int(row)) for row in ended),
        )

    def _stop(self, worker: int, row: int) -> Stopped:
        seq, position = int(self.seq[worker, row]), int(self.position[worker, row])
        reported = int(self.reported[worker, row])
        filled = position // self.block_size - reported // self.block_size
        self.seq[worker, row] = 0
        del self.row_of[worker][seq]
        self.free[worker].append(row)
        return Stopped(
            seq,
            Reason.LENGTH,
            position,
            array("i", bytes(4 * (position - reported + 1))),
            self._random.randbytes(filled * HASH_BYTES),
        )


def submits(rng: random.Random, block_size: int) -> Iterator[Submit]:
    """Requests without end; the lengths are exponential, which is the steady state of any mix for a scheduler."""
    number = 0
    while True:
        number += 1
        num_prompt = 1 + int(rng.expovariate(1 / MEAN_PROMPT)) % 2000
        hashes = tuple(rng.randbytes(HASH_BYTES) for _ in range(num_prompt // block_size))
        max_tokens = 2 + int(rng.expovariate(1 / MEAN_OUTPUT)) % 2000
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        tenant = f"t{number % 4}"
        yield Submit(f"q{number}", "g", number, "m", tenant, array("i", bytes(4 * num_prompt)), hashes, sampling)


def _new_scheduler(num_workers: int, num_seqs: int, ahead: int, block_size: int) -> Scheduler:
    scheduler = Scheduler(SchedulerSettings(ahead=ahead))
    num_blocks = num_seqs * (MEAN_PROMPT + MEAN_OUTPUT) * 3 // block_size
    joins: list[Event] = [
        ReplicaJoined(f"r{worker}", 1, f"n{worker}", "m", num_blocks, block_size, 1 << 21, "f", num_seqs, 8192)
        for worker in range(num_workers)
    ]
    scheduler.turn(joins, 0.0)
    return scheduler


def run_decode(
    num_workers: int,
    num_seqs: int,
    steps: int,
    seed: int,
    *,
    ahead: int = 4,
    block_size: int = BLOCK_SIZE,
    per_result: bool = False,
    warm_up: int = 32,
) -> Timing:
    """A full cluster in steady state: what ends is replaced at once. `per_result`: a turn for each worker's result."""
    scheduler = _new_scheduler(num_workers, num_seqs, ahead, block_size)
    workers = MadeUpWorkers(num_workers, num_seqs, block_size, seed)
    source = submits(random.Random(seed), block_size)
    now = 0.0
    timing = Timing([])
    waiting: list[Event] = [next(source) for _ in range(num_workers * num_seqs)]
    while waiting:
        _turn(scheduler, workers, waiting[:512], [], now, Timing([]))
        waiting = waiting[512:]
    # Sequences start at the same moment: let them spread before the clock runs.
    for step in range(-warm_up, steps):
        now += 0.02
        tokens = workers.step()
        results = [
            encode_result(result)
            for result in (workers.result(worker, scheduler.epoch) for worker in range(num_workers))
            if result is not None
        ]
        into = timing if step >= 0 else Timing([])
        into.tokens += tokens
        _sample_waste(scheduler, workers, into)
        ended: list[Event] = []
        for batch in [[result] for result in results] if per_result else [results]:
            ended += _turn(scheduler, workers, [], batch, now, into)
        replacements: list[Event] = [next(source) for _ in ended]
        _turn(scheduler, workers, ended + replacements, [], now, into)
    return timing


def _sample_waste(scheduler: Scheduler, workers: MadeUpWorkers, into: Timing) -> None:
    """What the blocks are used for at this moment. Nothing is shared here, so a block is one sequence's."""
    size = workers.block_size
    position = workers.position[workers.seq != 0].astype(np.int64)
    into.written += int(position.sum())
    into.needed += int((-(-position // size)).sum()) * size
    into.held += sum(replica.ledger.counts().held for replica in scheduler.replicas.values()) * size


def _turn(
    scheduler: Scheduler, workers: MadeUpWorkers, events: list[Event], results: list[bytes], now: float, into: Timing
) -> list[Event]:
    """One timed turn, and what the workers make of it; returns Closed for each request that ended."""
    if not events and not results:
        return []
    began = time.thread_time()
    orders = scheduler.turn([*events, *map(decode_result, results)], now)
    encoded = [encode_plan(order) for order in orders if isinstance(order, Plan)]
    into.turns.append(time.thread_time() - began)
    into.plans += len(encoded)
    into.plan_bytes += sum(map(len, encoded))
    closed: list[Event] = []
    for order in orders:
        if isinstance(order, Plan):
            into.blocks += len(order.extends.seqs)
            into.started += len(order.starts)
            workers.obey(int(order.replica[1:]), order)
        elif isinstance(order, Done):
            closed.append(Closed(order.request_id))
    return closed


def computed_floor(seed: int) -> float:
    """The last-block waste of the same lengths, from the lengths alone: each sequence counted at every position."""
    source = submits(random.Random(seed), BLOCK_SIZE)
    waste = tokens = 0
    for _ in range(20_000):
        submit = next(source)
        first = len(submit.prompt)
        positions = np.arange(first, first + (submit.sampling.max_tokens or 1) - 1, dtype=np.int64)
        waste += int((-positions % BLOCK_SIZE).sum())
        tokens += int(positions.sum())
    return waste / tokens


def run_admissions(num_workers: int, count: int, seed: int) -> float:
    """Admissions a second: prompts of 512 tokens whose hashes came along, onto empty workers."""
    scheduler = _new_scheduler(num_workers, count // num_workers + 1, 4, BLOCK_SIZE)
    rng = random.Random(seed)
    sampling = SamplingParams(temperature=0.0, max_tokens=64)
    prompt = ids(range(512))
    events: list[Event] = [
        Submit(f"q{i}", "g", i, "m", f"t{i % 4}", prompt, tuple(rng.randbytes(HASH_BYTES) for _ in range(32)), sampling)
        for i in range(count)
    ]
    began = time.thread_time()
    started = 0
    for first in range(0, count, 64):
        orders = scheduler.turn(events[first : first + 64], 0.0)
        for order in orders:
            if isinstance(order, Plan):
                encode_plan(order)
                started += len(order.starts)
    seconds = time.thread_time() - began
    assert started == count, f"{started} of {count} started"
    return count / seconds


def _row(num_workers: int, num_seqs: int, timing: Timing) -> dict[str, str | int | float | bool | None]:
    return {
        "workers": num_workers,
        "seqs each": num_seqs,
        "tokens/s/core": round(timing.tokens / timing.seconds),
        "block events/s": round(timing.blocks / timing.seconds),
        "us/event": timing.seconds / max(1, timing.blocks) * 1e6,
        "turn p50 ms": timing.percentile(0.5) * 1e3,
        "turn p99 ms": timing.percentile(0.99) * 1e3,
        "bytes/plan": round(timing.plan_bytes / max(1, timing.plans)),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench scheduler", description=__doc__)
    parser.add_argument("--steps", type=int, default=64, help="steps of every worker that are timed")
    parser.add_argument(
        "--sizes", default="1x64,1x256,8x256,64x256,64x1024,1024x64,400x256", help="workers x sequences"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("scheduler", argv)
    tune_collector()
    cost: dict[int, float] = {}
    for size in arguments.sizes.split(","):
        num_workers, num_seqs = map(int, size.split("x"))
        steps = max(16, min(arguments.steps * 64 * 256 // (num_workers * num_seqs), 512, arguments.steps * 8))
        timing = run_decode(num_workers, num_seqs, steps, arguments.seed)
        cost[num_workers * num_seqs] = timing.seconds / max(1, timing.blocks)
        report.table("decode, everything queued from all workers in one turn", [_row(num_workers, num_seqs, timing)])
    single = run_decode(64, 256, 16, arguments.seed, per_result=True)
    report.table("decode, one turn for each worker's result", [_row(64, 256, single)])
    leased = run_decode(8, 256, 64, arguments.seed)
    settled = run_decode(1, 256, 512, arguments.seed, warm_up=1500)
    planned = run_decode(8, 256, 64, arguments.seed, ahead=0, block_size=1)
    report.table(
        "what leases save (8 x 256)",
        [
            {"scheduler": "leases", "us a token": leased.seconds / leased.tokens * 1e6},
            {"scheduler": "leave for one token at a time", "us a token": planned.seconds / planned.tokens * 1e6},
        ],
    )
    floor = computed_floor(arguments.seed)
    report.table(
        "slots without a token, as a share of tokens, time-averaged (1 x 256, settled)",
        [
            {"what": "last blocks, computed from the lengths", "share": floor},
            {"what": "last blocks, seen", "share": settled.last_block_waste},
            {"what": "leased ahead, memory free", "share": settled.leased_ahead},
        ],
    )
    report.check("last blocks at most 1.05x of the floor", settled.last_block_waste <= 1.05 * floor)
    report.check("leased ahead at most 1.5 %", settled.leased_ahead <= 0.015, f"{settled.leased_ahead:.4f}")
    rate = run_admissions(64, 8192, arguments.seed)
    report.table("admissions, 512-token prompts with hashes", [{"workers": 64, "admissions/s": round(rate)}])
    return report.finish(arguments.json)
