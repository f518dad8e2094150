"""The attention of all layers of a decoder as argument arrays that lie ready, so that a program can call it by address.

`decoder` makes one of these when the pool is known. What is the same in every step (caches, windows, where queries
and outputs lie) is written once; `prepare` writes the rest for all layers at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.batch import AttentionBatch
from kernels.cpu.attention import ARGUMENTS, NO_WINDOW, TiledAttention
from kernels.cpu.backend import attention_kernel, merge_kernel
from kernels.cpu.call import COUNTER, TICKET
from kernels.cpu.math import LOG2E
from kernels.cpu.plan import AttentionPlan
from kernels.layout import LayerCache


@dataclass(frozen=True)
class RowLayout:
    """Where queries or outputs of a step lie: address, and elements between rows; heads are neighbours."""

    address: int
    stride: int


class LayerCalls:
    """Argument arrays of `attend` and of `merge_parts`, one of each per layer."""

    def __init__(
        self,
        shape: TiledAttention,
        caches: Sequence[LayerCache],
        windows: Sequence[int],
        *,
        query: RowLayout,
        out: RowLayout,
        scale: float,
    ) -> None:
        self.shape = shape
        self.num_kv_heads = caches[0].num_kv_heads
        self.attend = attention_kernel(shape)
        self.merge = merge_kernel(shape)
        self._scratch = torch.zeros(0)
        self._partials = torch.zeros(0)
        words = (max(ARGUMENTS.offsets.values()) // 8 + 1) * 8
        memory = np.zeros(2 * len(caches) * words + 8, np.int64)
        skip = (-memory.ctypes.data % 64) // 8
        # [attend or merge, layer, word]
        self._words = memory[skip : skip + 2 * len(caches) * words].reshape(2, len(caches), words)
        self._plan: AttentionPlan | None = None
        head = shape.head
        self._set(
            tasks_at_once=1,
            num_kv_heads=self.num_kv_heads,
            query=query.address,
            query_token_stride=query.stride,
            query_head_stride=head.head_dim,
            out=out.address,
            out_token_stride=out.stride,
            out_head_stride=head.value_dim,
            block_stride=caches[0].k.stride(0) * caches[0].k.element_size(),
        )
        for layer, (cache, window) in enumerate(zip(caches, windows, strict=True)):
            self._set_layer(layer, "keys", cache.k.data_ptr())
            self._set_layer(layer, "values", cache.v.data_ptr())
            self._set_layer(layer, "window", window or NO_WINDOW)
        for name, number in (("query_factor", 1.0), ("score_factor", scale * LOG2E), ("softcap", 0.0)):
            self._words.view(np.float32)[:, :, 2 * ARGUMENTS.offsets[name]] = number

    def addresses(self, layer: int) -> tuple[int, int]:
        """Where the arguments of this layer's attention and of its merge lie."""
        return int(self._words[0, layer].ctypes.data), int(self._words[1, layer].ctypes.data)

    def prepare(self, batch: AttentionBatch, plan: AttentionPlan, num_threads: int) -> bool:
        """Points all layers to this step's plan; returns whether there is anything to merge."""
        assert (plan.group, plan.num_kv_heads) == (self.shape.head.group, self.num_kv_heads), "a plan of other heads"
        # The kernels read the plan's arrays by address until the step is done.
        self._plan = plan
        scratch = -(-self.shape.scratch_bytes // 4096) * 4096 + 64
        if self._scratch.nbytes < scratch * num_threads:
            self._scratch = torch.zeros(scratch * num_threads // 4)
        partials = plan.num_partial_rows * self.shape.partial_stride
        if self._partials.numel() < partials:
            self._partials = torch.empty(partials * 3 // 2)
        self._words[:, :, COUNTER] = 0
        self._words[:, :, TICKET] = 0
        self._set(
            num_items=len(plan.items),
            items=plan.items.ctypes.data,
            scratch=self._scratch.data_ptr(),
            scratch_stride=scratch,
            partials=self._partials.data_ptr(),
            tables=batch.tables.data_ptr(),
            table_stride=batch.tables.stride(0),
        )
        if len(plan.merges):
            self._words[1, :, ARGUMENTS.offsets["num_items"]] = len(plan.merges)
            self._words[1, :, ARGUMENTS.offsets["items"]] = plan.merges.ctypes.data
        return len(plan.merges) > 0

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self._words[:, :, ARGUMENTS.offsets[name]] = value

    def _set_layer(self, layer: int, name: str, value: int) -> None:
        self._words[:, layer, ARGUMENTS.offsets[name]] = value
