"""The pool of a GPU as transfers see it: copies on streams of their own, beside the steps.

Blocks go straight between the device and memory that is pinned for CUDA (a host pool that is mapped here, or staging
memory for carriers that go chunk by chunk). A copy is handed to its stream a piece at a time, and what lies in the pool
is summed by the device on a stream beside: what goes out before it goes, what comes in once it is there. Whoever calls
waits for events here, on the agent's thread, so that the step loop never does; a block counts as restored only after
its event. What may be copied is decided by the pool's register.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from cluster.register.states import Blocks, PoolLayout, Sums
from kernels.checksums import Checksums
from kernels.device.seam import Event, Stream, device_of
from worker.transfer.bytes import BlockRows, HostBytes, PoolBytes, Staged, Stop
from worker.transfer.checksum import Addresses, memory_at
from worker.transfer.copy import Copier, CopyStopped
from worker.transfer.memory import SharedMemory, mapping_at

# What is handed to a stream at once, and how many such pieces may be on their way.
_PIECE_BYTES = 16 << 20
_AHEAD = 4
# What is pinned at once of memory that a peer's pool lies in, when the first block in there is to be copied.
_PINNED_BYTES = 32 << 20
# A run of neighbouring blocks is one copy.
Run = tuple[int, int, int]


def pool_bytes(
    layout: PoolLayout, pool: torch.Tensor, copier: Copier, shared: SharedMemory | None = None, *, sums: bool = True
) -> PoolBytes:
    """The bytes of a worker's pool, uint8 [num_blocks, block_bytes], wherever they are. `sums`: what is copied is to be
    summed; else a device does not, and what a copy returns means nothing."""
    if device_of(pool.device).is_apart:
        return DeviceBytes(layout, pool, sums=sums)
    return HostBytes(layout, len(pool), pool.data_ptr(), copier, shared=shared, keep=pool)


class _Piece(NamedTuple):
    """Blocks that are on their way."""

    done: Event
    sums: torch.Tensor | None  # on the host once it is done


class DeviceBytes:
    """A pool on a device with memory of its own."""

    def __init__(self, layout: PoolLayout, pool: torch.Tensor, *, sums: bool = True) -> None:
        assert pool.dtype == torch.uint8 and pool.is_contiguous(), pool.dtype
        assert tuple(pool.shape) == (len(pool), layout.block_bytes), (tuple(pool.shape), layout.block_bytes)
        self.layout = layout
        self.num_blocks = len(pool)
        self.shared: SharedMemory | None = None
        self.pins = True
        self._pool = pool
        self.seam = device_of(pool.device)
        self._sums = Checksums(pool.device, layout.block_bytes, layout.chunk_bytes) if sums else None
        # Both ways at once: a GPU has an engine for each. Sums are the work of its multiprocessors.
        self._out, self._in, self._beside = (self.seam.stream() for _ in range(3))

    def copy_out(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        return self._copy(self._out, blocks, rows, stop)

    def copy_in(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        return self._copy(self._in, blocks, rows, stop)

    def checksums(self, blocks: Blocks) -> Sums:
        return self._copy(self._out, blocks, None, None)

    def rows(self, blocks: Blocks, write: bool) -> BlockRows:
        # A piece at a time: to pin the memory of a long sequence at once would stop the steps of a worker for seconds.
        # None of the pieces that are copied lies in two of them.
        size, each = self.layout.block_bytes, 2 * self._step
        lengths = [min(each, len(blocks) - first) for first in range(0, len(blocks), each)]
        memory = [self.seam.pinned(length * size, torch.uint8) for length in lengths]
        places = [
            part.data_ptr() + np.arange(n, dtype=np.int64) * size for part, n in zip(memory, lengths, strict=True)
        ]
        staged = Staged(self, blocks, np.concatenate(places), memory)
        if not write:
            self.copy_out(blocks, staged.addresses, None)
        return staged

    # -- inside

    @property
    def _step(self) -> int:
        """Blocks that are handed to a stream at once."""
        return max(1, _PIECE_BYTES // self.layout.block_bytes)

    def _copy(self, stream: Stream, blocks: Blocks, rows: Addresses | None, stop: Stop | None) -> Sums:
        """Between these blocks and `rows`, the way that `stream` goes; None: they are only summed."""
        found: list[Sums] = []
        moving: deque[_Piece] = deque()
        # Kernels go to the current device of a thread.
        self.seam.bind()
        # What steps have issued of these blocks comes first, also where a peer reads that has ordered nothing here.
        stream.wait_for(self.seam.steps())
        self._beside.wait_for(self.seam.steps())
        step = self._step
        try:
            for first in range(0, len(blocks), step):
                if stop is not None and stop():
                    raise CopyStopped
                piece = blocks[first : first + step]
                moving.append(self._issue(stream, piece, None if rows is None else rows[first : first + step]))
                if len(moving) >= _AHEAD:
                    found.append(self._finish(moving.popleft()))
            while moving:
                found.append(self._finish(moving.popleft()))
        except BaseException:
            # Nothing may still be copied once this is out of here.
            stream.wait()
            self._beside.wait()
            raise
        return np.concatenate(found)

    def _issue(self, stream: Stream, blocks: Blocks, rows: Addresses | None) -> _Piece:
        """Hands the copies of a piece to `stream` and has it summed beside."""
        is_in, event = stream is self._in, self.seam.event()
        if self._sums is None:
            assert rows is not None
            self._hand_over(stream, blocks, rows)
            event.record(stream)
            return _Piece(event, None)
        if rows is not None and is_in:
            self._hand_over(stream, blocks, rows)
            self._beside.wait_for(stream)
        with self.seam.on(self._beside):
            sums = self.seam.fetch(self._sums(self._pool, blocks))
        if rows is not None and not is_in:
            self._hand_over(stream, blocks, rows)
            self._beside.wait_for(stream)
        event.record(self._beside)
        return _Piece(event, sums)

    def _hand_over(self, stream: Stream, blocks: Blocks, rows: Addresses) -> None:
        size = self.layout.block_bytes
        with self.seam.on(stream):
            parts = [part for run in runs(blocks, rows, size) for part in self._pinned(*run)]
            for block, address, count in parts:
                there = self._pool[block : block + count].view(-1)
                here = torch.from_numpy(memory_at(address, count * size))
                if stream is self._in:
                    there.copy_(here, non_blocking=True)
                else:
                    here.copy_(there, non_blocking=True)

    def _finish(self, piece: _Piece) -> Sums:
        piece.done.wait()
        if self._sums is None or piece.sums is None:
            return np.zeros(0, np.uint32)
        return self._sums.finished(piece.sums.numpy())

    def _pinned(self, block: int, address: int, count: int) -> Iterator[Run]:
        """This run in parts, each of which lies in memory that was pinned at once."""
        memory, size = mapping_at(address), self.layout.block_bytes
        if memory is None:
            # Staging memory, which is pinned as a whole.
            yield block, address, count
            return
        # On borders of pages as well as of blocks: the system pins a page once.
        border = math.lcm(size, mmap.PAGESIZE)
        step = max(1, _PINNED_BYTES // border) * border
        end = address + count * size
        while address < end:
            first = (address - memory.address) // step * step
            last = min(first + step, memory.size)
            memory.pin(first, last, self.seam.pin)
            part = min(end, memory.address + last) - address
            yield block, address, part // size
            block, address = block + part // size, address + part


def runs(blocks: Blocks, rows: Addresses, block_bytes: int) -> list[Run]:
    """Neighbours on both sides together: first block, address of its row, and how many."""
    breaks = (np.diff(blocks) != 1) | (np.diff(rows) != block_bytes)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    counts = np.diff(np.append(starts, len(blocks)))
    return list(zip(blocks[starts].tolist(), rows[starts].tolist(), counts.tolist(), strict=True))
