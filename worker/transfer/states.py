"""The values of a transfer: its name, its phase, its chunks, and why something was refused.

Pure: no clock, no I/O, no lock. `worker/transfer/register.py` keeps these for one pool and decides; servers, senders
and receivers only carry out. The numbers of the enums are those of protos/quire/v1/transfer.proto.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

from cluster.errors import TransferError

MAX_CHUNK_BYTES = 1 << 20

Blocks = npt.NDArray[np.int32]
Range = tuple[int, int]
"""First chunk and how many."""


class Phase(IntEnum):
    RESERVED = 1
    COPYING = 2
    COMMITTED = 3
    ABORTED = 4


class Carrier(IntEnum):
    """What the bytes go through."""

    SHARED_MEMORY = 1
    SOCKET = 2
    STREAM = 3


class Refusal(StrEnum):
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


class Refused(TransferError):
    """A message or a chunk that was not obeyed. Nothing was changed by it."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(refusal, detail)
        self.refusal = refusal
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class Lost(TransferError):
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
    session: int = 0
    num_blocks_of_transfer: int = 0
    # What chunks on the wire call these blocks: the ids of the serving pool. None: `blocks` are these.
    wire_blocks: Blocks | None = None
    # Asked by the process that owns the pool, for its side of a transfer with another pool: bounded there.
    local: bool = False


MISSING, ARRIVING, ARRIVED = 0, 1, 2


@dataclass(slots=True, eq=False)
class Moving:
    """One transfer of one pool: what was reserved and how far it is."""

    reservation: Reservation
    deadline: float
    heard_at: float
    phase: Phase = Phase.RESERVED
    reason: str = ""
    ended_at: float = 0.0
    # One state per chunk, and what their bytes sum to.
    chunks: bytearray = field(default_factory=bytearray)
    crcs: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    num_missing: int = 0
    # Chunks that are being written into the pool by this process at this moment.
    num_arriving: int = 0
    # All chunks are here and go from where they were gathered into the pool.
    finishing: bool = False
    finished: bool = False
    # The caller can reach the blocks through shared memory and has not said that it stopped.
    unstopped: bool = False
    # Its blocks are `writing` or `quarantined` because of it.
    holds_blocks: bool = False
    # Opens a data socket for it.
    token: bytes = b""
    # Block as the wire calls it to its place in the reservation.
    places: dict[int, int] = field(default_factory=dict)

    @property
    def key(self) -> TransferKey:
        return self.reservation.name.key

    @property
    def live(self) -> bool:
        return self.phase < Phase.COMMITTED

    @property
    def quarantined(self) -> bool:
        return self.phase is Phase.ABORTED and (self.unstopped or self.finishing or self.num_arriving > 0)

    @property
    def wire_blocks(self) -> Blocks:
        asked = self.reservation
        return asked.blocks if asked.wire_blocks is None else asked.wire_blocks

    @property
    def size_bytes(self) -> int:
        return len(self.reservation.blocks) * self.reservation.layout.block_bytes

    def missing(self, limit: int) -> list[Range]:
        """The first `limit` runs of chunks that have not arrived."""
        if not self.num_missing:
            return []
        gone = np.frombuffer(self.chunks, np.uint8) != ARRIVED
        edges = np.flatnonzero(np.diff(gone, prepend=False, append=False))[: 2 * limit]
        return [(int(first), int(end - first)) for first, end in edges.reshape(-1, 2)]
