"""What only comes with a step: ids that the device alone knows yet, for the step before has drawn them, and blocks that
are new in tables.

`worker/graphs.py` puts it at the beginning of every captured step, so that nothing is launched for it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import expect
from kernels.gpu.issuing import issue

SPAN = 256


@triton.jit(do_not_specialize=["rows"])
def take_kernel(
    ids_ptr,  # int64 [rows, and more]
    taken_ptr,  # int32 [rows]: places in `last`, -1: the id stays
    last_ptr,  # int64
    tables_ptr,  # int32, seen as one row
    changes_ptr,  # int32 [1 + most, 2]: how many, then place and block of each
    rows,
    SPAN: tl.constexpr,
):
    lane = tl.arange(0, SPAN)
    first = tl.program_id(0) * SPAN
    row = first + lane
    place = tl.load(taken_ptr + row, mask=row < rows, other=-1)
    token = tl.load(last_ptr + place, mask=place >= 0, other=0)
    tl.store(ids_ptr + row, token, mask=place >= 0)
    count = tl.load(changes_ptr)
    for begin in range(first, count, tl.num_programs(0) * SPAN):
        change = begin + lane
        there = changes_ptr + 2 + 2 * change
        place = tl.load(there, mask=change < count, other=0)
        block = tl.load(there + 1, mask=change < count, other=0)
        tl.store(tables_ptr + place, block, mask=change < count)


def take(
    ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor, tables: torch.Tensor, changes: torch.Tensor
) -> None:
    """See `dispatch.Backend`."""
    rows, device = len(taken), ids.device
    expect("ids", ids, (None,), (torch.int64,), device)
    expect("taken", taken, (None,), (torch.int32,), device)
    expect("last", last, (None,), (torch.int64,), device)
    expect("tables", tables, (None, None), (torch.int32,), device)
    expect("changes", changes, (None, 2), (torch.int32,), device)
    if rows > len(ids):
        raise ValueError(f"taken has {rows} rows, and there are {len(ids)} ids")
    if not tables.is_contiguous() or not changes.is_contiguous():
        raise ValueError(f"tables and changes must be dense, got strides {tables.stride()} and {changes.stride()}")
    grid = (max(1, triton.cdiv(rows, SPAN)),)
    issue(take_kernel, grid, ids, taken, last, tables, changes, rows, SPAN=SPAN, num_warps=4)
