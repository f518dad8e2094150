"""Frames of the control streams: the length of a protobuf message in four bytes, then the message.

`framed` makes one, `FrameBuffer` cuts what came over a connection into messages, whoever reads it: a step loop from a
socket, an event loop through a protocol. Bytes go from the kernel straight into the buffer. It knows no socket.
"""

from __future__ import annotations

import struct

from google.protobuf.message import Message

from cluster.errors import ProtocolError

# The state of a replica with a thousand long sequences takes the most.
MAX_FRAME_BYTES = 256 << 20
_LENGTH = struct.Struct("<I")
_SMALL_BYTES = 64 << 10


def framed(message: Message) -> bytes:
    body = message.SerializeToString()
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"{message.DESCRIPTOR.name} takes {len(body):,} bytes; a frame has {MAX_FRAME_BYTES:,}")
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """What came of one connection and is no whole frame yet: read into `room()`, then say how much with `took`."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._view = memoryview(bytearray(_SMALL_BYTES))
        self._at = self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view[self._end :]

    def took(self, num: int) -> list[bytes]:
        """So many bytes are in the room now; returns the frames that are whole. Raises ProtocolError."""
        view, at, end = self._view, self._at, self._end + num
        frames = []
        missing = 0
        while end - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(view, at)
            if size > self._max_frame_bytes:
                raise ProtocolError(f"a frame of {size:,} bytes is announced; {self._max_frame_bytes:,} are the most")
            body = at + _LENGTH.size
            if body + size > end:
                missing = size + _LENGTH.size
                break
            frames.append(bytes(view[body : body + size]))
            at = body + size
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
