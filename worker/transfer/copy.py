"""Copies scattered pieces of memory and sums them up, on one thread or several, so that it can be stopped.

Transfers through shared memory and checks of what lies there are made of this. Python's lock is not held while bytes
move. The pieces come as addresses; what they mean and whether they may be touched is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from cluster.register.states import Blocks, PoolLayout, Sums
from worker.transfer.checksum import Addresses, Checksummer, checksummer

SLICE_BYTES = 4 << 20


class CopyStopped(Exception):
    """The copy was told to stop, and nothing of it runs any more."""


class Copier:
    """One or several copying threads. Used by one transfer at a time per calling thread; calls may overlap."""

    def __init__(self, num_threads: int = 1, way: Checksummer | None = None) -> None:
        assert num_threads >= 1, num_threads
        self._way = way or checksummer()
        self.num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, "quire-copy") if num_threads > 1 else None

    def copy(
        self, targets: Addresses | None, sources: Addresses, lengths: Addresses, stop: Callable[[], bool] | None = None
    ) -> Sums:
        """CRC32C of each piece as it was read; pieces are copied unless `targets` is None.

        `stop` is asked every few megabytes; if it says so, Stopped is raised once no thread writes any more.
        """
        crcs = np.empty(len(sources), np.uint32)

        def run(first: int, end: int) -> None:
            if stop is not None and stop():
                raise CopyStopped
            there = None if targets is None else targets[first:end]
            crcs[first:end] = self._way.copy_many(there, sources[first:end], lengths[first:end])

        slices = cut(lengths)
        if self._threads is None or len(slices) < 2:
            for first, end in slices:
                run(first, end)
            return crcs
        running = [self._threads.submit(run, first, end) for first, end in slices]
        wait(running)
        for done in running:
            done.result()
        return crcs

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()


def cut(lengths: Addresses) -> list[tuple[int, int]]:
    """Runs of pieces of about SLICE_BYTES each, at least one piece in each: (first, end)."""
    if not len(lengths):
        return []
    numbers = (np.cumsum(lengths) - 1) // SLICE_BYTES
    edges = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = [*edges[1:].tolist(), len(lengths)]
    return list(zip(edges.tolist(), ends, strict=True))


def chunk_pieces(layout: PoolLayout, rows: Addresses) -> tuple[Addresses, Addresses]:
    """Where each chunk of the blocks at `rows` begins, and its length, in the order of chunk numbers."""
    per_block = layout.chunks_per_block
    offsets = np.arange(per_block, dtype=np.int64) * layout.chunk_bytes
    lengths = np.array([layout.length(index) for index in range(per_block)], np.int64)
    addresses = np.ascontiguousarray((rows[:, None] + offsets).reshape(-1))
    return addresses, np.tile(lengths, len(rows))


def block_rows(base: int, layout: PoolLayout, blocks: Blocks) -> Addresses:
    """Where these blocks begin in a pool that lies at `base`."""
    return base + blocks.astype(np.int64) * layout.block_bytes
