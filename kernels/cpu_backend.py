"""The CPU backend: paged attention, cache writes and block copies in machine code that this process makes for itself.

The worker calls it through `kernels.dispatch`. It checks arguments, picks or compiles the kernel for a shape, fills the
argument arrays and runs the kernels on torch's threads. It keeps scratch memory, so one thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch

from kernels import checks, cpu_plan, reference
from kernels.batch import AttentionBatch
from kernels.cpu_attention import ARGUMENTS, AttentionEmitter, AttentionShape
from kernels.cpu_call import Call
from kernels.cpu_ir import BF16, F16, F32, Kind
from kernels.cpu_jit import Kernel, Target, compile_kernel, host
from kernels.cpu_math import LOG2E
from kernels.cpu_merge import MergeEmitter
from kernels.cpu_plan import Plan
from kernels.cpu_shapes import HeadShape, Tiling
from kernels.cpu_write import COPY_ARGUMENTS, WRITE_ARGUMENTS, WriteEmitter, WriteShape, emit_copy
from kernels.layout import BlockLayout, KeyOrder, LayerCache

KINDS: dict[torch.dtype, Kind] = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}

# Below so many bytes read or written a call stays on its own thread: waking another costs more than it brings.
MIN_BYTES_PER_THREAD = 64 * 1024
# No window: further back than any key.
NO_WINDOW = 1 << 40


@lru_cache(maxsize=256)
def attention_kernel(shape: AttentionShape) -> Kernel:
    """`attend` for a shape, compiled at its first use."""
    return compile_kernel("attend", lambda code: AttentionEmitter(code, shape).emit(), shape.head.target)


@lru_cache(maxsize=256)
def merge_kernel(shape: AttentionShape) -> Kernel:
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
        self._attend, self._write, self._copy = Call(ARGUMENTS), Call(WRITE_ARGUMENTS), Call(COPY_ARGUMENTS)
        # A lookup by plain values each call; the kernels themselves are shared by all backends of the process.
        self._kernels: dict[tuple[object, ...], tuple[AttentionShape, Kernel]] = {}
        self._scratch = torch.zeros(0)
        self._partials = torch.zeros(0)

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
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        checks.check_attention(q, cache, batch, window=window, softcap=softcap, sinks=sinks, out=out, lse=lse)
        if self.is_debug:
            checks.check_batch_bounds(batch, cache)
        shape, kernel = self._kernel_for(q, cache)
        plan = self._plan(batch, shape, cache)
        if out is None:
            out = torch.empty((*q.shape[:2], cache.value_dim), dtype=q.dtype)
        sinks = None if sinks is None else sinks.float().contiguous()
        threads = self._threads(plan.num_row_keys * plan.num_kv_heads // shape.head.group, cache)
        self._set_tensors(q, cache, batch, out, lse, sinks)
        self._set_score(scale, window, softcap)
        self._size_scratch(shape, plan, threads)
        self._attend.set(
            num_items=len(plan.items), items=plan.items.ctypes.data, tasks_at_once=1, num_kv_heads=plan.num_kv_heads
        )
        self._attend.run(kernel, threads)
        if len(plan.merges):
            self._attend.set(num_items=len(plan.merges), items=plan.merges.ctypes.data)
            self._attend.run(merge_kernel(shape), min(threads, len(plan.merges) * plan.num_kv_heads))
        return out

    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
        checks.check_write(k, v, cache, slots)
        if self.is_debug:
            checks.check_write_bounds(cache, slots)
        if k.dtype != v.dtype:
            raise ValueError(f"k and v must have one dtype, got {k.dtype} and {v.dtype}")
        self._check_order(cache)
        slots = slots.contiguous()
        shape = WriteShape(
            KINDS[k.dtype],
            KINDS[cache.k.dtype],
            cache.keys == "pairs",
            cache.block_size,
            cache.head_dim,
            cache.value_dim,
        )
        self._write.set(
            num_tokens=slots.shape[0],
            num_kv_heads=cache.num_kv_heads,
            slots=slots.data_ptr(),
            block_stride=cache.k.stride(0) * cache.k.element_size(),
            key=k.data_ptr(),
            key_token_stride=k.stride(0),
            key_head_stride=k.stride(1),
            value=v.data_ptr(),
            value_token_stride=v.stride(0),
            value_head_stride=v.stride(1),
            keys=cache.k.data_ptr(),
            values=cache.v.data_ptr(),
        )
        self._write.run(write_kernel(shape, self.target), self._threads_for(k.numel() * 16))

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
        self._copy.run(copy_kernel(self.target), self._threads_for(src.shape[0] * pool.shape[1]))

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.merge(outs, lses)

    def warm_up(self, layout: BlockLayout, num_heads: int) -> None:
        """Compiles the kernels of every layer shape for queries of the cache's dtype."""
        dtype, size = layout.dtype, layout.block_size
        for layer in dict.fromkeys(layout.layers):
            group = num_heads // layer.num_kv_heads
            shape, _ = self._compile(dtype, dtype, layout.keys, size, layer.head_dim, layer.value_dim, group)
            merge_kernel(shape)
            pairs = layout.keys == "pairs"
            write = WriteShape(KINDS[dtype], KINDS[dtype], pairs, size, layer.head_dim, layer.value_dim)
            write_kernel(write, self.target)
        copy_kernel(self.target)

    def _kernel_for(self, q: torch.Tensor, cache: LayerCache) -> tuple[AttentionShape, Kernel]:
        group = q.shape[1] // cache.num_kv_heads
        key = (q.dtype, cache.k.dtype, cache.keys, cache.block_size, cache.head_dim, cache.value_dim, group)
        found = self._kernels.get(key)
        if found is None:
            self._check_order(cache)
            found = self._kernels[key] = self._compile(*key)
        return found

    def _compile(
        self,
        query: torch.dtype,
        cache: torch.dtype,
        keys: KeyOrder,
        block_size: int,
        head_dim: int,
        value_dim: int,
        group: int,
    ) -> tuple[AttentionShape, Kernel]:
        pairs = keys == "pairs"
        head = HeadShape(
            KINDS[cache], KINDS[query], pairs, block_size, head_dim, value_dim, group, self.target, self.tiling
        )
        shape = AttentionShape(head)
        return shape, attention_kernel(shape)

    def _check_order(self, cache: LayerCache) -> None:
        pairs = cache.keys == "pairs" and cache.k.dtype == torch.bfloat16
        if cache.keys != "dim_slot" and not pairs:
            wanted = self.key_order(cache.k.dtype, cache.block_size)
            raise ValueError(f"the CPU kernels read {cache.k.dtype} keys as {wanted}, the cache has {cache.keys}")

    def _plan(self, batch: AttentionBatch, shape: AttentionShape, cache: LayerCache) -> Plan:
        plan = batch.tasks
        made_for = (shape.head.group, cache.num_kv_heads, cache.block_size)
        if isinstance(plan, Plan) and (plan.group, plan.num_kv_heads, plan.block_size) == made_for:
            return plan
        # Layers of another geometry than the one that `prepare` was told.
        return cpu_plan.build(
            batch, self.tiling, group=shape.head.group, num_kv_heads=cache.num_kv_heads, block_size=cache.block_size
        )

    def _set_tensors(
        self,
        q: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        out: torch.Tensor,
        lse: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> None:
        self._attend.set(
            query=q.data_ptr(),
            query_token_stride=q.stride(0),
            query_head_stride=q.stride(1),
            out=out.data_ptr(),
            out_token_stride=out.stride(0),
            out_head_stride=out.stride(1),
            lse=0 if lse is None else lse.data_ptr(),
            lse_token_stride=0 if lse is None else lse.stride(0),
            sinks=0 if sinks is None else sinks.data_ptr(),
            keys=cache.k.data_ptr(),
            values=cache.v.data_ptr(),
            block_stride=cache.k.stride(0) * cache.k.element_size(),
            tables=batch.tables.data_ptr(),
            table_stride=batch.tables.stride(0),
        )

    def _set_score(self, scale: float, window: int, softcap: float) -> None:
        # The kernel wants a positive factor, so that the highest product is the highest score.
        sign = (scale > 0.0) - (scale < 0.0)
        magnitude = abs(scale) if sign else 1.0
        self._attend.set_floats(
            query_factor=sign,
            score_factor=magnitude / softcap if softcap > 0.0 else magnitude * LOG2E,
            softcap=softcap * LOG2E,
        )
        self._attend.set(window=window or NO_WINDOW)

    def _size_scratch(self, shape: AttentionShape, plan: Plan, threads: int) -> None:
        stride = -(-shape.scratch_bytes // 4096) * 4096 + 64
        if self._scratch.nbytes < stride * threads:
            self._scratch = torch.zeros(stride * threads // 4)
        partials = plan.num_partial_rows * shape.partial_stride
        if self._partials.numel() < partials:
            self._partials = torch.empty(partials * 3 // 2)
        self._attend.set(scratch=self._scratch.data_ptr(), scratch_stride=stride, partials=self._partials.data_ptr())

    def _threads(self, num_keys: int, cache: LayerCache) -> int:
        """Threads worth waking for reading so many keys and values of one head each."""
        return self._threads_for(num_keys * (cache.head_dim + cache.value_dim) * cache.k.element_size())

    def _threads_for(self, size_bytes: int) -> int:
        return max(1, min(torch.get_num_threads(), size_bytes // MIN_BYTES_PER_THREAD))
