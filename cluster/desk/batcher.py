"""Which sequences go into the next step.

It owns what runs as a struct of arrays, indexed by the desk's batch row: positions that steps have taken, lengths,
leases, steps under way. Decodes go first, what is left of the token budget goes to prefill chunks by precedence, with a
bound on how often one is passed over. It never allocates a block, never talks to anyone and has no clock.

How the budget bounds the time between tokens: a step takes about `a + b * tokens`, and a decoding sequence gets a
token in every step, so an inter-token limit of L seconds is kept by `token_budget = (L - a) / b`, with a and b from
`quire bench offline` (columns "step base" and "per token"). `token_budget_for` is that formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.desk import loops

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
NO_LIMIT = 2**31 - 1


def token_budget_for(inter_token_s: float, step_base_s: float, per_token_s: float, max_batch: int) -> int:
    """The largest token budget that keeps a step under `inter_token_s`; never less than 16 beside the decodes."""
    return max(max_batch + 16, int((inter_token_s - step_base_s) / per_token_s))


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: `rows[i]` computes `counts[i]` tokens from `starts[i]` on. Decodes (count 1) come first.

    A beam group is one row of `Batcher.next`, whose decode stands for a token of each of its beams in `num_tokens`; the
    desk then puts a row for each beam in its place.
    """

    rows: Int32
    starts: Int32
    counts: Int32
    num_decodes: int
    num_tokens: int
    num_dry: int  # residents that stood still because their lease had run out


class Batcher:
    """Residents and their leases; `next` picks a step, `issue` moves the positions on."""

    def __init__(self, max_batch: int, token_budget: int, max_passed_over: int = 32) -> None:
        assert token_budget >= 1 and max_batch >= 1
        self.max_batch = max_batch
        self.token_budget = token_budget
        self.max_passed_over = max_passed_over
        self.resident = np.zeros(max_batch, np.bool_)
        # A paused row is resident but not to be run: a fork whose parent is still at the prompt, one that leaves.
        self.paused = np.zeros(max_batch, np.bool_)
        # A held row gets no token: what may come next is not known yet.
        self.held = np.zeros(max_batch, np.bool_)
        self.position = np.zeros(max_batch, np.int32)
        self.length = np.zeros(max_batch, np.int32)
        self.lease_end = np.zeros(max_batch, np.int32)
        # The end of what a row can ever write, and steps under way with it.
        self.limit = np.full(max_batch, NO_LIMIT, np.int32)
        self.in_flight = np.zeros(max_batch, np.int32)
        self.precedence = np.zeros(max_batch, np.int64)
        self.passed_over = np.zeros(max_batch, np.int32)
        # Tokens that a decode of this row takes: more than one for a beam group, which goes whole or not at all.
        self.width = np.ones(max_batch, np.int32)
        self._num_held = 0
        self._sampled = np.zeros(max_batch, np.int32)
        # What a decode computes.
        self._one = np.ones(max_batch, np.int32)
        # Rows whose next step is a decode, and those with more to compute.
        self._ready = np.zeros((2, max_batch), np.int64)

    def add(
        self,
        row: int,
        position: int,
        length: int,
        lease_end: int,
        precedence: int,
        *,
        limit: int = NO_LIMIT,
        paused: bool = False,
    ) -> None:
        assert not self.resident[row], f"batch row {row} is taken"
        assert position < length, f"nothing to compute at row {row}: position {position}, length {length}"
        self.resident[row] = True
        self.paused[row] = paused
        self.position[row] = position
        self.length[row] = length
        self.lease_end[row] = lease_end
        self.limit[row] = limit
        self.precedence[row] = precedence
        self.passed_over[row] = 0

    def remove(self, row: int) -> None:
        assert self.resident[row], f"batch row {row} is free already"
        self.resident[row] = False
        self.paused[row] = self.held[row] = False
        self.width[row] = 1

    def widen(self, row: int, width: int) -> None:
        """From now on each decode of this row takes `width` tokens."""
        assert 1 <= width <= self.token_budget, f"{width} beams do not fit into steps of {self.token_budget} tokens"
        self.width[row] = width

    def hold(self, rows: Sequence[int]) -> None:
        """These rows are held from now on, and no others."""
        if rows or self._num_held:
            self.held[:] = False
            self.held[list(rows)] = True
        self._num_held = len(rows)

    def next(self) -> Batch:
        """The next step. An empty batch means that nothing can run: no residents, every lease is dry, or all held."""
        num_decodes, num_prefills, num_tokens, num_dry = loops.find_ready(
            (self.resident, self.paused, self.held, self.position, self.length, self.lease_end, self.width), self._ready
        )
        decodes = self._ready[0, :num_decodes]
        prefills = self._ready[1, :num_prefills]
        budget = self.token_budget
        if num_prefills and num_tokens >= budget and (self.passed_over[prefills] >= self.max_passed_over).any():
            # Decodes would take all of every step: half of this one is for a prompt that has waited long enough.
            budget -= max(1, budget // 2)
        if num_tokens > budget:
            decodes = self._fewest(decodes, budget)
            num_tokens = int(self.width[decodes].sum())
        rows = decodes.astype(np.int32)
        counts = self._one[: len(decodes)].copy()
        if num_prefills:
            chosen, chunks = self._chunks(prefills, self.token_budget - num_tokens)
            rows = np.concatenate([rows, chosen.astype(np.int32)])
            counts = np.concatenate([counts, chunks])
            num_tokens += int(chunks.sum())
        return Batch(rows, self.position[rows], counts, len(decodes), num_tokens, num_dry)

    def issue(self, batch: Batch, num_steps: int = 1) -> Int32:
        """The step has been launched: its positions are taken. A batch of decodes may run several steps at once.

        Returns the rows that get a token, in the batch's order; each is as much longer. A row that can write nothing
        more pauses: its last token is coming."""
        count = loops.issue(
            (batch.rows, batch.starts, batch.counts),
            (self.position, self.length, self.in_flight, self.limit, self.paused),
            num_steps,
            self._sampled,
        )
        return self._sampled[:count].copy()

    def _fewest(self, decodes: Int64, budget: int) -> Int64:
        """More decodes than budget: those that waited longest go first, then by precedence."""
        order = np.lexsort((self.precedence[decodes], -self.passed_over[decodes]))
        fits = np.cumsum(self.width[decodes[order]]) <= budget
        chosen = decodes[order[fits]]
        self.passed_over[decodes] += 1
        self.passed_over[chosen] = 0
        return np.sort(chosen)

    def _chunks(self, prefills: Int64, budget: int) -> tuple[Int64, Int32]:
        """Prefill chunks by precedence; one passed over `max_passed_over` times goes before all others."""
        late = self.passed_over[prefills] >= self.max_passed_over
        order = prefills[np.lexsort((self.precedence[prefills], ~late))]
        left = np.minimum(self.length[order] - self.held[order], self.lease_end[order]) - self.position[order]
        # The last chunk is cut to what the budget leaves; all behind it are passed over.
        chunks = np.minimum(left, np.maximum(0, budget - (np.cumsum(left) - left))).astype(np.int32)
        self.passed_over[order] = np.where(chunks > 0, 0, self.passed_over[order] + 1)
        served = chunks > 0
        return order[served], chunks[served]
