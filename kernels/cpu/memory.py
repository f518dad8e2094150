"""Memory for pools on a CPU: asks the system for large pages, without which shuffled blocks cost a page walk each.

The worker makes its pool here. Where the system has no such thing, the pool is ordinary memory and works the same.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

HUGE_PAGE_BYTES = 2 << 20


def new_pool(num_blocks: int, block_bytes: int) -> torch.Tensor:
    """Zeroed uint8 [num_blocks, block_bytes] on large pages where the system gives them."""
    size = num_blocks * block_bytes
    # Begin on a large page, so that all whole ones lie inside.
    memory = torch.empty(size + HUGE_PAGE_BYTES, dtype=torch.uint8)
    skip = -memory.data_ptr() % HUGE_PAGE_BYTES
    pool = memory[skip : skip + size].view(num_blocks, block_bytes)
    advise_huge_pages(pool)
    # Touched here, and not by the first requests.
    return pool.zero_()


def advise_huge_pages(memory: torch.Tensor) -> bool:
    """Asks for large pages under this contiguous memory; takes effect where it has not been touched yet."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or not sys.platform.startswith("linux"):
        return False
    begin = memory.data_ptr() + (-memory.data_ptr() % mmap.PAGESIZE)
    length = memory.data_ptr() + memory.nbytes - begin
    if length < HUGE_PAGE_BYTES:
        return False
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return bool(library.madvise(begin, length, advice) == 0)
