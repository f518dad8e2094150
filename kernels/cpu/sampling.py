"""Filters and draw on the CPU, one row of logits after another, each with settings of its own; twin of `sampling.py`.

The kept tokens of a row are always its first ones in the order (value, id), highest first, so the filters come down to
one cut. With a small top-k the cut is found among few candidates, which the maxima of interleaved groups point out;
otherwise by halving the range of values, each pass being vector code over a row that lies in the cache. No row is
sorted. Rows are independent, the lock of the interpreter is let go, so the caller may split rows among threads.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numba import njit

from kernels.cpu.noise import exp_of_negative, order_of_bits, race, value_of_order
from kernels.sampling import MASS_SLACK, MIN_TEMPERATURE, DrawSettings

GROUP: Final = 16
"""Tokens in a group; token i belongs to group i % (number of groups)."""
FEW: Final = 256
"""The largest top-k for which candidates are gathered."""
ROOM: Final = 1024
"""Candidates that may come of it when values are equal; with more the other way is taken."""
NARROW: Final = 64
"""Tokens between two cuts that are few enough to be ordered one by one."""

I32 = np.int32
I64 = np.int64
U64 = np.uint64
U32 = np.uint32
F32 = np.float32
_LOWEST = I32(-(2**31))
_MAGNITUDE = I32(0x7FFFFFFF)
_INFINITE = I32(0x7F800000)
# In the order of values: minus infinity, which is how a token is banned, comes just before this.
_LEAST_FINITE = I32(-0x7F800000)
_MIN_TEMPERATURE = F32(MIN_TEMPERATURE)
_BLOCK = 256


class CpuDraw:
    """Draws for batches of up to `max_rows` over one vocabulary. Owns the scratch memory, so one thread at a time."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        padded = -(-vocab_size // GROUP) * GROUP
        self.vocab_size = vocab_size
        self._order = np.full(padded, _LOWEST, np.int32)
        self._weights = np.zeros(padded, np.float32)
        self._races = np.zeros(_BLOCK, np.int32)
        self._groups = np.zeros(padded // GROUP, np.int32)
        self._candidates = np.zeros(ROOM, np.int64)
        self.num_kept = np.zeros(max_rows, np.int32)
        """Tokens that survived the filters, per row of the last draw; 1 where the row was greedy."""

    def draw(self, logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 [rows] and broken bool [rows], as `sampling.draw`; logits fp32 or bf16 [rows, vocabulary]."""
        rows, vocabulary = logits.shape
        assert vocabulary == self.vocab_size and rows <= self.num_kept.size, (logits.shape, self.num_kept.size)
        if logits.dtype == torch.bfloat16:
            bits, shift = logits.contiguous().view(torch.uint16).numpy(), 16
        else:
            bits, shift = logits.float().contiguous().view(torch.int32).numpy(), 0
        ids = np.empty(rows, np.int64)
        broken = np.empty(rows, np.bool_)
        draw_rows(
            bits,
            shift,
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.min_p,
            settings.keys,
            (self._order, self._weights, self._races, self._groups, self._candidates),
            (ids, broken, self.num_kept),
        )
        return torch.from_numpy(ids), torch.from_numpy(broken)

    def best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `draw` gives where every row is greedy, without settings or scratch."""
        if logits.dtype != torch.float32 or not logits.is_contiguous():
            logits = logits.float().contiguous()
        ids = np.empty(len(logits), np.int64)
        broken = np.empty(len(logits), np.bool_)
        best_of_rows(logits.numpy(), ids, broken)
        return torch.from_numpy(ids), torch.from_numpy(broken)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compiles, or loads from the cache, what logits of this type need."""
        one = np.ones(1, np.float32)
        off = DrawSettings(one, np.zeros(1, np.int32), one, one * 0, np.zeros(1, np.uint64))
        logits = torch.zeros(1, self.vocab_size, dtype=dtype)
        self.draw(logits, off)
        self.best(logits)


@njit(error_model="numpy", nogil=True, cache=True)
def draw_rows(bits, shift, temperature, top_k, top_p, min_p, keys, scratch, out):
    """Draws row by row. bits: int32 of fp32 with shift 0, or uint16 of bf16 with shift 16, [rows, vocabulary]."""
    order, weights, races, groups, candidates = scratch
    ids, broken, num_kept = out
    vocabulary = bits.shape[1]
    shift = I32(shift)
    for row in range(bits.shape[0]):
        top, magnitude = put_in_order(bits[row], shift, order)
        broken[row] = magnitude > _INFINITE or top >= _INFINITE or top < _LEAST_FINITE
        num_kept[row] = 1
        if broken[row]:
            ids[row] = 0
            continue
        if temperature[row] < _MIN_TEMPERATURE:
            ids[row] = first_equal(order, top)
            continue
        first, second = U32(keys[row] & U64(0xFFFFFFFF)), U32(keys[row] >> U64(32))
        heat = F32(1.0) / temperature[row]
        k, p, least = I64(top_k[row]), np.float64(top_p[row]), min_p[row]
        if k > 0 and k <= min(FEW, groups.size // 2):
            found, number = draw_of_few(order, groups, candidates, top, heat, k, p, least, first, second)
            if found >= 0:
                ids[row], num_kept[row] = found, number
                continue
        tokens = order[:vocabulary]
        put_weights(tokens, value_of_order(top), heat, weights)
        cut, cut_id = cut_of_many(tokens, weights, candidates, top, temperature[row], k, p)
        ids[row], num_kept[row] = run_races(tokens, weights, races, cut, cut_id, least, first, second)


@njit(error_model="numpy", nogil=True, cache=True)
def best_of_rows(logits, ids, broken):
    """The lowest id of the largest logit of each row; broken where a row has no finite best or holds a NaN."""
    for row in range(logits.shape[0]):
        values = logits[row]
        # In integers, because a maximum of floats is not made vector code.
        top = _LOWEST
        magnitude = I32(0)
        for i in range(values.size):
            b = F32(values[i] + F32(0.0)).view(I32)
            top = max(top, order_of_bits(b))
            magnitude = max(magnitude, I32(b & _MAGNITUDE))
        broken[row] = magnitude > _INFINITE or top >= _INFINITE or top < _LEAST_FINITE
        ids[row] = 0 if broken[row] else first_equal(values, value_of_order(top))


@njit(error_model="numpy", nogil=True, cache=True)
def put_in_order(bits, shift, order):
    """Fills `order`; returns its maximum and the largest magnitude, which is above infinity if there is a NaN."""
    top = _LOWEST
    magnitude = I32(0)
    for i in range(bits.size):
        # Minus zero plus zero is zero, which makes equals of the two.
        b = F32(I32(I32(bits[i]) << shift).view(F32) + F32(0.0)).view(I32)
        o = order_of_bits(b)
        order[i] = o
        top = max(top, o)
        magnitude = max(magnitude, I32(b & _MAGNITUDE))
    return top, magnitude


@njit(error_model="numpy", nogil=True, cache=True)
def first_equal(values, value):
    """The lowest index at which `value` stands; it must be there."""
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        there = False
        for i in range(block.size):
            there |= block[i] == value
        if there:
            for i in range(block.size):
                if block[i] == value:
                    return start + i
    return -1


@njit(error_model="numpy", nogil=True, cache=True)
def count_from(order, cut):
    count = I32(0)
    for i in range(order.size):
        count += I32(order[i] >= cut)
    return count


@njit(error_model="numpy", nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def mass_from(order, weights, cut):
    """Sum of the weights at or above the cut, and their number. The compiler may choose the order of the terms."""
    mass = np.float64(0.0)
    count = I32(0)
    for i in range(order.size):
        above = order[i] >= cut
        mass += weights[i] if above else F32(0.0)
        count += I32(above)
    return mass, I64(count)


@njit(error_model="numpy", nogil=True, cache=True)
def kth_largest(order, k, top):
    """The highest cut that at least k values reach."""
    low, high = I64(_LOWEST), I64(top) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if count_from(order, I32(middle)) >= k:
            low = middle
        else:
            high = middle
    return I32(low)


@njit(error_model="numpy", nogil=True, cache=True)
def put_weights(order, best, heat, weights):
    for i in range(order.size):
        weights[i] = exp_of_negative((value_of_order(order[i]) - best) * heat)


@njit(error_model="numpy", nogil=True, cache=True)
def packed(order, token):
    """One integer in the order (value, id)."""
    return (I64(order) << 32) | I64(token)


@njit(error_model="numpy", nogil=True, cache=True)
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


@njit(error_model="numpy", nogil=True, cache=True)
def draw_of_few(order, groups, candidates, top, heat, k, p, least, first, second):
    """Draw with a small top-k. Returns (id, number kept), or (-1, 0) when equal values leave too many candidates."""
    size = groups.size
    for c in range(size):
        groups[c] = _LOWEST
    for j in range(GROUP):
        members = order[j * size : (j + 1) * size]
        for c in range(size):
            groups[c] = max(groups[c], members[c])
    # k groups have a maximum at or above this, so the k largest values are there too.
    bound = max(kth_largest(groups, k, top), _LEAST_FINITE)
    count = 0
    for c in range(size):
        if groups[c] >= bound:
            for i in range(c, order.size, size):
                if order[i] >= bound:
                    if count == candidates.size:
                        return I64(-1), 0
                    candidates[count] = packed(order[i], i)
                    count += 1
    ranked = candidates[:count]
    put_highest_first(ranked)
    count = min(k, ranked.size)
    last = ranked[count - 1] >> 32
    while count < ranked.size and (ranked[count] >> 32) == last:
        count += 1
    best = value_of_order(top)
    total = 0.0
    for rank in range(count):
        total += exp_of_negative((value_of_order(I32(ranked[rank] >> 32)) - best) * heat)
    target = total * (p - MASS_SLACK) if p < 1.0 else np.inf
    mass = 0.0
    number = 0
    winner = I64(-1)
    shortest = F32(np.inf)
    while number < count and (mass < target or number == 0):
        token = ranked[number] & I64(0xFFFFFFFF)
        weight = exp_of_negative((value_of_order(I32(ranked[number] >> 32)) - best) * heat)
        if weight < least:
            break
        mass += weight
        number += 1
        time = race(token, weight, first, second)
        if time < shortest or (time == shortest and token < winner):
            shortest, winner = time, token
    return winner, number


@njit(error_model="numpy", nogil=True, cache=True)
def cut_of_many(order, weights, candidates, top, temperature, k, p):
    """The cut (order, id) that top-k and top-p leave: a token is kept from there upwards."""
    floor = _LEAST_FINITE
    if 0 < k < order.size:
        floor = max(kth_largest(order, k, top), _LEAST_FINITE)
    if p >= 1.0:
        return floor, I64(0)
    total, num_low = mass_from(order, weights, floor)
    target = total * (p - MASS_SLACK)
    # All tokens lighter than this weigh, together, less than what may be left out.
    lightest = max((1.0 - p) * total / order.size * 0.99, 1e-37)
    start = F32(np.float64(value_of_order(top)) + np.float64(temperature) * math.log(lightest))
    low = max(order_of_bits(F32(start).view(I32)), floor)
    mass, count = mass_from(order, weights, low)
    low, num_low = (I64(low), count) if mass >= target else (I64(floor), num_low)
    high, num_high, above = I64(top) + 1, I64(0), 0.0
    while num_low - num_high > NARROW and high - low > 1:
        # Halving values is faster than halving their bits, until the two come so close that fp32 has none between.
        half = F32(0.5) * value_of_order(I32(low)) + F32(0.5) * value_of_order(I32(high - 1))
        middle = I64(order_of_bits(F32(half).view(I32)))
        if not low < middle < high:
            middle = (low + high) >> 1
        mass, count = mass_from(order, weights, I32(middle))
        if mass >= target:
            low, num_low = middle, count
        else:
            high, num_high, above = middle, count, mass
    return last_needed(order, weights, candidates, I32(low), high, above, target)


@njit(error_model="numpy", nogil=True, cache=True)
def last_needed(order, weights, candidates, low, high, above, target):
    """The first token, from the highest down in [low, high), with which the mass `above` grows to the target."""
    if high - low == 1:
        # All of them are equal: ids from the highest down.
        for i in range(order.size - 1, -1, -1):
            if order[i] == low:
                above += weights[i]
                if above >= target:
                    return low, I64(i)
        return low, I64(0)
    count = 0
    for start in range(0, order.size, NARROW):
        block = order[start : start + NARROW]
        there = False
        for i in range(block.size):
            there |= block[i] >= low and block[i] < high
        if there:
            for i in range(block.size):
                if block[i] >= low and block[i] < high:
                    candidates[count] = packed(block[i], start + i)
                    count += 1
    ranked = candidates[:count]
    put_highest_first(ranked)
    for rank in range(count):
        token = ranked[rank] & I64(0xFFFFFFFF)
        above += weights[token]
        if above >= target:
            return I32(ranked[rank] >> 32), token
    return low, I64(0)


@njit(error_model="numpy", nogil=True, cache=True)
def run_races(order, weights, races, cut, cut_id, least, first, second):
    """The winner among the tokens from the cut upwards, and how many there are. races: scratch for one block."""
    cut_id = I32(cut_id)
    number = I64(0)
    winner = I64(-1)
    shortest = I32(_MAGNITUDE)
    for start in range(0, order.size, _BLOCK):
        block = order[start : start + _BLOCK]
        heavy = weights[start : start + _BLOCK]
        there = False
        for i in range(block.size):
            there |= block[i] >= cut
        if not there:
            continue
        token = I32(start)
        count = I32(0)
        best = I32(_MAGNITUDE)
        for i in range(block.size):
            above = (block[i] > cut) | ((block[i] == cut) & (I32(token + I32(i)) >= cut_id))
            keep = above & (heavy[i] >= least)
            # The bits of positive values are in the order of values.
            bits = F32(race(U32(token + I32(i)), heavy[i], first, second)).view(I32)
            time = bits if keep else I32(_MAGNITUDE)
            races[i] = time
            count += I32(keep)
            best = min(best, time)
        number += count
        if best < shortest:
            shortest = best
            winner = I64(start) + first_equal(races, best)
    return winner, number
