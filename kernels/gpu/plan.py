"""The task map of one step: which program attends to which keys, built on the device by one small kernel.

`backend` launches it once per step and window; every layer's attention reads the same map. A unit is the query
tile of one sequence (up to BLOCK_Q tokens, all heads of a group); its work is the key tiles that its rows can see, once
per key/value head. Two schedules:

flat   (decodes and other short queries) all tiles of all units in one row, cut into equal shares, one per program.
parts  (prefill) each unit cut into so many parts that the longest one does not outlast the rest; the hardware deals
       them out, longest first.

A plan is int32: a header, one record per unit, the owner (unit) of each share or part, what is to be merged, scratch.
Records hold all that a kernel needs to know of a unit, so that it has read one line and not a chain of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

# Entries that one round of the kernel handles.
PLAN_SPAN = 256
# Header words: 0 units; 1 tiles per head (flat) or parts per head (parts); 2 tiles per share (flat).
HEADER_WORDS = 8
# Words of a unit: 0 sequence; 1 query tile of it; 2, 3 its first key tile and the end; 4 tiles (flat) or parts (parts)
# of the units before it; 5 parts; 6 split parts of the units before it; 7 row of its table; 8 its first token in the
# batch; 9 tokens of its sequence from there on; 10 keys of its sequence.
UNIT_WORDS = 16
# Words of a merge: 0 partials, 0 if there is nothing to merge; 1 head (flat); 2 slot of the first partial; 3 slot of
# the next one (parts: both for head 0); 4 first token in the batch; 5 tokens of the sequence from there on.
MERGE_WORDS = 8
# Shares and parts of fewer tiles than this cost more to merge than they save.
MIN_SHARE_TILES, MIN_PART_TILES = 2, 4
# What a part costs beside its tiles, in tiles: reading queries and writing out; a split one is written and read again.
PART_COST, SPLIT_COST = 2, 4

_HEADER = tl.constexpr(HEADER_WORDS)
_WORDS = tl.constexpr(UNIT_WORDS)
_MERGE = tl.constexpr(MERGE_WORDS)
_MIN_SHARE = tl.constexpr(MIN_SHARE_TILES)
_MIN_PART = tl.constexpr(MIN_PART_TILES)
_PART_COST = tl.constexpr(PART_COST)
_SPLIT_COST = tl.constexpr(SPLIT_COST)


@dataclass(frozen=True)
class PlanShape:
    """Where things lie in a plan, fixed by what the host knows of a batch: upper bounds, never the lengths."""

    max_units: int
    owners: int  # shares, or parts per head at most
    merges: int  # shares, or split units at most

    @property
    def owners_at(self) -> int:
        return HEADER_WORDS + self.max_units * UNIT_WORDS

    @property
    def merges_at(self) -> int:
        return self.owners_at + self.owners

    @property
    def scratch_at(self) -> int:
        return self.merges_at + self.merges * MERGE_WORDS

    def num_words(self, num_seqs: int) -> int:
        return self.scratch_at + num_seqs + PLAN_SPAN


@triton.jit
def _publish(fence_ptr, SPAN: tl.constexpr):
    """What any thread of the program wrote before, all of them read after.

    A barrier alone orders memory on NVIDIA's GPUs but not on AMD's; each thread's atomic does on both.
    """
    tl.atomic_add(fence_ptr + tl.arange(0, SPAN), 0, sem="acq_rel", scope="gpu")
    tl.debug_barrier()


@triton.jit
def _last_at_most(ptr, stride, count, step, wanted):
    """For each of `wanted`: the largest i < count whose ptr[i * stride] is at most that. Entry 0 always is.

    step: a power of two of at least count / 2.
    """
    found = tl.zeros_like(wanted)
    while step > 0:
        probe = found + step
        value = tl.load(ptr + probe * stride, mask=probe < count, other=2147483647)
        found = tl.where(value <= wanted, probe, found)
        step = step // 2
    return found


@triton.jit
def _list_units(
    plan_ptr, query_start_ptr, context_ptr, rows_ptr, fence_ptr, scratch_at, first_seq, num_seqs, seq_step, window,
    BLOCK_Q: tl.constexpr, TILE: tl.constexpr, FLAT: tl.constexpr, HAS_WINDOW: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Writes the units' records but for words 5 and 6; returns their number, all their tiles, those of the longest."""
    lane = tl.arange(0, SPAN)
    units = 0
    for begin in range(0, num_seqs, SPAN):
        seq = begin + lane
        real = seq < num_seqs
        start = tl.load(query_start_ptr + first_seq + seq, mask=real, other=0)
        stop = tl.load(query_start_ptr + first_seq + seq + 1, mask=real, other=0)
        tiles_of_queries = (stop - start + BLOCK_Q - 1) // BLOCK_Q
        before = units + tl.cumsum(tiles_of_queries, 0) - tiles_of_queries
        tl.store(plan_ptr + scratch_at + seq, before, mask=real)
        units += tl.sum(tiles_of_queries, 0)
    _publish(fence_ptr, SPAN)
    total = 0
    longest = 0
    for begin in range(0, units, SPAN):
        unit = begin + lane
        real = unit < units
        seq = _last_at_most(plan_ptr + scratch_at, 1, num_seqs, seq_step, unit)
        start = tl.load(query_start_ptr + first_seq + seq)
        query_len = tl.load(query_start_ptr + first_seq + seq + 1) - start
        context = tl.load(context_ptr + first_seq + seq)
        q_tile = unit - tl.load(plan_ptr + scratch_at + seq)
        if not FLAT:
            # The last query tile sees the most keys and goes first.
            q_tile = (query_len + BLOCK_Q - 1) // BLOCK_Q - 1 - q_tile
        first_at = context - query_len + q_tile * BLOCK_Q
        last_at = tl.minimum(first_at + BLOCK_Q, context) - 1
        # A unit that sees nothing (an empty sequence of a padded batch) still has one tile: its output is zeros.
        hi = tl.maximum(last_at, 0) // TILE + 1
        lo = tl.zeros_like(hi)
        if HAS_WINDOW:
            lo = tl.maximum(first_at - window + 1, 0) // TILE
        tiles = tl.where(real, hi - lo, 0)
        record = plan_ptr + _HEADER + unit * _WORDS
        tl.store(record, first_seq + seq, mask=real)
        tl.store(record + 1, q_tile, mask=real)
        tl.store(record + 2, lo, mask=real)
        tl.store(record + 3, hi, mask=real)
        tl.store(record + 4, total + tl.cumsum(tiles, 0) - tiles, mask=real)
        tl.store(record + 7, tl.load(rows_ptr + first_seq + seq), mask=real)
        tl.store(record + 8, start + q_tile * BLOCK_Q, mask=real)
        tl.store(record + 9, query_len - q_tile * BLOCK_Q, mask=real)
        tl.store(record + 10, context, mask=real)
        total += tl.sum(tiles, 0)
        longest = tl.maximum(longest, tl.max(tiles, 0))
    _publish(fence_ptr, SPAN)
    return units, total, longest


@triton.jit
def _part_tiles(
    plan_ptr, units, total, longest, programs, max_split_parts,
    KV_HEADS: tl.constexpr, SPAN: tl.constexpr, WAVES: tl.constexpr,
):  # fmt: skip
    """How many tiles a part may have: of some candidates, the one whose last part should end first."""
    lane = tl.arange(0, SPAN)
    wave = tl.arange(0, WAVES)
    work = total * KV_HEADS
    # Candidate 0 splits nothing; the others aim at 1, 2, 4, ... parts per program.
    wanted = programs << tl.maximum(wave - 1, 0)
    limit = tl.maximum((work + wanted - 1) // wanted, _MIN_PART)
    limit = tl.where(wave == 0, tl.maximum(longest, 1), limit)
    parts = tl.zeros([WAVES], tl.int32)
    split_parts = tl.zeros([WAVES], tl.int32)
    for begin in range(0, units, SPAN):
        unit = begin + lane
        record = plan_ptr + _HEADER + unit * _WORDS
        tiles = tl.load(record + 3, mask=unit < units, other=0) - tl.load(record + 2, mask=unit < units, other=0)
        of_unit = (tiles[None, :] + limit[:, None] - 1) // limit[:, None]
        parts += tl.sum(of_unit, 1)
        split_parts += tl.sum(tl.where(of_unit > 1, of_unit, 0), 1)
    largest = tl.minimum(limit, longest)
    even = (work + (parts * _PART_COST + split_parts * _SPLIT_COST) * KV_HEADS) // programs
    rounds = (parts * KV_HEADS + programs - 1) // programs
    # Two bounds of what dealing out longest first can take; the smaller one holds.
    cost = tl.minimum(even + largest // 2, rounds * (largest + _PART_COST + _SPLIT_COST))
    cost = tl.where((split_parts <= max_split_parts) | (wave == 0), cost, 2147483647)
    best = tl.argmin(cost, 0)
    return tl.sum(tl.where(wave == best, limit, 0), 0)


@triton.jit
def _cut_parts(plan_ptr, fence_ptr, units, limit, merges_at, max_merges, KV_HEADS: tl.constexpr, SPAN: tl.constexpr):
    """Writes words 4 to 6 of the records and the merges; returns how many parts there are."""
    lane = tl.arange(0, SPAN)
    total = 0
    split_total = 0
    splits = 0
    for begin in range(0, units, SPAN):
        unit = begin + lane
        real = unit < units
        record = plan_ptr + _HEADER + unit * _WORDS
        tiles = tl.load(record + 3, mask=real, other=0) - tl.load(record + 2, mask=real, other=0)
        parts = (tiles + limit - 1) // limit
        is_split = parts > 1
        split_parts = tl.where(is_split, parts, 0)
        tl.store(record + 4, total + tl.cumsum(parts, 0) - parts, mask=real)
        tl.store(record + 5, parts, mask=real)
        tl.store(record + 6, split_total + tl.cumsum(split_parts, 0) - split_parts, mask=real)
        first_slot = (split_total + tl.cumsum(split_parts, 0) - split_parts) * KV_HEADS
        at = splits + tl.cumsum(is_split.to(tl.int32), 0) - 1
        _store_merge(
            plan_ptr + merges_at, at, real & is_split, parts, 0, first_slot, first_slot + KV_HEADS,
            tl.load(record + 8, mask=real, other=0), tl.load(record + 9, mask=real, other=0),
        )  # fmt: skip
        total += tl.sum(parts, 0)
        split_total += tl.sum(split_parts, 0)
        splits += tl.sum(is_split.to(tl.int32), 0)
    for begin in range(splits, max_merges, SPAN):
        tl.store(plan_ptr + merges_at + (begin + lane) * _MERGE, 0, mask=begin + lane < max_merges)
    _publish(fence_ptr, SPAN)
    return total


@triton.jit
def _store_merge(merges_ptr, at, mask, count, head, first_slot, rest_slot, query_first, query_left):
    record = merges_ptr + at * _MERGE
    tl.store(record, count, mask=mask)
    tl.store(record + 1, head, mask=mask)
    tl.store(record + 2, first_slot, mask=mask)
    tl.store(record + 3, rest_slot, mask=mask)
    tl.store(record + 4, query_first, mask=mask)
    tl.store(record + 5, query_left, mask=mask)


@triton.jit
def _share_out(
    plan_ptr, units, total, share, owners_at, merges_at, programs, unit_step, KV_HEADS: tl.constexpr, SPAN: tl.constexpr
):
    """Flat: writes whose unit each share begins in, and the merge of the unit that begins in it and outlasts it."""
    lane = tl.arange(0, SPAN)
    end = total * KV_HEADS
    for begin in range(0, programs, SPAN):
        program = begin + lane
        real = program < programs
        unit = _last_at_most(plan_ptr + _HEADER + 4, _WORDS, units, unit_step, program * share // KV_HEADS)
        tl.store(plan_ptr + owners_at + program, unit, mask=real)
        border = (program + 1) * share
        unit = _last_at_most(plan_ptr + _HEADER + 4, _WORDS, units, unit_step, border // KV_HEADS)
        record = plan_ptr + _HEADER + unit * _WORDS
        tiles = tl.maximum(tl.load(record + 3) - tl.load(record + 2), 1)
        behind = border - tl.load(record + 4) * KV_HEADS
        start = border - behind % tiles
        # The program in whose share the unit begins merges it; its first partial is the one that this program leaves.
        merges = (border < end) & (start < border) & (start >= border - share)
        count = tl.where(merges, (start + tiles + share - 1) // share - program, 0)
        _store_merge(
            plan_ptr + merges_at, program, real, count, behind // tiles, programs + program, program + 1,
            tl.load(record + 8), tl.load(record + 9),
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "owners_at", "merges_at", "scratch_at", "first_seq", "num_seqs", "seq_step", "unit_step", "window", "programs",
        "max_split_parts", "max_merges",
    ]
)  # fmt: skip
def plan_kernel(
    plan_ptr,
    query_start_ptr,  # int32 [seqs + 1]
    context_ptr,  # int32 [seqs]
    rows_ptr,  # int32 [seqs]
    owners_at,
    merges_at,
    scratch_at,
    first_seq,
    num_seqs,
    seq_step,
    unit_step,
    window,
    programs,
    max_split_parts,
    max_merges,
    KV_HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    FLAT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SPAN: tl.constexpr,
    WAVES: tl.constexpr,
):
    """One program. What one phase writes the next one reads."""
    lane = tl.arange(0, SPAN)
    fence_ptr = plan_ptr + scratch_at + num_seqs
    units, total, longest = _list_units(
        plan_ptr, query_start_ptr, context_ptr, rows_ptr, fence_ptr, scratch_at, first_seq, num_seqs, seq_step, window,
        BLOCK_Q, TILE, FLAT, HAS_WINDOW, SPAN,
    )  # fmt: skip
    share = 1
    if FLAT:
        share = tl.maximum((total * KV_HEADS + programs - 1) // programs, _MIN_SHARE)
        _share_out(plan_ptr, units, total, share, owners_at, merges_at, programs, unit_step, KV_HEADS, SPAN)
    else:
        limit = _part_tiles(plan_ptr, units, total, longest, programs, max_split_parts, KV_HEADS, SPAN, WAVES)
        total = _cut_parts(plan_ptr, fence_ptr, units, limit, merges_at, max_merges, KV_HEADS, SPAN)
        for begin in range(0, total, SPAN):
            part = begin + lane
            unit = _last_at_most(plan_ptr + _HEADER + 4, _WORDS, units, unit_step, part)
            tl.store(plan_ptr + owners_at + part, unit, mask=part < total)
    tl.store(plan_ptr, units)
    tl.store(plan_ptr + 1, total)
    tl.store(plan_ptr + 2, share)
