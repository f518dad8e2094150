"""The bytes of a pool as transfers see them: whole blocks in and out, or rows that a carrier fills chunk by chunk.

`PoolBytes` is the seam between transfers and kinds of memory; `HostBytes` is it for memory that this process can
address (a host pool, or a worker's pool on the CPU), `worker/transfer/device.py` for GPUs. Whether a block may be
touched was decided before, by the pool's register.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cluster.register.states import Blocks, PoolLayout, Sums
from worker.transfer.checksum import Addresses
from worker.transfer.copy import Copier, block_rows, chunk_pieces
from worker.transfer.memory import SharedMemory

Stop = Callable[[], bool]


class BlockRows(Protocol):
    """Where the blocks of one transfer lie for a carrier that goes chunk by chunk."""

    addresses: Addresses

    def finish(self) -> None:
        """All chunks were written: they are in the pool when this returns."""


class PoolBytes(Protocol):
    layout: PoolLayout
    num_blocks: int
    # What other processes of this machine can map; None where there is no such memory.
    shared: SharedMemory | None
    # Copies to and from other memory are faster if that is pinned.
    pins: bool

    def copy_out(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        """Blocks to the addresses `rows`; the CRC32C of each chunk. Raises Stopped once nothing copies any more."""

    def copy_in(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        """From the addresses `rows` to blocks; the CRC32C of each chunk as it was read."""

    def checksums(self, blocks: Blocks) -> Sums:
        """The CRC32C of each chunk as it lies in the pool."""

    def rows(self, blocks: Blocks, write: bool) -> BlockRows:
        """For a carrier that writes (or reads) chunk by chunk."""


class HostBytes:
    """A pool in memory that this process can address, from `base` on. `keep` owns that memory."""

    def __init__(
        self,
        layout: PoolLayout,
        num_blocks: int,
        base: int,
        copier: Copier,
        *,
        shared: SharedMemory | None = None,
        keep: object = None,
    ) -> None:
        assert shared is None or (base == shared.address and num_blocks * layout.block_bytes <= shared.size)
        self.layout = layout
        self.num_blocks = num_blocks
        self.shared = shared
        self.pins = False
        self._base = base
        self._copier = copier
        self._keep = keep

    def copy_out(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        sources, lengths = chunk_pieces(self.layout, block_rows(self._base, self.layout, blocks))
        return self._copier.copy(chunk_pieces(self.layout, rows)[0], sources, lengths, stop)

    def copy_in(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        targets, lengths = chunk_pieces(self.layout, block_rows(self._base, self.layout, blocks))
        return self._copier.copy(targets, chunk_pieces(self.layout, rows)[0], lengths, stop)

    def checksums(self, blocks: Blocks) -> Sums:
        sources, lengths = chunk_pieces(self.layout, block_rows(self._base, self.layout, blocks))
        return self._copier.copy(None, sources, lengths)

    def rows(self, blocks: Blocks, write: bool) -> BlockRows:
        return HostRows(block_rows(self._base, self.layout, blocks))


class HostRows:
    """Rows in the pool itself: what a carrier writes is in place at once."""

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses

    def finish(self) -> None:
        pass


class Staged:
    """Rows in memory of their own, in the order of `blocks`: they come into the pool when all of them are here."""

    def __init__(self, pool: PoolBytes, blocks: Blocks, addresses: Addresses, keep: object) -> None:
        """`keep` owns the memory at these addresses."""
        self._pool = pool
        self._blocks = blocks
        self._keep = keep
        self.addresses = addresses

    def finish(self) -> None:
        self._pool.copy_in(self._blocks, self.addresses, None)
