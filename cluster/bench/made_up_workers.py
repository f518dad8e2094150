"""Workers that make up tokens, as arrays: what the benchmark of the scheduler runs it against.

Every sequence with leave gains a token a step, reports near the end of its lease and stops at its length, so that
hardly any time but the scheduler's passes. Nothing here is timed.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import numpy as np

from cluster.hashing import HASH_BYTES
from cluster.messages import Advances, Plan, Reason, Result, Stopped, Submit
from cluster.sampling import SamplingParams
from cluster.wire.plans import encode_result

MEAN_PROMPT, MEAN_OUTPUT = 161, 338


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
        # Full blocks that were told, those of the prompt included, and blocks of those that ended: what a bench counts.
        self.told = np.zeros(shape, np.int32)
        self.num_filled = self.num_freed = 0
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
            self.told[worker, row] = 0

    def step(self) -> int:
        """One step of every worker; returns the tokens made."""
        runs = (self.seq != 0) & (self.position < self.lease_end)
        self.position += runs
        return int(np.count_nonzero(runs))

    def results(self, epoch: int) -> list[bytes]:
        """What the workers that have something to say report after the step, as it comes in."""
        found = (self._result(worker, epoch) for worker in range(len(self.number)))
        return [encode_result(result) for result in found if result is not None]

    def _result(self, worker: int, epoch: int) -> Result | None:
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
        full = position[rows] // self.block_size
        filled = full - self.reported[worker, rows] // self.block_size
        self.num_filled += int((full - self.told[worker, rows]).sum())
        self.told[worker, rows] = full
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
        self.num_filled += position // self.block_size - int(self.told[worker, row])
        self.num_freed += -(-int(self.lease_end[worker, row]) // self.block_size)
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
