"""A replica that makes up tokens as fast as it is told to, by the rules of the worker's protocol.

Benchmarks of the front door and of the control stream use it where the simulator's workers, which hold real contents,
would take more time than what is measured. It obeys plans, keeps to its leases, reports near their ends, and pushes one
batch of tokens per step. A token is a function of the prompt and its position, so that readers can check every one.
Blocks are not named: it belongs to a scheduler without prefix caching.
"""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from cluster.messages import Advances, Plan, Reason, ReplicaJoined, Result, Stopped
from protos.quire.v1 import front_pb2 as pb

Ints = NDArray[np.int64]

FIRST_TOKEN, NUM_TOKENS = 300, 1200
BLOCK_SIZE = 16


def made_up(first: int, position: int) -> int:
    """The output token at this position of a request whose prompt begins with `first`."""
    return FIRST_TOKEN + (first * 613 + position * 17) % NUM_TOKENS


class MadeUpReplica:
    """One replica as arrays over its batch rows."""

    def __init__(self, name: str, model: str, max_batch: int, max_tokens: int) -> None:
        self.name = name
        self.times = np.zeros((max_batch, max_tokens))
        """When the token at each output position of each row was made."""
        self.row_of_first: dict[int, int] = {}
        self.num_made = 0
        self.num_dry = 0
        self._model = model
        self._max_batch = max_batch
        self._max_tokens = max_tokens
        ints = np.zeros((7, max_batch), np.int64)
        self._seq, self._route, self._first, self._num_prompt, self._position, self._end, self._lease_end = ints
        # Output tokens that the scheduler was told of.
        self._told = np.zeros(max_batch, np.int64)
        self._has_asked = np.zeros(max_batch, np.bool_)
        self._row_of: dict[int, int] = {}
        self._free = list(range(max_batch - 1, -1, -1))
        self._plan = self._number = self._step = self._ahead = 0
        self._dropped: list[int] = []

    @property
    def joined(self) -> ReplicaJoined:
        num_blocks = self._max_batch * (self._max_tokens // BLOCK_SIZE + 4)
        return ReplicaJoined(
            self.name, 1, "n0", self._model, num_blocks, BLOCK_SIZE, 1, "made up", self._max_batch, 2048, 1e6
        )

    def obey(self, plan: Plan) -> None:
        assert plan.number == self._plan + 1, f"plan {plan.number} after {self._plan}"
        self._plan, self._ahead = plan.number, plan.ahead
        self._dropped += [drop.seq for drop in plan.drops if drop.seq in self._row_of]
        for seq, lease_end in zip(plan.extends.seqs, plan.extends.lease_ends, strict=True):
            row = self._row_of.get(seq)
            if row is not None:
                self._lease_end[row] = lease_end
                self._has_asked[row] = False
        for start in plan.starts:
            row = self._free.pop()
            self._row_of[start.seq] = row
            self.row_of_first[start.tokens[0]] = row
            self._seq[row], self._route[row], self._first[row] = start.seq, start.route, start.tokens[0]
            self._num_prompt[row] = start.num_prompt
            # The prompt is written by the first step.
            self._position[row] = start.num_prompt - 1
            self._told[row] = 0
            self._end[row] = start.num_prompt + (start.sampling.max_tokens or 1) - 1
            self._lease_end[row] = start.lease_end
            self._has_asked[row] = False

    def step(self, now: float) -> tuple[pb.TokenBatch | None, Result | None]:
        """Every sequence with leave makes a token; returns what a gateway and the scheduler are told."""
        self._step += 1
        resident = self._seq != 0
        runs = np.flatnonzero(resident & (self._position < self._lease_end))
        self.num_dry += int(np.count_nonzero(resident)) - len(runs)
        outputs = self._position[runs] - self._num_prompt[runs] + 1
        self._position[runs] += 1
        ended = self._position[runs] >= self._end[runs]
        batch = None
        if len(runs):
            self.times[runs, outputs] = now
            self.num_made += len(runs)
            batch = self._batch(runs, outputs, ended)
        return batch, self._result(runs[ended])

    def _batch(self, runs: Ints, outputs: Ints, ended: NDArray[np.bool_]) -> pb.TokenBatch:
        num = len(runs)
        tokens = FIRST_TOKEN + (self._first[runs] * 613 + outputs * 17) % NUM_TOKENS
        batch = pb.TokenBatch(
            routes=self._route[runs].astype("<i8").tobytes(),
            indexes=bytes(4 * num),
            attempts=np.ones(num, "<i4").tobytes(),
            positions=outputs.astype("<i4").tobytes(),
            counts=np.ones(num, "<i4").tobytes(),
            ids=tokens.astype("<i4").tobytes(),
        )
        if ended.any():
            batch.reasons = np.where(ended, int(Reason.LENGTH), 0).astype(np.uint8).tobytes()
        return batch

    def _result(self, ended: Ints) -> Result | None:
        resident = self._seq != 0
        asks = resident & (self._lease_end - self._position <= self._ahead) & ~self._has_asked
        asks[ended] = False
        rows = np.flatnonzero(asks)
        stopped = [self._stop(int(row), Reason.LENGTH) for row in ended]
        stopped += [self._stop(self._row_of[seq], Reason.DROPPED) for seq in self._dropped if seq in self._row_of]
        self._dropped.clear()
        if not len(rows) and not stopped:
            return None
        self._has_asked[rows] = True
        counts = self._news(rows)
        self._number += 1
        advances = Advances(
            array("q", self._seq[rows].tobytes()),
            array("i", self._position[rows].astype(np.int32).tobytes()),
            array("i", counts.astype(np.int32).tobytes()),
            array("i", bytes(4 * int(counts.sum()))),
            array("i", bytes(4 * len(rows))),
        )
        return Result(self.name, 1, 1, self._number, self._plan, self._step, advances, tuple(stopped))

    def _news(self, rows: Ints) -> Ints:
        """How many tokens are new since the last report."""
        known = self._position[rows] - self._num_prompt[rows] + 1
        counts = known - self._told[rows]
        self._told[rows] = known
        return counts

    def _stop(self, row: int, reason: Reason) -> Stopped:
        counts = self._news(np.array([row]))
        seq, position = int(self._seq[row]), int(self._position[row])
        del self._row_of[seq]
        self._seq[row] = 0
        self._free.append(row)
        return Stopped(seq, reason, position, array("i", bytes(4 * int(counts[0]))))
