"""Weighted values of a panel of query rows over a tile of slots, written so that all sums stay in registers.

Each value is read once for all rows, in its block, through the table; 16-bit elements are widened on the way. One
vector holds neighbouring dims. `attention` calls this while it writes its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.cpu.ir import I32, Pointer, Value, Variable
from kernels.cpu.shapes import LANES, HeadShape, KeyBlocks, pair_product, unpack_pair

# How many blocks ahead of its use a block of values is asked for.
LEAD = 3
# Slots that are gone over for one group of dims before the next group: few enough to stay in the first cache.
CHUNK_SLOTS = 128


@dataclass(frozen=True)
class ValuePanel:
    """sums[row] = sums[row] * rescale[row] + weights[row] . values.

    weights: [rows, stride] float32, or bf16 for pair products; sums: [rows, value_stride] float32; rescale: [rows].
    With `afterwards` values are fetched ahead of their use, and behind the last of them these keys.
    """

    shape: HeadShape
    rows: int
    weights: Pointer
    stride: int
    sums: Pointer
    rescale: Pointer
    values: KeyBlocks
    afterwards: KeyBlocks | None

    def emit(self, num_slots: Value) -> None:
        """Goes over the first `num_slots` slots of the run of blocks."""
        code, shape = self.sums.code, self.shape
        self._scale_sums()
        wide = shape.columns(self.rows)
        num_columns, rest = divmod(shape.value_dim, LANES)
        whole = num_columns // wide * wide
        chunk = max(1, CHUNK_SLOTS // shape.block_size) * shape.block_size
        with code.range(0, num_slots, chunk) as first:
            end = (first + chunk).minimum(num_slots)
            if whole:
                with code.range(0, whole * LANES, wide * LANES) as dim:
                    self._group(dim, [LANES] * wide, first, end, num_slots)
            lanes = [LANES] * (num_columns - whole) + ([rest] if rest else [])
            if lanes:
                self._group(code.integer(whole * LANES), lanes, first, end, num_slots)

    def _scale_sums(self) -> None:
        code, stride = self.sums.code, self.shape.value_stride
        with code.range(0, self.rows) as row:
            factor, start = self.rescale.load(row), self.sums.at(row * stride)
            with code.range(0, stride, LANES) as at:
                start.store(at, start.load(at, LANES) * factor)

    def _group(self, dim: Value, lanes: list[int], first: Value, end: Value, num_slots: Value) -> None:
        """Adds the slots [first, end) to a few columns of every row, from `dim` on."""
        code, shape = self.sums.code, self.shape
        starts = [self.sums.at(dim + row * shape.value_stride) for row in range(self.rows)]
        totals = [[code.variable(start.load(column * LANES, n)) for column, n in enumerate(lanes)] for start in starts]
        last_block = (num_slots - 1) // shape.block_size
        with code.range(first // shape.block_size, (end - 1) // shape.block_size + 1) as number:
            at = number * shape.block_size
            count = (end - at).minimum(shape.block_size)
            block, weights = self._columns(self.values.block(number), dim), self.weights.at(at)
            ahead = None
            if self.afterwards:
                then = number + LEAD
                following = self.afterwards.block((then - last_block - 1).maximum(0))
                values = self.values.block(then.minimum(last_block))
                ahead = self._columns((then > last_block).choose_pointer(following, values), dim)
            (self._pairs if shape.pairs else self._slots)(totals, lanes, block, weights, count, ahead)
        for start, line in zip(starts, totals, strict=True):
            for column, total in enumerate(line):
                start.put(column * LANES, total.get())

    def _columns(self, block: Pointer, dim: Value) -> Pointer:
        return block.of(I32).at(dim) if self.shape.pairs else block.at(dim)

    def _slots(
        self,
        totals: list[list[Variable]],
        lanes: list[int],
        block: Pointer,
        weights: Pointer,
        count: Value,
        ahead: Pointer | None,
    ) -> None:
        """Adds the first `count` slots of one block; those behind them may hold anything and reach no sum."""
        with block.code.range(0, count) as slot:
            self._fetch(ahead, slot, lanes)
            at = slot * self.shape.value_dim
            values = [block.load(at + column * LANES, n) for column, n in enumerate(lanes)]
            for row, line in enumerate(totals):
                weight = weights.load(slot + row * self.stride)
                for total, value in zip(line, values, strict=True):
                    total.add(value * weight)

    def _pairs(
        self,
        totals: list[list[Variable]],
        lanes: list[int],
        block: Pointer,
        weights: Pointer,
        count: Value,
        ahead: Pointer | None,
    ) -> None:
        """The same for two slots in one word; of the last word of an odd number only the low half counts."""
        code = block.code

        def words(pair: Value) -> list[Value]:
            at = pair * self.shape.value_dim
            return [block.raw(at + column * LANES, n) for column, n in enumerate(lanes)]

        with code.range(0, count >> 1) as pair:
            self._fetch(ahead, pair, lanes)
            self._add_pair(totals, words(pair), weights, pair, halves=(0, 1))
        with code.when((count & 1).equals(1)):
            pair = count >> 1
            self._add_pair(totals, [word & 0xFFFF for word in words(pair)], weights, pair, halves=(0,))

    def _add_pair(
        self, totals: list[list[Variable]], words: list[Value], weights: Pointer, pair: Value, halves: tuple[int, ...]
    ) -> None:
        if self.shape.pair_products:
            for row, line in enumerate(totals):
                factor = weights.of(I32).raw(pair + row * (self.stride // 2))
                for total, word in zip(line, words, strict=True):
                    total.set(pair_product(weights.code, total.get(), word, factor))
            return
        unpacked = [unpack_pair(word) for word in words]
        for row, line in enumerate(totals):
            for half in halves:
                weight = weights.load(pair * 2 + (row * self.stride + half))
                for total, both in zip(line, unpacked, strict=True):
                    total.add(both[half] * weight)

    def _fetch(self, ahead: Pointer | None, number: Value, lanes: list[int]) -> None:
        """Asks for the cache lines of one run of columns."""
        if ahead is not None:
            start = ahead.at(number * self.shape.value_dim)
            for line in range(0, sum(lanes) * ahead.kind.size_bytes, 64):
                start.at_bytes(line).prefetch(0)
