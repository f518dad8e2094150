"""The chunks of one transfer in one pool: where each lies, what the wire calls it, and what it sums to.

Made once per transfer by `worker/transfer/end.py` and used by every carrier that goes chunk by chunk. It moves bytes
when it is told to and asks nobody: leave to write was given before.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from cluster.errors import ProtocolError
from cluster.register.states import Blocks, PoolLayout, Sums
from worker.transfer.bytes import BlockRows
from worker.transfer.checksum import checksummer
from worker.transfer.copy import chunk_pieces


class Came(NamedTuple):
    """A chunk that came: what its header said, and where its bytes lie now."""

    block: int
    offset: int
    length: int
    crc: int
    address: int


class Outgoing(NamedTuple):
    """A chunk as its header will say."""

    block: int
    offset: int
    length: int
    crc: int
    address: int

    def view(self) -> memoryview:
        """Its bytes where they lie."""
        return memoryview((ctypes.c_uint8 * self.length).from_address(self.address))


class Chunks:
    """`sums` are those with which the blocks came into the pool; None: chunks are summed as they go."""

    def __init__(self, layout: PoolLayout, wire_blocks: Blocks, rows: BlockRows, sums: Sums | None) -> None:
        self.rows = rows  # keeps the memory
        self._sums = sums
        self._per_block = layout.chunks_per_block
        self._offsets = [index * layout.chunk_bytes for index in range(self._per_block)]
        self._blocks: list[int] = wire_blocks.tolist()
        self._addresses, self._lengths = chunk_pieces(layout, rows.addresses)
        self._places: list[int] = self._addresses.tolist()
        self._way = checksummer()

    def __len__(self) -> int:
        return len(self._places)

    def place(self, number: int) -> int:
        """The address of a chunk."""
        return self._places[number]

    def take(self, number: int, source: int, length: int) -> int:
        """Copies the bytes of a chunk to its place; their CRC32C."""
        return self._way.copy(self._places[number], source, length)

    def outgoing(self, first: int, end: int) -> list[Outgoing]:
        """Chunks to be sent, summed."""
        if self._sums is not None:
            sums = self._sums[first:end]
        else:
            sums = self._way.copy_many(None, self._addresses[first:end], self._lengths[first:end])
        lengths = self._lengths[first:end].tolist()
        out = []
        for number, length, crc in zip(range(first, end), lengths, sums.tolist(), strict=True):
            place, index = divmod(number, self._per_block)
            out.append(Outgoing(self._blocks[place], self._offsets[index], length, crc, self._places[number]))
        return out

    def batches(self, ranges: list[tuple[int, int]], size_bytes: int) -> list[tuple[int, int]]:
        """Runs of chunks of about `size_bytes` each that make up `ranges`: first and end."""
        step = max(1, size_bytes // int(self._lengths[0]))
        cut = []
        for first, count in ranges:
            end = min(first + count, len(self))
            cut += [(begin, min(begin + step, end)) for begin in range(first, end, step)]
        return cut


def sums_message(sums: Sums | None) -> bytes:
    """CRCs as the wire packs them; nothing for none."""
    return b"" if sums is None else sums.astype("<u4").tobytes()


def sums_from(packed: bytes) -> Sums:
    """CRCs as the wire packs them. Raises ProtocolError."""
    if len(packed) % 4:
        raise ProtocolError(f"{len(packed)} bytes are no whole number of checksums")
    return np.frombuffer(packed, "<u4").astype(np.uint32)
