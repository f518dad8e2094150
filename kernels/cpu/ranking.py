"""Order among the tokens of one row: the k-th largest, the first of equals, a sort of a few. Called by the CPU draw.

Values come as integers in the order of values (`noise.order_of_bits`). All loops but the sort are vector code. Nothing
here knows of temperatures, filters or noise.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kernels.cpu.inner import inner
from kernels.cpu.shapes import LANES
from kernels.cpu.words import keep_lanes

I32 = np.int32
I64 = np.int64
LOWEST = I32(-(2**31))
MAGNITUDE = I32(0x7FFFFFFF)
INFINITE = I32(0x7F800000)
# In the order of values: minus infinity, which is how a token is banned, comes just before this.
LEAST_FINITE = I32(-0x7F800000)
BLOCK: Final = 256


@inner
def first_equal(values, value):
    """The lowest index at which `value` stands; it must be there."""
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        there = False
        for i in range(block.size):
            there |= block[i] == value
        if there:
            for i in range(block.size):
                if block[i] == value:
                    return start + i
    return -1


@inner
def count_from(order, cut):
    count = I32(0)
    for i in range(order.size):
        count += I32(order[i] >= cut)
    return count


@inner
def kth_largest(order, k, top):
    """The highest cut that at least k values reach."""
    low, high = I64(LOWEST), I64(top) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if count_from(order, I32(middle)) >= k:
            low = middle
        else:
            high = middle
    return I32(low)


@inner
def packed(order, token):
    """One integer in the order (value, id)."""
    return (I64(order) << 32) | I64(token)


@inner
def put_highest_first(values):
    """Sorts a few dozen integers in place; numpy's sort would cost seconds of compile time."""
    gap = 1
    while gap * 3 < values.size:
        gap = gap * 3 + 1
    while gap > 0:
        for i in range(gap, values.size):
            value = values[i]
            at = i
            while at >= gap and values[at - gap] < value:
                values[at] = values[at - gap]
                at -= gap
            values[at] = value
        gap //= 3


@inner
def put_between(ids, values, low, last, to_ids, to_values):
    """Copies ids and values of all whose value lies in low..last, in their order; returns how many. It may be done in
    place; the targets have LANES more places than there are values."""
    low, last = I32(low), I32(last)
    count = I64(0)
    whole = values.size // LANES * LANES
    from_ids, from_values = I64(ids.ctypes.data), I64(values.ctypes.data)
    ids_at, values_at = I64(to_ids.ctypes.data), I64(to_values.ctypes.data)
    for at in range(0, whole, LANES):
        count += keep_lanes(from_ids, from_values, I64(at), low, last, ids_at + 4 * count, values_at + 4 * count)
    for i in range(whole, values.size):
        if low <= values[i] <= last:
            to_ids[count], to_values[count] = ids[i], values[i]
            count += I64(1)
    return count
