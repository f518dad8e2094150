"""The cut of a row by halving the range of its values, one pass over the vocabulary for each: the way for rows that
`sampling.py` can't narrow to few tokens, because thousands of them are equal or wanted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.noise import order_of_value, value_of_order
from kernels.sampling import MASS_SLACK as _MASS_SLACK

MASS_SLACK = tl.constexpr(_MASS_SLACK)
INFINITY = tl.constexpr(float("inf"))
# In the order of values: minus infinity comes just before this.
LEAST_FINITE = tl.constexpr(-0x7F800000)


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
