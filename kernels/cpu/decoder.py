"""A decoder of the Llama or the GPT-2 kind on a CPU: weights packed once, each step one call from ids to logits.

The worker recognises such a model, hands over its weights and later the pool's layers; attention is the backend's own
kernel, called from inside the program. This file owns the packed weights (`weights` packs them) and the rows that pass
between ops. What a sequence's tokens come to does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels import checks
from kernels.batch import AttentionBatch
from kernels.cpu import plan as cpu_plan
from kernels.cpu.advance import Advance
from kernels.cpu.attention import TiledAttention
from kernels.cpu.backend import KINDS, CpuBackend
from kernels.cpu.layers import LayerCalls, RowLayout
from kernels.cpu.plan import AttentionPlan
from kernels.cpu.product import ACTIVATE, ADD, STORE, ProductShape, supports
from kernels.cpu.program import (
    ALL_ROWS,
    BEST,
    CALL,
    DRAW,
    EMBEDDING,
    LOGIT_ROWS,
    NORM,
    NOTHING,
    PRODUCT,
    ROTATION,
    Program,
    ProgramWriter,
    program_kernel,
    word_of,
)
from kernels.cpu.rows import RowShape
from kernels.cpu.sampling import CpuDraw, draw_kernel
from kernels.cpu.shapes import LANES, HeadShape
from kernels.cpu.weights import DecoderWeights, Norm, Packed, PackedLayer, float_norm, pack_layer, pack_linears
from kernels.layout import LayerCache
from kernels.sampling import DrawSettings


@dataclass(frozen=True)
class Picked:
    """The tokens of one step or of several, the likeliest or drawn ones; valid until the next call."""

    ids: NDArray[np.int64]  # [steps, rows]
    broken: NDArray[np.int64]  # [rows]: of the last step, 1 where the logits were no numbers


def why_not(weights: DecoderWeights, backend: CpuBackend) -> str:
    """Why this decoder cannot be run here as one program; empty if it can."""
    dtype, hidden = weights.embedding.dtype, weights.embedding.shape[1]
    inner = weights.layers[0].down.weight.shape[1]
    if not supports(dtype, backend.target):
        return f"{dtype} products have no fast instruction on this processor"
    if hidden % LANES or weights.head_dim % 2 or inner % 2:
        return f"its sizes {hidden}, {weights.head_dim}, {inner} are not multiples of {LANES}, 2 and 2"
    return ""


class CpuDecoder:
    """Runs steps of up to `max_tokens` tokens. One thread at a time."""

    def __init__(self, weights: DecoderWeights, backend: CpuBackend, max_tokens: int) -> None:
        """Packs the weights; the checkpoint's own are let go layer by layer, so `weights` is empty afterwards."""
        reason = why_not(weights, backend)
        assert not reason, reason
        self.backend = backend
        self.max_tokens = max_tokens
        self.dtype = weights.embedding.dtype
        self.num_heads, self.num_kv_heads, self.head_dim = weights.num_heads, weights.num_kv_heads, weights.head_dim
        self.vocab_size, self.hidden = weights.head.weight.shape[0], weights.embedding.shape[1]
        self._epsilon, self._scale = weights.epsilon, weights.scale
        self._width = weights.num_heads * weights.head_dim
        inner = -(-weights.layers[0].down.weight.shape[1] // LANES) * LANES
        stride = max(self.hidden, -(-self._width // LANES) * LANES, inner) + LANES
        self._products = ProductShape(KINDS[self.dtype], backend.target, stride, weights.activation)
        self._embedding, self._places = weights.embedding, weights.places
        self._cosines, self._sines = weights.cosines.contiguous(), weights.sines.contiguous()
        self._layers = []
        while weights.layers:
            self._layers.append(pack_layer(weights.layers.pop(0), self._products))
        self._norm = float_norm(weights.norm)
        self._head = pack_linears([weights.head], self._products)
        self._make_rows()
        self._calls: LayerCalls | None = None
        self._program: Program | None = None
        self._merges: list[int] = []
        self._has_merges = True

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights as they lie packed."""
        packed = self._head.size_bytes + sum(layer.size_bytes for layer in self._layers)
        places = 0 if self._places is None else self._places.nbytes
        return self._embedding.nbytes + places + packed

    def _make_rows(self) -> None:
        """The rows that pass between ops; products write whole panels, so some are wider than their contents."""
        tokens, products = self.max_tokens, self._products
        self._hidden_stride = self._layers[0].output.panels * products.panel
        self._residual = torch.zeros(tokens, self._hidden_stride)
        self._normed = torch.zeros(tokens, products.row_stride, dtype=self.dtype)
        self._attended = torch.zeros(tokens, products.row_stride, dtype=self.dtype)
        self._inner = torch.zeros(tokens, products.row_stride, dtype=self.dtype)
        self._heads = torch.zeros(tokens, self._layers[0].heads.panels * products.panel)
        self._query = torch.zeros(tokens, self._width, dtype=self.dtype)
        self._logits = torch.zeros(0, self._head.panels * products.panel)
        self._best = self._broken = np.zeros(0, np.int64)
        self._advance = Advance()
        self._draw = CpuDraw(tokens, self.vocab_size)
        # Of a step of decodes all tokens are chosen. Kept, because the program goes on naming its address.
        self._every = torch.arange(tokens)

    def attach(self, caches: Sequence[LayerCache]) -> None:
        """From now on attention reads and writes these layers of a pool."""
        head = HeadShape(
            cache=KINDS[caches[0].k.dtype],
            query=KINDS[self.dtype],
            pairs=caches[0].keys == "pairs",
            block_size=caches[0].block_size,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            group=self.num_heads // self.num_kv_heads,
            target=self.backend.target,
            tiling=self.backend.tiling,
        )
        self._calls = LayerCalls(
            TiledAttention(head),
            caches,
            [layer.window for layer in self._layers],
            query=RowLayout(self._query.data_ptr(), self._width),
            out=RowLayout(self._attended.data_ptr(), self._products.row_stride),
            scale=self._scale,
        )
        self._caches = list(caches)
        rows = RowShape(KINDS[self.dtype], self.head_dim, head.block_size, head.pairs)
        table = self._write(self._calls)
        self._program = Program(table, program_kernel(self._products, rows))

    def _write(self, calls: LayerCalls) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """The program of this model over these layers."""
        writer = ProgramWriter()
        writer.add(
            EMBEDDING,
            ids=0,
            table=self._embedding.data_ptr(),
            positions=0,
            places=0 if self._places is None else self._places.data_ptr(),
            out=self._residual.data_ptr(),
            out_stride=self._hidden_stride,
            width=self.hidden,
        )
        self._merges = []
        self._has_merges = True
        for number, layer in enumerate(self._layers):
            self._write_attention(writer, layer, number, calls)
            self._add_norm(writer, layer.post_norm)
            self._add_product(writer, layer.inner, self._normed, ACTIVATE, self._inner)
            self._add_product(writer, layer.down, self._inner, ADD, self._residual)
        # Where ids, positions, slots and chosen rows lie is written when a step has them (`_point`).
        self._addresses: tuple[int, ...] = ()
        self._add_norm(writer, self._norm, rows=LOGIT_ROWS)
        self._logits_op = self._add_product(writer, self._head, self._normed, STORE, self._logits, rows=LOGIT_ROWS)
        self._best_op = writer.add(
            BEST,
            LOGIT_ROWS,
            logits=self._logits.data_ptr(),
            stride=self._logits.shape[1],
            vocabulary=self.vocab_size,
            ids=self._best.ctypes.data,
            broken=self._broken.ctypes.data,
        )
        self._draw_op = writer.add(
            DRAW, LOGIT_ROWS, function=draw_kernel(False).address, arguments=self._draw.arguments
        )
        return writer.table()

    def _write_attention(self, writer: ProgramWriter, layer: PackedLayer, number: int, calls: LayerCalls) -> None:
        cache = self._caches[number]
        self._add_norm(writer, layer.input_norm)
        self._add_product(writer, layer.heads, self._normed, STORE, self._heads)
        writer.add(
            ROTATION,
            heads=self._heads.data_ptr(),
            heads_stride=self._heads.shape[1],
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            query=self._query.data_ptr(),
            query_stride=self._width,
            cosines=self._cosines.data_ptr(),
            sines=self._sines.data_ptr(),
            angle_stride=self._sines.stride(0) if len(self._sines) > 1 else 0,
            positions=0,
            slots=0,
            keys=cache.k.data_ptr(),
            values=cache.v.data_ptr(),
            block_stride=cache.k.stride(0) * cache.k.element_size(),
            query_norm=0 if layer.query_norm is None else layer.query_norm.data_ptr(),
            key_norm=0 if layer.key_norm is None else layer.key_norm.data_ptr(),
            epsilon=float(self._epsilon),
        )
        attend, merge = calls.addresses(number)
        writer.add(CALL, function=calls.attend.address, arguments=attend)
        self._merges.append(writer.add(CALL, function=calls.merge.address, arguments=merge))
        self._add_product(writer, layer.output, self._attended, ADD, self._residual)

    def _add_norm(self, writer: ProgramWriter, norm: Norm, rows: int = ALL_ROWS) -> None:
        writer.add(
            NORM,
            rows,
            source=self._residual.data_ptr(),
            source_stride=self._hidden_stride,
            chosen=0,
            out=self._normed.data_ptr(),
            weight=norm.weight.data_ptr(),
            bias=0 if norm.bias is None else norm.bias.data_ptr(),
            width=self.hidden,
            epsilon=float(self._epsilon),
        )

    def _add_product(
        self,
        writer: ProgramWriter,
        product: Packed,
        x: torch.Tensor,
        mode: int,
        out: torch.Tensor,
        rows: int = ALL_ROWS,
    ) -> int:
        return writer.add(
            PRODUCT,
            rows,
            x=x.data_ptr(),
            weights=product.weights.data_ptr(),
            bias=product.bias.data_ptr(),
            depth=product.depth,
            panels=product.panels,
            mode=mode,
            out=out.data_ptr(),
            out_stride=out.shape[1],
            next=0,
            next_stride=0,
        )

    def run(
        self, ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch, chosen: torch.Tensor
    ) -> torch.Tensor:
        """One prepared step: ids, positions int64 [tokens]; float32 logits [len(chosen), vocabulary] of the chosen
        tokens, valid until the next step."""
        program = self._prepare(ids, positions, batch, chosen)
        program.table[[self._best_op, self._draw_op], 0] = NOTHING
        program.run(len(ids), len(chosen), torch.get_num_threads())
        return self._logits[: len(chosen), : self.vocab_size]

    def pick(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        batch: AttentionBatch,
        chosen: torch.Tensor,
        draws: DrawSettings | None = None,
    ) -> Picked:
        """One prepared step, and the token behind each chosen one: the likeliest, or drawn with these settings."""
        program = self._prepare(ids, positions, batch, chosen)
        self._set_picking(program, draws)
        program.run(len(ids), len(chosen), torch.get_num_threads())
        return Picked(self._best[None, : len(chosen)], self._broken[: len(chosen)])

    def run_ahead(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        batch: AttentionBatch,
        num_steps: int,
        stops: NDArray[np.int32],
        draws: DrawSettings | None = None,
    ) -> Picked:
        """A prepared step of decodes and up to `num_steps - 1` further ones, each with the tokens of the one before it;
        no further one after a row got one of its `stops` [rows of tables, any number]. Positions and slots change.
        `draws` holds the keys of all steps, [steps, rows]."""
        rows = len(ids)
        assert batch.num_decodes == rows == batch.num_seqs, "only decodes go on by themselves"
        program, plan = self._prepare(ids, positions, batch, self._every[:rows]), batch.tasks
        assert isinstance(plan, AttentionPlan) and batch.rows.is_contiguous() and stops.flags.c_contiguous
        self._set_picking(program, draws)
        written = np.empty((num_steps, rows), np.int64)
        self._advance.set(
            best=self._best.ctypes.data,
            broken=self._broken.ctypes.data,
            written=written.ctypes.data,
            ids=ids.data_ptr(),
            positions=positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            rows=batch.rows.data_ptr(),
            tables=batch.tables.data_ptr(),
            table_stride=batch.tables.stride(0),
            block_size=self._caches[0].block_size,
            stops=stops.ctypes.data,
            num_stops=stops.shape[1],
            items=plan.items.ctypes.data,
            num_items=len(plan.items),
        )
        program.run(rows, rows, torch.get_num_threads(), num_steps, self._advance.address)
        return Picked(written[: self._advance.num_done], self._broken[:rows])

    def _set_picking(self, program: Program, draws: DrawSettings | None) -> None:
        program.table[self._best_op, 0] = BEST if draws is None else NOTHING
        program.table[self._draw_op, 0] = NOTHING if draws is None else DRAW
        if draws is not None:
            logits, places = self._logits, (self._best.ctypes.data, self._broken.ctypes.data)
            self._draw.set(draws, torch.get_num_threads(), logits.data_ptr(), logits.shape[1], *places)

    def watch(self, descriptor: int) -> None:
        """`run_ahead` ends before its next step once this can be read."""
        self._advance.watch(descriptor)

    @property
    def keys_per_cut(self) -> int:
        """At contexts that are multiples of this a sequence's attention is cut anew: a run of steps must end before."""
        return cpu_plan.part_keys(self.backend.tiling, self._caches[0].block_size)

    def _prepare(
        self, ids: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch, chosen: torch.Tensor
    ) -> Program:
        """Points the program to this step."""
        program, calls = self._program, self._calls
        assert program is not None and calls is not None, "no pool is attached"
        tokens, num_chosen = ids.shape[0], chosen.shape[0]
        assert tokens <= self.max_tokens, f"{tokens} tokens in a step of at most {self.max_tokens}"
        if self.backend.is_debug:
            checks.check_batch_bounds(batch, self._caches[0])
            checks.check_write_bounds(self._caches[0], batch.slots)
        plan = batch.tasks
        assert isinstance(plan, AttentionPlan), "the batch is not prepared"
        merges = calls.prepare(batch, plan, torch.get_num_threads())
        if merges != self._has_merges:
            self._has_merges = merges
            program.table[self._merges, 0] = CALL if merges else NOTHING
        self._point(program, ids, positions, batch.slots, chosen)
        if num_chosen > self._logits.shape[0]:
            self._grow_logits(program, num_chosen)
        return program

    def _grow_logits(self, program: Program, num_chosen: int) -> None:
        count = max(num_chosen, 2 * self._logits.shape[0])
        self._logits = torch.zeros(count, self._logits.shape[1])
        self._best, self._broken = np.zeros(count, np.int64), np.zeros(count, np.int64)
        program.table[self._logits_op, word_of(PRODUCT, "out")] = self._logits.data_ptr()
        places = {"logits": self._logits.data_ptr(), "ids": self._best.ctypes.data, "broken": self._broken.ctypes.data}
        for name, address in places.items():
            program.table[self._best_op, word_of(BEST, name)] = address

    def _point(self, program: Program, *inputs: torch.Tensor) -> None:
        """Has the ops read this step's ids, positions, slots and chosen rows where they lie. A worker uses the same
        buffers in every step, so that there is seldom anything to do."""
        addresses = tuple(tensor.data_ptr() for tensor in inputs)
        if addresses == self._addresses:
            return
        for tensor in inputs:
            assert tensor.dtype == torch.int64 and tensor.is_contiguous(), (tensor.dtype, tensor.stride())
        self._addresses = addresses
        table = program.table
        rotations = table[:, 0] == ROTATION
        table[table[:, 0] == EMBEDDING, word_of(EMBEDDING, "ids")] = addresses[0]
        table[table[:, 0] == EMBEDDING, word_of(EMBEDDING, "positions")] = addresses[1]
        table[rotations, word_of(ROTATION, "positions")] = addresses[1]
        table[rotations, word_of(ROTATION, "slots")] = addresses[2]
        table[self._logits_op - 1, word_of(NORM, "chosen")] = addresses[3]
