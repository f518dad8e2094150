"""Filters and draw on a GPU: one program per row of logits, one launch for a batch, nothing for the host to wait for.

Twin of `cpu/sampling.py`, and the tokens are those of `sampling.py` but where sums round to another side of a cut. A
row is read again for every halving of the range in which its cut lies; rows stay in the cache of the device, so that a
pass costs microseconds. The worker's sampler calls `draw`.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from kernels import sampling
from kernels.gpu.launch import issue
from kernels.noise import LARGEST as _LARGEST
from kernels.noise import ROUND_1 as _ROUND_1
from kernels.noise import ROUND_2 as _ROUND_2
from kernels.noise import ROUND_3 as _ROUND_3
from kernels.noise import SCALE as _SCALE
from kernels.noise import SPREAD as _SPREAD
from kernels.sampling import MASS_SLACK as _MASS_SLACK
from kernels.sampling import MIN_TEMPERATURE as _MIN_TEMPERATURE
from kernels.sampling import DrawSettings

LARGEST = tl.constexpr(_LARGEST)
ROUND_1 = tl.constexpr(_ROUND_1)
ROUND_2 = tl.constexpr(_ROUND_2)
ROUND_3 = tl.constexpr(_ROUND_3)
SCALE = tl.constexpr(_SCALE)
SPREAD = tl.constexpr(_SPREAD)
MASS_SLACK = tl.constexpr(_MASS_SLACK)
MIN_TEMPERATURE = tl.constexpr(_MIN_TEMPERATURE)
INFINITY = tl.constexpr(float("inf"))
# In the order of values: minus infinity comes just before this.
LEAST_FINITE = tl.constexpr(-0x7F800000)

BLOCK = 4096
WARPS = 8


@triton.jit
def order_of_value(value):
    """Integers in the order of fp32 values; zero has one only."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of_order(order):
    order = order.to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def middle_of(low, high):
    """A cut between two: halving values is faster than halving their bits, as long as fp32 has one between."""
    half = 0.5 * value_of_order(low) + 0.5 * value_of_order(high - 1)
    middle = order_of_value(half).to(tl.int64)
    usable = (half == half) & (middle > low) & (middle < high)
    return tl.where(usable, middle, (low + high) >> 1)


@triton.jit
def mass_from(row_ptr, vocabulary, cut, best, heat, BLOCK: tl.constexpr):
    """Sum of the weights at or above the cut, and their number."""
    lanes = tl.arange(0, BLOCK)
    mass = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        token = start + lanes
        value = tl.load(row_ptr + token, mask=token < vocabulary, other=-INFINITY).to(tl.float32)
        above = (order_of_value(value) >= cut) & (token < vocabulary)
        mass += tl.where(above, tl.exp((value - best) * heat), 0.0)
        count += above.to(tl.int32)
    return tl.sum(mass, 0), tl.sum(count, 0)


@triton.jit
def equals_from(row_ptr, vocabulary, order, first, BLOCK: tl.constexpr):
    """How many tokens from id `first` on have the value of this order."""
    lanes = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        token = start + lanes
        value = tl.load(row_ptr + token, mask=token < vocabulary, other=-INFINITY).to(tl.float32)
        count += ((order_of_value(value) == order) & (token >= first) & (token < vocabulary)).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def exponential(token, first, second):
    """The noise of a token, as `noise.token_noise`; the logarithm is a polynomial, for those of a GPU are coarse near
    one, which is where the winners of a race are."""
    x = token.to(tl.uint32) * SPREAD + first
    x = (x ^ (x >> 17)) * ROUND_1
    x = x ^ second
    x = (x ^ (x >> 11)) * ROUND_2
    x = (x ^ (x >> 15)) * ROUND_3
    x = x ^ (x >> 14)
    uniform = tl.minimum((x.to(tl.float32) + 0.5) * SCALE, LARGEST)
    rest = 1.0 - uniform
    bits = rest.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    z = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = 7.0376836292e-2 * z - 1.1514610310e-1
    p = p * z + 1.1676998740e-1
    p = p * z - 1.2420140846e-1
    p = p * z + 1.4249322787e-1
    p = p * z - 1.6668057665e-1
    p = p * z + 2.0000714765e-1
    p = p * z - 2.4999993993e-1
    p = p * z + 3.3333331174e-1
    scale = exponent.to(tl.float32)
    square = z * z
    log = z * square * p - scale * 2.12194440e-4 - 0.5 * square + z + scale * 0.693359375
    # log1p(-u) = log(1 - u) * u / (1 - (1 - u)): what the difference lost is made good.
    lost = 1.0 - rest
    return tl.where(lost == 0.0, uniform, -log * uniform / tl.where(lost == 0.0, 1.0, lost))


@triton.jit
def draw_kernel(
    logits_ptr,  # [rows, vocabulary]
    settings_ptr,  # int32 [6, rows]: bits of temperature, top_p, min_p; top_k; halves of the keys
    ids_ptr,  # int64 [rows]
    broken_ptr,  # int8 [rows]
    rows,
    vocabulary,
    row_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * row_stride
    temperature = tl.load(settings_ptr + row).to(tl.float32, bitcast=True)
    lanes = tl.arange(0, BLOCK)
    tops = tl.full([BLOCK], -INFINITY, tl.float32)
    winners = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    strange = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        token = start + lanes
        value = tl.load(row_ptr + token, mask=token < vocabulary, other=-INFINITY).to(tl.float32)
        strange |= (value != value).to(tl.int32)
        winners = tl.where(value > tops, token, winners)
        tops = tl.where(value > tops, value, tops)
    best = tl.max(tops, 0)
    broken = (tl.max(strange, 0) > 0) | (best == INFINITY) | (best == -INFINITY)
    winner = tl.min(tl.where(tops == best, winners, 0x7FFFFFFF), 0)
    if (not broken) & (temperature >= MIN_TEMPERATURE):
        top_p = tl.load(settings_ptr + rows + row).to(tl.float32, bitcast=True)
        min_p = tl.load(settings_ptr + 2 * rows + row).to(tl.float32, bitcast=True)
        top_k = tl.load(settings_ptr + 3 * rows + row)
        first = tl.load(settings_ptr + 4 * rows + row).to(tl.uint32, bitcast=True)
        second = tl.load(settings_ptr + 5 * rows + row).to(tl.uint32, bitcast=True)
        heat = 1.0 / temperature
        cut, first_id = cut_of_row(row_ptr, vocabulary, best, heat, temperature, top_k, top_p, BLOCK)
        times = tl.full([BLOCK], INFINITY, tl.float32)
        for start in range(0, vocabulary, BLOCK):
            token = start + lanes
            value = tl.load(row_ptr + token, mask=token < vocabulary, other=-INFINITY).to(tl.float32)
            order = order_of_value(value)
            weight = tl.exp((value - best) * heat)
            keep = ((order > cut) | ((order == cut) & (token >= first_id))) & (weight >= min_p) & (weight > 0.0)
            time = exponential(token, first, second) / tl.where(keep, weight, 1.0)
            better = keep & (time < times)
            winners = tl.where(better, token, winners)
            times = tl.where(better, time, times)
        winner = tl.min(tl.where(times == tl.min(times, 0), winners, 0x7FFFFFFF), 0)
    tl.store(ids_ptr + row, tl.where(broken, 0, winner).to(tl.int64))
    tl.store(broken_ptr + row, broken.to(tl.int8))


@triton.jit
def cut_of_row(row_ptr, vocabulary, best, heat, temperature, top_k, top_p, BLOCK: tl.constexpr):
    """The cut (order, id) that top-k and top-p leave: a token is kept from there upwards."""
    top = order_of_value(best).to(tl.int64)
    floor = top * 0 + LEAST_FINITE
    if (top_k > 0) & (top_k < vocabulary):
        high = top + 1
        num_low = vocabulary
        while (high - floor > 1) & (num_low != top_k):
            middle = middle_of(floor, high)
            mass, count = mass_from(row_ptr, vocabulary, middle, best, heat, BLOCK)
            reached = count >= top_k
            floor = tl.where(reached, middle, floor)
            num_low = tl.where(reached, count, num_low)
            high = tl.where(reached, high, middle)
    low = floor
    first_id = 0
    if top_p < 1.0:
        total, num_low = mass_from(row_ptr, vocabulary, floor, best, heat, BLOCK)
        target = total * (top_p - MASS_SLACK)
        # All tokens lighter than this weigh, together, less than what may be left out.
        lightest = tl.maximum((1.0 - top_p) * total / vocabulary * 0.99, 1e-37)
        start = tl.maximum(order_of_value(best + temperature * tl.log(lightest)).to(tl.int64), floor)
        mass, count = mass_from(row_ptr, vocabulary, start, best, heat, BLOCK)
        enough = mass >= target
        low = tl.where(enough, start, floor)
        num_low = tl.where(enough, count, num_low)
        high = top + 1
        num_high = 0
        above = 0.0
        while (high - low > 1) & (num_low - num_high > 1):
            middle = middle_of(low, high)
            mass, count = mass_from(row_ptr, vocabulary, middle, best, heat, BLOCK)
            reached = mass >= target
            low = tl.where(reached, middle, low)
            num_low = tl.where(reached, count, num_low)
            high = tl.where(reached, high, middle)
            num_high = tl.where(reached, num_high, count)
            above = tl.where(reached, above, mass)
        weight = tl.exp((value_of_order(low) - best) * heat)
        needed = tl.maximum(tl.ceil((target - above) / weight), 1.0)
        if (high - low == 1) & (needed < num_low - num_high):
            # Equals at the cut: those of the highest ids, as many as are needed.
            end = vocabulary
            num_first = num_low - num_high
            while (end - first_id > 1) & (num_first > needed):
                half = (first_id + end) >> 1
                count = equals_from(row_ptr, vocabulary, low, half, BLOCK)
                first_id = tl.where(count >= needed, half, first_id)
                num_first = tl.where(count >= needed, count, num_first)
                end = tl.where(count >= needed, end, half)
    return low, first_id


def draw(logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [rows] and broken bool [rows], as `sampling.draw`."""
    if (settings.temperature < _MIN_TEMPERATURE).all():
        return sampling.draw(logits, settings)
    rows, vocabulary = logits.shape
    logits = logits.contiguous()
    packed = np.empty((6, rows), np.int32)
    floats = (settings.temperature, settings.top_p, settings.min_p)
    for at, values in enumerate(floats):
        packed[at] = np.ascontiguousarray(values).view(np.int32)
    packed[3] = settings.top_k
    packed[4] = (settings.keys & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
    packed[5] = (settings.keys >> np.uint64(32)).astype(np.uint32).view(np.int32)
    sent = sampling.send(packed, logits.device)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    broken = torch.empty(rows, dtype=torch.int8, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(vocabulary))
    issue(
        draw_kernel,
        (rows,),
        logits,
        sent,
        ids,
        broken,
        rows,
        vocabulary,
        logits.stride(0),
        BLOCK=block,
        num_warps=WARPS,
    )
    return ids, broken.bool()
