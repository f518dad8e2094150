"""Carries out the steps of one errand: says words to the peer, and moves the bytes by whichever carrier was chosen.

The agent runs it on a thread of its own, beside the step loop. It decides nothing: `cluster/register/errand.py` says
what comes next. Once a step's outcome is out of here, nothing of that step can write to the peer's blocks any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from cluster.errors import TransferError
from cluster.register.errand import Errand
from cluster.register.moving import ARRIVED, Moving
from cluster.register.states import Carrier, CarrierLost, NotObeyed, Range, Sums
from cluster.register.steps import (
    CallOff,
    Commit,
    Copied,
    Covered,
    Finish,
    Meet,
    MoveChunks,
    Outcome,
    PauseCopy,
    PoolsMet,
    Ready,
    Reserve,
    Reserved,
    Step,
)
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.bytes import Stop
from worker.transfer.checksum import Addresses
from worker.transfer.chunk_messages import PackedBlocks, pack_chunks
from worker.transfer.chunks import sums_from
from worker.transfer.copy import CopyStopped, block_rows
from worker.transfer.end import PoolEnd
from worker.transfer.peer import PeerPool
from worker.transfer.socket import Receiver, Sender
from worker.transfer.wire import STREAM_BYTES, name_message, ranges_message

# Copying waits for nobody: it only looks up now and then.
_PIECE_BYTES = 128 << 20
_STREAM_S = 30.0
# How often a pause looks whether it is still wanted.
_LOOK_S = 0.05


class Meets(Protocol):
    def meet(self, step: Meet) -> PeerPool:
        """The peer, joined; it is held until `release`. Raises Refused or Lost."""


class Carry:
    """Of `errand`, between the worker's own pool (`end`) and a peer that `peers` knows. `after` waits for steps that
    were issued before the order."""

    def __init__(self, errand: Errand, end: PoolEnd, peers: Meets, after: Callable[[], None] | None) -> None:
        self._errand = errand
        self._end = end
        self._peers = peers
        self._after = after
        self._peer: PeerPool | None = None

    @property
    def peer(self) -> PeerPool:
        assert self._peer is not None, "the errand has yet to meet its peer"
        return self._peer

    def close(self) -> None:
        if self._peer is not None:
            self._peer.release()
            self._peer = None

    def carry_out(self, step: Step) -> Outcome:
        """The outcome of a step, or raises it."""
        if isinstance(step, Ready):
            if self._after is not None:
                self._after()
        elif isinstance(step, PauseCopy):
            self._pause(step.seconds)
        elif isinstance(step, Meet):
            return self._meet(step)
        elif isinstance(step, Reserve):
            return self.peer.reserve(step.asked, step.timeout_s)
        elif isinstance(step, MoveChunks):
            return self._copy(step)
        elif isinstance(step, Finish):
            self._end.commit(step.part.here)
        elif isinstance(step, Commit):
            return self.peer.commit(step.name, step.copied, step.timeout_s)
        elif isinstance(step, CallOff):
            return self.peer.abort(step.name, step.reason, step.timeout_s)
        return None

    def _go_on(self) -> None:
        problem = self._errand.why_stop(self._end.now())
        if problem:
            raise TransferError(problem)

    def _pause(self, seconds: float) -> None:
        """In small steps, so that an abort does not have to wait."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._errand.why_stop(self._end.now()):
            time.sleep(min(left, _LOOK_S))

    def _meet(self, step: Meet) -> PoolsMet:
        self.close()
        self._peer = self._peers.meet(step)
        carriers, session = self._peer.offers(step.carriers, write=step.write)
        return PoolsMet(self._peer.incarnation, carriers, session)

    # -- bytes

    def _copy(self, step: MoveChunks) -> Copied:
        part = step.part
        mine = self._end.live(part.here)
        if part.carrier is Carrier.SHARED_MEMORY:
            if part.write:
                return self._write_shared(part, step.chunks)
            self._read_shared(part, mine, step.reserved)
        elif part.carrier is Carrier.SOCKET:
            connection, marker = self.peer.connect(part.there, step.reserved.token)
            with connection:
                role = Sender if part.write else Receiver
                role(connection, marker, self._end, mine, part.there, self._go_on).run()
        elif part.write:
            self.peer.calls.write(self._chunks(part, mine, step.chunks), self._call_s(), self._go_on)
        else:
            self._read_stream(part, mine, step.chunks)
        return Copied()

    def _call_s(self) -> float:
        return min(_STREAM_S, max(0.1, self._errand.deadline - self._end.now()))

    def _rows(self, part: Covered) -> Addresses:
        """Where the peer's blocks begin in this process."""
        held = self.peer.memory(write=part.write)
        if held is None:
            raise TransferError(f"the memory of {self.peer.name} is not mapped here")
        return block_rows(held[0].address, self._end.layout, part.theirs)

    def _write_shared(self, part: Covered, missing: list[Range]) -> Copied:
        """Copies what is missing first into the peer's memory, summing as it goes."""
        per_block = self._end.layout.chunks_per_block
        chunk, count = missing[0]
        first, end = chunk // per_block, -(-(chunk + count) // per_block)
        blocks, rows = part.mine[first:end], self._rows(part)[first:end]
        sums = self._copying(lambda stop: self._end.pool.copy_out(blocks, rows, stop))
        return Copied(first * per_block, sums)

    def _chunks(self, part: Covered, mine: Moving, missing: list[Range]) -> Iterator[bytes]:
        """Runs on a thread of gRPC; ends early when the transfer does."""
        name, chunks = name_message(part.there).SerializeToString(), self._end.chunks(mine)
        for first, end in chunks.batches(missing, STREAM_BYTES):
            packed = pack_chunks(name, chunks.outgoing(first, end))
            if not self._end.touch(mine):
                return
            yield packed

    def _read_shared(self, part: Covered, mine: Moving, reserved: Reserved) -> None:
        if reserved.sums is not None:
            self._read_pieces(part, mine, 0, reserved.sums)
            return
        for answer in self._read_call(part, []):
            if answer.sums is not None:
                self._read_pieces(part, mine, answer.sums.first, sums_from(answer.sums.crc32c))

    def _read_pieces(self, part: Covered, mine: Moving, first_chunk: int, crcs: Sums) -> None:
        """Copies the blocks of these chunks out of the peer's memory and takes those that sum to `crcs`."""
        per_block = self._end.layout.chunks_per_block
        rows = self._rows(part)
        first, end = self._blocks_of(part, first_chunk, len(crcs))
        step = max(1, _PIECE_BYTES // self._end.layout.block_bytes)
        for begin in range(first, end, step):
            self._go_on()
            until = min(begin + step, end)
            if mine.chunks[begin * per_block] != ARRIVED:  # else it came before the connection broke
                wanted = crcs[(begin - first) * per_block :][: (until - begin) * per_block]
                self._copy_in(part, mine, rows, begin, wanted)

    def _copy_in(self, part: Covered, mine: Moving, rows: Addresses, first: int, wanted: Sums) -> None:
        """Blocks from the place `first` on, as many as `wanted` has sums for."""
        per_block = self._end.layout.chunks_per_block
        end = first + len(wanted) // per_block

        def copy() -> Sums:
            return self._copying(lambda stop: self._end.pool.copy_in(part.mine[first:end], rows[first:end], stop))

        self._end.take_copied(mine, first * per_block, wanted, copy)

    def _blocks_of(self, part: Covered, first_chunk: int, num_chunks: int) -> tuple[int, int]:
        """The places of the blocks that these chunks make up: first and end."""
        first, rest = divmod(first_chunk, self._end.layout.chunks_per_block)
        count, more = divmod(num_chunks, self._end.layout.chunks_per_block)
        if rest or more or not count or first + count > len(part.theirs):
            raise TransferError(f"{self.peer.name} sent {num_chunks} sums from {first_chunk} on: no whole blocks")
        return first, first + count

    def _read_stream(self, part: Covered, mine: Moving, missing: list[Range]) -> None:
        for answer in self._read_call(part, missing):
            for chunk in answer.chunks:
                try:
                    self._end.receive(mine, chunk.block, chunk.offset, chunk.length, chunk.crc, chunk.data)
                except NotObeyed:
                    # Counted; it stays missing and is asked for again.
                    if not self._end.touch(mine):
                        raise
            self._go_on()

    def _read_call(self, part: Covered, missing: list[Range]) -> Iterator[PackedBlocks]:
        request = pb.ReadRequest(name=name_message(part.there), chunks=ranges_message(missing))
        return self.peer.calls.read(request, self._call_s())

    def _copying(self, copy: Callable[[Stop], Sums]) -> Sums:
        """Runs a copy that ends early once the errand is to stop."""
        try:
            return copy(lambda: bool(self._errand.why_stop(self._end.now())))
        except CopyStopped:
            self._go_on()
            raise CarrierLost("a copy was stopped") from None
