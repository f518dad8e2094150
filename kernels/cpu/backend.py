"""The CPU backend: paged attention, cache writes and block copies in machine code that this process makes for itself.

The worker calls it through `kernels.dispatch`. It checks arguments, picks or compiles the kernel for a shape, binds it
to a layer and runs it on torch's threads. It keeps scratch memory, so one thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeVar

import torch

from kernels import checks, reference
from kernels.batch import AttentionBatch, Scoring
from kernels.cpu import plan as cpu_plan
from kernels.cpu.attention import AttentionEmitter, TiledAttention
from kernels.cpu.bound import BoundAttention, BoundWrite, Workspace, threads_for
from kernels.cpu.call import KernelCall
from kernels.cpu.ir import BF16, F16, F32, Kind
from kernels.cpu.jit import Kernel, Target, compile_kernel, host
from kernels.cpu.merge import MergeEmitter
from kernels.cpu.plan import AttentionPlan
from kernels.cpu.shapes import HeadShape, Tiling
from kernels.cpu.write import COPY_ARGUMENTS, WriteEmitter, WriteShape, emit_copy
from kernels.layout import BlockLayout, KeyOrder, LayerCache

_Bound = TypeVar("_Bound", BoundAttention, BoundWrite)

KINDS: dict[torch.dtype, Kind] = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}

# Layers are bound at their first call. A caller that makes new caches all the time must not fill memory with them.
MAX_BOUND = 4096


@lru_cache(maxsize=256)
def attention_kernel(shape: TiledAttention) -> Kernel:
    """`attend` for a shape, compiled at its first use."""
    return compile_kernel("attend", lambda code: AttentionEmitter(code, shape).emit(), shape.head.target)


@lru_cache(maxsize=256)
def merge_kernel(shape: TiledAttention) -> Kernel:
    return compile_kernel("merge_parts", lambda code: MergeEmitter(code, shape).emit(), shape.head.target)


@lru_cache(maxsize=256)
def write_kernel(shape: WriteShape, target: Target) -> Kernel:
    return compile_kernel("write_kv", lambda code: WriteEmitter(code, shape).emit(), target)


@lru_cache(maxsize=4)
def copy_kernel(target: Target) -> Kernel:
    return compile_kernel("copy_blocks", emit_copy, target)


class CpuBackend:
    """`kernels.dispatch.Backend` for CPUs.

    `target` narrows what emitted code may use, `tiling` cuts the work otherwise: both for tests and measurements.
    """

    name: Literal["cpu"] = "cpu"

    def __init__(
        self,
        device: torch.device,
        *,
        debug: bool = False,
        target: Target | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        if device.type != "cpu":
            raise ValueError(f"the CPU kernels need tensors in host memory, got device {device}")
        self.device = device
        self.target = target or host()
        self.tiling = tiling or Tiling()
        self.is_debug = debug
        self._copy = KernelCall(COPY_ARGUMENTS)
        self._workspace = Workspace()
        self._attentions: dict[tuple[object, ...], BoundAttention] = {}
        self._writes: dict[tuple[object, ...], BoundWrite] = {}

    def key_order(self, dtype: torch.dtype, block_size: int) -> KeyOrder:
        return "pairs" if dtype == torch.bfloat16 and block_size % 2 == 0 else "dim_slot"

    def prepare(
        self, batch: AttentionBatch, *, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
    ) -> AttentionBatch:
        checks.check_batch(batch, self.device)
        group = num_heads // num_kv_heads
        batch.tasks = cpu_plan.build(batch, self.tiling, group=group, num_kv_heads=num_kv_heads, block_size=block_size)
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
        # The identities in the key are those of objects that the bound call keeps alive.
        scale, window, softcap, sinks = scoring
        key = (id(cache), q.dtype, q.shape[1:], scale, window, softcap, id(sinks))
        bound = self._attentions.get(key)
        if bound is None or batch.tasks is None or self.is_debug or out is not None or lse is not None:
            checks.check_attention(q, cache, batch, scoring, out=out, lse=lse)
            if self.is_debug:
                checks.check_batch_bounds(batch, cache)
            bound = bound or self._bind(key, q, cache, scoring)
        elif q.shape[0] != batch.num_tokens or q.stride(2) != 1 or not q.is_cpu:
            checks.check_attention(q, cache, batch, scoring, out=out, lse=lse)
        if out is None:
            out = q.new_empty((q.shape[0], q.shape[1], bound.value_dim))
        bound.run(q, out, lse, batch, self._plan(batch, bound.shape, cache), self._workspace)
        return out

    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
        checks.check_write(k, v, cache, slots)
        if self.is_debug:
            checks.check_write_bounds(cache, slots)
        key = (id(cache), k.dtype)
        bound = self._writes.get(key)
        if bound is None or k.dtype != v.dtype:
            if k.dtype != v.dtype:
                raise ValueError(f"k and v must have one dtype, got {k.dtype} and {v.dtype}")
            bound = self._bind_write(key, k, cache)
        bound.run(k, v, slots)

    def copy_blocks(
        self, pool: torch.Tensor, src: Sequence[int] | torch.Tensor, dst: Sequence[int] | torch.Tensor
    ) -> None:
        src, dst = torch.as_tensor(src, dtype=torch.int64), torch.as_tensor(dst, dtype=torch.int64)
        src, dst = src.contiguous(), dst.contiguous()
        checks.check_copy(pool, src, dst)
        if self.is_debug:
            checks.check_copy_bounds(pool, src, dst)
        self._copy.set(
            num_copies=src.shape[0],
            pool=pool.data_ptr(),
            block_bytes=pool.shape[1],
            sources=src.data_ptr(),
            targets=dst.data_ptr(),
        )
        self._copy.run(copy_kernel(self.target), threads_for(src.shape[0] * pool.shape[1]))

    def take(
        self, ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor, tables: torch.Tensor, changes: torch.Tensor
    ) -> None:
        reference.take(ids, taken, last, tables, changes)

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.merge(outs, lses)

    def warm_up(self, layout: BlockLayout, num_heads: int, *, softcap: bool = False, sinks: bool = False) -> None:
        """Compiles the kernels of every layer shape for queries of the cache's dtype: scoring is one kernel."""
        dtype, size = layout.dtype, layout.block_size
        for layer in dict.fromkeys(layout.layers):
            shape = self._shape(
                dtype, dtype, layout.keys, size, layer.head_dim, layer.value_dim, num_heads // layer.num_kv_heads
            )
            attention_kernel(shape)
            merge_kernel(shape)
            pairs = layout.keys == "pairs"
            write = WriteShape(KINDS[dtype], KINDS[dtype], pairs, size, layer.head_dim, layer.value_dim)
            write_kernel(write, self.target)
        copy_kernel(self.target)

    def _bind(
        self,
        key: tuple[object, ...],
        q: torch.Tensor,
        cache: LayerCache,
        scoring: Scoring,
    ) -> BoundAttention:
        self._check_order(cache)
        group = q.shape[1] // cache.num_kv_heads
        shape = self._shape(
            q.dtype, cache.k.dtype, cache.keys, cache.block_size, cache.head_dim, cache.value_dim, group
        )
        bound = BoundAttention(cache, shape, (attention_kernel(shape), merge_kernel(shape)), scoring)
        _remember(self._attentions, key, bound)
        return bound

    def _bind_write(self, key: tuple[object, ...], k: torch.Tensor, cache: LayerCache) -> BoundWrite:
        self._check_order(cache)
        pairs = cache.keys == "pairs"
        kinds = KINDS[k.dtype], KINDS[cache.k.dtype]
        shape = WriteShape(*kinds, pairs, cache.block_size, cache.head_dim, cache.value_dim)
        bound = BoundWrite(cache, write_kernel(shape, self.target))
        _remember(self._writes, key, bound)
        return bound

    def _shape(
        self,
        query: torch.dtype,
        cache: torch.dtype,
        keys: KeyOrder,
        block_size: int,
        head_dim: int,
        value_dim: int,
        group: int,
    ) -> TiledAttention:
        sizes = block_size, head_dim, value_dim, group
        return TiledAttention(HeadShape(KINDS[cache], KINDS[query], keys == "pairs", *sizes, self.target, self.tiling))

    def _check_order(self, cache: LayerCache) -> None:
        pairs = cache.keys == "pairs" and cache.k.dtype == torch.bfloat16
        if cache.keys != "dim_slot" and not pairs:
            wanted = self.key_order(cache.k.dtype, cache.block_size)
            raise ValueError(f"the CPU kernels read {cache.k.dtype} keys as {wanted}, the cache has {cache.keys}")

    def _plan(self, batch: AttentionBatch, shape: TiledAttention, cache: LayerCache) -> AttentionPlan:
        plan = batch.tasks
        made_for = (shape.head.group, cache.num_kv_heads, cache.block_size)
        if isinstance(plan, AttentionPlan) and (plan.group, plan.num_kv_heads, plan.block_size) == made_for:
            return plan
        # Layers of another geometry than the one that `prepare` was told.
        return cpu_plan.build(
            batch, self.tiling, group=shape.head.group, num_kv_heads=cache.num_kv_heads, block_size=cache.block_size
        )


def _remember(bound: dict[tuple[object, ...], _Bound], key: tuple[object, ...], entry: _Bound) -> None:
    if len(bound) >= MAX_BOUND:
        bound.clear()
    bound[key] = entry
