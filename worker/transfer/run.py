"""Carries out one transfer, or one part of it, on the worker's side: reserve, move the bytes, commit.

The agent calls it on a thread of its own, beside the step loop. Both pools have the transfer in their registers while
it runs, so neither end lets another one touch the blocks. Whatever goes wrong ends in an exception; once it is out of
here, nothing of this process can write to the peer's blocks any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.errors import TransferError
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.bytes import Stop
from worker.transfer.checksum import Addresses, Sums
from worker.transfer.chunks import sums_from, sums_message
from worker.transfer.copy import Stopped, block_rows
from worker.transfer.end import PoolEnd
from worker.transfer.packed import Batch, pack_chunks
from worker.transfer.peer import GoOn, PeerPool
from worker.transfer.socket import Receiver, Sender
from worker.transfer.states import (
    ARRIVED,
    Blocks,
    Carrier,
    Lost,
    Moving,
    Phase,
    Range,
    Refusal,
    Refused,
    Reservation,
    TransferKey,
    TransferName,
)
from worker.transfer.wire import MAX_RANGES, STREAM_BYTES, name_message, ranges_message

# Copying waits for nobody: it only looks up now and then.
_PIECE_BYTES = 128 << 20
_STREAM_S = 30.0
# Before a connection that broke is tried again.
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Part:
    """What one reservation covers."""

    key: TransferKey
    write: bool  # from `mine` to `theirs`
    mine: Blocks
    theirs: Blocks
    num_blocks_of_transfer: int


class PartRun:
    """One part between the worker's own pool (`end`) and `peer`. `go_on` raises once it is to be given up."""

    def __init__(
        self, part: Part, end: PoolEnd, peer: PeerPool, carrier: Carrier, go_on: GoOn, time_left: Callable[[], float]
    ) -> None:
        self.carrier = carrier
        self._part = part
        self._end = end
        self.peer = peer
        self._go_on = go_on
        self._time_left = time_left
        self._here = TransferName(part.key, end.incarnation, end.incarnation)
        self.there = TransferName(part.key, end.incarnation, peer.incarnation)
        self._session = 0
        self._base = 0

    def run(self) -> None:
        """Raises TransferError (Refused, Lost), or what `go_on` raises."""
        if self.carrier is Carrier.SHARED_MEMORY:
            held = self.peer.memory(write=self._part.write)
            if held is None:
                raise TransferError(f"the memory of {self.peer.name} is not mapped here")
            self._base, self._session = held[0].address, held[1]
        mine = self._reserve_here()
        try:
            reply = self.peer.reserve(self._reservation(self.there, self._part.theirs, self._part.write), self._go_on)
            if self._part.write:
                self._write(mine, reply)
            else:
                self._read(mine, reply)
        except BaseException as error:
            self._end.abort(self._here, str(error) or type(error).__name__, stopped=True)
            raise

    def _reservation(self, name: TransferName, blocks: Blocks, write: bool) -> Reservation:
        return Reservation(
            name=name,
            write=write,
            layout=self._end.layout,
            blocks=blocks,
            carrier=self.carrier,
            timeout_s=self._time_left(),
            session=self._session,
            num_blocks_of_transfer=self._part.num_blocks_of_transfer,
            wire_blocks=self._part.theirs,
            local=name is self._here,
        )

    def _reserve_here(self) -> Moving:
        """The same transfer as this worker's own pool sees it: what is written there is read here."""
        moving = self._end.reserve(self._reservation(self._here, self._part.mine, not self._part.write))
        if not moving.live:
            raise Refused(Refusal.DOUBLED, f"{self._part.key} ran before")
        return moving

    # -- to the peer

    def _write(self, mine: Moving, reply: pb.ReserveResponse) -> None:
        missing = self._all_chunks()
        while True:
            self._go_on()
            sums = None
            try:
                if self.carrier is Carrier.SHARED_MEMORY:
                    sums = self._write_shared(mine, missing)
                elif self.carrier is Carrier.SOCKET:
                    self._through_socket(mine, reply.token, Sender)
                else:
                    self._write_stream(mine, missing)
            except Lost:
                # What arrived before counts; the answer to the commit says what is still missing.
                time.sleep(_PAUSE_S)
            answer = self.peer.commit(self.there, self._go_on, sums)
            if answer.phase == pb.TRANSFER_PHASE_COMMITTED:
                break
            missing = [(gap.first, gap.count) for gap in answer.missing]
        try:
            self._end.commit(self._here)
        except Refused:
            pass  # its deadline here passed a moment before; the peer has every byte

    def _all_chunks(self) -> list[Range]:
        return [(0, len(self._part.mine) * self._end.layout.chunks_per_block)]

    def _write_shared(self, mine: Moving, missing: list[Range]) -> pb.ChunkSums:
        """Copies what is missing first into the peer's memory, summing as it goes. The sums go with the commit, whose
        answer says what is missing then."""
        per_block = self._end.layout.chunks_per_block
        rows = block_rows(self._base, self._end.layout, self._part.theirs)
        chunk, count = missing[0]
        first, end = chunk // per_block, -(-(chunk + count) // per_block)
        blocks = self._part.mine[first:end]
        crcs = self._copying(lambda stop: self._end.pool.copy_out(blocks, rows[first:end], stop))
        self._check_live(mine)
        return pb.ChunkSums(name=name_message(self.there), first=first * per_block, crc32c=sums_message(crcs))

    def _pieces(self, chunks: list[Range]) -> Iterator[tuple[int, int]]:
        """The blocks of these chunks, a piece at a time: first place and end."""
        per_block = self._end.layout.chunks_per_block
        step = max(1, _PIECE_BYTES // self._end.layout.block_bytes)
        for first, count in chunks:
            begin, end = first // per_block, -(-(first + count) // per_block)
            for place in range(begin, end, step):
                yield place, min(place + step, end)

    def _write_stream(self, mine: Moving, missing: list[Range]) -> None:
        """The missing chunks through the service itself."""
        self.peer.calls.write(self._chunks(mine, missing), self._call_s(), self._go_on)

    def _call_s(self) -> float:
        return min(_STREAM_S, max(0.1, self._time_left()))

    def _chunks(self, mine: Moving, missing: list[Range]) -> Iterator[bytes]:
        """Runs on a thread of gRPC; ends early when the transfer does."""
        name, chunks = name_message(self.there).SerializeToString(), self._end.chunks(mine)
        for first, end in chunks.batches(missing, STREAM_BYTES):
            packed = pack_chunks(name, chunks.outgoing(first, end))
            if not self._end.touch(mine):
                return
            yield packed

    # -- from the peer

    def _read(self, mine: Moving, reply: pb.ReserveResponse) -> None:
        while mine.num_missing:
            self._go_on()
            self._check_live(mine)
            try:
                if self.carrier is Carrier.SHARED_MEMORY:
                    self._read_shared(mine, reply)
                elif self.carrier is Carrier.SOCKET:
                    self._through_socket(mine, reply.token, Receiver)
                else:
                    self._read_stream(mine)
            except Lost:
                time.sleep(_PAUSE_S)
        self._end.commit(self._here)
        if mine.phase is not Phase.COMMITTED:
            raise TransferError(f"{self._part.key} did not commit here: {mine.reason or mine.phase.name.lower()}")

    def let_go(self) -> None:
        """After a read that came well: every byte is here and checked, and whoever waits for it was told. The peer
        only has to let go, which its deadline would do too."""
        if not self._part.write:
            try:
                self.peer.commit(self.there, self._go_on)
            except TransferError:
                pass

    def _read_shared(self, mine: Moving, reply: pb.ReserveResponse) -> None:
        if reply.crc32c:
            self._read_pieces(mine, 0, sums_from(reply.crc32c))
            return
        for answer in self._read_call(pb.ReadRequest(name=name_message(self.there))):
            if answer.sums is not None:
                self._read_pieces(mine, answer.sums.first, sums_from(answer.sums.crc32c))

    def _read_pieces(self, mine: Moving, first_chunk: int, crcs: Sums) -> None:
        """Copies the blocks of these chunks out of the peer's memory and takes those that sum to `crcs`."""
        per_block = self._end.layout.chunks_per_block
        rows = block_rows(self._base, self._end.layout, self._part.theirs)
        first = self._first_block(first_chunk, len(crcs))
        for begin, end in self._pieces([(first_chunk, len(crcs))]):
            self._go_on()
            if mine.chunks[begin * per_block] != ARRIVED:  # else it came before the connection broke
                wanted = crcs[(begin - first) * per_block :][: (end - begin) * per_block]
                self._copy_in(mine, begin, end, rows, wanted)

    def _copy_in(self, mine: Moving, first: int, end: int, rows: Addresses, wanted: Sums) -> None:
        here = self._part.mine[first:end]

        def copy() -> Sums:
            return self._copying(lambda stop: self._end.pool.copy_in(here, rows[first:end], stop))

        self._end.take_copied(mine, first * self._end.layout.chunks_per_block, wanted, copy)

    def _first_block(self, first_chunk: int, num_chunks: int) -> int:
        """The place of the first of the blocks that these chunks make up."""
        first, rest = divmod(first_chunk, self._end.layout.chunks_per_block)
        count, more = divmod(num_chunks, self._end.layout.chunks_per_block)
        if rest or more or not count or first + count > len(self._part.theirs):
            raise TransferError(f"{self.peer.name} sent {num_chunks} sums from {first_chunk} on: no whole blocks")
        return first

    def _read_stream(self, mine: Moving) -> None:
        request = pb.ReadRequest(name=name_message(self.there), chunks=ranges_message(mine.missing(MAX_RANGES)))
        for answer in self._read_call(request):
            for chunk in answer.chunks:
                try:
                    self._end.receive(self._here, chunk.block, chunk.offset, chunk.length, chunk.crc, chunk.data)
                except Refused:
                    # Counted; it stays missing and is asked for again.
                    self._check_live(mine)
            self._go_on()

    def _read_call(self, request: pb.ReadRequest) -> Iterator[Batch]:
        return self.peer.calls.read(request, self._call_s())

    # -- both ways

    def _through_socket(self, mine: Moving, token: bytes, role: type[Sender] | type[Receiver]) -> None:
        connection, marker = self.peer.connect(self.there, token)
        with connection:
            role(connection, marker, self._end, mine, self.there, self._go_on).run()

    def _copying(self, copy: Callable[[Stop], Sums]) -> Sums:
        """Runs a copy that `go_on` can stop."""
        reason: list[BaseException] = []

        def stop() -> bool:
            try:
                self._go_on()
            except BaseException as error:
                reason.append(error)
                return True
            return False

        try:
            return copy(stop)
        except Stopped:
            raise reason[0] from None

    def _check_live(self, mine: Moving) -> None:
        if not self._end.touch(mine):
            raise Refused(Refusal.LATE, f"{mine.key} has ended here: {mine.reason}")
