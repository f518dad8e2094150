"""CRC32C of blocks by Triton's kernel, against what the host computes."""

from __future__ import annotations

import pytest

from tests.kernels.test_checksums import SIZES, assert_sums
from tests.kernels.triton_device import DEVICE


@pytest.mark.parametrize(("block_bytes", "chunk_bytes"), SIZES)
def test_sums_are_those_of_the_host(block_bytes: int, chunk_bytes: int, seed: int) -> None:
    assert_sums(DEVICE, block_bytes, chunk_bytes, seed, triton=True)
