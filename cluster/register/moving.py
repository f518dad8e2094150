"""One transfer of one pool: what was reserved, in which phase it is, and the account of its chunks.

A chunk is missing, arriving (this process is putting it in its place) or here. The account only counts; whether a chunk
may come at all is decided by `cluster/register/register.py`, its only user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cluster.register.states import (
    Blocks,
    Carrier,
    NotObeyed,
    PoolLayout,
    Range,
    Reservation,
    Sums,
    TransferKey,
    TransferPhase,
    WhyRefused,
)

MISSING, ARRIVING, ARRIVED = 0, 1, 2


@dataclass(slots=True, eq=False)
class Moving:
    """`deadline`, `heard_at`, `ended_at`: seconds of the clock that the register is told. It has ended when nothing can
    touch its blocks for it any more."""

    reservation: Reservation
    deadline: float
    heard_at: float
    phase: TransferPhase = TransferPhase.RESERVED
    reason: str = ""
    ended_at: float = 0.0
    # Opens a data socket for it.
    token: bytes = b""
    # One state per chunk, and what their bytes sum to. Empty where blocks are read.
    chunks: bytearray = field(default_factory=bytearray)
    crcs: Sums = field(default_factory=lambda: np.empty(0, np.uint32))
    num_missing: int = 0
    num_arriving: int = 0
    # All chunks are here and go from where they were gathered into the pool.
    finishing: bool = False
    finished: bool = False
    # The caller can reach the blocks through shared memory and has not said that it stopped.
    unstopped: bool = False
    # Its blocks are `writing` or `quarantined` because of it.
    holds_blocks: bool = False
    # Block as the wire calls it to its place in the reservation.
    places: dict[int, int] = field(default_factory=dict)

    def expect_chunks(self) -> None:
        """Its blocks are to be written: nothing of them is here yet."""
        self.chunks = bytearray(self.num_chunks)
        self.crcs = np.zeros(self.num_chunks, np.uint32)
        self.num_missing = self.num_chunks
        self.unstopped = self.reservation.carrier is Carrier.SHARED_MEMORY
        self.holds_blocks = True
        self.places = {block: place for place, block in enumerate(self.wire_blocks.tolist())}

    @property
    def key(self) -> TransferKey:
        return self.reservation.name.key

    @property
    def layout(self) -> PoolLayout:
        """How its blocks are cut into chunks."""
        return self.reservation.layout

    @property
    def live(self) -> bool:
        return self.phase < TransferPhase.COMMITTED

    @property
    def quarantined(self) -> bool:
        """Given up, and something could still write to its blocks."""
        return self.phase is TransferPhase.ABORTED and (self.unstopped or self.finishing or self.num_arriving > 0)

    def due_at(self, idle_s: float) -> float:
        """When it is given up if it stays live and nothing is heard of it."""
        if self.reservation.carrier is Carrier.SHARED_MEMORY:
            return self.deadline
        return min(self.deadline, self.heard_at + idle_s)

    @property
    def wire_blocks(self) -> Blocks:
        asked = self.reservation
        return asked.blocks if asked.wire_blocks is None else asked.wire_blocks

    @property
    def num_chunks(self) -> int:
        """Of all its blocks. Chunks are numbered in the order of the reserved blocks."""
        return len(self.reservation.blocks) * self.layout.chunks_per_block

    @property
    def size_bytes(self) -> int:
        return len(self.reservation.blocks) * self.layout.block_bytes

    def missing(self, limit: int) -> list[Range]:
        """The first `limit` runs of chunks that have not arrived."""
        if not self.num_missing:
            return []
        gone = np.frombuffer(self.chunks, np.uint8) != ARRIVED
        edges = np.flatnonzero(np.diff(gone, prepend=False, append=False))[: 2 * limit]
        return [(int(first), int(end - first)) for first, end in edges.reshape(-1, 2)]

    def number_of(self, block: int, offset: int, length: int) -> int:
        """Of the chunk that a header names; raises Refused if there is none."""
        layout = self.layout
        place = self.places.get(block)
        index, rest = divmod(offset, layout.chunk_bytes)
        if place is None or rest or not 0 <= index < layout.chunks_per_block:
            raise NotObeyed(WhyRefused.OUTSIDE, f"{self.key} has no chunk at {offset} of block {block}")
        wanted = layout.length(index)
        if length != wanted:
            raise NotObeyed(WhyRefused.TRUNCATED, f"{self.key}: {length:,} bytes for a chunk of {wanted:,}")
        return place * layout.chunks_per_block + index

    def begin(self, first: int, count: int) -> None:
        """These chunks are arriving from now on. Raises Refused if one is not missing."""
        if count < 1 or first < 0 or first + count > len(self.chunks):
            detail = f"{self.key} has {len(self.chunks):,} chunks; {count:,} from chunk {first:,} on are not among them"
            raise NotObeyed(WhyRefused.OUTSIDE, detail)
        if self.chunks.count(MISSING, first, first + count) != count:
            raise self._doubled(first)
        self.chunks[first : first + count] = bytes((ARRIVING,)) * count
        self.num_arriving += count

    def end(self, first: int, count: int, crcs: int | Sums | None) -> None:
        """They are here and sum to `crcs`; None: they are missing again."""
        assert self.chunks.count(ARRIVING, first, first + count) == count, (self.key, first, count)
        self.num_arriving -= count
        if crcs is None:
            self.chunks[first : first + count] = bytes((MISSING,)) * count
            return
        self.chunks[first : first + count] = bytes((ARRIVED,)) * count
        self.crcs[first : first + count] = crcs
        self.num_missing -= count

    def take(self, number: int, wanted: int, copy: Callable[[int], int]) -> int:
        """`begin` and `end` of one chunk that `copy` writes in between. Small chunks are many."""
        if self.chunks[number] != MISSING:
            raise self._doubled(number)
        crc = copy(number)
        if crc == wanted:
            self.chunks[number] = ARRIVED
            self.crcs[number] = crc
            self.num_missing -= 1
        return crc

    def _doubled(self, number: int) -> NotObeyed:
        return NotObeyed(WhyRefused.DOUBLED, f"{self.key}: chunk {number} came before")

    def check(self) -> None:
        if self.reservation.write:
            assert self.num_missing == len(self.chunks) - self.chunks.count(ARRIVED), self.key
            assert self.num_arriving == self.chunks.count(ARRIVING), self.key
            assert self.holds_blocks == (self.live or self.quarantined), self.key
            assert self.phase is not TransferPhase.COMMITTED or (self.finished and not self.num_missing), self.key
        assert not (self.finishing and self.finished), self.key
