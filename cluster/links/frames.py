"""Frames: what a conversation sends over a connection, and how a stream of bytes is cut into them again.

A frame is a head (bytes that follow, kind, number, the number last taken from the other end) and a body. Hello, welcome
and refusal have bodies of their own, written here too. `FrameBuffer` finds the frames in what came of one connection;
bytes go from the kernel straight into it. It knows no socket and no message.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.errors import ProtocolError

HELLO, WELCOME, REFUSAL, MESSAGE, PART, PULSE = range(1, 7)
"""Kinds of frames. A message that is longer than a frame goes in parts, of which the last is a MESSAGE."""

MAX_BODY_BYTES = 1 << 20
MAX_NAME_BYTES = 256

# Bytes that follow the first four, kind, number, taken.
_HEAD = struct.Struct("<IBQQ")
_SIZE_BYTES = 4
HEAD_BYTES = _HEAD.size
KIND_AT = 4
_MIN_SIZE, _MAX_SIZE = HEAD_BYTES - _SIZE_BYTES, HEAD_BYTES - _SIZE_BYTES + MAX_BODY_BYTES
_SMALL_BYTES = 64 << 10
_pack_head, _unpack_head = _HEAD.pack, _HEAD.unpack_from

Frame: TypeAlias = tuple[int, int, int, bytes]
"""Kind, number, taken, body. `number` is 0 where nothing is numbered."""


def pack(kind: int, number: int, taken: int, body: bytes = b"") -> bytes:
    return _pack_head(_MIN_SIZE + len(body), kind, number, taken) + body


class FrameBuffer:
    """What came of one connection and is no whole frame yet: read into `room()`, then say how much with `took`."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(_SMALL_BYTES))
        self._at = self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view[self._end :]

    def took(self, num: int) -> list[Frame]:
        """So many bytes are in the room now; returns the frames that are whole. Raises ProtocolError."""
        view, at, end = self._view, self._at, self._end + num
        frames: list[Frame] = []
        missing = 0
        while end - at >= _SIZE_BYTES:
            if end - at < HEAD_BYTES:
                size = int.from_bytes(view[at : at + _SIZE_BYTES], "little")
            else:
                size, kind, number, taken = _unpack_head(view, at)
            if not _MIN_SIZE <= size <= _MAX_SIZE:
                raise ProtocolError(f"a frame of {size:,} bytes is announced; it has {_MIN_SIZE} to {_MAX_SIZE:,}")
            after = at + _SIZE_BYTES + size
            if after > end:
                missing = size + _SIZE_BYTES
                break
            frames.append((kind, number, taken, bytes(view[at + HEAD_BYTES : after])))
            at = after
        self._at, self._end = at, end
        if at == end:
            self._at = self._end = 0
            if len(view) > _SMALL_BYTES:
                self._view = memoryview(bytearray(_SMALL_BYTES))
        elif at + missing > len(view) or end == len(view):
            self._move(max(missing, _SMALL_BYTES))
        return frames

    def _move(self, size: int) -> None:
        """What is held goes to the beginning of room for `size` bytes."""
        held = self._view[self._at : self._end]
        view = memoryview(bytearray(size))
        view[: len(held)] = held
        self._view, self._at, self._end = view, 0, len(held)


# ---------------------------------------------------------------- the three words that begin a connection

_HELLO = struct.Struct("<HHQQQ??HH")
_WELCOME = struct.Struct("<HQ?d")
_REFUSAL = struct.Struct("<BQ")


@dataclass(frozen=True, slots=True)
class Hello:
    """Who calls, whom it wants, and where it stands; how far it has taken is in the head of the frame."""

    name: str
    life: int
    peer: str
    # The highest life of the other end that it has met; 0: none.
    peer_life: int
    # Rises with each connection of this life: an older one that comes late does not count.
    connection: int
    # It holds what an earlier life of the other end ordered, which this one may not know.
    has_state: bool
    # It was turned away, and begins anew in this life.
    is_anew: bool
    oldest_protocol: int
    newest_protocol: int
    # What only the use of the conversation understands.
    card: bytes = b""

    def pack(self, taken: int) -> bytes:
        name, peer = self.name.encode(), self.peer.encode()
        assert len(name) <= MAX_NAME_BYTES and len(peer) <= MAX_NAME_BYTES, (self.name, self.peer)
        fixed = _HELLO.pack(
            self.oldest_protocol,
            self.newest_protocol,
            self.life,
            self.peer_life,
            self.connection,
            self.has_state,
            self.is_anew,
            len(name),
            len(peer),
        )
        return _pack_word(HELLO, taken, fixed + name + peer + self.card)


def hello_from(body: bytes) -> Hello:
    oldest, newest, life, peer_life, connection, has_state, is_anew, name_bytes, peer_bytes = _unpack(_HELLO, body)
    at, after = _HELLO.size + name_bytes, _HELLO.size + name_bytes + peer_bytes
    if name_bytes > MAX_NAME_BYTES or peer_bytes > MAX_NAME_BYTES or after > len(body):
        raise ProtocolError(f"a hello of {len(body):,} bytes has names of {name_bytes} and {peer_bytes}")
    name, peer = _text(body[_HELLO.size : at]), _text(body[at:after])
    return Hello(name, life, peer, peer_life, connection, has_state, is_anew, oldest, newest, body[after:])


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a hello. `wants_state`: the other end knew an earlier life, and is to say what it holds."""

    protocol: int
    life: int
    wants_state: bool
    silence_s: float
    card: bytes = b""

    def pack(self, taken: int) -> bytes:
        fixed = _WELCOME.pack(self.protocol, self.life, self.wants_state, self.silence_s)
        return _pack_word(WELCOME, taken, fixed + self.card)


def welcome_from(body: bytes) -> Welcome:
    protocol, life, wants_state, silence_s = _unpack(_WELCOME, body)
    if not 0.0 < silence_s < 1e6:
        raise ProtocolError(f"a welcome bears silence for {silence_s:g} s")
    return Welcome(protocol, life, wants_state, silence_s, body[_WELCOME.size :])


REFUSALS = ("protocol", "another", "outlived", "old", "lost", "numbers", "card", "away")
"""Why a hello is refused: no common protocol; another end was called; a later life of the caller is known; this is an
older life than the caller has met; the caller's life was declared lost; its numbers do not fit; its card means nothing.
`away` ends a conversation that had begun: the caller is as if it had never come, and may come again.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Instead of a welcome, or instead of anything more; the connection ends with it."""

    reason: str
    # The life of the end that refuses.
    life: int
    detail: str

    def pack(self) -> bytes:
        fixed = _REFUSAL.pack(REFUSALS.index(self.reason), self.life)
        return _pack_word(REFUSAL, 0, fixed + self.detail.encode()[:4096])


def refusal_from(body: bytes) -> Refusal:
    reason, life = _unpack(_REFUSAL, body)
    if reason >= len(REFUSALS):
        raise ProtocolError(f"a refusal for reason {reason}; this side knows 0 to {len(REFUSALS) - 1}")
    return Refusal(REFUSALS[reason], life, body[_REFUSAL.size :].decode(errors="replace"))


def _pack_word(kind: int, taken: int, body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(
            f"the first word of a connection takes {len(body):,} bytes; {MAX_BODY_BYTES:,} are the most"
        )
    return pack(kind, 0, taken, body)


def _unpack(form: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) < form.size:
        raise ProtocolError(f"a first word of {len(body)} bytes is cut short")
    return form.unpack_from(body)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("a name in a hello is no text") from error
