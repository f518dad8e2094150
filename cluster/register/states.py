"""The values of a transfer: its name, its layout, what is asked for, and why something was refused.

Pure: no clock, no I/O, no lock. The numbers of the enums are those of protos/quire/v1/transfer.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

from cluster.errors import TransferError

MAX_CHUNK_BYTES = 1 << 20

Blocks = npt.NDArray[np.int32]
Sums = npt.NDArray[np.uint32]
"""One CRC32C per chunk."""
Range = tuple[int, int]
"""First chunk and how many."""


class TransferPhase(IntEnum):
    RESERVED = 1
    COPYING = 2
    COMMITTED = 3
    ABORTED = 4


class Carrier(IntEnum):
    """What the bytes go through. Through shared memory the caller reaches the blocks by itself; a chunk that comes by
    another carrier is put in its place by the process that owns the pool."""

    SHARED_MEMORY = 1
    SOCKET = 2
    STREAM = 3


class WhyRefused(StrEnum):
    """Why a message or a chunk was refused; the words of counters and metrics."""

    STALE = "stale"  # of an older life of the scheduler, the caller or the pool
    UNKNOWN = "unknown"  # no such transfer
    LATE = "late"  # the transfer has ended
    DOUBLED = "doubled"  # the chunk is here already
    CORRUPT = "corrupt"  # its bytes do not fit its CRC
    TRUNCATED = "truncated"  # fewer or more bytes than the chunk has
    OUTSIDE = "outside"  # no chunk of this transfer
    OCCUPIED = "occupied"  # another transfer has the block
    QUARANTINED = "quarantined"  # a late writer could still touch the block
    UNREADABLE = "unreadable"  # the block holds nothing that was committed
    BUSY = "busy"  # too many bytes under way with this peer, or a reader has yet to let go: try again
    LAYOUT = "layout"  # the pools cannot exchange blocks
    CONFLICT = "conflict"  # the name was used for something else


class NotObeyed(TransferError):
    """A message or a chunk that was not obeyed. Nothing was changed by it."""

    def __init__(self, refusal: WhyRefused, detail: str) -> None:
        super().__init__(refusal, detail)
        self.refusal = refusal
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class CarrierLost(TransferError):
    """A connection or a call is of no use any more; what arrived before still counts. `final`: another try would not
    help."""

    def __init__(self, detail: str, *, final: bool = False) -> None:
        super().__init__(detail)
        self.final = final


@dataclass(frozen=True, slots=True)
class TransferKey:
    """A transfer, or a part of it, within one pool."""

    epoch: int
    transfer: int
    part: int
    caller: str

    def __str__(self) -> str:
        part = f" part {self.part}" if self.part else ""
        return f"transfer {self.transfer}{part} of {self.caller} in epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class TransferName:
    """A key with the incarnations of both ends: what every message of the protocol carries."""

    key: TransferKey
    caller_incarnation: int
    pool_incarnation: int


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """What two pools must have in common, and how their blocks are cut into chunks."""

    fingerprint: str
    block_bytes: int
    chunk_bytes: int

    @property
    def chunks_per_block(self) -> int:
        return -(-self.block_bytes // self.chunk_bytes)

    def length(self, chunk_of_block: int) -> int:
        """Bytes of a block's chunk of this number."""
        return min(self.chunk_bytes, self.block_bytes - chunk_of_block * self.chunk_bytes)

    def differs(self, other: PoolLayout) -> str:
        """What keeps blocks from going between the two, with the figures; "" if nothing does."""
        if self.block_bytes != other.block_bytes:
            return f"blocks of {other.block_bytes:,} bytes against {self.block_bytes:,} here"
        if self.fingerprint != other.fingerprint:
            return f"blocks laid out as {other.fingerprint} against {self.fingerprint} here"
        if self.chunk_bytes != other.chunk_bytes:
            return f"chunks of {other.chunk_bytes:,} bytes against {self.chunk_bytes:,} here"
        return ""


def layout_of(fingerprint: str, block_bytes: int) -> PoolLayout:
    """The layout of a pool: chunks of 1 MiB, or whole blocks where these are smaller."""
    return PoolLayout(fingerprint, block_bytes, min(block_bytes, MAX_CHUNK_BYTES))


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a caller asks for. `write` is seen from the caller: into the pool, or out of it."""

    name: TransferName
    write: bool
    layout: PoolLayout
    blocks: Blocks
    carrier: Carrier
    timeout_s: float
    # The caller's leave to reach the pool's memory, for SHARED_MEMORY.
    session: int = 0
    # What chunks on the wire call these blocks: the ids of the serving pool. None: `blocks` are these.
    wire_blocks: Blocks | None = None
    # Asked by the process that owns the pool, for its side of a transfer with another pool: bounded there.
    local: bool = False
