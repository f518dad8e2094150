"""`python -m tests.bench allocators`: the allocation policies on one seeded history of requests.

Real ledger and prefix index, no scheduler: requests come with prompts of which some share a prefix, grow block by
block, and go. Printed for each policy: operations a second, how many runs of adjacent blocks a table has, how broken up
the free blocks are, and how many prompt blocks were found in the cache.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field

from cluster.bench.report import BenchHelp, Report
from cluster.centre.ledger import Ledger, TurnClock
from cluster.centre.prefix import PrefixIndex
from cluster.hashing import HASH_BYTES
from cluster.settings import AllocatorName

POLICIES: tuple[AllocatorName, ...] = ("lru", "fifo", "buddy")


@dataclass(slots=True)
class Life:
    """One sequence: the names of its prompt's blocks, and how many blocks it will have."""

    names: list[bytes]
    end: int
    table: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    operations: int = 0
    seconds: float = 0.0
    hits: int = 0
    looked_up: int = 0
    tables: int = 0
    extents: int = 0
    free_runs: int = 0
    free_blocks: int = 0
    evictions: int = 0
    refused: int = 0


def history(seed: int, count: int) -> list[Life]:
    """Half of the prompts begin with one of sixteen prefixes; lengths are those of chats, in blocks of 16 tokens."""
    rng = random.Random(seed)
    prefixes = [[rng.randbytes(HASH_BYTES) for _ in range(rng.randint(4, 32))] for _ in range(16)]
    lives = []
    for _ in range(count):
        own = [rng.randbytes(HASH_BYTES) for _ in range(max(1, int(rng.lognormvariate(1.8, 0.8))))]
        names = (rng.choice(prefixes) if rng.random() < 0.5 else []) + own
        lives.append(Life(names, len(names) + max(1, int(rng.lognormvariate(2.5, 0.8)))))
    return lives


def run(policy: AllocatorName, seed: int, count: int, num_blocks: int) -> Outcome:
    """Plays the history: as many at once as fit, each gains a block in turn."""
    ledger = Ledger(1, num_blocks, policy, PrefixIndex(), TurnClock())
    outcome = Outcome()
    waiting = history(seed, count)[::-1]
    running: list[Life] = []
    turn = promised = 0
    while waiting or running:
        turn += 1
        began = time.thread_time()
        while waiting and promised + waiting[-1].end <= num_blocks:
            promised += waiting[-1].end
            running.append(_enter(ledger, waiting.pop(), outcome))
        left = []
        for life in running:
            if len(life.table) < life.end:
                got = ledger.allocate(1, 1, life.table[-1])
                outcome.operations += 1
                if got is None:
                    outcome.refused += 1
                else:
                    life.table += got
                left.append(life)
            else:
                outcome.tables += 1
                outcome.extents += 1 + sum(b != a + 1 for a, b in zip(life.table, life.table[1:], strict=False))
                promised -= life.end
                ledger.release(life.table, 1)
                outcome.operations += len(life.table)
        running = left
        outcome.seconds += time.thread_time() - began
        if turn % 16 == 0:
            _look_at_free(ledger, outcome)
            ledger.check([life.table for life in running])
    outcome.evictions = ledger.num_evictions
    return outcome


def _enter(ledger: Ledger, life: Life, outcome: Outcome) -> Life:
    hits = ledger.index.match(b"".join(life.names)).blocks(ledger.pool)
    outcome.hits += len(hits)
    outcome.looked_up += len(life.names)
    ledger.share(hits, 1)
    blocks = ledger.allocate(len(life.names) - len(hits), 1, hits[-1] if hits else -1)
    assert blocks is not None, "admitted without room"
    life.table = hits + blocks
    ledger.set_names(blocks, life.names[len(hits) :])
    outcome.operations += 2 * len(blocks) + len(hits)
    return life


def _look_at_free(ledger: Ledger, outcome: Outcome) -> None:
    free = [block for block in range(ledger.num_blocks) if ledger.state(block) == "free"]
    outcome.free_blocks += len(free)
    outcome.free_runs += sum(1 for at, block in enumerate(free) if at == 0 or free[at - 1] != block - 1)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench allocators", description=__doc__, formatter_class=BenchHelp
    )
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--blocks", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("allocators", argv, command=("python", "-m", "tests.bench"))
    report.begins(f"{len(POLICIES)} policies, {arguments.requests:,} requests each", arguments.requests / 400)
    for policy in POLICIES:
        outcome = run(policy, arguments.seed, arguments.requests, arguments.blocks)
        report.row(
            f"{arguments.requests:,} requests on {arguments.blocks:,} blocks",
            {
                "policy": policy,
                "operations/s": round(outcome.operations / outcome.seconds),
                "extents a table": outcome.extents / outcome.tables,
                "free runs per 100 free": 100 * outcome.free_runs / max(1, outcome.free_blocks),
                "cache hits %": 100 * outcome.hits / outcome.looked_up,
                "evictions": outcome.evictions,
            },
        )
        report.check(f"{policy}: every request got its blocks", outcome.tables == arguments.requests)
        report.check(f"{policy}: no block was refused", outcome.refused == 0, f"{outcome.refused} were")
    return report.finish(arguments.json)
