"""Memory on large pages of a CPU, where the system gives them: for pools, whose shuffled blocks would cost a page walk
each, and for packed weights, which are read from end to end in every step.

`product` packs into it and benchmarks make pools of it. Elsewhere it is ordinary memory and works the same.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys

import torch

HUGE_PAGE_BYTES = 2 << 20


def new_pool(num_blocks: int, block_bytes: int) -> torch.Tensor:
    """Zeroed uint8 [num_blocks, block_bytes] on large pages where the system gives them."""
    # Touched here, and not by the first requests.
    return empty(num_blocks, block_bytes, dtype=torch.uint8).zero_()


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory that nobody has written, from the beginning of a large page on if it is as large as one."""
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE_PAGE_BYTES:
        return torch.empty(shape, dtype=dtype)
    # Begin on a large page, so that all whole ones lie inside.
    memory = torch.empty(size + HUGE_PAGE_BYTES, dtype=torch.uint8)
    skip = -memory.data_ptr() % HUGE_PAGE_BYTES
    found = memory[skip : skip + size]
    advise_huge_pages(found)
    return found.view(dtype).view(shape)


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
