"""The experts of a mixture on a GPU, without a question to the device: pairs of token and expert are brought in the
order of experts, and rows multiplied by the weight of each one's own expert, one launch each.

`worker/model/replaced_experts.py` calls it. How many rows go to an expert is known on the device alone, so that as many
programs are started as any routing may need; each finds its expert from where the runs begin. A row's sums are added in
the same order whatever else is in its tile. The products are `tl.dot`, which all GPUs from sm_80 on have.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import FLOATS, expect
from kernels.device.seam import device_of
from kernels.gpu.issuing import issue

SPAN = 1024
# By rows of a tile and bytes of an element: columns and depth of a tile, warps, pipeline stages.
CUTS = {
    (16, 2): (64, 64, 4, 4), (64, 2): (128, 64, 4, 3), (128, 2): (128, 64, 8, 3),
    (16, 4): (32, 64, 4, 2), (64, 4): (64, 32, 4, 2),
}  # fmt: skip


@triton.jit(do_not_specialize=["pairs"])
def route_kernel(
    expert_ptr,  # int64 [pairs]
    order_ptr,  # int32 [pairs]: pairs, those of one expert behind each other
    starts_ptr,  # int32 [experts + 1]: where the run of each begins
    pairs,
    SPAN: tl.constexpr,
):
    """One program per expert, and one for the end of the last run: it counts what is of lower experts, then writes."""
    own = tl.program_id(0)
    lane = tl.arange(0, SPAN)
    lower = tl.zeros([SPAN], tl.int32)
    for begin in range(0, pairs, SPAN):
        expert = tl.load(expert_ptr + begin + lane, mask=begin + lane < pairs, other=own)
        lower += (expert < own).to(tl.int32)
    place = tl.sum(lower, 0)
    tl.store(starts_ptr + own, place)
    for begin in range(0, pairs, SPAN):
        inside = begin + lane < pairs
        is_own = inside & (tl.load(expert_ptr + begin + lane, mask=inside, other=own + 1) == own)
        counted = tl.cumsum(is_own.to(tl.int32), 0)
        tl.store(order_ptr + place + counted - 1, begin + lane, mask=is_own)
        place += tl.sum(is_own.to(tl.int32), 0)


@triton.jit(do_not_specialize=["pairs"])
def grouped_kernel(
    x_ptr,  # [rows, DEPTH_OF]
    weight_ptr,  # [EXPERTS, COLUMNS, DEPTH_OF] by its strides
    bias_ptr,  # [EXPERTS, COLUMNS]
    scale_ptr,  # [pairs]
    order_ptr,  # int32 [pairs]
    starts_ptr,  # int32 [EXPERTS + 1]
    out_ptr,  # [pairs, COLUMNS]
    pairs,
    expert_stride,
    TOP: tl.constexpr,
    GATHERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH_OF: tl.constexpr,
    COLUMN_STRIDE: tl.constexpr,
    DEPTH_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Program (tile of rows of one expert, tile of columns)."""
    number = tl.program_id(0)
    lane = tl.arange(0, EXPERTS_PAD)
    begins = tl.load(starts_ptr + lane, mask=lane < EXPERTS, other=0)
    ends = tl.load(starts_ptr + lane + 1, mask=lane < EXPERTS, other=0)
    tiles = (ends - begins + ROWS - 1) // ROWS
    behind = tl.cumsum(tiles, 0)
    expert = tl.sum((behind <= number).to(tl.int32), 0)
    if expert >= EXPERTS:
        return
    is_own = lane == expert
    first = tl.sum(tl.where(is_own, begins + (number - behind + tiles) * ROWS, 0), 0)
    end = tl.sum(tl.where(is_own, ends, 0), 0)
    place = first + tl.arange(0, ROWS)
    inside = place < end
    pair = tl.load(order_ptr + place, mask=inside, other=0)
    source = (pair // TOP if GATHERS else place).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    real = column < COLUMNS
    depth = tl.arange(0, DEPTH)
    x_at = x_ptr + source[:, None] * DEPTH_OF + depth[None, :]
    weight = weight_ptr + expert.to(tl.int64) * expert_stride
    weight_at = weight + depth[:, None] * DEPTH_STRIDE + column[None, :] * COLUMN_STRIDE
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for begin in range(0, DEPTH_OF, DEPTH):
        if DEPTH_OF % DEPTH == 0:
            x = tl.load(x_at + begin, mask=inside[:, None], other=0.0)
            w = tl.load(weight_at + begin * DEPTH_STRIDE, mask=real[None, :], other=0.0)
        else:
            left = DEPTH_OF - begin
            x = tl.load(x_at + begin, mask=inside[:, None] & (depth[None, :] < left), other=0.0)
            w = tl.load(weight_at + begin * DEPTH_STRIDE, mask=(depth[:, None] < left) & real[None, :], other=0.0)
        sums = tl.dot(x, w, sums, input_precision="ieee")
    # Rounded where the modules round: after the product, after the bias, after the weight of the router.
    kind = out_ptr.dtype.element_ty
    made = sums.to(kind)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * COLUMNS + column, mask=real, other=0.0)
        made = (made.to(tl.float32) + bias[None, :].to(tl.float32)).to(kind)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + pair, mask=inside, other=0.0)
        made = (made.to(tl.float32) * scale[:, None].to(tl.float32)).to(kind)
    target = (place if GATHERS else pair).to(tl.int64)
    tl.store(out_ptr + target[:, None] * COLUMNS + column[None, :], made, mask=inside[:, None] & real[None, :])


def route(expert: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """expert int64 [pairs], each below `num_experts`: the pairs in the order of their experts, int32 [pairs], and where
    the run of each expert begins, int32 [num_experts + 1]."""
    expect("expert", expert, (None,), (torch.int64,), expert.device)
    pairs = len(expert)
    order = torch.empty(pairs, dtype=torch.int32, device=expert.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=expert.device)
    issue(route_kernel, (num_experts + 1,), expert, order, starts, pairs, SPAN=SPAN, num_warps=4)
    return order, starts


def rows_of_tile(each: int, size_bytes: int) -> int:
    """How many rows of an expert are multiplied at once, of `each` for each: a high tile would be mostly empty."""
    return 16 if each <= 32 else 64 if each <= 128 or size_bytes == 4 else 128


def grouped_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    order: torch.Tensor,
    starts: torch.Tensor,
    *,
    top: int,
    gathers: bool,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows times `weight` [experts, columns, depth] of each one's expert, plus `bias` [experts, columns]; [pairs,
    columns].

    If it `gathers`, x [tokens, depth] has a row for `top` pairs each and the result is in the order of experts;
    otherwise x [pairs, depth] is in that order, and the result in that of the pairs, times `scale` [pairs]."""
    experts, columns, depth = weight.shape
    pairs, device = len(order), x.device
    expect("x", x, (pairs // top if gathers else pairs, depth), FLOATS, device)
    if weight.dtype != x.dtype or weight.device != device:
        raise ValueError(f"weight must be {x.dtype} on {device}, got {weight.dtype} on {weight.device}")
    expect("starts", starts, (experts + 1,), (torch.int32,), device)
    for name, tensor, shape in (("bias", bias, (experts, columns)), ("scale", scale, (pairs,))):
        if tensor is not None:
            expect(name, tensor, shape, FLOATS, device)
            if not tensor.is_contiguous():
                raise ValueError(f"{name} must be dense, got strides {tensor.stride()}")
    if not x.is_contiguous():
        raise ValueError(f"x must be dense, got strides {x.stride()}")
    out = torch.empty((pairs, columns), dtype=x.dtype, device=device)
    if pairs == 0:
        return out
    rows = rows_of_tile(pairs // experts, x.element_size())
    width, span, warps, stages = CUTS[rows, x.element_size()]
    # A run that is no multiple has a tile that is not full.
    tiles = triton.cdiv(pairs, rows) + min(experts, pairs)
    issue(
        grouped_kernel, (tiles, triton.cdiv(columns, width)),
        x, weight, bias if bias is not None else x, scale if scale is not None else x, order, starts, out,
        pairs, weight.stride(0),
        TOP=top, GATHERS=gathers, HAS_BIAS=bias is not None, HAS_SCALE=scale is not None,
        EXPERTS=experts, EXPERTS_PAD=triton.next_power_of_2(experts), COLUMNS=columns, DEPTH_OF=depth,
        COLUMN_STRIDE=weight.stride(1), DEPTH_STRIDE=weight.stride(2),
        ROWS=rows, WIDTH=width, DEPTH=span, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def warm_up(weight: torch.Tensor, *, top: int, gathers: bool, bias: torch.Tensor | None = None) -> None:
    """Compiles a product for every height of its tiles."""
    experts, _, depth = weight.shape
    for each in (1, 33, 129):
        tokens = -(-each * experts // top)
        expert = torch.arange(tokens * top, device=weight.device) % experts
        order, starts = route(expert, experts)
        x = torch.zeros((tokens if gathers else tokens * top, depth), dtype=weight.dtype, device=weight.device)
        scale = None if gathers else x.new_zeros(tokens * top)
        grouped_product(x, weight, order, starts, top=top, gathers=gathers, bias=bias, scale=scale)
    device_of(weight.device).wait()
