"""Workers whose desks are real and whose tokens are made up: what the benchmark of the scheduler runs it against.

Every sequence with leave gains a token a step and stops at its length; what is reported, and when, the desks decide.
Nothing here is timed.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import numpy as np

from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings, Drawn, Leave
from cluster.hashing import BlockHasher
from cluster.messages import Plan, ReplicaJoined, Submit
from cluster.sampling import SamplingParams
from cluster.wire.plans import encode_result

MEAN_PROMPT, MEAN_OUTPUT = 161, 338
LONGEST = 2000
"""Of prompts, and of outputs."""
TOKEN_BUDGET = 1 << 20
VOCAB_SIZE = 1 << 16


class MadeUpWorkers:
    """All workers of a cluster. What a bench counts: blocks filled, and blocks of those that ended."""

    def __init__(self, joins: list[ReplicaJoined]) -> None:
        self.block_size = joins[0].block_size
        self.desks = [Desk(join, DeskSettings(TOKEN_BUDGET, VOCAB_SIZE)) for join in joins]
        self.num_filled = self.num_freed = 0

    def obey(self, worker: int, plan: Plan) -> None:
        self.desks[worker].obey(plan)

    def step(self) -> int:
        """One step of every worker; returns the tokens made."""
        return sum(map(self._step, self.desks))

    def _step(self, desk: Desk) -> int:
        rows, size = desk.rows, self.block_size
        desk.take_orders()
        batch = desk.next()
        if not batch.num_tokens:
            return 0
        flight = desk.launched(batch)
        before = rows.written[batch.rows] // size
        desk.retire(flight, Drawn.of(np.zeros((1, len(flight.rows)), np.int64)))
        self.num_filled += int((rows.written[batch.rows] // size - before).sum())
        for order in desk.take_orders():
            if isinstance(order, Leave):
                self.num_freed += int(rows.num_blocks[list(order.rows)].sum())
        return len(flight.rows)

    def results(self) -> list[bytes]:
        """What the workers that have something to say report after the step, as it comes in."""
        found = [desk.take_result() for desk in self.desks]
        # No gateway is there to read them.
        for desk, result in zip(self.desks, found, strict=True):
            if result is not None and result.stopped:
                desk.take_tokens()
        return [encode_result(result) for result in found if result is not None]

    def written(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """How far each sequence is."""
        return np.concatenate([desk.rows.written[desk.batcher.resident] for desk in self.desks]).astype(np.int64)


def submits(rng: random.Random, block_size: int) -> Iterator[Submit]:
    """Requests without end; the lengths are exponential, which is the steady state of any mix for a scheduler."""
    hasher = BlockHasher(b"", b"", b"", block_size)
    number = 0
    while True:
        number += 1
        num_prompt = 1 + int(rng.expovariate(1 / MEAN_PROMPT)) % LONGEST
        prompt = array("i", array("H", rng.randbytes(2 * num_prompt)))
        max_tokens = 2 + int(rng.expovariate(1 / MEAN_OUTPUT)) % LONGEST
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        tenant = f"t{number % 4}"
        yield Submit(f"q{number}", "g", number, "m", tenant, prompt, hasher.prompt(prompt), sampling)
