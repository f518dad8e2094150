"""Filters and draw on the CPU, each row of logits with settings of its own; twin of `sampling.py`. The sampler calls
it with logits, and a decoder's program has it as one of its ops.

The kept tokens of a row are always its first ones in the order (value, id), highest first, so the filters come down to
one cut. With a small top-k the cut is found among few candidates, which the maxima of interleaved groups point out;
otherwise `candidates.py` looks for it. Threads of the team that runs products and attention take one row after another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numba import carray, cfunc, njit, types
from numpy.typing import NDArray

from kernels.cpu.call import COUNTER, TICKET, ArgumentList, KernelCall
from kernels.cpu.candidates import draw_of_many
from kernels.cpu.inner import inner
from kernels.cpu.jit import Kernel
from kernels.cpu.noise import exp_of_negative, order_of_bits, race, value_of_order
from kernels.cpu.ranking import (
    BLOCK,
    INFINITE,
    LEAST_FINITE,
    LOWEST,
    MAGNITUDE,
    first_equal,
    kth_largest,
    packed,
    put_highest_first,
)
from kernels.cpu.shapes import LANES
from kernels.cpu.words import fetch_add, memory_at
from kernels.sampling import MASS_SLACK, MIN_TEMPERATURE, DrawSettings

GROUP: Final = 16
"""Tokens in a group; token i belongs to group i % (number of groups)."""
FEW: Final = 256
"""The largest top-k for which candidates are gathered."""
ROOM: Final = 1024
"""Candidates that may come of it when values are equal; with more the other way is taken."""

ARGUMENTS = ArgumentList(
    "rows", "vocabulary", "bits", "temperature", "top_k", "top_p", "min_p", "keys", "ids", "broken", "num_kept",
    "scratch", "scratch_stride", "all_ids", "stride",
)  # fmt: skip
_ROWS, _VOCABULARY, _BITS, _TEMPERATURE, _TOP_K, _TOP_P, _MIN_P = list(ARGUMENTS.offsets.values())[:7]
_KEYS, _IDS, _BROKEN, _NUM_KEPT, _SCRATCH, _SCRATCH_STRIDE, _ALL_IDS, _STRIDE = list(ARGUMENTS.offsets.values())[7:]
_NUM_WORDS: Final = max(ARGUMENTS.offsets.values()) + 1
# Below so many logits a draw stays on its own thread: at half of it another saves 50 us at best, and where the machine
# has other work, waiting for it costs milliseconds.
_MIN_PER_THREAD: Final = 1 << 18

I32 = np.int32
I64 = np.int64
U64 = np.uint64
U32 = np.uint32
F32 = np.float32
_MIN_TEMPERATURE = F32(MIN_TEMPERATURE)


class CpuDraw:
    """Draws for batches of up to `max_rows` over one vocabulary. Owns the scratch memory, so one thread at a time."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.num_kept = np.zeros(max_rows, np.int32)
        """Tokens that survived the filters, per row of the last draw; 1 where the row was greedy."""
        self._scratch = np.zeros((0, _scratch_words(vocab_size)), np.int32)
        self._all_ids = np.arange(_padded(vocab_size), dtype=np.int32)
        self._call = KernelCall(ARGUMENTS)
        self._given: tuple[NDArray[np.generic], ...] = ()

    def draw(self, logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 [rows] and broken bool [rows], as `sampling.draw`; logits fp32 or bf16 [rows, vocabulary]."""
        rows, vocabulary = logits.shape
        assert vocabulary == self.vocab_size and rows <= self.num_kept.size, (logits.shape, self.num_kept.size)
        bits = logits if logits.dtype == torch.bfloat16 else logits.float()
        bits = bits.contiguous()
        ids, broken = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.int64)
        threads = max(1, min(torch.get_num_threads(), rows, rows * vocabulary // _MIN_PER_THREAD))
        assert settings.keys.size == rows, (settings.keys.size, rows)
        self.set(settings, threads, bits.data_ptr(), vocabulary, ids.data_ptr(), broken.data_ptr())
        self._call.run(draw_kernel(bits.dtype == torch.bfloat16), threads)
        return ids, broken.bool()

    def set(self, settings: DrawSettings, num_threads: int, bits: int, stride: int, ids: int, broken: int) -> None:
        """Has the next call draw from logits at the address `bits`, with rows so many elements apart, and write ids and
        broken, int64 [rows], to theirs. A program that runs several steps finds the keys of one behind another's."""
        if len(self._scratch) < num_threads:
            self._scratch = np.zeros((num_threads, self._scratch.shape[1]), np.int32)
        # Whoever is called with addresses sees no types. What is handed over is kept until the next call.
        given = self._given = (
            np.ascontiguousarray(settings.temperature, np.float32),
            np.ascontiguousarray(settings.top_k, np.int32),
            np.ascontiguousarray(settings.top_p, np.float32),
            np.ascontiguousarray(settings.min_p, np.float32),
            np.ascontiguousarray(settings.keys, np.uint64),
        )
        rows = len(given[0])
        assert all(array.shape == (rows,) for array in given[:4]), [array.shape for array in given]
        assert given[4].size >= rows and given[4].size % rows == 0, (given[4].shape, rows)
        temperature, top_k, top_p, min_p, keys = (array.ctypes.data for array in given)
        self._call.set(
            rows=rows, vocabulary=self.vocab_size, bits=bits, stride=stride,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, keys=keys,
            ids=ids, broken=broken, num_kept=self.num_kept.ctypes.data,
            scratch=self._scratch.ctypes.data, scratch_stride=self._scratch.strides[0],
            all_ids=self._all_ids.ctypes.data,
        )  # fmt: skip
        self._call.begin()

    @property
    def arguments(self) -> int:
        """Where the arguments of a call lie."""
        return self._call.address

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


def _padded(vocabulary: int) -> int:
    """Whole groups, and LANES places to write more than there are tokens, at least a block."""
    return max(-(-(vocabulary + LANES) // GROUP) * GROUP, BLOCK)


def _scratch_words(vocabulary: int) -> int:
    """32-bit words that one thread needs: what `draw_rows` cuts up."""
    # The odd lines keep threads off each other's.
    return 8 * _padded(vocabulary) + BLOCK + 2 * ROOM + 32


@lru_cache(maxsize=2)
def draw_kernel(is_bf16: bool) -> Kernel:
    """Compiled, or loaded from the cache, when logits of this type come first."""
    function: Callable[[Any], None] = _draw_bf16 if is_bf16 else _draw_fp32
    compiled = cfunc(types.void(types.voidptr), error_model="numpy", cache=True)(function)
    _kernels.append(compiled)
    return Kernel(function.__name__, compiled.address)


# Machine code goes with its object.
_kernels: list[Any] = []


def _draw_fp32(arguments):
    words = carray(arguments, (_NUM_WORDS,), np.int64)
    shape = (words[_ROWS], words[_STRIDE])
    draw_rows(arguments, carray(memory_at(words[_BITS]), shape, np.int32), 0)


def _draw_bf16(arguments):
    words = carray(arguments, (_NUM_WORDS,), np.int64)
    shape = (words[_ROWS], words[_STRIDE])
    draw_rows(arguments, carray(memory_at(words[_BITS]), shape, np.uint16), 16)


@inner
def draw_rows(arguments, bits, shift):
    """Draws as many rows as this thread gets. bits: int32 of fp32 with shift 0, or uint16 of bf16 with shift 16."""
    words = carray(arguments, (_NUM_WORDS,), np.int64)
    rows, vocabulary = words[_ROWS], words[_VOCABULARY]
    temperature = carray(memory_at(words[_TEMPERATURE]), (rows,), np.float32)
    top_k = carray(memory_at(words[_TOP_K]), (rows,), np.int32)
    top_p = carray(memory_at(words[_TOP_P]), (rows,), np.float32)
    min_p = carray(memory_at(words[_MIN_P]), (rows,), np.float32)
    keys = carray(memory_at(words[_KEYS]), (rows,), np.uint64)
    ids = carray(memory_at(words[_IDS]), (rows,), np.int64)
    broken = carray(memory_at(words[_BROKEN]), (rows,), np.int64)
    num_kept = carray(memory_at(words[_NUM_KEPT]), (rows,), np.int32)
    padded = max(-(-(vocabulary + LANES) // GROUP) * GROUP, BLOCK)
    num_groups = -(-vocabulary // GROUP)
    place = words[_SCRATCH] + fetch_add(arguments, TICKET) * words[_SCRATCH_STRIDE]
    ranked = carray(memory_at(place), (ROOM,), np.int64)
    place += 8 * ROOM
    whole = carray(memory_at(place), (6, padded), np.int32)
    heavy = carray(memory_at(place + 4 * 6 * padded), (2, padded), np.float32)
    races = carray(memory_at(place + 4 * 8 * padded), (BLOCK,), np.int32)
    order = whole[0, : num_groups * GROUP]
    order[vocabulary:] = LOWEST
    all_ids = carray(memory_at(words[_ALL_IDS]), (vocabulary,), np.int32)
    many = (whole[2], whole[3], heavy[0], (whole[4], whole[5], heavy[1]), races, ranked, all_ids)
    shift = I32(shift)
    while True:
        row = fetch_add(arguments, COUNTER)
        if row >= rows:
            return
        top, magnitude = put_in_order(bits[row, :vocabulary], shift, order)
        is_broken = magnitude > INFINITE or top >= INFINITE or top < LEAST_FINITE
        broken[row], num_kept[row] = I64(is_broken), 1
        if is_broken:
            ids[row] = 0
            continue
        if temperature[row] < _MIN_TEMPERATURE:
            ids[row] = first_equal(order, top)
            continue
        key = (U32(keys[row] & U64(0xFFFFFFFF)), U32(keys[row] >> U64(32)))
        filters = (I64(top_k[row]), np.float64(top_p[row]), min_p[row])
        bound = LOWEST
        if 0 < top_k[row] <= num_groups // 2:
            bound = bound_of_groups(order, whole[1, :num_groups], I64(top_k[row]), top)
            if top_k[row] <= FEW:
                heat = F32(1.0) / temperature[row]
                found, number = draw_of_few(order, whole[1, :num_groups], ranked, bound, top, heat, filters, key)
                if found >= 0:
                    ids[row], num_kept[row] = found, number
                    continue
        ids[row], num_kept[row] = draw_of_many(order[:vocabulary], bound, top, temperature[row], filters, key, many)


@njit(error_model="numpy", nogil=True, cache=True)
def best_of_rows(logits, ids, broken):
    """The lowest id of the largest logit of each row; broken where a row has no finite best or holds a NaN."""
    for row in range(logits.shape[0]):
        values = logits[row]
        # In integers, because a maximum of floats is not made vector code.
        top = LOWEST
        magnitude = I32(0)
        for i in range(values.size):
            b = F32(values[i] + F32(0.0)).view(I32)
            top = max(top, order_of_bits(b))
            magnitude = max(magnitude, I32(b & MAGNITUDE))
        broken[row] = magnitude > INFINITE or top >= INFINITE or top < LEAST_FINITE
        ids[row] = 0 if broken[row] else first_equal(values, value_of_order(top))


@inner
def put_in_order(bits, shift, order):
    """Fills `order`; returns its maximum and the largest magnitude, which is above infinity if there is a NaN."""
    top = LOWEST
    magnitude = I32(0)
    for i in range(bits.size):
        # Minus zero plus zero is zero, which makes equals of the two.
        b = F32(I32(I32(bits[i]) << shift).view(F32) + F32(0.0)).view(I32)
        o = order_of_bits(b)
        order[i] = o
        top = max(top, o)
        magnitude = max(magnitude, I32(b & MAGNITUDE))
    return top, magnitude


@inner
def bound_of_groups(order, groups, k, top):
    """k groups have a maximum at or above this, so the k largest values are there too."""
    size = groups.size
    for c in range(size):
        groups[c] = LOWEST
    for j in range(GROUP):
        members = order[j * size : (j + 1) * size]
        for c in range(size):
            groups[c] = max(groups[c], members[c])
    return max(kth_largest(groups, k, top), LEAST_FINITE)


@inner
def draw_of_few(order, groups, candidates, bound, top, heat, filters, key):
    """Draw with a small top-k. Returns (id, number kept), or (-1, 0) when equal values leave too many candidates."""
    k, p, least = filters
    first, second = key
    size = groups.size
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
