"""Frames of the data socket: a header that is checked by itself, then bytes that are checked by the CRC in it.

Every header carries the marker of its connection, which nobody else knows, so that a reader which lost its place (a
frame was cut short or garbled on the way) finds the next frame and never takes bytes of a block for one. This file
packs, sends and finds frames; what they mean is said in `worker/transfer/socket.py`.
"""

from __future__ import annotations

import ctypes
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from cluster.links.handshake import NOTHING_YET
from cluster.register.states import CarrierLost, Range, TransferName
from worker.transfer.checksum import address_of, checksummer

MARKER_BYTES = 12
MAX_RANGES = 1024
_MAX_TEXT = 64 << 10
_GREEDY_BYTES = 64 << 10
_BUFFER_BYTES = 256 << 10
# Marker, kind, the transfer (epoch, transfer, part, incarnations of both ends), block, offset, length, CRC.
_NAME = struct.Struct("<QQIQQ")
_CHUNK = struct.Struct("<IIII")
_CHECK = struct.Struct("<I")
_NAME_AT = MARKER_BYTES + 4
_NAME_END = _NAME_AT + _NAME.size
_CHECKED = _NAME_END + _CHUNK.size
HEADER_BYTES = _CHECKED + _CHECK.size
# How long one wait on the socket lasts before `go_on` is asked again.
_TICK_S = 0.05


class FrameKind(IntEnum):
    CHUNK = 1  # sender: bytes of a block
    END = 2  # sender: all that round `block` asked for has been sent
    WANT = 3  # receiver: round `block`; send these chunks (the bytes are ranges)
    DONE = 4  # receiver: everything is here
    GONE = 5  # either: the transfer has ended (the bytes say why)


_KINDS = {kind.value: kind for kind in FrameKind}


class Frame(NamedTuple):
    kind: FrameKind
    block: int
    offset: int
    length: int
    crc: int
    # The transfer as packed in the header, to be compared with what is expected.
    transfer: bytes


def pack_name(name: TransferName) -> bytes:
    """The part of a header that says which transfer it belongs to."""
    key = name.key
    return _NAME.pack(key.epoch, key.transfer, key.part, name.caller_incarnation, name.pool_incarnation)


class FrameWriter:
    """Sends frames of one transfer on one connection. Not for several threads."""

    def __init__(self, connection: socket.socket, marker: bytes, transfer: bytes, go_on: Callable[[], None]) -> None:
        self._connection = connection
        self._marker = marker
        self._transfer = transfer
        self._go_on = go_on

    def header(self, kind: FrameKind, block: int, offset: int, length: int, crc: int) -> bytes:
        head = b"%s%c\0\0\0%s%s" % (
            self._marker,
            kind,
            self._transfer,
            _CHUNK.pack(block, offset, length, crc),
        )
        return head + _CHECK.pack(zlib.crc32(head))

    def control(self, kind: FrameKind, number: int = 0, payload: bytes = b"") -> None:
        """A frame that carries no chunk."""
        crc = checksummer().checksum(address_of(payload), len(payload)) if payload else 0
        self.send(
            [self.header(kind, number, 0, len(payload), crc), payload]
            if payload
            else [self.header(kind, number, 0, 0, 0)]
        )

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Sends all of them; `go_on` is asked while the other end takes nothing, and raises to give up."""
        left = [memoryview(buffer) for buffer in buffers]
        at = 0
        secured = isinstance(self._connection, ssl.SSLSocket)
        while at < len(left):
            try:
                sent = self._connection.send(left[at]) if secured else self._connection.sendmsg(left[at : at + 512])
            except NOTHING_YET:
                self._go_on()
                continue
            except OSError as error:
                raise CarrierLost(f"the connection broke while sending: {error}") from error
            while at < len(left) and sent >= len(left[at]):
                sent -= len(left[at])
                at += 1
            if sent:
                left[at] = left[at][sent:]


class FrameReader:
    """Reads frames of one connection. `small` chunks are read many at a time, large ones straight to their place."""

    def __init__(self, connection: socket.socket, marker: bytes, chunk_bytes: int) -> None:
        self._connection = connection
        self._marker = marker
        self._greedy = chunk_bytes <= _GREEDY_BYTES
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._address = address_of(self._buffer)
        self._at = self._end = 0
        # How often the place was lost.
        self.num_lost = 0

    def next(self, timeout_s: float) -> Frame | None:
        """The next good frame; None if there was none in time. Raises Lost."""
        deadline = time.monotonic() + timeout_s
        seeking = False
        while True:
            if self._end - self._at >= HEADER_BYTES:
                frame = self._parse()
                if frame is not None:
                    return frame
                if not seeking:
                    seeking = True
                    self.num_lost += 1
                self._seek()
                continue
            want = HEADER_BYTES - (self._end - self._at)
            if not self._fill(_BUFFER_BYTES if self._greedy or seeking else want, deadline):
                return None

    def gathers(self, length: int) -> bool:
        """Whether a frame with so many bytes can be looked at as a whole before it goes to its place."""
        return self._greedy and length <= _GREEDY_BYTES

    def peek(self, length: int, timeout_s: float) -> int | None:
        """Where the bytes of a frame lie in this reader's buffer until `skip`; None if they did not come in time."""
        if self._end - self._at < length:
            deadline = time.monotonic() + timeout_s
            while self._end - self._at < length:
                if not self._fill(_BUFFER_BYTES, deadline):
                    return None
        return self._address + self._at

    def payload(self, target: int, length: int, timeout_s: float) -> int | None:
        """Reads the bytes of a frame to `target` and returns their CRC; None if they did not all come in time."""
        deadline = time.monotonic() + timeout_s
        held = min(length, self._end - self._at)
        if held:
            ctypes.memmove(target, self._address + self._at, held)
            self._at += held
        view = memoryview((ctypes.c_uint8 * length).from_address(target))
        while held < length:
            came = self._receive(view[held:], deadline)
            if not came:
                return None
            held += came
        return checksummer().checksum(target, length)

    def skip(self, length: int, timeout_s: float) -> None:
        """Leaves the bytes of a frame out. Bytes that are not there are found missing with the next header."""
        taken = min(length, self._end - self._at)
        self._at += taken
        length -= taken
        deadline = time.monotonic() + timeout_s if length else 0.0
        while length > 0:
            if self._at == self._end and not self._fill(_BUFFER_BYTES if self._greedy else length, deadline):
                return
            taken = min(length, self._end - self._at)
            self._at += taken
            length -= taken

    def text(self, frame: Frame, timeout_s: float) -> bytes | None:
        """The bytes of a frame without a chunk; None if they are not whole."""
        if frame.length > _MAX_TEXT:
            return None
        held = bytearray(frame.length)
        if frame.length and self.payload(address_of(held), frame.length, timeout_s) != frame.crc:
            return None
        return bytes(held)

    def _parse(self) -> Frame | None:
        head = bytes(self._view[self._at : self._at + HEADER_BYTES])
        if head[:MARKER_BYTES] != self._marker:
            return None
        if zlib.crc32(head[:_CHECKED]) != _CHECK.unpack_from(head, _CHECKED)[0]:
            return None
        kind = _KINDS.get(head[MARKER_BYTES])
        if kind is None:
            return None
        self._at += HEADER_BYTES
        block, offset, length, crc = _CHUNK.unpack_from(head, _NAME_END)
        return Frame(kind, block, offset, length, crc, head[_NAME_AT:_NAME_END])

    def _seek(self) -> None:
        """Moves on to where the next marker may begin."""
        found = self._buffer.find(self._marker, self._at + 1, self._end)
        self._at = found if found >= 0 else max(self._at + 1, self._end - MARKER_BYTES + 1)

    def _fill(self, want: int, deadline: float) -> bool:
        """Reads up to `want` bytes behind what is there; False: none came in time."""
        if self._at == self._end:
            self._at = self._end = 0
        elif self._end == _BUFFER_BYTES or self._at > _BUFFER_BYTES // 2:
            self._view[: self._end - self._at] = self._buffer[self._at : self._end]
            self._at, self._end = 0, self._end - self._at
        came = self._receive(self._view[self._end : self._end + want], deadline)
        self._end += came
        return came > 0

    def _receive(self, view: memoryview, deadline: float) -> int:
        """Some bytes into `view`; 0: none in time."""
        while True:
            try:
                came = self._connection.recv_into(view)
                if came == 0:
                    raise CarrierLost("the other end closed the connection")
                return came
            except NOTHING_YET:
                if time.monotonic() >= deadline:
                    return 0
            except OSError as error:
                raise CarrierLost(f"the connection broke while receiving: {error}") from error


def prepare(connection: socket.socket) -> None:
    """Socket options of a data connection: waits are short, so that whoever waits can look around."""
    # The kernel's own timeouts: Python's would poll before every call, at a third more processor time.
    connection.settimeout(None)
    tick = struct.pack("@ll", 0, int(_TICK_S * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def pack_ranges(ranges: Sequence[Range]) -> bytes:
    return b"".join(struct.pack("<II", first, count) for first, count in ranges)


def unpack_ranges(packed: bytes) -> list[Range]:
    return list(struct.iter_unpack("<II", packed[: len(packed) // 8 * 8]))
