"""Calls of one layer with everything that stays the same from step to step already in their argument arrays.

In a model the host's part of a call runs on cold caches, so what is done per call is kept small: `CpuBackend` makes one
of these per layer at its first call and then only hands over what is new. Scratch memory is shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kernels.batch import AttentionBatch, Scoring
from kernels.cpu.attention import ARGUMENTS, NO_WINDOW, TiledAttention
from kernels.cpu.call import KernelCall
from kernels.cpu.jit import Kernel
from kernels.cpu.math import LOG2E
from kernels.cpu.plan import AttentionPlan
from kernels.cpu.write import WRITE_ARGUMENTS
from kernels.layout import LayerCache

# Below so many bytes read or written a call stays on its own thread: waking another costs more than it brings.
MIN_BYTES_PER_THREAD = 64 * 1024
# Tasks that one thread takes at once: neighbours share blocks, but the last ones must still be shared out evenly.
MAX_TASKS_AT_ONCE, MIN_TURNS = 8, 16


def threads_for(size_bytes: int) -> int:
    """Threads worth waking for so many bytes."""
    return max(1, min(torch.get_num_threads(), size_bytes // MIN_BYTES_PER_THREAD))


@dataclass
class Workspace:
    """Memory that attention calls of one backend share; `version` changes when any of it moves."""

    scratch: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    partials: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    version: int = 0

    def reserve(self, scratch_bytes: int, num_partials: int) -> None:
        if self.scratch.nbytes < scratch_bytes:
            self.scratch = torch.zeros(-(-scratch_bytes // 4))
            self.version += 1
        if self.partials.numel() < num_partials:
            self.partials = torch.empty(num_partials * 3 // 2)
            self.version += 1


class BoundAttention:
    """Attention over one layer's cache with one way of scoring."""

    __slots__ = (
        "_call",
        "_merge",
        "_merge_call",
        "_plan",
        "_sinks",
        "_size_bytes",
        "_tables",
        "_version",
        "cache",
        "kernel",
        "shape",
        "sinks",
        "value_dim",
    )

    def __init__(
        self,
        cache: LayerCache,
        shape: TiledAttention,
        kernels: tuple[Kernel, Kernel],
        scoring: Scoring,
    ) -> None:
        # Cache and sinks are kept alive, since the call is found again by their identities.
        self.cache, self.sinks = cache, scoring.sinks
        self.shape = shape
        self.kernel, self._merge = kernels
        self.value_dim = cache.value_dim
        self._call, self._merge_call = KernelCall(ARGUMENTS), KernelCall(ARGUMENTS)
        self._plan: AttentionPlan | None = None
        self._tables: torch.Tensor | None = None
        self._version = -1
        self._size_bytes = 0
        self._sinks = None if scoring.sinks is None else scoring.sinks.float().contiguous()
        for call in (self._call, self._merge_call):
            call.set(
                num_kv_heads=cache.num_kv_heads,
                keys=cache.k.data_ptr(),
                values=cache.v.data_ptr(),
                block_stride=cache.k.stride(0) * cache.k.element_size(),
                sinks=0 if self._sinks is None else self._sinks.data_ptr(),
                window=scoring.window or NO_WINDOW,
            )
            _set_scoring(call, scoring)

    def run(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor | None,
        batch: AttentionBatch,
        plan: AttentionPlan,
        workspace: Workspace,
    ) -> None:
        """One step's attention; the arguments have been checked."""
        if plan is not self._plan or batch.tables is not self._tables:
            self._set_step(batch, plan)
        threads = threads_for(self._size_bytes)
        stride = -(-self.shape.scratch_bytes // 4096) * 4096 + 64
        workspace.reserve(stride * threads, plan.num_partial_rows * self.shape.partial_stride)
        calls = (self._call, self._merge_call) if len(plan.merges) else (self._call,)
        for call in calls:
            call.set(
                query=q.data_ptr(),
                query_token_stride=q.stride(0),
                query_head_stride=q.stride(1),
                out=out.data_ptr(),
                out_token_stride=out.stride(0),
                out_head_stride=out.stride(1),
                lse=0 if lse is None else lse.data_ptr(),
                lse_token_stride=0 if lse is None else lse.stride(0),
            )
        turns = len(plan.items) * plan.num_kv_heads // (threads * MIN_TURNS)
        self._call.set(tasks_at_once=min(MAX_TASKS_AT_ONCE, max(1, turns)))
        if self._version != workspace.version:
            self._version = workspace.version
            for call in (self._call, self._merge_call):
                call.set(
                    scratch=workspace.scratch.data_ptr(),
                    scratch_stride=stride,
                    partials=workspace.partials.data_ptr(),
                )
        self._call.run(self.kernel, threads)
        if len(plan.merges):
            self._merge_call.run(self._merge, min(threads, len(plan.merges) * plan.num_kv_heads))

    def _set_step(self, batch: AttentionBatch, plan: AttentionPlan) -> None:
        self._plan, self._tables = plan, batch.tables
        cache, tables = self.cache, batch.tables
        num_keys = plan.num_row_keys * plan.num_kv_heads // self.shape.head.group
        self._size_bytes = num_keys * (cache.head_dim + self.value_dim) * cache.k.element_size()
        self._call.set(
            num_items=len(plan.items),
            items=plan.items.ctypes.data,
            tables=tables.data_ptr(),
            table_stride=tables.stride(0),
        )
        self._merge_call.set(num_items=len(plan.merges), items=plan.merges.ctypes.data)


def _set_scoring(call: KernelCall, scoring: Scoring) -> None:
    # The kernel wants a positive factor, so that the highest product is the highest score.
    scale, softcap = scoring.scale, scoring.softcap
    sign = (scale > 0.0) - (scale < 0.0)
    magnitude = abs(scale) if sign else 1.0
    call.set_floats(
        query_factor=sign,
        score_factor=magnitude / softcap if softcap > 0.0 else magnitude * LOG2E,
        softcap=softcap * LOG2E,
    )


class BoundWrite:
    """Writes keys and values into one layer's cache."""

    __slots__ = ("_call", "cache", "kernel")

    def __init__(self, cache: LayerCache, kernel: Kernel) -> None:
        self.cache = cache
        self.kernel = kernel
        self._call = KernelCall(WRITE_ARGUMENTS)
        self._call.set(
            num_kv_heads=cache.num_kv_heads,
            block_stride=cache.k.stride(0) * cache.k.element_size(),
            keys=cache.k.data_ptr(),
            values=cache.v.data_ptr(),
        )

    def run(self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """One step's write; the arguments have been checked."""
        self._call.set(
            num_tokens=slots.shape[0],
            slots=slots.data_ptr(),
            key=k.data_ptr(),
            key_token_stride=k.stride(0),
            key_head_stride=k.stride(1),
            value=v.data_ptr(),
            value_token_stride=v.stride(0),
            value_head_stride=v.stride(1),
        )
        # Keys are scattered, which takes about as long as sixteen times as many bytes in one run.
        self._call.run(self.kernel, threads_for(k.numel() * 16))
