"""Turns the values of transfers into messages of `quire.v1.TransferService` and back, and refusals into gRPC statuses.

The border between plain values and protobuf for transfers: everything else of the worker's transfer files holds values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from cluster.errors import TransferError
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.states import (
    Blocks,
    Carrier,
    PoolLayout,
    Range,
    Refusal,
    Refused,
    Reservation,
    TransferKey,
    TransferName,
)

MAX_RANGES = 1024
# Chunks of one message of Write and Read.
STREAM_BYTES = 1 << 20

_STATUS = {
    Refusal.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Refusal.LATE: grpc.StatusCode.ABORTED,
}
_METADATA = "quire-refusal"


def name_message(name: TransferName) -> pb.TransferName:
    key = name.key
    return pb.TransferName(
        epoch=key.epoch,
        transfer=key.transfer,
        part=key.part,
        caller=key.caller,
        caller_incarnation=name.caller_incarnation,
        pool_incarnation=name.pool_incarnation,
    )


def name_from(message: pb.TransferName) -> TransferName:
    key = TransferKey(message.epoch, message.transfer, message.part, message.caller)
    return TransferName(key, message.caller_incarnation, message.pool_incarnation)


def layout_message(layout: PoolLayout) -> pb.PoolLayout:
    return pb.PoolLayout(fingerprint=layout.fingerprint, block_bytes=layout.block_bytes, chunk_bytes=layout.chunk_bytes)


def layout_from(message: pb.PoolLayout) -> PoolLayout:
    return PoolLayout(message.fingerprint, message.block_bytes, message.chunk_bytes)


def blocks_message(blocks: Blocks) -> bytes:
    return blocks.astype("<i4").tobytes()


def blocks_from(packed: bytes) -> Blocks:
    if len(packed) % 4:
        raise Refused(Refusal.OUTSIDE, f"{len(packed)} bytes are no list of block ids of 4 bytes each")
    return np.frombuffer(packed, "<i4").astype(np.int32)


def reservation_message(asked: Reservation) -> pb.ReserveRequest:
    return pb.ReserveRequest(
        name=name_message(asked.name),
        write=asked.write,
        layout=layout_message(asked.layout),
        blocks=blocks_message(asked.blocks),
        carrier=pb.Carrier.Name(asked.carrier.value),
        session=asked.session,
        timeout_s=asked.timeout_s,
        num_blocks_of_transfer=asked.num_blocks_of_transfer,
    )


def reservation_from(message: pb.ReserveRequest) -> Reservation:
    try:
        carrier = Carrier(message.carrier)
    except ValueError:
        raise Refused(Refusal.CONFLICT, f"there is no carrier {message.carrier}") from None
    return Reservation(
        name=name_from(message.name),
        write=message.write,
        layout=layout_from(message.layout),
        blocks=blocks_from(message.blocks),
        carrier=carrier,
        timeout_s=message.timeout_s,
        session=message.session,
        num_blocks_of_transfer=message.num_blocks_of_transfer,
    )


def ranges_message(ranges: Sequence[Range]) -> list[pb.ChunkRange]:
    return [pb.ChunkRange(first=first, count=count) for first, count in ranges]


def ranges_from(messages: Sequence[pb.ChunkRange]) -> list[Range]:
    return [(message.first, message.count) for message in messages]


def abort_call(context: grpc.ServicerContext, error: TransferError) -> None:
    """Ends a call with what was refused; raises, as every abort of gRPC does."""
    if isinstance(error, Refused):
        context.set_trailing_metadata(((_METADATA, error.refusal.value),))
        context.abort(_STATUS.get(error.refusal, grpc.StatusCode.FAILED_PRECONDITION), str(error))
    context.abort(grpc.StatusCode.ABORTED, str(error))


def error_from(error: grpc.RpcError, peer: str) -> TransferError:
    """What a failed call means: Refused where the other end said so, else that it could not be reached."""
    call: Any = error  # every error of a call is a Call too, which the types cannot say
    detail = call.details() or call.code().name.lower().replace("_", " ")
    for name, value in call.trailing_metadata() or ():
        if name == _METADATA:
            return Refused(Refusal(value), f"{peer}: {detail}")
    return TransferError(f"{peer} did not answer: {detail}")
