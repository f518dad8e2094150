"""The pool of a GPU as transfers see it: copies on streams of their own, beside the steps.

Blocks go straight between the device and memory that is pinned for CUDA (a host pool that is mapped here, or staging
memory for carriers that go chunk by chunk). A copy is handed to its stream a piece at a time; while the device moves
one piece the agent's thread sums another. Whoever calls waits for events here, on the agent's thread, so that the step
loop never does; a block counts as restored only after its event. What may be copied is decided by the pool's register.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from cluster.register.states import Blocks, PoolLayout, Sums
from kernels.device.seam import Event, Stream, device_of
from worker.transfer.bytes import HostBytes, PoolBytes, Rows, Stop
from worker.transfer.checksum import Addresses, memory_at
from worker.transfer.copy import Copier, Stopped, chunk_pieces
from worker.transfer.memory import SharedMemory, mapping_at

# What is handed to a stream at once, and how many such pieces may be on their way.
_PIECE_BYTES = 16 << 20
_AHEAD = 4
# What is pinned at once of memory that a peer's pool lies in, when the first block in there is to be copied.
_PINNED_BYTES = 32 << 20
# A run of neighbouring blocks is one copy.
Run = tuple[int, int, int]


def pool_bytes(layout: PoolLayout, pool: torch.Tensor, copier: Copier, shared: SharedMemory | None = None) -> PoolBytes:
    """The bytes of a worker's pool, uint8 [num_blocks, block_bytes], wherever they are."""
    if device_of(pool.device).is_apart:
        return DeviceBytes(layout, pool, copier)
    return HostBytes(layout, len(pool), pool.data_ptr(), copier, shared=shared, keep=pool)


class DeviceBytes:
    """A pool on a device with memory of its own."""

    def __init__(self, layout: PoolLayout, pool: torch.Tensor, copier: Copier) -> None:
        assert pool.dtype == torch.uint8 and pool.is_contiguous(), pool.dtype
        assert tuple(pool.shape) == (len(pool), layout.block_bytes), (tuple(pool.shape), layout.block_bytes)
        self.layout = layout
        self.num_blocks = len(pool)
        self.shared: SharedMemory | None = None
        self.pins = True
        self._pool = pool
        self._copier = copier
        # Both ways at once: a GPU has an engine for each.
        self.seam = device_of(pool.device)
        self._out = self.seam.stream()
        self._in = self.seam.stream()

    def copy_out(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        """The device writes a piece while the one before it is summed."""
        sums = np.empty(len(blocks) * self.layout.chunks_per_block, np.uint32)
        # A peer that reads has ordered nothing here: copies of blocks that steps have issued come first.
        self._out.wait_for(self.seam.steps())
        moving: deque[tuple[int, int, Event]] = deque()
        try:
            for first, end in self._pieces(len(blocks)):
                if stop is not None and stop():
                    raise Stopped
                moving.append((first, end, self._issue(self._out, blocks[first:end], rows[first:end], out=True)))
                if len(moving) >= _AHEAD:
                    self._sum_one(moving, rows, sums)
            while moving:
                self._sum_one(moving, rows, sums)
        except BaseException:
            # Nothing may still write to the rows once this is out of here.
            self._out.wait()
            raise
        return sums

    def copy_in(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        """A piece is summed and then read by the device, while the next one is summed."""
        sums = np.empty(len(blocks) * self.layout.chunks_per_block, np.uint32)
        per_block = self.layout.chunks_per_block
        # What steps have issued of these blocks comes first here too.
        self._in.wait_for(self.seam.steps())
        moving: deque[Event] = deque()
        try:
            for first, end in self._pieces(len(blocks)):
                if stop is not None and stop():
                    raise Stopped
                sums[first * per_block : end * per_block] = self._sums_at(rows[first:end])
                moving.append(self._issue(self._in, blocks[first:end], rows[first:end], out=False))
                if len(moving) >= _AHEAD:
                    moving.popleft().wait()
            while moving:
                moving.popleft().wait()
        except BaseException:
            self._in.wait()
            raise
        return sums

    def checksums(self, blocks: Blocks) -> Sums:
        staging = _Staging(self, blocks)
        return self.copy_out(blocks, staging.addresses, None)

    def rows(self, blocks: Blocks, write: bool) -> Rows:
        staging = _Staging(self, blocks)
        if not write:
            self.copy_out(blocks, staging.addresses, None)
        return staging

    # -- inside

    def _pieces(self, count: int) -> Iterator[tuple[int, int]]:
        step = max(1, _PIECE_BYTES // self.layout.block_bytes)
        return ((first, min(first + step, count)) for first in range(0, count, step))

    def _issue(self, stream: Stream, blocks: Blocks, rows: Addresses, *, out: bool) -> Event:
        """Hands the copies of a piece to `stream`; the event is over when they are."""
        size = self.layout.block_bytes
        event = self.seam.event()
        with self.seam.on(stream):
            parts = [part for run in runs(blocks, rows, size) for part in self._pinned(*run)]
            for block, address, count in parts:
                there = self._pool[block : block + count].view(-1)
                here = torch.from_numpy(memory_at(address, count * size))
                if out:
                    here.copy_(there, non_blocking=True)
                else:
                    there.copy_(here, non_blocking=True)
            event.record(stream)
        return event

    def _pinned(self, block: int, address: int, count: int) -> Iterator[Run]:
        """This run in parts, each of which lies in memory that was pinned at once."""
        memory, size = mapping_at(address), self.layout.block_bytes
        if memory is None:
            # Staging memory, which is pinned as a whole.
            yield block, address, count
            return
        step = max(1, _PINNED_BYTES // size) * size
        end = address + count * size
        while address < end:
            first = (address - memory.address) // step * step
            last = min(first + step, memory.size)
            memory.pin(first, last, self.seam.pin)
            part = min(end, memory.address + last) - address
            yield block, address, part // size
            block, address = block + part // size, address + part

    def _sum_one(self, moving: deque[tuple[int, int, Event]], rows: Addresses, sums: Sums) -> None:
        first, end, event = moving[0]
        event.wait()
        moving.popleft()
        per_block = self.layout.chunks_per_block
        sums[first * per_block : end * per_block] = self._sums_at(rows[first:end])

    def _sums_at(self, rows: Addresses) -> Sums:
        addresses, lengths = chunk_pieces(self.layout, rows)
        return self._copier.copy(None, addresses, lengths)


class _Staging:
    """Pinned memory for the blocks of one transfer, in their order."""

    def __init__(self, device: DeviceBytes, blocks: Blocks) -> None:
        size = device.layout.block_bytes
        self._device = device
        self._blocks = blocks
        self._memory = device.seam.pinned(len(blocks) * size, torch.uint8)
        self.addresses = self._memory.data_ptr() + np.arange(len(blocks), dtype=np.int64) * size

    def finish(self) -> None:
        self._device.copy_in(self._blocks, self.addresses, None)


def runs(blocks: Blocks, rows: Addresses, block_bytes: int) -> list[Run]:
    """Neighbours on both sides together: first block, address of its row, and how many."""
    breaks = (np.diff(blocks) != 1) | (np.diff(rows) != block_bytes)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    counts = np.diff(np.append(starts, len(blocks)))
    return list(zip(blocks[starts].tolist(), rows[starts].tolist(), counts.tolist(), strict=True))
