"""Row by row work around products on a GPU, one launch each: RMS norm, alone or behind a sum, and the gate of an MLP.

`worker/model/replaced.py` puts them in place of a decoder's own modules, which take up to eight launches for the same.
They round where those modules round, so that the numbers are theirs.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from kernels.checks import FLOATS, expect
from kernels.gpu.issuing import issue

GATE_SPAN = 1024
Activation = Literal["silu", "gelu_tanh", "gelu"]


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [outer, INNER, DIM]
    weight_ptr,  # [DIM]
    out_ptr,  # [outer, INNER, DIM], dense
    added_ptr,  # [outer, INNER, DIM], dense
    sum_ptr,  # [outer, INNER, DIM], dense
    outer_stride,
    inner_stride,
    epsilon,
    INNER: tl.constexpr,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    ADDS: tl.constexpr,
    FROM_ONE: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    inside = lane < DIM
    at = x_ptr + (row // INNER) * outer_stride + (row % INNER) * inner_stride
    x = tl.load(at + lane, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    if ADDS:
        added = tl.load(added_ptr + row * DIM + lane, mask=inside, other=0.0).to(tl.float32)
        whole = (x + added).to(kind)
        tl.store(sum_ptr + row * DIM + lane, whole, mask=inside)
        x = whole.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / DIM + epsilon)
    weight = tl.load(weight_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    if FROM_ONE:
        weight = 1.0 + weight
    normed = x * scale
    if ROUNDS_FIRST:
        normed = normed.to(kind).to(tl.float32)
    tl.store(out_ptr + row * DIM + lane, (normed * weight).to(kind), mask=inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, *, from_one: bool = False, rounds_first: bool = True
) -> torch.Tensor:
    """x [outer, inner, dim], which may be a part of something wider: each row over its root mean square, times
    `weight` [dim], or 1 + weight. Dense, in x's dtype, to which rows are rounded before the weight too, or not."""
    return _norm(x, None, weight, epsilon, from_one, rounds_first)[0]


def add_rms_norm(
    x: torch.Tensor,
    added: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    *,
    from_one: bool = False,
    rounds_first: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + added, both [outer, inner, dim], and the sum itself."""
    expect("added", added, tuple(x.shape), (x.dtype,), x.device)
    if not added.is_contiguous():
        raise ValueError(f"added must be dense, got strides {added.stride()}")
    return _norm(x, added, weight, epsilon, from_one, rounds_first)


def _norm(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    from_one: bool,
    rounds_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    outer, inner, dim = x.shape
    expect("x", x, (None, None, dim), FLOATS, x.device)
    expect("weight", weight, (dim,), FLOATS, x.device)
    out = torch.empty((outer, inner, dim), dtype=x.dtype, device=x.device)
    whole = out if added is None else torch.empty_like(out)
    if out.numel():
        lanes = triton.next_power_of_2(dim)
        issue(
            rms_norm_kernel, (outer * inner,),
            x, weight, out, out if added is None else added, whole, x.stride(0), x.stride(1), epsilon,
            INNER=inner, DIM=dim, LANES=lanes, ADDS=added is not None, FROM_ONE=from_one, ROUNDS_FIRST=rounds_first,
            num_warps=1 if lanes <= 256 else 4 if lanes <= 4096 else 8,
        )  # fmt: skip
    return out, whole


@triton.jit
def gate_kernel(
    x_ptr,  # [rows, 2 * DIM]: the gate, and what passes it
    out_ptr,  # [rows, DIM]
    DIM: tl.constexpr,
    SPAN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program (row, part of the row)."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside = lane < DIM
    gate = tl.load(x_ptr + row * (2 * DIM) + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * (2 * DIM) + DIM + lane, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        opened = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == "gelu_tanh":
        # x * (1 + tanh(a)) / 2 is x / (1 + exp(-2 a)).
        opened = gate / (1.0 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    else:
        opened = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    opened = opened.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * DIM + lane, (opened * up).to(out_ptr.dtype.element_ty), mask=inside)


def gate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """x [rows, 2 * dim] dense: the activation of the first half times the second half, [rows, dim]."""
    rows, width = x.shape
    expect("x", x, (None, None), FLOATS, x.device)
    if width % 2 or not x.is_contiguous():
        raise ValueError(f"x must be dense with two halves, got shape {list(x.shape)} and strides {x.stride()}")
    dim = width // 2
    out = torch.empty((rows, dim), dtype=x.dtype, device=x.device)
    if out.numel():
        issue(
            gate_kernel, (rows, triton.cdiv(dim, GATE_SPAN)),
            x, out, DIM=dim, SPAN=GATE_SPAN, ACTIVATION=activation, num_warps=4,
        )  # fmt: skip
    return out
