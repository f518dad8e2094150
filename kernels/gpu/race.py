"""The kernels of a draw: the best value, what stands above some cuts, the race of those that are surely kept beside a
list of those close to the cut, and its end.

`sampling.py` launches them one after the other. All but the last share a row among several programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.cuts import (
    MOST_PARTS,
    NUM_CUTS,
    NUM_LISTED,
    added_up,
    bracket_of,
    ends_of,
    enough_equals,
    entry,
    first_cuts,
    narrowed,
    second_cuts,
    setting_of,
    sharpened,
    way_of,
    weigh,
)
from kernels.gpu.halving import INFINITY, LEAST_FINITE, MASS_SLACK, cut_of_row
from kernels.gpu.noise import exponential, order_of_value, value_of_order
from kernels.sampling import MIN_TEMPERATURE as _MIN_TEMPERATURE

MIN_TEMPERATURE = tl.constexpr(_MIN_TEMPERATURE)
_CUTS = tl.constexpr(NUM_CUTS)
_LISTED = tl.constexpr(NUM_LISTED)
_PARTS = tl.constexpr(MOST_PARTS)


@triton.jit(do_not_specialize=["parts", "spans"])
def top_kernel(
    logits_ptr,  # [rows, vocabulary]
    tops_ptr,  # fp32 [rows, parts]
    lows_ptr,  # fp32 [rows, parts]
    winners_ptr,  # int32 [rows, parts]
    strange_ptr,  # int32 [rows, parts]
    parts,
    spans,
    vocabulary,
    row_stride,
    SPAN: tl.constexpr,
):
    """Program (part, row): the best value of its part, the lowest id that has it, the lowest finite value."""
    part = tl.program_id(0)
    row = tl.program_id(1)
    row_ptr = logits_ptr + row.to(tl.int64) * row_stride
    lanes = tl.arange(0, SPAN)
    tops = tl.full([SPAN], -INFINITY, tl.float32)
    lows = tl.full([SPAN], INFINITY, tl.float32)
    winners = tl.full([SPAN], 0x7FFFFFFF, tl.int32)
    strange = tl.zeros([SPAN], tl.int32)
    end = tl.minimum((part + 1) * spans * SPAN, vocabulary)
    for start in range(part * spans * SPAN, end, SPAN):
        token = start + lanes
        value = tl.load(row_ptr + token, mask=token < end, other=-INFINITY).to(tl.float32)
        strange |= (value != value).to(tl.int32)
        winners = tl.where(value > tops, token, winners)
        tops = tl.where(value > tops, value, tops)
        lows = tl.where(value > -INFINITY, tl.minimum(lows, value), lows)
    best = tl.max(tops, 0)
    at = row * parts + part
    tl.store(tops_ptr + at, best)
    tl.store(lows_ptr + at, tl.min(lows, 0))
    tl.store(winners_ptr + at, tl.min(tl.where(tops == best, winners, 0x7FFFFFFF), 0))
    tl.store(strange_ptr + at, tl.max(strange, 0))


@triton.jit(do_not_specialize=["rows", "parts", "spans"])
def weigh_kernel(
    logits_ptr,  # [rows, vocabulary]
    settings_ptr,  # int32 [6, rows]
    tops_ptr,
    lows_ptr,
    counts_ptr,  # int32 [2, rows, parts, cuts]
    masses_ptr,  # fp32 [2, rows, parts, cuts]
    rows,
    parts,
    spans,
    vocabulary,
    row_stride,
    SECOND: tl.constexpr,
    SPAN: tl.constexpr,
    WEIGH_SPAN: tl.constexpr,
):
    """Program (part, row): what its part has above each cut. SECOND: between two cuts of the first weighing."""
    part = tl.program_id(0)
    row = tl.program_id(1)
    temperature, top_p, top_k = setting_of(settings_ptr, rows, row)
    by_count = (top_k > 0) & (top_k < vocabulary)
    if (temperature >= MIN_TEMPERATURE) & (by_count | (top_p < 1.0)):
        best, low = ends_of(tops_ptr, lows_ptr, row, parts)
        cuts = first_cuts(temperature, top_k, vocabulary, best, low)
        behind = row * 0
        if SECOND:
            counts, masses = added_up(counts_ptr, masses_ptr, row, parts)
            target = entry(masses, 0) * (top_p - MASS_SLACK)
            number = narrowed(cuts, counts, masses, top_k, target, by_count)
            cuts = second_cuts(cuts, number, best, low)
            behind = rows
        row_ptr = logits_ptr + row.to(tl.int64) * row_stride
        end = tl.minimum((part + 1) * spans * SPAN, vocabulary)
        counts, masses = weigh(row_ptr, part * spans * SPAN, end, cuts, best, 1.0 / temperature, WEIGH_SPAN)
        at = ((behind + row) * parts + part) * _CUTS + tl.arange(0, _CUTS)
        tl.store(counts_ptr + at, counts)
        tl.store(masses_ptr + at, masses)


@triton.jit(do_not_specialize=["rows", "parts", "spans"])
def race_kernel(
    logits_ptr,  # [rows, vocabulary]
    settings_ptr,  # int32 [6, rows]
    tops_ptr,
    lows_ptr,
    counts_ptr,
    masses_ptr,
    times_ptr,  # fp32 [rows, parts]
    winners_ptr,  # int32 [rows, parts]
    values_ptr,  # fp32 [rows, NUM_LISTED]
    tokens_ptr,  # int32 [rows, NUM_LISTED]
    rows,
    parts,
    spans,
    vocabulary,
    row_stride,
    SPAN: tl.constexpr,
):
    """Program (part, row): who of those that are surely kept comes first, and a list of those close to the cut."""
    part = tl.program_id(0)
    row = tl.program_id(1)
    temperature, top_p, top_k = setting_of(settings_ptr, rows, row)
    if temperature >= MIN_TEMPERATURE:
        min_p = tl.load(settings_ptr + 2 * rows + row).to(tl.float32, bitcast=True)
        first = tl.load(settings_ptr + 4 * rows + row).to(tl.uint32, bitcast=True)
        second = tl.load(settings_ptr + 5 * rows + row).to(tl.uint32, bitcast=True)
        best, _low = ends_of(tops_ptr, lows_ptr, row, parts)
        by_count = (top_k > 0) & (top_k < vocabulary)
        low = row * 0 + LEAST_FINITE
        high = low
        offset = row * 0
        if by_count | (top_p < 1.0):
            low, high, num_low, num_high, _mass, _total, at_first, at_second = bracket_of(
                settings_ptr, tops_ptr, lows_ptr, counts_ptr, masses_ptr, rows, parts, vocabulary, row
            )
            way = way_of(num_low, num_high, by_count, top_p)
            # What the parts before this one list.
            before = tl.arange(0, _PARTS)
            at = (row * parts + before) * _CUTS
            later = rows * parts * _CUTS
            listed = tl.load(counts_ptr + later + at + at_second, mask=before < part, other=0)
            above = tl.load(counts_ptr + at + at_first + 1, mask=(before < part) & (at_first < _CUTS - 1), other=0)
            if at_second < _CUTS - 1:
                above = tl.load(counts_ptr + later + at + at_second + 1, mask=before < part, other=0)
            offset = tl.sum(tl.where(way == 2, listed, listed - above), 0)
            high = tl.where(way == 1, high, order_of_value(best) + 1)
            low = tl.where(way == 0, high, low)
        row_ptr = logits_ptr + row.to(tl.int64) * row_stride
        heat = 1.0 / temperature
        lanes = tl.arange(0, SPAN)
        times = tl.full([SPAN], INFINITY, tl.float32)
        winners = tl.full([SPAN], 0x7FFFFFFF, tl.int32)
        end = tl.minimum((part + 1) * spans * SPAN, vocabulary)
        for start in range(part * spans * SPAN, end, SPAN):
            token = start + lanes
            value = tl.load(row_ptr + token, mask=token < end, other=-INFINITY).to(tl.float32)
            order = order_of_value(value)
            weight = tl.exp((value - best) * heat)
            keep = (order >= high) & (weight >= min_p) & (weight > 0.0) & (token < end)
            time = exponential(token, first, second) / tl.where(keep, weight, 1.0)
            better = keep & (time < times)
            winners = tl.where(better, token, winners)
            times = tl.where(better, time, times)
            close = ((order >= low) & (order < high) & (token < end)).to(tl.int32)
            place = row * _LISTED + offset + tl.cumsum(close, 0) - 1
            tl.store(values_ptr + place, value, mask=close > 0)
            tl.store(tokens_ptr + place, token, mask=close > 0)
            offset += tl.sum(close, 0)
        at = row * parts + part
        soonest = tl.min(times, 0)
        tl.store(times_ptr + at, soonest)
        tl.store(winners_ptr + at, tl.min(tl.where(times == soonest, winners, 0x7FFFFFFF), 0))


@triton.jit
def raced(times, winners, value, token, cut, first_id, best, heat, min_p, first, second):
    """The race goes on with some more tokens, of which those below the cut take no part."""
    order = order_of_value(value)
    weight = tl.exp((value - best) * heat)
    keep = ((order > cut) | ((order == cut) & (token >= first_id))) & (weight >= min_p) & (weight > 0.0)
    time = exponential(token, first, second) / tl.where(keep, weight, 1.0)
    better = keep & ((time < times) | ((time == times) & (token < winners)))
    return tl.where(better, time, times), tl.where(better, token, winners)


@triton.jit(do_not_specialize=["rows", "parts"])
def finish_kernel(
    logits_ptr,  # [rows, vocabulary]
    settings_ptr,  # int32 [6, rows]
    tops_ptr,
    lows_ptr,
    best_ptr,  # int32 [rows, parts]: the lowest ids of the best values
    strange_ptr,
    counts_ptr,
    masses_ptr,
    times_ptr,
    winners_ptr,
    values_ptr,
    tokens_ptr,
    ids_ptr,  # int64 [rows]
    broken_ptr,  # bool [rows], or int64
    rows,
    parts,
    vocabulary,
    row_stride,
    SPAN: tl.constexpr,
    WEIGH_SPAN: tl.constexpr,
):
    """One program per row: the exact cut among those listed, their race, and the winner of all."""
    row = tl.program_id(0)
    temperature, top_p, top_k = setting_of(settings_ptr, rows, row)
    part = tl.arange(0, _PARTS)
    at = row * parts + part
    tops = tl.load(tops_ptr + at, mask=part < parts, other=-INFINITY)
    best = tl.max(tops, 0)
    strange = tl.max(tl.load(strange_ptr + at, mask=part < parts, other=0), 0)
    broken = (strange > 0) | (best == INFINITY) | (best == -INFINITY)
    tokens = tl.load(best_ptr + at, mask=(part < parts) & (tops == best), other=0x7FFFFFFF)
    winner = tl.min(tokens, 0)
    if (broken == 0) & (temperature >= MIN_TEMPERATURE):
        min_p = tl.load(settings_ptr + 2 * rows + row).to(tl.float32, bitcast=True)
        first = tl.load(settings_ptr + 4 * rows + row).to(tl.uint32, bitcast=True)
        second = tl.load(settings_ptr + 5 * rows + row).to(tl.uint32, bitcast=True)
        heat = 1.0 / temperature
        all_times = tl.load(times_ptr + at, mask=part < parts, other=INFINITY)
        soonest = tl.min(all_times, 0)
        racers = tl.load(winners_ptr + at, mask=(part < parts) & (all_times == soonest), other=0x7FFFFFFF)
        racer = tl.min(racers, 0)
        by_count = (top_k > 0) & (top_k < vocabulary)
        if by_count | (top_p < 1.0):
            low, high, num_low, num_high, mass_high, total, _first, _second = bracket_of(
                settings_ptr, tops_ptr, lows_ptr, counts_ptr, masses_ptr, rows, parts, vocabulary, row
            )
            way = way_of(num_low, num_high, by_count, top_p)
            lanes = tl.arange(0, SPAN)
            times = tl.full([SPAN], INFINITY, tl.float32)
            winners = tl.full([SPAN], 0x7FFFFFFF, tl.int32)
            if way == 0:
                row_ptr = logits_ptr + row.to(tl.int64) * row_stride
                long_cut, first_id = cut_of_row(row_ptr, vocabulary, best, heat, temperature, top_k, top_p, SPAN)
                cut = long_cut.to(tl.int32)
                for start in range(0, vocabulary, SPAN):
                    token = start + lanes
                    value = tl.load(row_ptr + token, mask=token < vocabulary, other=-INFINITY).to(tl.float32)
                    times, winners = raced(
                        times, winners, value, token, cut, first_id, best, heat, min_p, first, second
                    )
            else:
                mine = values_ptr + row * _LISTED
                its = tokens_ptr + row * _LISTED
                num = tl.where(way == 2, num_low, num_low - num_high)
                base_num = num_high
                base_mass = mass_high
                if way == 2:
                    # All are listed, so that nothing has to be added to what they weigh.
                    high = order_of_value(best) + 1
                    base_num = num_high * 0
                    base_mass = mass_high * 0.0
                wanted = tl.where(by_count, top_k.to(tl.float32), total * (top_p - MASS_SLACK))
                cut, above, cut_num, above_num, above_mass = sharpened(
                    mine, num, low, high, num_low, base_num, base_mass, wanted, by_count, best, heat, WEIGH_SPAN
                )
                # Top-k keeps all that equal its last value; the cut may stand below it.
                first_id = vocabulary * 0
                if top_p < 1.0:
                    if by_count:
                        kept = tl.zeros([_CUTS], tl.int32) + cut
                        _counts, masses = weigh(mine, 0, num, kept, best, heat, WEIGH_SPAN)
                        wanted = entry(masses, 0) * (top_p - MASS_SLACK)
                        high = order_of_value(best) + 1
                        cut, above, cut_num, above_num, above_mass = sharpened(
                            mine, num, cut, high, cut_num, num_high * 0, mass_high * 0.0, wanted, False, best, heat,
                            WEIGH_SPAN,
                        )  # fmt: skip
                    if above - cut == 1:
                        # Equals at the cut: those of the highest ids, as many as are needed.
                        weight = tl.exp((value_of_order(cut) - best) * heat)
                        needed = tl.maximum(tl.ceil((wanted - above_mass) / weight), 1.0)
                        if needed < cut_num - above_num:
                            first_id = enough_equals(mine, its, num, cut, needed, vocabulary, SPAN)
                for start in range(0, num, SPAN):
                    place = start + lanes
                    value = tl.load(mine + place, mask=place < num, other=-INFINITY)
                    token = tl.load(its + place, mask=place < num, other=0)
                    times, winners = raced(
                        times, winners, value, token, cut, first_id, best, heat, min_p, first, second
                    )
            listed = tl.min(times, 0)
            chosen = tl.min(tl.where(times == listed, winners, 0x7FFFFFFF), 0)
            racer = tl.where(listed < soonest, chosen, tl.where(listed == soonest, tl.minimum(chosen, racer), racer))
        winner = racer
    tl.store(ids_ptr + row, tl.where(broken, 0, winner).to(tl.int64))
    tl.store(broken_ptr + row, broken.to(broken_ptr.dtype.element_ty))
