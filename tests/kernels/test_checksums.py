"""CRC32C of blocks on a device: on the twin as the host computes it; the kernel, which `test_triton_checksums.py`
runs, by what Triton's compiler makes of it for each target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.checksums import PART, Checksums
from kernels.device.seam import device_of, find_device
from tests.kernels.triton_aot import SM_REGISTERS, TARGETS, compile_kernel
from worker.transfer.checksum import address_of, checksummer

# A chunk of a word, chunks that end inside a part, several parts, a last chunk that is shorter.
SIZES = [(4, 4), (64, 64), (4 * PART, 4 * PART), (4 * PART + 64, 4 * PART), (4 * PART + 8192 + 12, 4 * PART + 8192)]


@pytest.mark.parametrize(("block_bytes", "chunk_bytes"), SIZES)
def test_sums_are_those_of_the_host(block_bytes: int, chunk_bytes: int, seed: int) -> None:
    assert_sums(find_device("twin@0"), block_bytes, chunk_bytes, seed)


def assert_sums(device: torch.device, block_bytes: int, chunk_bytes: int, seed: int, triton: bool = False) -> None:
    rng, seam = np.random.default_rng(seed), device_of(device)
    held = rng.integers(0, 256, (5, block_bytes), np.uint8)
    held[1, : block_bytes // 2] = 0
    blocks = np.array([4, 1, 2], np.int32)
    sums = Checksums(device, block_bytes, chunk_bytes, triton=triton)
    with seam.may_wait():
        found = sums(torch.from_numpy(held).to(device), blocks).cpu().numpy()
    chunks = [held[block, at : at + chunk_bytes] for block in blocks for at in range(0, block_bytes, chunk_bytes)]
    way = checksummer()
    assert sums.finished(found).tolist() == [way.checksum(address_of(chunk), chunk.nbytes) for chunk in chunks]


@pytest.mark.parametrize("family", list(TARGETS))
def test_the_kernel_fits(family: str) -> None:
    from kernels.checksums import LANES
    from kernels.gpu.checksums import WARPS, checksums_kernel

    constants = {"LANES": LANES, "ROUNDS": PART // LANES}
    compiled = compile_kernel(checksums_kernel, {}, constants, family, warps=WARPS)
    print(f"{family:6}: {compiled}")
    assert compiled.stack_bytes == 0
    threads = WARPS * TARGETS[family].warp_size
    # Enough are resident to have reads under way while others look into tables.
    assert compiled.registers * threads * 3 <= SM_REGISTERS * (2 if family == "cdna3" else 1)
    if "ptx" in compiled.asm:
        assert "ld.global.v4" in compiled.asm["ptx"], "words are not read 16 bytes at a time"
