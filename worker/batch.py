"""Turns the batcher's choice into the tensors of one step, all rows at once.

The worker calls `StepBuilder.build` once per step. It reads the persistent state and writes nothing but the step's own
tensors; no Python runs per token or per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.batcher import Batch
from kernels.batch import AttentionBatch
from worker.state import BatchState, Int32, Int64


@dataclass(frozen=True, slots=True)
class Step:
    """The tensors of one forward pass, and whose tokens it samples."""

    ids: torch.Tensor  # int64 [tokens]
    positions: torch.Tensor  # int64 [tokens]
    attention: AttentionBatch
    # Rows of the batch whose last known token is in this step: each gets a token, from the logits of `logit_rows`.
    sampled: Int32
    logit_rows: torch.Tensor  # int64 [len(sampled)]


class StepBuilder:
    """Builds steps over one state."""

    def __init__(self, state: BatchState) -> None:
        self._state = state
        self._zero = np.zeros(1, np.int64)

    def build(self, batch: Batch, lengths: NDArray[np.int32]) -> Step:
        """`lengths` is the batcher's array: tokens of each row, those in flight included."""
        rows, starts, counts = batch.rows, batch.starts, batch.counts
        ends = starts + counts
        stops = np.cumsum(counts, dtype=np.int64)
        if batch.num_tokens == len(rows):
            token_rows, positions = rows, starts.astype(np.int64)
        else:
            token_rows = np.repeat(rows, counts)
            firsts = np.repeat(starts - (stops - counts), counts)
            positions = np.arange(batch.num_tokens, dtype=np.int64) + firsts
        finished = ends == lengths[rows]
        return Step(
            ids=self._send(self._state.tokens[token_rows, positions].astype(np.int64)),
            positions=self._send(positions),
            attention=self._attention(batch, token_rows, positions, ends, stops),
            sampled=rows[finished],
            logit_rows=self._send(stops[finished] - 1),
        )

    def _attention(
        self, batch: Batch, token_rows: Int32, positions: Int64, ends: Int32, stops: Int64
    ) -> AttentionBatch:
        state = self._state
        size = state.block_size
        blocks = state.tables[token_rows, positions // size].astype(np.int64)
        slots = blocks * size + positions % size
        slots[positions < state.write_from[token_rows]] = -1
        query_start = np.concatenate([self._zero, stops]).astype(np.int32)
        state.sync_tables()
        return AttentionBatch(
            query_start=self._send(query_start),
            context_len=self._send(ends),
            tables=state.device_tables,
            rows=self._send(batch.rows),
            slots=self._send(slots),
            positions=self._send(positions),
            max_query_len=int(batch.counts.max()),
            max_context_len=int(ends.max()),
            num_decodes=batch.num_decodes,
        )

    def _send(self, values: NDArray[np.int32] | NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        if self._state.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._state.device, non_blocking=True)
