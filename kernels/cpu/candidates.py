"""A draw from many: top-p over a whole vocabulary, a large top-k, min-p or none. Called per row by `sampling.py`.

What can be left out is left out before anything else is done: the tokens that may matter are put side by side, and
weights, the search for the cut and the race look at these alone. The cut is found by halving the range of values, in
ever fewer tokens. No row is sorted.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from kernels.cpu.inner import inner
from kernels.cpu.noise import exp_of_negative, order_of_bits, race, value_of_order
from kernels.cpu.ranking import (
    BLOCK,
    LEAST_FINITE,
    MAGNITUDE,
    first_equal,
    kth_largest,
    packed,
    put_between,
    put_highest_first,
)
from kernels.sampling import MASS_SLACK

NARROW: Final = 64
"""Tokens between two cuts that are few enough to be ordered one by one."""
_SHRINK: Final = 3
"""The search goes on in a copy when so few of the tokens, one in three, are still between the cuts."""

I32 = np.int32
I64 = np.int64
U32 = np.uint32
F32 = np.float32


@inner
def draw_of_many(order, bound, top, temperature, filters, key, scratch):
    """Returns (id, number kept). bound: all that top-k keeps is at or above it. filters: top-k, top-p, min-p."""
    k, p, least = filters
    ids, values, weights, between, races, ranked, all_ids = scratch
    best, heat = value_of_order(top), F32(1.0) / temperature
    low, total = max(bound, LEAST_FINITE), 0.0
    if 0 < k < order.size:
        count = put_between(all_ids, order, low, top, ids, values)
        low = max(kth_largest(values[:count], k, top), low)
    elif p < 1.0:
        total = mass_of_all(order, low, best, heat, weights)
        # All tokens lighter than this weigh, together, less than what may be left out.
        low = max(order_at(best, temperature, (1.0 - p) * total / order.size * 0.99), low)
    elif least > 0.0:
        low = max(order_at(best, temperature, np.float64(least) * 0.99), low)
    else:
        put_weights(order, best, heat, weights)
        return run_races(all_ids, order, weights, races, low, I64(0), least, key)
    count = put_between(all_ids, order, low, top, ids, values)
    ids, values, weights = ids[:count], values[:count], weights[:count]
    put_weights(values, best, heat, weights)
    cut, cut_id = low, I64(0)
    if p < 1.0:
        total = total if total > 0.0 else total_of(weights)
        cut, cut_id = cut_of_mass(ids, values, weights, between, ranked, low, best, heat, total * (p - MASS_SLACK))
        count = put_between(ids, values, cut, top, ids, values)
        ids, values = ids[:count], values[:count]
        put_weights(values, best, heat, weights)
    return run_races(ids, values, weights, races, cut, cut_id, least, key)


@inner
def order_at(best, temperature, weight):
    """A value, in the order of values, at which a token surely weighs no more than this, though fp32 rounds."""
    value = np.float64(best) + np.float64(temperature) * math.log(max(weight, 1e-37))
    value -= (abs(np.float64(best)) + abs(value)) * 2.5e-7
    return order_of_bits(F32(value).view(I32))


@inner
def put_weights(values, best, heat, weights):
    for i in range(values.size):
        weights[i] = exp_of_negative((value_of_order(values[i]) - best) * heat)


@inner(fastmath={"reassoc", "nsz"})
def total_of(weights):
    total = np.float64(0.0)
    for i in range(weights.size):
        total += weights[i]
    return total


@inner
def mass_of_all(order, floor, best, heat, scratch):
    """Sum of the weights at or above the floor, block by block, for which one block of scratch is enough."""
    heavy = scratch[:BLOCK]
    total = 0.0
    for start in range(0, order.size, BLOCK):
        block = order[start : start + BLOCK]
        for i in range(block.size):
            weight = exp_of_negative((value_of_order(block[i]) - best) * heat)
            heavy[i] = weight if block[i] >= floor else F32(0.0)
        total += total_of(heavy[: block.size])
    return total


@inner(fastmath={"reassoc", "nsz"})
def mass_from(values, weights, cut):
    """Sum of the weights at or above the cut, and their number. The compiler may choose the order of the terms."""
    mass = np.float64(0.0)
    count = I32(0)
    for i in range(values.size):
        above = values[i] >= cut
        mass += weights[i] if above else F32(0.0)
        count += I32(above)
    return mass, I64(count)


@inner
def cut_of_mass(ids, values, weights, between, ranked, low, best, heat, target):
    """The cut (value, id) from which upwards the first tokens stand that weigh as much as the target."""
    low, high, above = I64(low), I64(order_of_bits(F32(best).view(I32))) + 1, 0.0
    # Of all tokens at hand, those at or above `low` and those at or above `high`.
    num_low, num_high = I64(values.size), I64(0)
    # What the tokens weigh that are above all of those at hand.
    gone = 0.0
    between_ids, between_values, between_weights = between
    while num_low - num_high > NARROW and high - low > 1:
        # Halving values is faster than halving their bits, until the two come so close that fp32 has none between.
        half = F32(0.5) * value_of_order(I32(low)) + F32(0.5) * value_of_order(I32(high - 1))
        middle = I64(order_of_bits(F32(half).view(I32)))
        if not low < middle < high:
            middle = (low + high) >> 1
        mass, count = mass_from(values, weights, I32(middle))
        if gone + mass >= target:
            low, num_low = middle, count
        else:
            high, num_high, above = middle, count, gone + mass
        if (num_low - num_high) * _SHRINK < values.size:
            count = put_between(ids, values, low, high - 1, between_ids, between_values)
            ids, values, weights = between_ids[:count], between_values[:count], between_weights[:count]
            put_weights(values, best, heat, weights)
            num_low, num_high, gone = count, I64(0), above
    return last_needed(ids, values, weights, ranked, low, high, above, target)


@inner
def last_needed(ids, values, weights, ranked, low, high, above, target):
    """The first token, from the highest down in [low, high), with which the mass `above` grows to the target."""
    if high - low == 1:
        # All of them are equal: ids from the highest down.
        for i in range(values.size - 1, -1, -1):
            if values[i] == low:
                above += weights[i]
                if above >= target:
                    return I32(low), I64(ids[i])
        return I32(low), I64(0)
    count = 0
    for i in range(values.size):
        if values[i] >= low and values[i] < high:
            # Places are in the order of ids.
            ranked[count] = packed(values[i], i)
            count += 1
    put_highest_first(ranked[:count])
    for rank in range(count):
        at = ranked[rank] & I64(0xFFFFFFFF)
        above += weights[at]
        if above >= target:
            return I32(ranked[rank] >> 32), I64(ids[at])
    return I32(low), I64(0)


@inner
def run_races(ids, values, weights, races, cut, cut_id, least, key):
    """The winner among the tokens from the cut upwards, and how many there are. races: scratch for one block."""
    first, second = key
    cut_id = I32(cut_id)
    number = I64(0)
    winner = I64(-1)
    shortest = I32(MAGNITUDE)
    for start in range(0, ids.size, BLOCK):
        tokens, block = ids[start : start + BLOCK], values[start : start + BLOCK]
        heavy = weights[start : start + BLOCK]
        count = I32(0)
        best = I32(MAGNITUDE)
        for i in range(block.size):
            above = (block[i] > cut) | ((block[i] == cut) & (tokens[i] >= cut_id))
            keep = above & (heavy[i] >= least)
            # The bits of positive values are in the order of values.
            bits = F32(race(U32(tokens[i]), heavy[i], first, second)).view(I32)
            time = bits if keep else I32(MAGNITUDE)
            races[i] = time
            count += I32(keep)
            best = min(best, time)
        number += count
        if best < shortest:
            shortest = best
            winner = I64(tokens[first_equal(races, best)])
    return winner, number
