"""Turns the values of transfers into messages of `quire.v1.TransferService` and back, and refusals into gRPC statuses.

The border between plain values and protobuf for transfers: everything else of the worker's transfer files holds values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from cluster.errors import ProtocolError, TransferError
from cluster.register.errand import MAX_RANGES
from cluster.register.states import (
    Blocks,
    Carrier,
    CarrierLost,
    NotObeyed,
    PoolLayout,
    Range,
    Reservation,
    TransferKey,
    TransferName,
    WhyRefused,
)
from protos.quire.v1 import transfer_pb2 as pb

MAX_NAME_CHARS = 256
MAX_REASON_CHARS = 1024
MAX_TIMEOUT_S = 86_400.0
# Numbers are kept as signed ones.
_MAX_NUMBER = (1 << 63) - 1
# Chunks of one message of Write and Read.
STREAM_BYTES = 1 << 20

_STATUS = {
    WhyRefused.OUTSIDE: grpc.StatusCode.INVALID_ARGUMENT,
    WhyRefused.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WhyRefused.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    WhyRefused.LATE: grpc.StatusCode.ABORTED,
}
_METADATA = "quire-refusal"
_REFUSALS = {refusal.value: refusal for refusal in WhyRefused}


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
    if max(message.epoch, message.transfer, message.caller_incarnation, message.pool_incarnation) > _MAX_NUMBER:
        raise ProtocolError(f"a transfer's name has a number beyond {_MAX_NUMBER}")
    _check_chars("the name of a caller", message.caller, MAX_NAME_CHARS)
    key = TransferKey(message.epoch, message.transfer, message.part, message.caller)
    return TransferName(key, message.caller_incarnation, message.pool_incarnation)


def layout_message(layout: PoolLayout) -> pb.PoolLayout:
    return pb.PoolLayout(fingerprint=layout.fingerprint, block_bytes=layout.block_bytes, chunk_bytes=layout.chunk_bytes)


def layout_from(message: pb.PoolLayout) -> PoolLayout:
    _check_chars("the fingerprint of a layout", message.fingerprint, MAX_NAME_CHARS)
    return PoolLayout(message.fingerprint, message.block_bytes, message.chunk_bytes)


def blocks_message(blocks: Blocks) -> bytes:
    return blocks.astype("<i4").tobytes()


def blocks_from(packed: bytes) -> Blocks:
    if len(packed) % 4:
        raise ProtocolError(f"{len(packed)} bytes are no list of block ids of 4 bytes each")
    return np.frombuffer(packed, "<i4").astype(np.int32)


def reservation_message(asked: Reservation) -> pb.ReserveRequest:
    return pb.ReserveRequest(
        name=name_message(asked.name),
        write=asked.write,
        layout=layout_message(asked.layout),
        blocks=blocks_message(asked.blocks),
        carrier=pb.Carrier.Name(asked.carrier.value),
        session=asked.session,
        timeout_s=min(max(asked.timeout_s, 0.01), MAX_TIMEOUT_S),
    )


def reservation_from(message: pb.ReserveRequest) -> Reservation:
    try:
        carrier = Carrier(message.carrier)
    except ValueError:
        raise ProtocolError(f"there is no carrier {message.carrier}") from None
    if not 0 < message.timeout_s <= MAX_TIMEOUT_S:
        raise ProtocolError(f"a transfer's time is {message.timeout_s} s; above 0 and at most {MAX_TIMEOUT_S:g} can be")
    return Reservation(
        name=name_from(message.name),
        write=message.write,
        layout=layout_from(message.layout),
        blocks=blocks_from(message.blocks),
        carrier=carrier,
        timeout_s=message.timeout_s,
        session=message.session,
    )


def ranges_message(ranges: Sequence[Range]) -> list[pb.ChunkRange]:
    return [pb.ChunkRange(first=first, count=count) for first, count in ranges]


def ranges_from(messages: Sequence[pb.ChunkRange]) -> list[Range]:
    if len(messages) > MAX_RANGES:
        raise ProtocolError(f"{len(messages):,} ranges of chunks are asked for at once; {MAX_RANGES:,} can be")
    return [(message.first, message.count) for message in messages]


def reason_from(message: pb.AbortRequest) -> str:
    _check_chars("the reason of an abort", message.reason, MAX_REASON_CHARS)
    return message.reason


def _check_chars(what: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise ProtocolError(f"{what} has {len(text):,} characters; {limit:,} are the most")


def abort_call(context: grpc.ServicerContext, error: TransferError) -> None:
    """Ends a call with what was refused; raises, as every abort of gRPC does."""
    if isinstance(error, NotObeyed):
        context.set_trailing_metadata(((_METADATA, error.refusal.value),))
        context.abort(_STATUS.get(error.refusal, grpc.StatusCode.FAILED_PRECONDITION), str(error))
    context.abort(grpc.StatusCode.ABORTED, str(error))


_FINAL = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.INTERNAL,
)


def error_from(error: grpc.RpcError, peer: str) -> NotObeyed | CarrierLost:
    """What a failed call means: Refused where the other end said so, else that there was no answer."""
    call: Any = error  # every error of a call is a Call too, which the types cannot say
    detail = call.details() or call.code().name.lower().replace("_", " ")
    for name, value in call.trailing_metadata() or ():
        if name == _METADATA and value in _REFUSALS:
            return NotObeyed(_REFUSALS[value], f"{peer}: {detail}")
    return CarrierLost(f"{peer} did not answer: {detail}", final=call.code() in _FINAL)
