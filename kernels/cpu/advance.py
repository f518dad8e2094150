"""From one step of decodes to the next without the host: the likeliest tokens, and what the next step reads of them.

`program` calls these for its last op and between two steps. A run of steps ends after the step in which a sequence
gets one of its stop ids, or logits that are no numbers, or something comes for the host; lengths, leases and cuts of
the attention plan bound a run beforehand (`Steps.most_steps`), so that nothing else can end inside it.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.attention import ITEM_POSITION, ITEM_TO, ITEM_WIDTH
from kernels.cpu.ir import I32, I32T, I64, Code, Pointer, Value
from kernels.cpu.shapes import LANES

# What lies where an `Advance` has its words.
_WORDS = (
    "best", "broken", "written", "ids", "positions", "slots", "rows", "tables", "table_stride", "block_size", "stops",
    "num_stops", "items", "num_items", "watched", "done", "halted",
)  # fmt: skip
_AT = {name: number for number, name in enumerate(_WORDS)}
_POLLED = struct.Struct("ihh")


class Advance:
    """The words of one run of steps. Whoever fills in addresses keeps what lies there alive."""

    def __init__(self) -> None:
        self._words: NDArray[np.int64] = np.zeros(len(_WORDS), np.int64)
        self.address = int(self._words.ctypes.data)
        # What `poll` wants to know of a descriptor.
        self._watched: NDArray[np.uint8] = np.zeros(_POLLED.size, np.uint8)

    def watch(self, descriptor: int) -> None:
        """A run ends before its next step once this can be read."""
        _POLLED.pack_into(self._watched.data, 0, descriptor, select.POLLIN, 0)
        self.set(watched=self._watched.ctypes.data)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self._words[_AT[name]] = value

    @property
    def num_done(self) -> int:
        """Steps that were run."""
        return int(self._words[_AT["done"]])


def halted(code: Code, words: Pointer) -> Value:
    return words.load(_AT["halted"])


def emit_advance(code: Code, words: Pointer, step: Value, num_rows: Value, last: Value) -> None:
    """Keeps this step's tokens; unless it was the last, makes them the next one's inputs. One thread runs this."""

    def integer(name: str) -> Value:
        return words.load(_AT[name])

    def integers(name: str) -> Pointer:
        return code.pointer(integer(name), I64)

    best, broken, written = integers("best"), integers("broken"), integers("written")
    rows, stops = code.pointer(integer("rows"), I32), code.pointer(integer("stops"), I32)
    ends = code.variable(code.integer(0))
    with code.range(0, num_rows) as row:
        token = best.load(row)
        written.store(step * num_rows + row, token)
        ends.set(ends.get() | broken.load(row))
        with code.range(0, integer("num_stops")) as number:
            stop = stops.load(rows.load(row) * integer("num_stops") + number)
            ends.set(stop.equals(token).choose(code.integer(1), ends.get()))
    watched = code.pointer(integer("watched"), I32)
    with code.when(watched.is_null().equals(0)):
        ends.set(ends.get() | _can_be_read(code, watched))
    words.store(_AT["done"], step + 1)
    words.store(_AT["halted"], ends.get())
    with code.when(last.choose(code.integer(0), code.integer(1)).equals(1)):
        _next_inputs(code, integer, num_rows)


def _can_be_read(code: Code, watched: Pointer) -> Value:
    num_ready = code.call("poll", I32T, [Value(code, watched.ir), code.integer(1), code.integer(0).narrow()])
    return num_ready.equals(1).choose(code.integer(1), code.integer(0))


def _next_inputs(code: Code, integer: Callable[[str], Value], num_rows: Value) -> None:
    """The next step's ids, positions and slots, and the plan of its attention one key further."""
    best, ids, positions, slots = (code.pointer(integer(name), I64) for name in ("best", "ids", "positions", "slots"))
    rows, tables = code.pointer(integer("rows"), I32), code.pointer(integer("tables"), I32)
    size = integer("block_size")
    with code.range(0, num_rows) as row:
        position = positions.load(row) + 1
        block = tables.load(rows.load(row) * integer("table_stride") + position // size)
        ids.store(row, best.load(row))
        positions.store(row, position)
        slots.store(row, block * size + position % size)
    items = code.pointer(integer("items"), I32)
    with code.range(0, integer("num_items")) as number:
        item = items.at(number * ITEM_WIDTH)
        position, end = item.load(ITEM_POSITION), item.load(ITEM_TO)
        # The last part of a sequence's keys grows with it.
        item.store(ITEM_TO, (end > position).choose(end + 1, end))
        item.store(ITEM_POSITION, position + 1)


def emit_best(
    code: Code,
    first: Value,
    end: Value,
    *,
    logits: Pointer,
    stride: Value,
    vocabulary: Value,
    ids: Pointer,
    broken: Pointer,
) -> None:
    """ids[row]: the lowest id of the largest logit; broken[row]: 1 where there is no finite best, or a NaN."""
    whole = vocabulary // LANES * LANES
    infinity = float("inf")
    with code.range(first, end) as row:
        values = logits.at(row * stride)
        top, odd = code.variable(code.number(-infinity, LANES)), code.variable(code.number(0.0, LANES))
        # Indices as floats, which are exact up to 2 ** 24: they are reduced as floats are.
        at_top = code.variable(code.number(0.0, LANES))
        with code.range(0, whole, LANES) as at:
            value = values.load(at, LANES)
            better = value > top.get()
            at_top.set(better.choose(at.to_float().splat(LANES), at_top.get()))
            top.set(better.choose(value, top.get()))
            odd.set(value.equals(value).choose(odd.get(), code.number(1.0, LANES)))
        highest = top.get().reduce_max()
        lanes = Value(code, code.builder.sitofp(code.lane_numbers(LANES).ir, at_top.get().ir.type))
        here = top.get().equals(highest.splat(LANES))
        behind = here.choose(0.0 - (at_top.get() + lanes), code.number(-infinity, LANES)).reduce_max()
        best, index = code.variable(highest), code.variable(0.0 - behind)
        is_odd = code.variable(odd.get().reduce_max())
        with code.range(whole, vocabulary) as at:
            value = values.load(at)
            better = value > best.get()
            index.set(better.choose(at.to_float(), index.get()))
            best.set(better.choose(value, best.get()))
            is_odd.set(value.equals(value).choose(is_odd.get(), code.number(1.0)))
        finite = (best.get() > -infinity) & (best.get() < infinity) & is_odd.get().equals(0.0)
        token = Value(code, code.builder.fptosi(index.get().ir, code.integer(0).ir.type))
        ids.store(row, finite.choose(token, code.integer(0)))
        broken.store(row, finite.choose(code.integer(0), code.integer(1)))
