"""Chooses the kernels for a device: Triton on a GPU, the CPU path elsewhere, the plain reference when asked.

The worker asks once for a Backend and calls nothing else of this package per step. Triton and the CPU code generator
are imported only when they are chosen. No environment variable is read here: an override comes in as `name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from kernels.batch import AttentionBatch, Scoring
from kernels.device.seam import device_of
from kernels.layout import BlockLayout, KeyOrder, LayerCache

BackendName = Literal["reference", "cpu", "triton"]
BACKEND_NAMES: tuple[BackendName, ...] = ("reference", "cpu", "triton")


class Backend(Protocol):
    """The kernels of one device. A backend may keep scratch memory, so one belongs to one thread at a time."""

    @property
    def name(self) -> BackendName: ...

    @property
    def device(self) -> torch.device: ...

    def key_order(self, dtype: torch.dtype, block_size: int) -> KeyOrder:
        """The order of keys in blocks that this backend wants: what to build the BlockLayout with."""
        ...

    def prepare(
        self, batch: AttentionBatch, *, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
    ) -> AttentionBatch:
        """Fills `batch.tasks`, once per step; returns the same batch. Call it after the batch's tensors are final."""
        ...

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
        """Causal attention of q [tokens, heads, head_dim] over paged keys; returns [tokens, heads, value_dim] like q.

        lse: float32 [tokens, heads], filled with the natural log of the sum of exponentials, sink included. A query
        that sees nothing gets 0 and -inf.
        """
        ...

    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
        """Writes k [tokens, kv_heads, head_dim] and v [tokens, kv_heads, value_dim] to `slots`; -1 is skipped."""
        ...

    def copy_blocks(
        self, pool: torch.Tensor, src: Sequence[int] | torch.Tensor, dst: Sequence[int] | torch.Tensor
    ) -> None:
        """Copies whole blocks of pool, uint8 [blocks, block_bytes], src[i] to dst[i].

        No block may be written twice or be both read and written in one call.
        """
        ...

    def take(
        self, ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor, tables: torch.Tensor, changes: torch.Tensor
    ) -> None:
        """ids[i] = last[taken[i]] where that is no -1: ids int64 [tokens], taken int32 [rows], last int64. And what is
        new in tables: int32 [rows, blocks], changes int32 [1 + most, 2]: how many, then each one's place and block."""
        ...

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Merges partial results over disjoint keys: outs [parts, tokens, heads, dim], lses [parts, tokens, heads]."""
        ...

    def warm_up(self, layout: BlockLayout, num_heads: int, *, softcap: bool = False, sinks: bool = False) -> None:
        """Compiles all that a model of this layout will need, so that no request waits for it. `softcap`, `sinks`: what
        its attention does beside."""
        ...


def backend(device: torch.device | str, name: str | None = None, *, debug: bool = False) -> Backend:
    """The kernels for `device`; `name` overrides the choice, `debug` adds checks that cost time (table bounds)."""
    device = torch.device(device)
    chosen = name or _usual(device)
    if chosen == "reference":
        from kernels.reference import ReferenceBackend

        return ReferenceBackend(device, debug=debug)
    if chosen == "cpu":
        from kernels.cpu.backend import CpuBackend

        return CpuBackend(device, debug=debug)
    if chosen == "triton":
        from kernels.gpu.backend import TritonBackend

        return TritonBackend(device, debug=debug)
    raise ValueError(f"there are no kernels named {chosen!r}; use one of {', '.join(BACKEND_NAMES)}")


def _usual(device: torch.device) -> BackendName:
    seam = device_of(device)
    if not seam.is_apart:
        return "cpu"
    # On a twin Triton's kernels run in its interpreter, which is slow.
    return "reference" if seam.facts().family == "interpreter" else "triton"
