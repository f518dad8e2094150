"""Chunks packed by hand are what protobuf would make of them, either way, and what is no such message is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import ProtocolError
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.chunk_messages import PackedChunk, pack_chunks, unpack
from worker.transfer.chunks import Outgoing

NAME = pb.TransferName(epoch=3, transfer=1 << 45, part=2, caller="w0", caller_incarnation=1 << 40, pool_incarnation=7)
SIZES = (0, 1, 127, 128, 16_383, 16_384, 100_000)


def chunks(seed: int) -> tuple[list[Outgoing], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    held = [rng.integers(0, 256, size, np.uint8) for size in SIZES if size]
    made = [
        Outgoing(int(rng.integers(0, 1 << 31)) * (at % 3 > 0), at * 300, len(data), at * 0x12345678 & 0xFFFFFFFF,
                 data.ctypes.data)
        for at, data in enumerate(held)
    ]  # fmt: skip
    return made, held


def test_protobuf_reads_what_was_packed() -> None:
    made, held = chunks(1)
    message = pb.WriteRequest.FromString(pack_chunks(NAME.SerializeToString(), made))
    assert [chunk.name for chunk in message.chunks] == [NAME] * len(made)
    for chunk, wanted, data in zip(message.chunks, made, held, strict=True):
        assert (chunk.block, chunk.offset, chunk.length, chunk.crc32c) == wanted[:4]
        assert chunk.data == data.tobytes()


def test_what_protobuf_wrote_is_read() -> None:
    rng = np.random.default_rng(2)
    wanted = [
        pb.TransferChunk(name=NAME, block=size, offset=2 * size, length=size + 1, crc32c=size, data=rng.bytes(size))
        for size in SIZES
    ]
    sums = pb.ChunkSums(first=9, crc32c=b"12345678")
    batch = unpack(pb.ReadResponse(chunks=wanted, sums=sums).SerializeToString())
    assert batch.sums == sums
    assert [as_message(chunk) for chunk in batch.chunks] == wanted
    assert unpack(b"") == ([], None)


def as_message(chunk: PackedChunk) -> pb.TransferChunk:
    return pb.TransferChunk(
        name=pb.TransferName.FromString(chunk.name), block=chunk.block, offset=chunk.offset, length=chunk.length,
        crc32c=chunk.crc, data=bytes(chunk.data),
    )  # fmt: skip


def test_every_message_that_ends_too_early_is_refused_or_has_fewer_chunks() -> None:
    made, _ = chunks(3)
    whole = pack_chunks(NAME.SerializeToString(), made[:3])
    count, refused = len(unpack(whole).chunks), 0
    for end in range(1, len(whole)):
        try:
            assert len(unpack(whole[:end]).chunks) < count
        except ProtocolError:
            refused += 1
    # Only where a chunk ends is what came so far a message.
    assert refused == len(whole) - 1 - (count - 1)


@pytest.mark.parametrize(
    "wrong",
    [b"\x1a\x00", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\x02\x32\x05", b"\x0a\x01\x3a", b"\x0a"],
    ids=["field", "number", "beyond", "field of a chunk", "nothing"],
)
def test_what_is_no_message_of_chunks_is_refused(wrong: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"field|number|part|early|beyond"):
        unpack(wrong)
