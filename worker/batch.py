"""Turns the batcher's choice into the tensors of one step, all rows at once, in buffers that are used again.

The worker calls `StepBuilder.build` once per step. It reads the persistent state and writes nothing but the step's own
tensors; the loops are compiled (`kernels/host_loops.py`), so no Python runs per token or per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cluster.batcher import Batch
from kernels.batch import AttentionBatch
from kernels.host_loops import fill_step
from worker.state import BatchState, Int32, Int64


@dataclass(frozen=True, slots=True)
class Step:
    """The tensors of one forward pass, and whose tokens it samples. Valid until the next step is built."""

    ids: torch.Tensor  # int64 [tokens]
    positions: torch.Tensor  # int64 [tokens]
    attention: AttentionBatch
    # Rows of the batch whose last known token is in this step: each gets a token, from the logits of `logit_rows`.
    sampled: Int32
    logit_rows: torch.Tensor  # int64 [len(sampled)]


class StepBuilder:
    """Builds steps of up to `max_tokens` tokens over one state."""

    def __init__(self, state: BatchState, max_tokens: int) -> None:
        self._state = state
        rows = min(max_tokens, state.max_batch)
        longs = [torch.zeros(max_tokens, dtype=torch.int64) for _ in range(3)] + [torch.zeros(rows, dtype=torch.int64)]
        ints = [torch.zeros(rows, dtype=torch.int32), torch.zeros(rows + 1, dtype=torch.int32)]
        self.ids, self.positions, self.slots, self.logit_rows = longs
        self._context_len, self._query_start = ints
        self._out = tuple(tensor.numpy() for tensor in (*longs[:3], *ints))
        self._logit_rows = self.logit_rows.numpy()

    def build(self, batch: Batch, lengths: Int32) -> Step:
        """`lengths` is the batcher's array: tokens of each row, those in flight included."""
        state = self._state
        sampled = np.empty(len(batch.rows), np.int32)
        num_sampled, longest_query, longest_context = fill_step(
            (batch.rows, batch.starts, batch.counts),
            (lengths, state.tokens, state.tables, state.write_from, state.block_size),
            (*self._out, sampled, self._logit_rows),
        )
        tokens, rows = batch.num_tokens, len(batch.rows)
        state.sync_tables()
        positions = self._send(self.positions, tokens)
        attention = AttentionBatch(
            query_start=self._send(self._query_start, rows + 1),
            context_len=self._send(self._context_len, rows),
            tables=state.device_tables,
            rows=self._send(torch.from_numpy(batch.rows), rows),
            slots=self._send(self.slots, tokens),
            positions=positions,
            max_query_len=longest_query,
            max_context_len=longest_context,
            num_decodes=batch.num_decodes,
        )
        return Step(
            self._send(self.ids, tokens),
            positions,
            attention,
            sampled[:num_sampled],
            self._send(self.logit_rows, num_sampled),
        )

    def host(self, step: Step) -> tuple[Int32 | Int64, ...]:
        """The step's ids, positions, slots, logit rows, contexts and starts of queries as they lie on the host."""
        tokens, rows = len(step.ids), step.attention.num_seqs
        parts = (
            (self.ids, tokens),
            (self.positions, tokens),
            (self.slots, tokens),
            (self.logit_rows, len(step.sampled)),
        )
        return (
            *(tensor.numpy()[:count] for tensor, count in parts),
            self._context_len.numpy()[:rows],
            self._query_start.numpy()[: rows + 1],
        )

    def _send(self, buffer: torch.Tensor, count: int) -> torch.Tensor:
        part = buffer[:count]
        if self._state.device.type == "cpu":
            return part
        # A copy from memory that the next step writes into must not run later than that.
        return part.clone().pin_memory().to(self._state.device, non_blocking=True)
