"""CRC32C and fused copies against known vectors, a bitwise reference and google-crc32c, at odd sizes and places."""

import ctypes
import random

import google_crc32c
import llvmlite.binding as llvm
import numpy as np
import pytest

from cluster.register.states import PoolLayout
from worker.transfer.checksum import Checksummer, Fused, Plain, address_of, checksummer
from worker.transfer.copy import Copier, CopyStopped, chunk_pieces, cut
from worker.transfer.kernel import kernel_text

SIZES = (0, 1, 7, 8, 63, 64, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000, 4096, 65_536, 1_000_003)
NEEDED = {8: ("vpclmulqdq", "avx512f"), 4: ("vpclmulqdq", "avx2"), 2: ("pclmul", "sse4.2")}


def compiled(lanes: int) -> Fused:
    """The code for vectors of `lanes` words, whichever width this processor would choose."""
    features = llvm.get_host_cpu_features()
    if not all(features.get(feature) for feature in NEEDED[lanes]):
        pytest.skip(f"this processor has no {' and '.join(NEEDED[lanes])}")
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(kernel_text(lanes)), machine)
    engine.finalize_object()
    return Fused(lanes, engine.get_function_address, engine)


@pytest.fixture(params=["plain", 2, 4, 8])
def way(request: pytest.FixtureRequest) -> Checksummer:
    checksummer()  # initializes LLVM
    return Plain() if request.param == "plain" else compiled(request.param)


def bitwise(data: bytes) -> int:
    """CRC32C by its definition, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        # RFC 3720, B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_vectors(way: Checksummer, data: bytes, crc: int) -> None:
    assert way.checksum(address_of(data), len(data)) == crc == bitwise(data)


def test_every_size_and_place(way: Checksummer, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, max(SIZES) + 64, np.uint8)
    target = np.zeros(max(SIZES) + 256, np.uint8)
    aligned = -target.ctypes.data % 64
    for size in SIZES:
        for source_offset, target_offset in ((0, aligned + 64), (1, aligned + 64), (3, aligned + 67)):
            data = source[source_offset : source_offset + size]
            wanted = google_crc32c.value(data.tobytes())
            if size <= 4096:
                assert bitwise(data.tobytes()) == wanted
            target[:] = 0xAA
            there = target[target_offset : target_offset + size]
            assert way.checksum(data.ctypes.data, size) == wanted
            assert way.copy(there.ctypes.data, data.ctypes.data, size) == wanted
            assert np.array_equal(there, data)
            # Nothing beside the target was touched.
            assert (target[:target_offset] == 0xAA).all() and (target[target_offset + size :] == 0xAA).all()


def test_many_pieces(way: Checksummer, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, 1 << 20, np.uint8)
    target = np.zeros(1 << 20, np.uint8)
    lengths = np.array([4096, 64, 1, 777, 65_536, 0, 128], np.int64)
    sources = source.ctypes.data + np.array([9, 4096, 70_000, 80_001, 100_000, 5, 200_000], np.int64)
    targets = target.ctypes.data + np.array([64, 8192, 50_000, 60_001, 300_032, 5, 200_000], np.int64)
    wanted = [
        google_crc32c.value(ctypes.string_at(a, n)) for a, n in zip(sources.tolist(), lengths.tolist(), strict=True)
    ]
    assert way.copy_many(None, sources, lengths).tolist() == wanted
    assert not target.any()
    assert way.copy_many(targets, sources, lengths).tolist() == wanted
    for to, at, n in zip(targets.tolist(), sources.tolist(), lengths.tolist(), strict=True):
        assert ctypes.string_at(to, n) == ctypes.string_at(at, n)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_copier_moves_scattered_chunks(num_threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout = PoolLayout("f", 1_250_048, 1 << 20)  # a short last chunk
    source, target = (
        rng.integers(0, 256, (12, layout.block_bytes), np.uint8),
        np.zeros((12, layout.block_bytes), np.uint8),
    )
    order = rng.permutation(12)
    sources, lengths = chunk_pieces(layout, source.ctypes.data + np.arange(12) * layout.block_bytes)
    targets, _ = chunk_pieces(layout, target.ctypes.data + order * layout.block_bytes)
    copier = Copier(num_threads)
    crcs = copier.copy(targets, sources, lengths)
    assert np.array_equal(target[order], source)
    assert crcs.tolist() == [
        google_crc32c.value(ctypes.string_at(a, n)) for a, n in zip(sources.tolist(), lengths.tolist(), strict=True)
    ]
    assert np.array_equal(copier.copy(None, sources, lengths), crcs)
    copier.close()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_copier_stops(num_threads: int) -> None:
    source, target = np.ones(64 << 20, np.uint8), np.zeros(64 << 20, np.uint8)
    lengths = np.full(64, 1 << 20, np.int64)
    offsets = np.arange(64, dtype=np.int64) << 20
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    copier = Copier(num_threads)
    with pytest.raises(CopyStopped):
        copier.copy(target.ctypes.data + offsets, source.ctypes.data + offsets, lengths, stop)
    copied = int(target.sum(dtype=np.int64))
    assert copied == 3 * (4 << 20)
    copier.close()


def test_cut_covers_all_pieces_in_order(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(200):
        lengths = np.array([draw.randrange(1, 6 << 20) for _ in range(draw.randrange(1, 40))], np.int64)
        runs = cut(lengths)
        assert [place for first, end in runs for place in range(first, end)] == list(range(len(lengths)))
        assert all(end > first for first, end in runs)
        assert all(int(lengths[first:end].sum()) < 16 << 20 for first, end in runs)
    assert cut(np.empty(0, np.int64)) == []
