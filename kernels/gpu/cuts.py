"""Where the cut of a row lies that top-k and top-p leave: what stands above each of some cuts, and between which two of
them it is therefore.

The kernels of `race.py` are made of these. Sums are added up in a fixed order, so that a cut is the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.halving import INFINITY, LEAST_FINITE, MASS_SLACK
from kernels.gpu.noise import order_of_value, value_of_order

# Cuts that are tried in one pass, tokens that are listed of a row at most, and programs that share a row at most.
NUM_CUTS, NUM_LISTED, MOST_PARTS = 32, 4096, 64
# Tokens lighter than e to the minus this, beside the best, are together less than what rounding loses.
FAINT = 32.0

_CUTS = tl.constexpr(NUM_CUTS)
_LISTED = tl.constexpr(NUM_LISTED)
_PARTS = tl.constexpr(MOST_PARTS)
_FAINT = tl.constexpr(FAINT)


@triton.jit
def setting_of(settings_ptr, rows, row):
    """Temperature, top_p and top_k of a row; whether it draws, and by what its tokens are chosen."""
    temperature = tl.load(settings_ptr + row).to(tl.float32, bitcast=True)
    top_p = tl.load(settings_ptr + rows + row).to(tl.float32, bitcast=True)
    top_k = tl.load(settings_ptr + 3 * rows + row)
    return temperature, top_p, top_k


@triton.jit
def ends_of(tops_ptr, lows_ptr, row, parts):
    """The best value of a row, and its lowest finite one."""
    part = tl.arange(0, _PARTS)
    best = tl.max(tl.load(tops_ptr + row * parts + part, mask=part < parts, other=-INFINITY), 0)
    low = tl.min(tl.load(lows_ptr + row * parts + part, mask=part < parts, other=INFINITY), 0)
    return best, low


@triton.jit
def cuts_between(first, low, high):
    """Orders of cuts: the first as it is, the others evenly between two values."""
    at = tl.arange(0, _CUTS)
    order = order_of_value(low + (high - low) * (at.to(tl.float32) / _CUTS))
    return tl.where(at == 0, first, tl.maximum(order, first))


@triton.jit
def weigh(ptr, first, end, cuts, best, heat, SPAN: tl.constexpr):
    """How many of ptr[first:end] stand at or above each cut, and what they weigh."""
    lanes = tl.arange(0, SPAN)
    counts = tl.zeros([SPAN, _CUTS], tl.int32)
    masses = tl.zeros([SPAN, _CUTS], tl.float32)
    for start in range(first, end, SPAN):
        at = start + lanes
        value = tl.load(ptr + at, mask=at < end, other=-INFINITY).to(tl.float32)
        above = (order_of_value(value)[:, None] >= cuts[None, :]) & (at < end)[:, None]
        counts += above.to(tl.int32)
        masses += tl.where(above, tl.exp((value - best) * heat)[:, None], 0.0)
    return tl.sum(counts, 0), tl.sum(masses, 0)


@triton.jit
def added_up(counts_ptr, masses_ptr, row, parts):
    """What all parts of a row weighed."""
    part = tl.arange(0, _PARTS)
    at = (row * parts + part)[:, None] * _CUTS + tl.arange(0, _CUTS)[None, :]
    mask = (part < parts)[:, None]
    counts = tl.load(counts_ptr + at, mask=mask, other=0)
    masses = tl.load(masses_ptr + at, mask=mask, other=0.0)
    return tl.sum(counts, 0), tl.sum(masses, 0)


@triton.jit
def entry(x, number):
    """x[number]; 0 behind its end."""
    return tl.sum(tl.where(tl.arange(0, _CUTS) == number, x, 0), 0)


@triton.jit
def first_cuts(temperature, top_k, vocabulary, best, low):
    """The cuts of the first weighing."""
    by_count = (top_k > 0) & (top_k < vocabulary)
    low = tl.where(by_count, low, tl.maximum(low, best - _FAINT * temperature))
    return cuts_between(low.to(tl.int32) * 0 + LEAST_FINITE, low, best)


@triton.jit
def narrowed(cuts, counts, masses, top_k, target, by_count):
    """The number of the highest cut that leaves enough."""
    enough = tl.where(by_count, (counts >= top_k).to(tl.int32), (masses >= target).to(tl.int32))
    return tl.maximum(tl.sum(enough, 0) - 1, 0)


@triton.jit
def second_cuts(cuts, number, best, low):
    first = entry(cuts, number)
    start = tl.where(number == 0, low, value_of_order(first))
    end = tl.where(number == _CUTS - 1, best, value_of_order(entry(cuts, number + 1)))
    return cuts_between(first, start, end)


@triton.jit
def bracket_of(settings_ptr, tops_ptr, lows_ptr, counts_ptr, masses_ptr, rows, parts, vocabulary, row):
    """Where the cut of a filtered row lies after both weighings: at `low` or above it and below `high`. How many tokens
    stand at or above each, what those above `high` weigh, and all tokens; the numbers of the cuts in both weighings."""
    temperature, top_p, top_k = setting_of(settings_ptr, rows, row)
    by_count = (top_k > 0) & (top_k < vocabulary)
    best, lowest = ends_of(tops_ptr, lows_ptr, row, parts)
    cuts = first_cuts(temperature, top_k, vocabulary, best, lowest)
    counts, masses = added_up(counts_ptr, masses_ptr, row, parts)
    total = entry(masses, 0)
    target = total * (top_p - MASS_SLACK)
    first = narrowed(cuts, counts, masses, top_k, target, by_count)
    is_last = first == _CUTS - 1
    high = tl.where(is_last, order_of_value(best) + 1, entry(cuts, first + 1))
    num_high = entry(counts, first + 1)
    mass_high = entry(masses, first + 1)
    cuts = second_cuts(cuts, first, best, lowest)
    counts, masses = added_up(counts_ptr + rows * parts * _CUTS, masses_ptr + rows * parts * _CUTS, row, parts)
    second = narrowed(cuts, counts, masses, top_k, target, by_count)
    low = entry(cuts, second)
    num_low = entry(counts, second)
    if second < _CUTS - 1:
        high = entry(cuts, second + 1)
        num_high = entry(counts, second + 1)
        mass_high = entry(masses, second + 1)
    return low, high, num_low, num_high, mass_high, total, first, second


@triton.jit
def way_of(num_low, num_high, by_count, top_p):
    """2: everything at or above the bracket is listed; 1: what is in it, what is above is surely kept; 0: too many."""
    boundary = (num_low - num_high <= _LISTED) & ((by_count == 0) | (top_p >= 1.0))
    return tl.where(num_low <= _LISTED, 2, boundary.to(tl.int32))


@triton.jit
def sharpened(ptr, num, low, high, num_low, num_high, mass_high, wanted, by_count, best, heat, SPAN: tl.constexpr):
    """The cut among ptr[:num], between `low` and `high`, above which enough is left: `wanted` tokens, or that weight.
    Returns it, the next higher one, which leaves too little, and what stands at or above each."""
    low = low.to(tl.int64)
    high = high.to(tl.int64)
    base_num = num_high
    base_mass = mass_high
    lanes = tl.arange(0, _CUTS)
    while (high - low > 1) & (num_low - num_high > 1):
        step = (high - low + _CUTS - 1) // _CUTS
        cuts = tl.minimum(low + step * lanes, high)
        counts, masses = weigh(ptr, 0, num, cuts.to(tl.int32), best, heat, SPAN)
        counts += base_num
        masses += base_mass
        enough = tl.where(by_count, (counts >= wanted).to(tl.int32), (masses >= wanted).to(tl.int32))
        number = tl.maximum(tl.sum((enough > 0).to(tl.int32) * (cuts < high).to(tl.int32), 0) - 1, 0)
        num_low = entry(counts, number)
        low = low + step * number
        if low + step < high:
            high = low + step
            num_high = entry(counts, number + 1)
            mass_high = entry(masses, number + 1)
    return low.to(tl.int32), high.to(tl.int32), num_low, num_high, mass_high


@triton.jit
def enough_equals(values_ptr, tokens_ptr, num, order, needed, vocabulary, SPAN: tl.constexpr):
    """The id from which on so many of the listed tokens have this order."""
    lanes = tl.arange(0, SPAN)
    first_id = vocabulary * 0
    end = vocabulary
    while end - first_id > 1:
        half = (first_id + end) >> 1
        count = tl.zeros([SPAN], tl.int32)
        for start in range(0, num, SPAN):
            at = start + lanes
            value = tl.load(values_ptr + at, mask=at < num, other=-INFINITY)
            token = tl.load(tokens_ptr + at, mask=at < num, other=-1)
            count += ((order_of_value(value) == order) & (token >= half)).to(tl.int32)
        reached = tl.sum(count, 0) >= needed
        first_id = tl.where(reached, half, first_id)
        end = tl.where(reached, end, half)
    return first_id
