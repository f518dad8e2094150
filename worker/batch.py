"""Turns the batcher's choice into the tensors of one step, all rows at once, in buffers that are used again.

The worker calls `StepBuilder.build` once per step. It reads the persistent state and writes nothing but the step's own
tensors; the loops are compiled (`kernels/cpu/host_loops.py`), so no Python runs per token or per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cluster.desk.batcher import Batch
from kernels.batch import AttentionBatch
from kernels.cpu.host_loops import fill_step
from kernels.device.seam import device_of
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


class _Buffers:
    """One place for the tensors of a step, with numpy views to fill them: all in one run of bytes."""

    def __init__(self, memory: torch.Tensor, tokens: int, rows: int) -> None:
        self.memory = memory
        at = 0

        def part(count: int, dtype: torch.dtype) -> torch.Tensor:
            nonlocal at
            size = count * dtype.itemsize
            found = memory[at : at + size].view(dtype)
            at += -(-size // 64) * 64
            return found

        self.ids, self.positions, self.slots = (part(tokens, torch.int64) for _ in range(3))
        self.logit_rows = part(rows, torch.int64)
        self.context_len, self.query_start, self.rows = (part(count, torch.int32) for count in (rows, rows + 1, rows))
        if memory.is_cpu:
            layout = (self.ids, self.positions, self.slots, self.context_len, self.query_start)
            self.layout = tuple(tensor.numpy() for tensor in layout)
            self.chosen, self.whose = self.logit_rows.numpy(), self.rows.numpy()

    @staticmethod
    def size_bytes(tokens: int, rows: int) -> int:
        return 3 * 8 * tokens + 8 * rows + 3 * 4 * (rows + 1) + 7 * 64


class StepBuilder:
    """Builds steps of up to `max_tokens` tokens over one state. On a GPU a step is laid out in pinned memory, of which
    there are two so that one can be filled while the other is on its way, and sent in one piece to where every step's
    tensors lie: a captured graph knows the addresses."""

    def __init__(self, state: BatchState, max_tokens: int) -> None:
        self._state = state
        self._seam = seam = device_of(state.device)
        self.max_rows = rows = min(max_tokens, state.max_batch)
        size = _Buffers.size_bytes(max_tokens, rows)
        hosts = [seam.pinned(size, torch.uint8).zero_() for _ in range(2 if seam.is_apart else 1)]
        self._hosts = [_Buffers(host, max_tokens, rows) for host in hosts]
        self.max_tokens = max_tokens
        self.device = _Buffers(torch.zeros(size, dtype=torch.uint8, device=state.device), max_tokens, rows)
        if not seam.is_apart:
            self.device = self._hosts[0]
        self._number = 0
        # For each place on the host: what was laid out there is on the device.
        self._sent = [seam.event() for _ in hosts]

    def build(self, batch: Batch, lengths: Int32, padded: int = 0) -> Step:
        """`lengths` is the batcher's array: tokens of each row, those in flight included. A step of decodes can be
        padded to so many rows, of which the further ones see and write nothing."""
        state = self._state
        host = self._next_host()
        sampled = np.empty(len(batch.rows), np.int32)
        num_sampled, longest_query, longest_context = fill_step(
            (batch.rows, batch.starts, batch.counts),
            (lengths, state.tokens, state.tables, state.write_from, state.block_size),
            (*host.layout, sampled, host.chosen),
        )
        host.whose[: len(batch.rows)] = batch.rows
        tokens, rows = batch.num_tokens, len(batch.rows)
        if padded > rows:
            assert tokens == rows, "only decodes are padded"
            self._pad(rows, padded)
            tokens = rows = padded
        state.sync_tables()
        self._send()
        on = self.device
        attention = AttentionBatch(
            query_start=on.query_start[: rows + 1],
            context_len=on.context_len[:rows],
            tables=state.device_tables,
            rows=on.rows[:rows],
            slots=on.slots[:tokens],
            positions=on.positions[:tokens],
            max_query_len=longest_query,
            max_context_len=longest_context,
            num_decodes=max(batch.num_decodes, padded),
        )
        return Step(
            on.ids[:tokens], on.positions[:tokens], attention, sampled[:num_sampled], on.logit_rows[:num_sampled]
        )

    def build_empty(self, rows: int) -> None:
        """Lays out a step of so many decodes that see and write nothing."""
        self._next_host()
        self._pad(0, rows)
        self._send()

    def _next_host(self) -> _Buffers:
        """The place for the next step, which may still be on its way from the step before last."""
        self._number += 1
        # Kernels go to the current device of the thread that steps, which need not be the one that started.
        self._seam.bind()
        self._sent[self._number % len(self._sent)].wait()
        return self._host

    def _send(self) -> None:
        if self.device is not self._host:
            self.device.memory.copy_(self._host.memory, non_blocking=True)
            self._sent[self._number % len(self._sent)].record()

    def _pad(self, rows: int, padded: int) -> None:
        host = self._host
        for tensor, value in (
            (host.ids, 0),
            (host.positions, 0),
            (host.slots, -1),
            (host.context_len, 0),
            (host.rows, 0),
        ):
            tensor[rows:padded] = value
        host.query_start[: padded + 1] = torch.arange(padded + 1, dtype=torch.int32)
        host.logit_rows[rows:padded] = 0

    @property
    def _host(self) -> _Buffers:
        return self._hosts[self._number % len(self._hosts)]

    def host(self, step: Step) -> tuple[Int32 | Int64, ...]:
        """The step's ids, positions, slots, logit rows, contexts and starts of queries as they lie on the host."""
        tokens, rows, host = len(step.ids), step.attention.num_seqs, self._host
        ids, positions, slots, context_len, query_start = host.layout
        logit_rows = host.chosen[: len(step.sampled)]
        return ids[:tokens], positions[:tokens], slots[:tokens], logit_rows, context_len[:rows], query_start[: rows + 1]
