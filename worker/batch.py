"""Turns the batcher's choice into the tensors of one step, all rows at once, in buffers that are used again.

The worker calls `StepBuilder.build` once per step. It reads the persistent state and writes nothing but the step's own
tensors; the loops are compiled (`kernels/cpu/host_loops.py`), so no Python runs per token or per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    # Ids that the host does not know come from the tokens of the step before (`StepBuilder.last`): places there, -1:
    # it knows them; and how many.
    taken: torch.Tensor  # int32 [rows]
    num_taken: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the buffers a step takes, and what the host knows of it."""

    tokens: int
    rows: int
    decodes: int
    longest_query: int
    longest_context: int
    taken: int


def sizes_up_to(most: int) -> list[int]:
    """Numbers of rows that decodes are padded to: half of a padded batch is real at least, and more of a large one."""
    steps = [1, 2, 4, 8, *range(16, 257, 16), *range(320, 4097, 64)]
    return [size for size in steps if size < most] + [most]


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
        self.context_len, self.query_start = part(rows, torch.int32), part(rows + 1, torch.int32)
        self.rows, self.taken = part(rows, torch.int32), part(rows, torch.int32)
        if memory.is_cpu:
            every = (self.ids, self.positions, self.slots, self.context_len, self.query_start, self.logit_rows)
            self.arrays = tuple(tensor.numpy() for tensor in (*every, self.rows, self.taken))

    @staticmethod
    def size_bytes(tokens: int, rows: int) -> int:
        return 3 * 8 * tokens + 8 * rows + 4 * 4 * (rows + 1) + 8 * 64


class StepBuilder:
    """Builds steps of up to `max_tokens` tokens over one state. On a GPU a step is laid out in pinned memory, of which
    there are two so that one can be filled while the other is on its way, and sent in one piece to where every step's
    tensors lie: a captured graph knows the addresses."""

    def __init__(self, state: BatchState, max_tokens: int) -> None:
        self.state = state
        self._seam = seam = device_of(state.device)
        self.max_rows = rows = min(max_tokens, state.max_batch)
        size = _Buffers.size_bytes(max_tokens, rows)
        hosts = [seam.pinned(size, torch.uint8).zero_() for _ in range(2 if seam.is_apart else 1)]
        self._hosts = [_Buffers(host, max_tokens, rows) for host in hosts]
        self.max_tokens = max_tokens
        self.device = _Buffers(torch.zeros(size, dtype=torch.uint8, device=state.device), max_tokens, rows)
        if not seam.is_apart:
            self.device = self._hosts[0]
        # Tokens of the step before, where the next one takes over those that the host does not know yet; and behind
        # them room for what else a graph says of them.
        self.last = torch.zeros(2 * rows, dtype=torch.int64, device=state.device)
        # Where in the step before a row got its token.
        self._source = np.full(state.max_batch, -1, np.int32)
        self._has_source = False
        self._numbers = np.arange(state.max_batch, dtype=np.int32)
        self._views: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}
        self._number = 0
        # For each place on the host: what was laid out there is on the device.
        self._sent = [seam.event() for _ in hosts]

    def build(self, batch: Batch, lengths: Int32, padded: int = 0) -> Step:
        """`lengths` is the batcher's array: tokens of each row, those in flight included. A step of decodes can be
        padded to so many rows, of which the further ones see and write nothing."""
        state = self.state
        host = self._next_host()
        sampled = np.empty(len(batch.rows), np.int32)
        num_sampled, num_taken, longest_query, longest_context = fill_step(
            (batch.rows, batch.starts, batch.counts),
            (lengths, state.tokens, state.tables, state.write_from, state.known, self._source, state.block_size),
            (sampled, *host.arrays),
            padded,
        )
        tokens, rows = batch.num_tokens, len(batch.rows)
        if padded > rows:
            assert tokens == rows, "only decodes are padded"
            tokens = rows = padded
        state.sync_tables()
        self._send()
        sizes = Sizes(tokens, rows, max(batch.num_decodes, padded), longest_query, longest_context, num_taken)
        return self._step(sizes, sampled[:num_sampled])

    def goes_behind(self, rows: Int32 | None) -> None:
        """The next step is built before the tokens of the one before it are known here: it has drawn them for these
        rows. None: all are known."""
        if self._has_source:
            self._source.fill(-1)
        self._has_source = rows is not None
        if rows is not None:
            self._source[rows] = self._numbers[: len(rows)]

    def _step(self, sizes: Sizes, sampled: Int32) -> Step:
        """What was laid out, as a step over the device's place."""
        on, tokens, rows = self.device, sizes.tokens, sizes.rows
        key = tokens, rows
        views = self._views.get(key)
        if views is None:
            views = (
                on.query_start[: rows + 1],
                on.context_len[:rows],
                self.state.device_tables,
                on.rows[:rows],
                on.slots[:tokens],
                on.positions[:tokens],
                on.ids[:tokens],
                on.taken[:rows],
            )
            if tokens == rows:
                # Steps of decodes come again and again.
                self._views[key] = views
        query_start, context_len, tables, whose, slots, positions, ids, taken = views
        attention = AttentionBatch(
            query_start,
            context_len,
            tables,
            whose,
            slots,
            positions,
            sizes.longest_query,
            sizes.longest_context,
            sizes.decodes,
        )
        return Step(ids, positions, attention, sampled, on.logit_rows[: len(sampled)], taken, sizes.taken)

    def build_empty(self, rows: int) -> None:
        """Lays out a step of so many decodes that see and write nothing."""
        none = np.zeros(0, np.int32)
        self.build(Batch(none, none, none, 0, 0, 0), none, rows)

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

    @property
    def _host(self) -> _Buffers:
        return self._hosts[self._number % len(self._hosts)]

    def words(self, step: Step) -> list[Int32 | Int64]:
        """The step that was built last as it lies on the host, for whoever builds it too (`follow`)."""
        attention, host = step.attention, self._host
        tokens, rows = len(step.ids), attention.num_seqs
        lengths = (attention.num_decodes, attention.max_query_len, attention.max_context_len, step.num_taken)
        arrays = (array[:count] for array, count in zip(host.arrays, _counts(tokens, rows), strict=True))
        return [np.array((tokens, rows, *lengths)), step.sampled, *arrays]

    def follow(self, words: Sequence[Int32 | Int64]) -> Step:
        """The same step here."""
        host = self._next_host()
        sizes, sampled = Sizes(*words[0].tolist()), words[1].astype(np.int32)
        for array, word in zip(host.arrays, words[2:], strict=True):
            array[: len(word)] = word
        self._send()
        return self._step(sizes, sampled)


def _counts(tokens: int, rows: int) -> tuple[int, ...]:
    return tokens, tokens, tokens, rows, rows + 1, rows, rows, rows
