"""Messages that carry chunks, written and read where their bytes lie.

protobuf's own code would copy the bytes of each chunk twice at either end, which is most of what a stream of chunks
costs beside gRPC itself. The wire form is that of `WriteRequest` and `ReadResponse` (both: chunks = 1, sums = 2), so
either end may also use protobuf. Which chunks are good is not looked at here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cluster.errors import ProtocolError
from cluster.wire.plans import parsed
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.chunks import Outgoing

SERVICE = pb.DESCRIPTOR.services_by_name["TransferService"].full_name
# Tags of fields 1 and 2 of the message; of fields 1 to 6 of a chunk.
_CHUNKS, _SUMS = 0x0A, 0x12
_NAME, _BLOCK, _OFFSET, _LENGTH, _CRC, _DATA = 0x0A, 0x10, 0x18, 0x20, 0x2D, 0x32
_FIXED = struct.Struct("<I")


class Packs(Protocol):
    def SerializeToString(self) -> bytes: ...


class PackedChunk(NamedTuple):
    """One chunk as its header says; `data` lies in the message, and may be of another length."""

    name: bytes  # a packed pb.TransferName
    block: int
    offset: int
    length: int
    crc: int
    data: memoryview


class PackedBlocks(NamedTuple):
    """What a WriteRequest or a ReadResponse holds."""

    chunks: list[PackedChunk]
    sums: pb.ChunkSums | None


def pack_chunks(name: bytes, chunks: Sequence[Outgoing]) -> bytes:
    """The only copy of their bytes is made here, after they were summed: if they changed meanwhile, the sum tells."""
    named = b"\x0a" + _varint(len(name)) + name
    parts: list[bytes | memoryview] = []
    for chunk in chunks:
        length = _varint(chunk.length)
        head = b"%s\x10%s\x18%s\x20%s\x2d%s\x32%s" % (
            named,
            _varint(chunk.block),
            _varint(chunk.offset),
            length,
            _FIXED.pack(chunk.crc),
            length,
        )
        parts.append(b"\x0a" + _varint(len(head) + chunk.length) + head)
        parts.append(chunk.view())
    return b"".join(parts)


def pack(message: bytes | Packs) -> bytes:
    """For gRPC: what was packed here goes as it is."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def unpack(packed: bytes) -> PackedBlocks:
    """For gRPC; the chunks hold on to `packed`. Raises ProtocolError for what is no such message."""
    view, at, end = memoryview(packed), 0, len(packed)
    chunks: list[PackedChunk] = []
    sums: pb.ChunkSums | None = None
    try:
        while at < end:
            tag = packed[at]
            size, at = _read(packed, at + 1)
            if size > end - at:
                raise ProtocolError(f"a part of {size:,} bytes in a message of {end:,}")
            if tag == _CHUNKS:
                chunks.append(_chunk(packed, view, at, at + size))
            elif tag == _SUMS:
                sums = parsed(pb.ChunkSums, packed[at : at + size])
            else:
                raise ProtocolError(f"a message of chunks has no field of tag {tag:#x}")
            at += size
    except (IndexError, struct.error) as error:
        raise ProtocolError(f"a message of chunks of {end:,} bytes ends too early") from error
    return PackedBlocks(chunks, sums)


def _chunk(packed: bytes, view: memoryview, at: int, end: int) -> PackedChunk:
    name, data = b"", view[:0]
    numbers = {_BLOCK: 0, _OFFSET: 0, _LENGTH: 0, _CRC: 0}
    while at < end:
        tag = packed[at]
        if tag == _CRC:
            numbers[tag], at = _FIXED.unpack_from(packed, at + 1)[0], at + 5
        elif tag in numbers:
            numbers[tag], at = _read(packed, at + 1)
        elif tag in (_NAME, _DATA):
            size, at = _read(packed, at + 1)
            if tag == _NAME:
                name = packed[at : at + size]
            else:
                data = view[at : at + size]
            at += size
        else:
            raise ProtocolError(f"a chunk has no field of tag {tag:#x}")
    if at != end:
        raise ProtocolError("a field of a chunk goes beyond its end")
    return PackedChunk(name, numbers[_BLOCK], numbers[_OFFSET], numbers[_LENGTH], numbers[_CRC], data)


def _read(packed: bytes, at: int) -> tuple[int, int]:
    """A number in base 128, and where it ends."""
    value = packed[at]
    at += 1
    if value < 0x80:
        return value, at
    value, shift = value & 0x7F, 7
    while (byte := packed[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise ProtocolError("a number of more than 64 bits")
    return value | byte << shift, at + 1


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
