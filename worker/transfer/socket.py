"""Chunks of one transfer over a data socket: the receiver says what it wants, the sender sends it, until all is there.

Both ends prove that they know the token which Reserve gave out, without saying it. Then the receiver asks in rounds for
what is missing; a chunk that is lost, garbled, late or doubled is refused by the register of the receiving pool and
asked for again. A worker and a host pool run the same two loops, each in whichever role the order gives it. Ends with
all chunks arrived, or with an error; committing is the service's business.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from cluster.errors import NotAuthenticated, ProtocolError, TransferError
from cluster.links import handshake
from cluster.register.moving import Moving
from cluster.register.states import CarrierLost, NotObeyed, Range, TransferName, TransferPhase, WhyRefused
from cluster.wire.plans import parsed
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.chunks import Came
from worker.transfer.end import PoolEnd
from worker.transfer.frames import (
    MARKER_BYTES,
    MAX_RANGES,
    Frame,
    FrameKind,
    FrameReader,
    FrameWriter,
    pack_name,
    pack_ranges,
    unpack_ranges,
)

GREETING = b"QTX1"
# Silence after which the receiver asks again; it doubles with each time.
_STALL_S, _MAX_STALL_S = 0.1, 2.0
# For bytes that must already be on their way.
_SOON_S = 2.0
_BATCH_BYTES = 1 << 20

GoOn = Callable[[], None]
"""Raises if the transfer is to be given up."""


# -- handshake


def greet(connection: socket.socket, name: pb.TransferName, token: bytes) -> bytes:
    """The end that connects; returns the marker of the connection. Raises Lost."""
    return _agreed(connection, handshake.greet(GREETING, name.SerializeToString(), token))


def welcome(
    connection: socket.socket, find: Callable[[pb.TransferName], tuple[Moving, TransferName]]
) -> tuple[Moving, TransferName, bytes]:
    """The end that listens: which transfer the peer is here for, and the marker. Raises Lost or Refused."""
    found: list[tuple[Moving, TransferName]] = []

    def token_of(named: bytes) -> bytes:
        found.append(find(parsed(pb.TransferName, named)))
        return found[0][0].token

    marker = _agreed(connection, handshake.welcome(GREETING, token_of))
    return *found[0], marker


def _agreed(connection: socket.socket, steps: handshake.Steps[bytes]) -> bytes:
    try:
        return handshake.drive(connection, steps)[:MARKER_BYTES]
    except (NotAuthenticated, ProtocolError, OSError) as error:
        raise CarrierLost(f"no handshake on a data socket: {error}") from error


# -- the two roles


class Receiver:
    """Takes the chunks of `moving` into the pool of `end`. `run` returns once all have arrived."""

    def __init__(
        self, connection: socket.socket, marker: bytes, end: PoolEnd, moving: Moving, wire: TransferName, go_on: GoOn
    ) -> None:
        self._end = end
        self._moving = moving
        self._name = pack_name(wire)
        self._go_on = go_on
        self._reader = FrameReader(connection, marker, end.layout.chunk_bytes)
        self._writer = FrameWriter(connection, marker, self._name, go_on)
        self._chunks = end.chunks(moving)
        self._round = 0

    def run(self) -> None:
        """Raises Lost, Refused if the transfer has ended, or what `go_on` raises."""
        stall_s = _STALL_S
        self._ask()
        while True:
            self._go_on()
            if self._moving.num_missing == 0:
                self._writer.control(FrameKind.DONE)
                return
            if not self._moving.live:
                self._writer.control(FrameKind.GONE, payload=self._moving.reason.encode())
                raise NotObeyed(WhyRefused.LATE, f"{self._moving.key} was given up: {self._moving.reason}")
            frame = self._reader.next(stall_s)
            self._count_lost()
            if frame is None:
                stall_s = min(2 * stall_s, _MAX_STALL_S)
                self._ask()
                continue
            stall_s = _STALL_S
            if frame.transfer != self._name:
                self._reader.skip(frame.length, _SOON_S)
                self._end.refuse(WhyRefused.STALE, "a chunk of another transfer")
            elif frame.kind is FrameKind.CHUNK:
                self._take(frame)
            elif frame.kind is FrameKind.END and frame.block == self._round and self._moving.num_missing:
                self._ask()
            elif frame.kind is FrameKind.GONE:
                reason = self._reader.text(frame, _SOON_S) or b""
                raise TransferError(f"the other end gave the transfer up: {reason.decode(errors='replace')}")

    def _ask(self) -> None:
        self._round += 1
        self._writer.control(FrameKind.WANT, self._round, pack_ranges(self._moving.missing(MAX_RANGES)))

    def _take(self, frame: Frame) -> None:
        """One chunk. Whatever is wrong with it is counted, and it stays missing."""
        reader, length = self._reader, frame.length
        source = reader.peek(length, _SOON_S) if reader.gathers(length) else None
        if source is not None:
            try:
                self._end.take(self._moving, self._chunks, Came(frame.block, frame.offset, length, frame.crc, source))
            except NotObeyed:
                pass  # if the transfer has ended, the loop sees it
            reader.skip(length, _SOON_S)
            return
        try:
            number = self._end.begin(self._moving, frame.block, frame.offset, length)
        except NotObeyed:
            # Its bytes must not touch the pool: a good chunk may lie there.
            reader.skip(length, _SOON_S)
            return
        came: int | None = None
        try:
            came = reader.payload(self._chunks.place(number), length, _SOON_S)
        finally:
            try:
                self._end.end(self._moving, number, came if came == frame.crc else None)
            except NotObeyed:
                pass
        if came != frame.crc:
            refusal = WhyRefused.TRUNCATED if came is None else WhyRefused.CORRUPT
            self._end.refuse(refusal, f"chunk {number} of {self._moving.key}")

    def _count_lost(self) -> None:
        for _ in range(self._reader.num_lost):
            self._end.refuse(WhyRefused.TRUNCATED, f"a frame of {self._moving.key} was cut short or garbled")
        self._reader.num_lost = 0


class Sender:
    """Sends chunks of `moving` out of the pool of `end` as the receiver asks. `run` returns when it has them all."""

    def __init__(
        self, connection: socket.socket, marker: bytes, end: PoolEnd, moving: Moving, wire: TransferName, go_on: GoOn
    ) -> None:
        self._end = end
        self._moving = moving
        self._name = pack_name(wire)
        self._go_on = go_on
        self._reader = FrameReader(connection, marker, 1)
        self._writer = FrameWriter(connection, marker, self._name, go_on)
        self._chunks = end.chunks(moving)

    def run(self) -> None:
        """Raises Lost, Refused if the transfer has ended, or what `go_on` raises."""
        done_round = 0
        while True:
            self._go_on()
            frame = self._reader.next(_STALL_S)
            if frame is None:
                self._check_live()
                continue
            if frame.transfer != self._name:
                continue
            if frame.kind is FrameKind.DONE:
                return
            packed = self._reader.text(frame, _SOON_S)
            if packed is None:
                continue
            if frame.kind is FrameKind.GONE:
                raise TransferError(f"the other end gave the transfer up: {packed.decode(errors='replace')}")
            if frame.kind is FrameKind.WANT and frame.block > done_round:
                done_round = frame.block
                self._send(self._end.asked_for(self._moving, unpack_ranges(packed)))
                self._writer.control(FrameKind.END, done_round)

    def _send(self, ranges: list[Range]) -> None:
        """The chunks in batches, so that small ones share a system call."""
        for first, end in self._chunks.batches(ranges, _BATCH_BYTES):
            buffers: list[bytes | memoryview] = []
            for chunk in self._chunks.outgoing(first, end):
                buffers.append(self._writer.header(FrameKind.CHUNK, chunk.block, chunk.offset, chunk.length, chunk.crc))
                buffers.append(chunk.view())
            # The blocks were still ours after they were summed: if others get them from here on, the sums do not fit.
            self._check_live()
            self._go_on()
            self._writer.send(buffers)

    def _check_live(self) -> None:
        if self._end.touch(self._moving):
            return
        if self._moving.phase is TransferPhase.COMMITTED:
            raise CarrierLost(f"{self._moving.key} is committed; nothing more to send")
        self._writer.control(FrameKind.GONE, payload=self._moving.reason.encode())
        raise NotObeyed(WhyRefused.LATE, f"{self._moving.key} was given up: {self._moving.reason}")
