"""Turns the batcher's choice into the tensors of one step, all rows at once, in buffers that are used again.

The worker calls `StepBuilder.build` once per step. It reads the persistent state and writes nothing but the step's own
tensors; the loops are compiled (`kernels/cpu/host_loops.py`), so no Python runs per token or per sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.desk.batcher import Batch
from kernels.batch import AttentionBatch
from kernels.cpu.host_loops import fill_step
from kernels.device.seam import device_of
from kernels.dispatch import Backend
from kernels.sampling import DrawSettings
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
    # it knows them.
    taken: torch.Tensor  # int32 [rows]


@dataclass(frozen=True, slots=True)
class BatchSizes:
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
    """One place for the tensors of a step, with numpy views to fill them: all in one run of bytes.

    What steps of decodes use stands first and always in the same place; tokens of larger steps, as many as there are,
    stand behind it. So a step of decodes is a few kilobytes, whatever the largest step is."""

    def __init__(self, memory: torch.Tensor, tokens: int, rows: int) -> None:
        self.memory = memory
        self._end = 0
        self._rows = rows
        # How each row's token is drawn where a graph draws it: see `DrawSettings.pack`. Other steps begin behind it.
        self.draws = self._part(6 * rows, torch.int32)
        self._first = self._draws_end = self._end
        self.logit_rows = self._part(rows, torch.int64)
        self.context_len, self.query_start = self._part(rows, torch.int32), self._part(rows + 1, torch.int32)
        self.rows, self.taken = self._part(rows, torch.int32), self._part(rows, torch.int32)
        self.ids, self.positions, self.slots = (self._part(rows, torch.int64) for _ in range(3))
        # What is new in tables: how many, then each one's place and block. Last of what is sent of a small step.
        self._changes_at = self._end
        self.changes = self._part(2 * (1 + most_changes(rows)), torch.int32).view(-1, 2)
        self._large = memory[self._end : self._end + 3 * 8 * _even(tokens)].view(torch.int64)
        if memory.is_cpu:
            about = (self.context_len, self.query_start, self.logit_rows, self.rows, self.taken)
            self._about = tuple(tensor.numpy() for tensor in about)
            self._small = tuple(tensor.numpy() for tensor in (self.ids, self.positions, self.slots))
            self.new, self._draws = self.changes.numpy(), self.draws.numpy()

    def _part(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        first, size = self._end, count * dtype.itemsize
        self._end += -(-size // 64) * 64
        return self.memory[first : first + size].view(dtype)

    def tokens(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, positions and slots of a step of so many tokens."""
        if count <= self._rows:
            return self.ids[:count], self.positions[:count], self.slots[:count]
        ids, positions, slots = self._large[: 3 * _even(count)].view(3, -1)[:, :count]
        return ids, positions, slots

    def arrays(self, count: int) -> tuple[NDArray[Any], ...]:
        """On the host: ids, positions, slots, context_len, query_start, logit_rows, rows, taken of such a step."""
        if count <= self._rows:
            return *self._small, *self._about
        return *self._large[: 3 * _even(count)].view(3, -1)[:, :count].numpy(), *self._about

    def lay_out_draws(self, settings: DrawSettings, rows: int) -> None:
        """For a step that is padded to so many rows, of which the further ones draw nothing."""
        place, count = self._draws[: 6 * rows].reshape(6, rows), len(settings.temperature)
        self._first = 0
        settings.pack(place[:, :count])
        place[0, count:] = 0

    def take_span(self, count: int) -> slice:
        """Which bytes a step of so many tokens takes, its changes included, and draws if they were laid out for it."""
        first, self._first = self._first, self._draws_end
        if count <= self._rows:
            return slice(first, self._changes_at + 8 * (1 + int(self.new[0, 0])))
        return slice(first, self._end + 3 * 8 * _even(count))

    @staticmethod
    def size_bytes(tokens: int, rows: int) -> int:
        return (
            24 * (_even(tokens) + rows)
            + 8 * rows
            + 16 * (rows + 1)
            + 24 * rows
            + 8 * (1 + most_changes(rows))
            + 10 * 64
        )


def _even(count: int) -> int:
    """So that what stands behind so many integers begins where kernels expect it: at a multiple of 16 bytes."""
    return count + count % 2


def most_changes(rows: int) -> int:
    """Blocks that are new in tables and go along with a step of so many rows; more of them go by themselves."""
    return 512 + rows


class StepBuilder:
    """Builds steps of up to `max_tokens` tokens over one state. On a GPU a step is laid out in pinned memory, of which
    there are two so that one can be filled while the other is on its way, and sent in one piece to where every step's
    tensors lie: a captured graph knows the addresses. What the host does not know of it, and what is new in tables,
    the graph takes (`Backend.take`), and for any other step the builder has it taken."""

    def __init__(self, state: BatchState, max_tokens: int, backend: Backend) -> None:
        self.state = state
        self._backend = backend
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

    def build(
        self,
        batch: Batch,
        lengths: Int32,
        padded: int = 0,
        draws: Callable[[Int32], DrawSettings] | None = None,
    ) -> Step:
        """`lengths` is the batcher's array: tokens of each row, those in flight included. A step of decodes can be
        padded to so many rows, of which the further ones see and write nothing. `draws`: how these rows' tokens are to
        be drawn by a graph."""
        state = self.state
        host = self._next_host()
        sampled = np.empty(len(batch.rows), np.int32)
        num_sampled, num_taken, longest_query, longest_context = fill_step(
            (batch.rows, batch.starts, batch.counts),
            (lengths, state.tokens, state.tables, state.write_from, state.known, self._source, state.block_size),
            (sampled, *host.arrays(max(batch.num_tokens, padded))),
            padded,
        )
        tokens, rows = batch.num_tokens, len(batch.rows)
        if padded > rows:
            assert tokens == rows, "only decodes are padded"
            tokens = rows = padded
        if draws is not None:
            host.lay_out_draws(draws(sampled[:num_sampled]), padded)
        sizes = BatchSizes(tokens, rows, max(batch.num_decodes, padded), longest_query, longest_context, num_taken)
        return self._sent_step(sizes, sampled[:num_sampled], state.take_changes(), captured=bool(padded))

    def goes_behind(self, rows: Int32 | None) -> None:
        """The next step is built before the tokens of the one before it are known here: it has drawn them for these
        rows. None: all are known."""
        if self._has_source:
            self._source.fill(-1)
        self._has_source = rows is not None
        if rows is not None:
            self._source[rows] = self._numbers[: len(rows)]

    def _sent_step(self, sizes: BatchSizes, sampled: Int32, changes: tuple[Int64, Int32], *, captured: bool) -> Step:
        """What was laid out goes to the device, and with it what is new in tables. `captured`: a graph takes that."""
        host, (places, blocks) = self._host, changes
        count = len(places)
        if count >= len(host.new):
            self.state.put(places, blocks)
            count = 0
        elif count:
            host.new[1 : 1 + count, 0], host.new[1 : 1 + count, 1] = places, blocks
        host.new[0, 0] = count
        self._send(sizes.tokens)
        step = self._step(sizes, sampled)
        if not captured and (count or sizes.taken):
            self._backend.take(step.ids, step.taken, self.last, self.state.device_tables, self.device.changes)
        return step

    def _step(self, sizes: BatchSizes, sampled: Int32) -> Step:
        """What was laid out, as a step over the device's place."""
        on, tokens, rows = self.device, sizes.tokens, sizes.rows
        key = tokens, rows
        views = self._views.get(key)
        if views is None:
            ids, positions, slots = on.tokens(tokens)
            views = (
                on.query_start[: rows + 1],
                on.context_len[:rows],
                self.state.device_tables,
                on.rows[:rows],
                slots,
                positions,
                ids,
                on.taken[:rows],
                on.logit_rows[:rows],
            )
            if tokens == rows:
                # Steps of decodes come again and again.
                self._views[key] = views
        query_start, context_len, tables, whose, slots, positions, ids, taken, logit_rows = views
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
        return Step(ids, positions, attention, sampled, logit_rows[: len(sampled)], taken)

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

    def _send(self, num_tokens: int) -> None:
        if self.device is not self._host:
            span = self._host.take_span(num_tokens)
            self.device.memory[span].copy_(self._host.memory[span], non_blocking=True)
            self._sent[self._number % len(self._sent)].record()

    @property
    def _host(self) -> _Buffers:
        return self._hosts[self._number % len(self._hosts)]

    def words(self, step: Step) -> list[Int32 | Int64]:
        """The step that was built last as it lies on the host, for whoever builds it too (`follow`)."""
        attention, host = step.attention, self._host
        tokens, rows = len(step.ids), attention.num_seqs
        num_taken = int((host.arrays(tokens)[-1][:rows] >= 0).sum())
        lengths = (attention.num_decodes, attention.max_query_len, attention.max_context_len, num_taken)
        arrays = (array[:count] for array, count in zip(host.arrays(tokens), _counts(tokens, rows), strict=True))
        return [np.array((tokens, rows, *lengths)), step.sampled, *arrays]

    def follow(self, words: Sequence[Int32 | Int64], changes: tuple[Int64, Int32], *, captured: bool) -> Step:
        """The same step here."""
        host = self._next_host()
        sizes, sampled = BatchSizes(*words[0].tolist()), words[1].astype(np.int32)
        for array, word in zip(host.arrays(sizes.tokens), words[2:], strict=True):
            array[: len(word)] = word
        return self._sent_step(sizes, sampled, changes, captured=captured)


def _counts(tokens: int, rows: int) -> tuple[int, ...]:
    return tokens, tokens, tokens, rows, rows + 1, rows, rows, rows
