"""What two ends agree on, and the words by which a conversation's machine tells its owner what to do."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.errors import ProtocolError, QuireError
from cluster.links.frames import MAX_BODY_BYTES

PULSES = 8
"""In the time after which an end that says nothing is taken for gone."""
MAX_MESSAGE_BYTES = 1 << 30

Connection: TypeAlias = Hashable
Read: TypeAlias = Callable[[bytes], Any]
"""Makes a message of its bytes; raises ProtocolError."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Bounds of one use. The end that is called says how long it bears silence; the other adopts it."""

    oldest_protocol: int
    newest_protocol: int
    silence_s: float = 3.0
    # A connection that broke and does not come back for so long is a loss too; None: only silence is.
    broken_s: float | None = None
    # A peer that is silent is lost, and its life refused from then on; else only its connection is closed.
    loses: bool = True
    # What was said and not taken is for the peer's next life too; else a new life starts with nothing.
    keeps: bool = False
    # What may be said and not taken, before the message that is said last.
    max_kept_bytes: int = 256 << 20
    # What may be on its way: the rest waits here, so that no buffer between the ends grows.
    window_bytes: int = 8 << 20
    part_bytes: int = MAX_BODY_BYTES
    max_message_bytes: int = MAX_MESSAGE_BYTES
    # Taken and not told: more than so many frames or bytes get a word of their own.
    untold_frames: int = 32
    untold_bytes: int = 256 << 10

    @property
    def unheard_s(self) -> float:
        """An end of which nothing that is kept for it was taken for so long is not reached; it pulses more often."""
        return self.silence_s / 2


# ---------------------------------------------------------------- orders


@dataclass(slots=True)
class Send:
    connection: Connection
    frame: bytes


@dataclass(slots=True)
class Close:
    """This connection is of no use any more."""

    connection: Connection
    detail: str
    # Bytes came that mean nothing.
    is_garbled: bool = False


@dataclass(slots=True)
class Met:
    """The two ends have found each other. `is_new`: for the first time in these lives; nothing that was said before
    counts, but what `Terms.keeps`. `wants_state`: the first thing to be said now is all that is held here."""

    peer: str
    life: int
    is_new: bool
    wants_state: bool
    card: Any


@dataclass(slots=True)
class Heard:
    peer: str
    message: Any


@dataclass(slots=True)
class Pulsed:
    """A word of life with a note of its own, of which only the newest counts."""

    peer: str
    note: bytes


@dataclass(slots=True)
class PeerLost:
    """This life of the peer is over, whatever it may still do: it is refused from now on."""

    peer: str
    life: int
    detail: str


@dataclass(slots=True)
class RefusedByPeer:
    """By the other end, for one of `frames.REFUSALS`."""

    reason: str
    detail: str

    @property
    def is_lost(self) -> bool:
        """Only another life of this end is let in."""
        return self.reason in ("lost", "numbers")


Order: TypeAlias = Send | Close | Met | Heard | Pulsed | PeerLost | RefusedByPeer


def unreadable(raw: bytes, error: Exception) -> ProtocolError:
    """What to raise where a `Read` raised this. Whatever it tripped over, the bytes are to blame: nothing that comes
    over a stream ends a process."""
    if isinstance(error, QuireError):
        return ProtocolError(str(error))
    return ProtocolError(f"{len(raw):,} bytes mean nothing here: {type(error).__name__}: {error}")
