"""Row by row work around products on a GPU, one launch each: RMS norm, and the gate of a gated MLP.

`worker/model/replaced.py` puts them in place of a decoder's own modules, which take up to eight launches for the same.
They round where those modules round, so that the numbers are theirs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import FLOATS, expect
from kernels.gpu.launch import issue

GATE_SPAN = 1024


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [outer, INNER, DIM]
    weight_ptr,  # [DIM]
    out_ptr,  # [outer, INNER, DIM], dense
    outer_stride,
    inner_stride,
    epsilon,
    INNER: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < DIM
    at = x_ptr + (row // INNER) * outer_stride + (row % INNER) * inner_stride
    x = tl.load(at + lane, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / DIM + epsilon)
    weight = tl.load(weight_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    # Rounded before the weight is applied, as the modules do it.
    normed = (x * scale).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * DIM + lane, (normed * weight).to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x [outer, inner, dim], which may be a part of something wider: each row over its root mean square, times
    `weight` [dim]. Dense, in x's dtype."""
    outer, inner, dim = x.shape
    expect("x", x, (None, None, dim), FLOATS, x.device)
    expect("weight", weight, (dim,), FLOATS, x.device)
    out = torch.empty((outer, inner, dim), dtype=x.dtype, device=x.device)
    if out.numel():
        lanes = triton.next_power_of_2(dim)
        issue(
            rms_norm_kernel,
            (outer * inner,),
            x,
            weight,
            out,
            x.stride(0),
            x.stride(1),
            epsilon,
            INNER=inner,
            DIM=dim,
            LANES=lanes,
            num_warps=1 if lanes <= 256 else 4 if lanes <= 4096 else 8,
        )
    return out


@triton.jit
def silu_gate_kernel(
    x_ptr,  # [rows, 2 * DIM]: the gate, and what passes it
    out_ptr,  # [rows, DIM]
    DIM: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Program (row, part of the row)."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside = lane < DIM
    gate = tl.load(x_ptr + row * (2 * DIM) + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * (2 * DIM) + DIM + lane, mask=inside, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * DIM + lane, (opened * up).to(out_ptr.dtype.element_ty), mask=inside)


def silu_gate(x: torch.Tensor) -> torch.Tensor:
    """x [rows, 2 * dim] dense: silu of the first half times the second half, [rows, dim]."""
    rows, width = x.shape
    expect("x", x, (None, None), FLOATS, x.device)
    if width % 2 or not x.is_contiguous():
        raise ValueError(f"x must be dense with two halves, got shape {list(x.shape)} and strides {x.stride()}")
    dim = width // 2
    out = torch.empty((rows, dim), dtype=x.dtype, device=x.device)
    if out.numel():
        issue(silu_gate_kernel, (rows, triton.cdiv(dim, GATE_SPAN)), x, out, DIM=dim, SPAN=GATE_SPAN, num_warps=4)
    return out
