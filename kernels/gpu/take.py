"""Ids of a step that only the device knows yet: the tokens that the step before it drew.

`worker/graphs.py` puts it at the beginning of every captured step, so that nothing is launched for it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import expect
from kernels.gpu.launch import issue

SPAN = 256


@triton.jit(do_not_specialize=["rows"])
def take_ids_kernel(
    ids_ptr,  # int64 [rows, and more]
    taken_ptr,  # int32 [rows]: places in `last`, -1: the id stays
    last_ptr,  # int64
    rows,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    place = tl.load(taken_ptr + row, mask=row < rows, other=-1)
    token = tl.load(last_ptr + place, mask=place >= 0, other=0)
    tl.store(ids_ptr + row, token, mask=place >= 0)


def take_ids(ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor) -> None:
    """See `dispatch.Backend`."""
    rows = len(taken)
    expect("ids", ids, (None,), (torch.int64,), ids.device)
    expect("taken", taken, (None,), (torch.int32,), ids.device)
    expect("last", last, (None,), (torch.int64,), ids.device)
    if rows > len(ids):
        raise ValueError(f"taken has {rows} rows, and there are {len(ids)} ids")
    if rows:
        issue(take_ids_kernel, (triton.cdiv(rows, SPAN),), ids, taken, last, rows, SPAN=SPAN, num_warps=4)
