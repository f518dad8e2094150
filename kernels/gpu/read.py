"""Reads memory and keeps next to nothing: the yardstick of what bandwidth a device has for reading.

Benchmarks compare attention with it, since decoding is bound by reading keys and values. Serving never calls it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import expect
from kernels.gpu.issuing import issue

SPAN = 4096
PROGRAMS_PER_SM = 8


@triton.jit(do_not_specialize=["num_words"])
def read_kernel(
    x_ptr,  # int32 [words]
    sums_ptr,  # int32 [programs]
    num_words,
    SPAN: tl.constexpr,
):
    """Each program adds up every n-th span, so that nothing is left out and nothing read twice."""
    pid = tl.program_id(0)
    lane = tl.arange(0, SPAN)
    sums = tl.zeros([SPAN], tl.int32)
    for begin in range(pid * SPAN, num_words, tl.num_programs(0) * SPAN):
        at = begin + lane
        sums += tl.load(x_ptr + at, mask=at < num_words, other=0)
    tl.store(sums_ptr + pid, tl.sum(sums, 0))


def read(x: torch.Tensor, num_sms: int) -> torch.Tensor:
    """Sums of parts of x, int32 [words], one per program; together they are the sum of x, if none overflows."""
    expect("x", x, (None,), (torch.int32,), x.device)
    sums = torch.empty(num_sms * PROGRAMS_PER_SM, dtype=torch.int32, device=x.device)
    issue(read_kernel, (sums.numel(),), x, sums, x.numel(), SPAN=SPAN, num_warps=4)
    return sums
