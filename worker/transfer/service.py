"""Answers `quire.v1.TransferService` for one pool: what peers and the scheduler may ask of it over gRPC.

Each call is checked and carried out through the pool's `PoolEnd`, on a thread of the gRPC server; bytes go through
`Write` and `Read` only where no better carrier was reserved. Every call must have a deadline, so that a caller that
stands still holds nothing for ever. Listening and the other carriers are the business of `worker/transfer/server.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from cluster.errors import ProtocolError, TransferError
from cluster.register.errand import MAX_RANGES
from cluster.register.moving import Moving
from cluster.register.states import Carrier, NotObeyed, TransferName, WhyRefused
from cluster.wire.plans import parsed
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.chunk_messages import SERVICE, PackedBlocks, PackedChunk, pack, pack_chunks, unpack
from worker.transfer.chunks import sums_from, sums_message
from worker.transfer.end import PoolEnd
from worker.transfer.handover import HandoverServer, boot_id
from worker.transfer.secret_proof import Challenger
from worker.transfer.wire import (
    STREAM_BYTES,
    abort_call,
    layout_from,
    layout_message,
    name_from,
    ranges_from,
    ranges_message,
    reason_from,
    reservation_from,
)

Context = grpc.ServicerContext
Part = TypeVar("Part")

# Checksums of memory that another process copies at the same time are sent in pieces of this size.
SUMS_BYTES = 16 << 20
# A read of so little gets its sums with the reservation.
SMALL_BYTES = 1 << 20
LONGEST_CALL_S = 120.0
# A chunk that is refused for one of these says nothing about the others of its call.
_OF_A_CHUNK = {WhyRefused.DOUBLED, WhyRefused.CORRUPT, WhyRefused.TRUNCATED, WhyRefused.OUTSIDE}


class TransferService:
    """`data_port` and `handover` are the other carriers that this pool offers; 0 and None: not these."""

    def __init__(self, end: PoolEnd, data_port: int, handover: HandoverServer | None) -> None:
        self._end = end
        self._data_port = data_port
        self._handover = handover
        self._boot_id = boot_id()

    def handlers(self, challenger: Challenger) -> grpc.GenericRpcHandler[Any, Any]:
        """For gRPC. It hands over bytes: who calls is looked at before a body is read, and what cannot be decoded is a
        mistake of the caller."""
        one: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "Join": (pb.JoinRequest, self.Join),
            "Reserve": (pb.ReserveRequest, self.Reserve),
            "Commit": (pb.CommitRequest, self.Commit),
            "Abort": (pb.AbortRequest, self.Abort),
        }

        def answer(name: str, raw: Iterator[bytes], context: Context) -> Message:
            with _Answer(context, challenger, name):
                kind, method = one[name]
                return method(parsed(kind, _only(raw)))

        def write(raw: Iterator[bytes], context: Context) -> Message:
            with _Answer(context, challenger, "Write"):
                return self.Write(map(unpack, raw))

        def read(raw: Iterator[bytes], context: Context) -> Iterator[bytes | Message]:
            with _Answer(context, challenger, "Read"):
                yield from self.Read(parsed(pb.ReadRequest, _only(raw)))

        made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.stream_unary_rpc_method_handler(partial(answer, name), None, pack) for name in one
        }
        made["Write"] = grpc.stream_unary_rpc_method_handler(write, None, pack)
        made["Read"] = grpc.stream_stream_rpc_method_handler(read, None, pack)
        return grpc.method_handlers_generic_handler(SERVICE, made)

    def Join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        end = self._end
        difference = end.layout.differs(layout_from(request.layout))
        if difference:
            raise end.refuse(
                WhyRefused.LAYOUT,
                f"{request.caller} has {difference} in {end.name}: they cannot exchange blocks; "
                "start both with the same model, dtype and block size",
            )
        return pb.JoinResponse(
            pool=end.name,
            pool_incarnation=end.incarnation,
            layout=layout_message(end.layout),
            num_blocks=end.pool.num_blocks,
            data_port=self._data_port,
            handover=self._handover.name if self._handover else "",
            boot_id=self._boot_id,
        )

    def Reserve(self, request: pb.ReserveRequest) -> pb.ReserveResponse:
        asked = reservation_from(request)
        moving = self._end.reserve(asked)
        answer = pb.ReserveResponse(phase=_phase(moving), token=moving.token)
        if not asked.write and asked.carrier is Carrier.SHARED_MEMORY:
            sums = self._end.stored_sums(moving)
            if sums is None and moving.live and moving.size_bytes <= SMALL_BYTES:
                # Somebody stands still until a little has been read: that is not worth another call.
                sums = self._end.computed_sums(moving, 0, len(asked.blocks))
            answer.crc32c = sums_message(sums)
        return answer

    def Write(self, requests: Iterator[PackedBlocks]) -> pb.WriteResponse:
        """Chunks of one transfer, whose name each of them says."""
        num_refused, named, moving = 0, b"", None
        for request in requests:
            if request.sums is not None:
                raise self._end.refuse(WhyRefused.CONFLICT, "sums of shared memory go with the commit")
            for chunk in request.chunks:
                if moving is None or chunk.name != named:
                    name = name_from(parsed(pb.TransferName, chunk.name))
                    moving, named = self._end.live_by(name, True, Carrier.STREAM), chunk.name
                num_refused += self._refused(partial(self._take_chunk, moving), chunk)
        if moving is None:
            raise self._end.refuse(WhyRefused.UNKNOWN, "nothing came that names a transfer")
        missing = ranges_message(moving.missing(MAX_RANGES))
        return pb.WriteResponse(phase=_phase(moving), missing=missing, num_refused=num_refused)

    def _refused(self, take: Callable[[Part], None], part: Part) -> int:
        """1 if what is wrong is wrong with this part alone."""
        try:
            take(part)
        except NotObeyed as refused:
            if refused.refusal not in _OF_A_CHUNK:
                raise
            return 1
        return 0

    def _take_sums(self, name: TransferName, sums: pb.ChunkSums) -> None:
        """Of what its caller has written through shared memory; raises Refused if the bytes are others."""
        self._end.take_sums(name, sums.first, sums_from(sums.crc32c))

    def _take_chunk(self, moving: Moving, chunk: PackedChunk) -> None:
        self._end.receive(moving, chunk.block, chunk.offset, chunk.length, chunk.crc, chunk.data)

    def Read(self, request: pb.ReadRequest) -> Iterator[bytes | Message]:
        moving = self._end.live_by(name_from(request.name), False, Carrier.STREAM, Carrier.SHARED_MEMORY)
        if moving.reservation.carrier is Carrier.SHARED_MEMORY:
            yield from self._read_sums(moving)
        else:
            yield from self._read_chunks(moving, request)

    def _read_sums(self, moving: Moving) -> Iterator[pb.ReadResponse]:
        end = self._end
        per_block = end.layout.chunks_per_block
        step = max(1, SUMS_BYTES // end.layout.block_bytes)
        for first in range(0, len(moving.reservation.blocks), step):
            packed = sums_message(end.computed_sums(moving, first, step))
            self._check_live(moving)
            yield pb.ReadResponse(sums=pb.ChunkSums(first=first * per_block, crc32c=packed))

    def _read_chunks(self, moving: Moving, request: pb.ReadRequest) -> Iterator[bytes]:
        chunks, name = self._end.chunks(moving), request.name.SerializeToString()
        ranges = self._end.asked_for(moving, ranges_from(request.chunks)) or [(0, len(chunks))]
        for first, end in chunks.batches(ranges, STREAM_BYTES):
            packed = pack_chunks(name, chunks.outgoing(first, end))
            self._check_live(moving)
            yield packed

    def _check_live(self, moving: Moving) -> None:
        """What was read and summed before this was still the transfer's."""
        if not self._end.touch(moving):
            raise self._end.refuse(WhyRefused.LATE, f"{moving.key} has ended: {moving.reason}")

    def Commit(self, request: pb.CommitRequest) -> pb.CommitResponse:
        name = name_from(request.name)
        if request.HasField("sums") and self._end.find(name).live:
            self._refused(partial(self._take_sums, name), request.sums)
        moving = self._end.commit(name)
        return pb.CommitResponse(phase=_phase(moving), missing=ranges_message(moving.missing(MAX_RANGES)))

    def Abort(self, request: pb.AbortRequest) -> pb.AbortResponse:
        moving = self._end.abort(name_from(request.name), reason_from(request), stopped=request.stopped)
        if moving is None:
            return pb.AbortResponse(phase=pb.TRANSFER_PHASE_ABORTED)
        return pb.AbortResponse(phase=_phase(moving))


def _phase(moving: Moving) -> str:
    return pb.TransferPhase.Name(moving.phase.value)


def _only(raw: Iterator[bytes]) -> bytes:
    """The one message of a call."""
    for message in raw:
        return message
    raise ProtocolError("a call came without its message")


class _Answer:
    """Around the work of a call: its caller must be proven, it needs a deadline, must still be wanted, and errors
    become statuses."""

    def __init__(self, context: Context, challenger: Challenger, method: str) -> None:
        self._context = context
        self._challenger = challenger
        self._method = method

    def __enter__(self) -> None:
        context = self._context
        self._challenger.admit(self._method, context)
        # gRPC says "none" as one of some centuries.
        if (context.time_remaining() or 0.0) > LONGEST_CALL_S:
            detail = f"every call of the transfer service needs a deadline, of at most {LONGEST_CALL_S:g} s"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)
        if not context.is_active():
            # It lay here while this process stood still; its caller has gone on without an answer.
            context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TransferError):
            abort_call(self._context, error)
        if isinstance(error, ProtocolError):
            self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
