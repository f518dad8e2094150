"""The Triton kernels behind the calls of `dispatch.Backend`: checks arguments, keeps scratch memory, launches.

The worker asks `dispatch.backend` for it once and calls it every step and layer, from one thread and on one stream.
It runs on GPUs, and on CPU tensors in Triton's interpreter (tests). It never waits for the device except in debug mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import triton

from kernels.batch import AttentionBatch, Scoring
from kernels.checks import FLOATS, check_attention, check_batch, check_write_bounds, expect
from kernels.device.seam import device_of
from kernels.gpu import bounds as triton_bounds
from kernels.gpu import copy as triton_copy
from kernels.gpu import take as triton_take
from kernels.gpu import write as triton_write
from kernels.gpu.choices import DeviceFacts, device_facts, interpreting
from kernels.gpu.issuing import issue
from kernels.gpu.merge import merge_kernel
from kernels.gpu.step import (
    FLAT_ROWS,
    AttentionShape,
    Group,
    Launch,
    build_launch,
    groups_of,
    launch_attention,
    num_slots,
    padded,
)
from kernels.layout import BlockLayout, KeyOrder, LayerCache

# A batch's launches by shape and window: what `prepare` leaves in `batch.tasks`.
Tasks = dict[tuple[AttentionShape, int], list[Launch]]


class TritonBackend:
    """See `dispatch.Backend`. `facts` overrides what is known of the device, for tuning and tests."""

    name: Literal["triton"] = "triton"

    def __init__(self, device: torch.device, *, debug: bool = False, facts: DeviceFacts | None = None) -> None:
        self._facts = facts or device_facts(device)
        if self._facts.family == "interpreter" and not interpreting():
            raise ValueError(f"the Triton kernels need a GPU, got device {device}; use the cpu or reference kernels")
        self.device = device
        self._debug = debug
        # Partials by size. Kept for good: a captured graph holds their addresses.
        self._workspaces: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def key_order(self, dtype: torch.dtype, block_size: int) -> KeyOrder:
        return "slot_dim"

    def prepare(
        self, batch: AttentionBatch, *, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
    ) -> AttentionBatch:
        """Forgets what was built for an earlier step. Plans are built on the device at the first layer of each kind."""
        check_batch(batch, self.device)
        batch.tasks = {}
        return batch

    def attention(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        scoring: Scoring,
        *,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        check_attention(q, cache, batch, scoring, out=out, lse=lse)
        _check_cache(cache)
        if self._debug:
            triton_bounds.check_bounds(batch, cache)
        if out is None:
            out = torch.empty((*q.shape[:2], cache.value_dim), dtype=q.dtype, device=q.device)
        if scoring.scale < 0.0:
            # The kernels take the largest score before they scale it.
            q, scoring = -q, scoring._replace(scale=-scoring.scale)
        shape = _shape_of(q, cache)
        for launch in self._launches(batch, shape, scoring.window):
            partials, sums = self._workspace(launch.group, shape)
            launch_attention(
                launch,
                shape,
                q,
                cache,
                batch,
                partials,
                sums,
                scoring,
                out=out,
                lse=lse,
            )
        return out

    def plan(self, batch: AttentionBatch, q: torch.Tensor, cache: LayerCache, *, window: int = 0) -> None:
        """Builds the plan that `attention` with these shapes would build at its first call in a step."""
        self._launches(batch, _shape_of(q, cache), window)

    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
        _check_cache(cache)
        if self._debug:
            check_write_bounds(cache, slots)
        triton_write.write_kv(k, v, cache, slots)

    def rotary_write_kv(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: LayerCache,
        slots: torch.Tensor,
        *,
        interleaved: bool = False,
    ) -> None:
        """`triton_write.rotary_write_kv`: q rotated in place, rotated k and v written, in one launch."""
        _check_cache(cache)
        if self._debug:
            check_write_bounds(cache, slots)
        triton_write.rotary_write_kv(q, k, v, cos, sin, cache, slots, interleaved=interleaved)

    def copy_blocks(
        self, pool: torch.Tensor, src: Sequence[int] | torch.Tensor, dst: Sequence[int] | torch.Tensor
    ) -> None:
        triton_copy.copy_blocks(pool, src, dst, check_bounds=self._debug)

    def take(
        self, ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor, tables: torch.Tensor, changes: torch.Tensor
    ) -> None:
        triton_take.take(ids, taken, last, tables, changes)

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        expect("outs", outs, (None, None, None, None), FLOATS, self.device)
        expect("lses", lses, tuple(outs.shape[:3]), (torch.float32,), self.device)
        parts, tokens, heads, dim = outs.shape
        outs, lses = outs.contiguous(), lses.contiguous()
        out = torch.empty((tokens, heads, dim), dtype=outs.dtype, device=outs.device)
        lse = torch.empty((tokens, heads), dtype=lses.dtype, device=lses.device)
        rows = 16
        if out.numel():
            grid = (triton.cdiv(tokens * heads, rows),)
            issue(
                merge_kernel,
                grid,
                outs,
                lses,
                out,
                lse,
                parts,
                tokens * heads,
                DIM=dim,
                DIM_PAD=padded(dim),
                ROWS=rows,
                num_warps=4,
            )
        return out, lse

    def warm_up(self, layout: BlockLayout, num_heads: int, *, softcap: bool = False, sinks: bool = False) -> None:
        """Runs each kernel on a pool of two blocks, with and without a window, for every shape of the layout."""
        cap, sink = 30.0 if softcap else 0.0, torch.zeros(num_heads, device=self.device) if sinks else None
        pool = torch.zeros((2, layout.block_bytes), dtype=torch.uint8, device=self.device)
        none = torch.zeros((1, 2), dtype=torch.int32, device=self.device)
        caches = dict(zip(layout.layers, layout.views(pool), strict=True))
        for layer, cache in caches.items():
            group = num_heads // layer.num_kv_heads
            # A decode, a few tokens, and more than the flat schedule takes.
            for queries in sorted({1, 2, FLAT_ROWS // group + 1}):
                batch = self._warm_batch(queries, layout.block_size)
                q = torch.zeros((queries, num_heads, layer.head_dim), dtype=layout.dtype, device=self.device)
                kv = q[:, : layer.num_kv_heads]
                values = torch.zeros(
                    (queries, layer.num_kv_heads, layer.value_dim), dtype=layout.dtype, device=self.device
                )
                self.write_kv(kv, values, cache, batch.slots)
                self.take(batch.slots, batch.rows - 1, batch.positions, batch.tables, none)
                for window in (0, 2 * queries):
                    self.attention(q, cache, batch, Scoring(1.0, window=window, softcap=cap, sinks=sink))
        self.copy_blocks(pool, [0], [1])
        device_of(self.device).wait()

    def _warm_batch(self, queries: int, block_size: int) -> AttentionBatch:
        """One sequence that is all in block 0."""

        def ints(*values: int) -> torch.Tensor:
            return device_of(self.device).send(np.array(values, np.int32))

        slots = torch.arange(queries, dtype=torch.int64, device=self.device) % block_size
        table = torch.zeros((1, -(-queries // block_size)), dtype=torch.int32, device=self.device)
        return AttentionBatch(
            query_start=ints(0, queries),
            context_len=ints(queries),
            tables=table,
            rows=ints(0),
            slots=slots,
            positions=slots,
            max_query_len=queries,
            max_context_len=queries,
            num_decodes=int(queries == 1),
        )

    def _launches(self, batch: AttentionBatch, shape: AttentionShape, window: int) -> list[Launch]:
        if batch.tasks is None:
            check_batch(batch, self.device)
            batch.tasks = {}
        assert isinstance(batch.tasks, dict)
        tasks: Tasks = batch.tasks
        launches = tasks.get((shape, window))
        if launches is None:
            launches = [build_launch(batch, shape, group, window) for group in groups_of(batch, shape, self._facts)]
            tasks[(shape, window)] = launches
        return launches

    def _workspace(self, group: Group, shape: AttentionShape) -> tuple[torch.Tensor, torch.Tensor]:
        key = (num_slots(group, shape), group.block_m, shape.value_pad)
        if key not in self._workspaces:
            partials = torch.empty(key, dtype=torch.float32, device=self.device)
            sums = torch.empty((*key[:2], 2), dtype=torch.float32, device=self.device)
            self._workspaces[key] = partials, sums
        return self._workspaces[key]


def _shape_of(q: torch.Tensor, cache: LayerCache) -> AttentionShape:
    return AttentionShape(
        q.shape[1],
        cache.num_kv_heads,
        cache.head_dim,
        cache.value_dim,
        cache.block_size,
        q.element_size() if q.dtype == cache.k.dtype else 4,
    )


def _check_cache(cache: LayerCache) -> None:
    """The kernels derive the strides inside a block from its sizes."""
    if cache.keys != "slot_dim":
        raise ValueError(f"cache must have keys in slot_dim order for the Triton kernels, got {cache.keys}")
    if cache.k.stride(0) != cache.v.stride(0):
        raise ValueError(
            f"cache.k and cache.v must lie in the same blocks, got block strides {cache.k.stride(0)} and "
            f"{cache.v.stride(0)} elements"
        )
    for name, tensor in (("k", cache.k), ("v", cache.v)):
        slots, dim = cache.block_size, tensor.shape[3]
        if tensor.shape[2] != slots or tensor.stride()[1:] != (slots * dim, dim, 1):
            raise ValueError(
                f"cache.{name} must hold [kv_heads, {slots} slots, {dim}] densely in each block, got shape "
                f"{list(tensor.shape)} and strides {tensor.stride()}"
            )
