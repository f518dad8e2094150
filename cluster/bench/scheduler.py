"""`quire bench scheduler`: what the scheduler costs, on one core, against workers that make up tokens.

The real scheduler with all features on and the garbage collector running. Timed, as processor time of the thread:
decoding of results, the turn, encoding of plans. Turns that take results and turns that admit what replaces ended
requests are told apart; rates are over both. The same trace also runs with leases of one step, which is a scheduler
that plans every token: what leases save.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from dataclasses import dataclass, field

import numpy as np

from cluster.bench.made_up_workers import LONGEST, MEAN_OUTPUT, MEAN_PROMPT, MadeUpWorkers, submits
from cluster.bench.many_pools import report_many_pools
from cluster.bench.report import BenchHelp, Report
from cluster.centre.scheduler import Scheduler
from cluster.hashing import HASH_BYTES
from cluster.messages import Closed, Done, Event, Plan, ReplicaJoined, Submit, ids
from cluster.sampling import SamplingParams
from cluster.serving.shell import tune_collector
from cluster.settings import SchedulerSettings
from cluster.wire.plans import decode_result, encode_plan

BLOCK_SIZE = 16
SMALL, LARGE = (4, 256), (400, 256)
"""About 1,000 and 100,000 running sequences: an event may cost twice as much at the latter."""


@dataclass
class Timing:
    """Seconds of each turn, and what was done in them."""

    # Turns that took results, and turns that took ends and new requests.
    turns: list[float] = field(default_factory=list)
    admission_turns: list[float] = field(default_factory=list)
    tokens: int = 0
    # Leases renewed, blocks granted (by renewals and starts), blocks filled and named, blocks freed.
    renewed: int = 0
    granted: int = 0
    filled: int = 0
    freed: int = 0
    plans: int = 0
    plan_bytes: int = 0
    started: int = 0
    # Slots over all samples: of blocks that are held, of blocks that hold a token, and tokens.
    held: int = 0
    needed: int = 0
    written: int = 0

    @property
    def events(self) -> int:
        return self.renewed + self.granted + self.filled + self.freed

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
        return sum(self.turns) + sum(self.admission_turns)


def percentile(turns: list[float], share: float) -> float:
    return sorted(turns)[min(len(turns) - 1, int(share * len(turns)))]


def _joins(num_workers: int, num_seqs: int, block_size: int) -> list[ReplicaJoined]:
    num_blocks = num_seqs * (MEAN_PROMPT + MEAN_OUTPUT) * 3 // block_size
    return [
        ReplicaJoined(f"r{worker}", 1, f"n{worker}", "m", num_blocks, block_size, 1 << 21, "f", num_seqs, 2 * LONGEST)
        for worker in range(num_workers)
    ]


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
    scheduler = Scheduler(SchedulerSettings(ahead=ahead))
    joins = _joins(num_workers, num_seqs, block_size)
    scheduler.turn(joins, 0.0)
    workers = MadeUpWorkers(joins)
    source = submits(random.Random(seed), block_size)
    now = 0.0
    timing = Timing()
    waiting: list[Event] = [next(source) for _ in range(num_workers * num_seqs)]
    while waiting:
        _turn(scheduler, workers, waiting[:512], [], now, Timing())
        waiting = waiting[512:]
    # Sequences start at the same moment: let them spread before the clock runs.
    for step in range(-warm_up, steps):
        now += 0.02
        into = timing if step >= 0 else Timing()
        into.tokens += workers.step()
        results = workers.results()
        into.filled, into.freed = into.filled + workers.num_filled, into.freed + workers.num_freed
        workers.num_filled = workers.num_freed = 0
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
    position = workers.written()
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
    (into.turns if results else into.admission_turns).append(time.thread_time() - began)
    into.plans += len(encoded)
    into.plan_bytes += sum(map(len, encoded))
    closed: list[Event] = []
    for order in orders:
        if isinstance(order, Plan):
            into.renewed += len(order.extends.seqs)
            into.granted += len(order.extends.blocks) + sum(len(start.table) for start in order.starts)
            into.started += len(order.starts)
            workers.obey(int(order.replica[1:]), order)
        elif isinstance(order, Done):
            closed.append(Closed(order.request_id, order.gateway, order.route))
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
    scheduler = Scheduler(SchedulerSettings(ahead=4))
    scheduler.turn(_joins(num_workers, count // num_workers + 1, BLOCK_SIZE), 0.0)
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
        "block events/s": round(timing.events / timing.seconds),
        "us/event": timing.seconds / max(1, timing.events) * 1e6,
        "turn p50 ms": percentile(timing.turns, 0.5) * 1e3,
        "turn p99 ms": percentile(timing.turns, 0.99) * 1e3,
        "admissions a turn": round(timing.started / max(1, len(timing.admission_turns)), 1),
        "their p99 ms": percentile(timing.admission_turns or [0.0], 0.99) * 1e3,
        "bytes/plan": round(timing.plan_bytes / max(1, timing.plans)),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _compare_sizes(report: Report, seed: int) -> None:
    """Whether an event costs more where more sequences run."""
    costs = []
    for num_workers, num_seqs in (SMALL, LARGE):
        # As many events each, and the turns of a worker alone: as it is with workers that do not march in step.
        timing = run_decode(num_workers, num_seqs, 16 * LARGE[0] // num_workers if num_workers < 16 else 16, seed)
        costs.append(timing.seconds / timing.events * 1e6)
    report.table(
        "a block event by running sequences",
        [
            {"running": SMALL[0] * SMALL[1], "us/event": costs[0], "ratio": 1.0},
            {"running": LARGE[0] * LARGE[1], "us/event": costs[1], "ratio": costs[1] / costs[0]},
        ],
    )


def _compare_leases(report: Report, seed: int) -> None:
    leased = run_decode(8, 256, 64, seed)
    planned = run_decode(8, 256, 64, seed, ahead=0, block_size=1)
    costs = [timing.seconds / timing.tokens * 1e6 for timing in (leased, planned)]
    report.table(
        "what leases save (8 x 256)",
        [
            {"scheduler": "leases", "us a token": costs[0], "times": 1.0},
            {"scheduler": "leave for one token at a time", "us a token": costs[1], "times": costs[1] / costs[0]},
        ],
    )


def _waste(report: Report, seed: int) -> None:
    settled = run_decode(1, 256, 512, seed, warm_up=1500)
    floor = computed_floor(seed)
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


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench scheduler", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--steps", type=int, default=64, help="steps of every worker that are timed")
    parser.add_argument(
        "--sizes", default="1x64,1x1024,8x256,64x256,64x1024,1024x64,400x256", help="workers x sequences"
    )
    parser.add_argument("--quick", action="store_true", help="only the sizes and admissions, fewer of them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("scheduler", argv)
    tune_collector()
    report.note("a block event is a lease renewed, a block granted, a block filled and named, or a block freed")
    sizes = arguments.sizes.split(",")
    about_s = 12 * len(sizes) + (5 if arguments.quick else 30)
    report.begins(f"the scheduler alone: {len(sizes)} sizes, leases, admissions", about_s)
    for size in sizes:
        num_workers, num_seqs = map(int, size.split("x"))
        steps = max(16, min(arguments.steps * 64 * 256 // (num_workers * num_seqs), 512, arguments.steps * 8))
        timing = run_decode(num_workers, num_seqs, steps, arguments.seed)
        report.table("decode, everything queued from all workers in one turn", [_row(num_workers, num_seqs, timing)])
    if not arguments.quick:
        single = run_decode(64, 256, 16, arguments.seed, per_result=True)
        report.table("decode, one turn for each worker's result", [_row(64, 256, single)])
        _compare_sizes(report, arguments.seed)
        _compare_leases(report, arguments.seed)
        _waste(report, arguments.seed)
    rate = run_admissions(64, 1024 if arguments.quick else 8192, arguments.seed)
    report.table("admissions, 512-token prompts with hashes", [{"workers": 64, "admissions/s": round(rate)}])
    if not arguments.quick:
        report_many_pools(report)
    return report.finish(arguments.json)
