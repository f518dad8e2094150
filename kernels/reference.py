"""What every kernel computes, in plain torch, one sequence at a time: the yardstick of all tests and benchmarks.

It accumulates in float64 where the inputs are float32 and in float32 otherwise (or as `accumulate` says), gathers what
it needs and is as slow as that. Nothing here is tuned, and the fast paths share no code with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from kernels.batch import AttentionBatch, Scoring
from kernels.checks import (
    check_attention,
    check_batch_bounds,
    check_copy,
    check_copy_bounds,
    check_write,
    check_write_bounds,
)
from kernels.device.seam import device_of
from kernels.layout import BlockLayout, KeyOrder, LayerCache


def gather_tokens(cache: LayerCache, table: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `length` keys and values of a table, as [length, kv_heads, dim]."""
    blocks = table[: -(-length // cache.block_size)].long()
    k, v = cache.slot_dim_keys(blocks), cache.slot_dim_values(blocks)
    return k.transpose(1, 2).flatten(0, 1)[:length], v.transpose(1, 2).flatten(0, 1)[:length]


def sequence_attention(
    q: torch.Tensor,  # [queries, heads, dim]
    k: torch.Tensor,  # [keys, kv_heads, dim]
    v: torch.Tensor,  # [keys, kv_heads, value_dim]
    scoring: Scoring,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the last queries of one sequence, in the dtype given: out [queries, heads, value_dim], lse."""
    scale, window, softcap, sinks = scoring
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap > 0.0:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(k.shape[0] - q.shape[0], k.shape[0], device=q.device)[:, None]
    key = torch.arange(k.shape[0], device=q.device)[None, :]
    hidden = key > at
    if window > 0:
        hidden |= key <= at - window
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(q.dtype)[:, None, None].expand(-1, q.shape[0], 1)], dim=-1)
    lse = torch.logsumexp(scores, dim=-1)  # [heads, queries]
    weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None])[..., : k.shape[0]]
    return torch.einsum("hqk,khd->qhd", weights, v), lse.transpose(0, 1)


def attention(
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    scoring: Scoring,
    *,
    accumulate: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.attention` as (out, lse), both in the dtype of accumulation."""
    precise = accumulate or (torch.float64 if q.dtype == torch.float32 else torch.float32)
    out = torch.zeros((*q.shape[:2], cache.value_dim), dtype=precise, device=q.device)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=precise, device=q.device)
    starts, contexts, rows = batch.query_start.tolist(), batch.context_len.tolist(), batch.rows.tolist()
    for seq, (context, row) in enumerate(zip(contexts, rows, strict=True)):
        tokens = slice(starts[seq], starts[seq + 1])
        if context == 0 or starts[seq] == starts[seq + 1]:
            continue
        k, v = gather_tokens(cache, batch.tables[row], context)
        out[tokens], lse[tokens] = sequence_attention(q[tokens].to(precise), k.to(precise), v.to(precise), scoring)
    return out, lse


def write_kv(k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
    """`Backend.write_kv`."""
    kept = slots >= 0
    blocks, slot = slots[kept] // cache.block_size, slots[kept] % cache.block_size
    k, v = k[kept].to(cache.k.dtype), v[kept].to(cache.v.dtype)
    if cache.keys == "slot_dim":
        cache.k[blocks, :, slot] = k
    elif cache.keys == "dim_slot":
        cache.k[blocks, :, :, slot] = k
    else:
        cache.k[blocks, :, :, slot] = k.unflatten(-1, (-1, 2))
    if cache.keys == "pairs":
        cache.v[blocks, :, slot // 2, :, slot % 2] = v
    else:
        cache.v[blocks, :, slot] = v


def copy_blocks(pool: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """`Backend.copy_blocks`."""
    pool[dst] = pool[src]


def merge(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.merge`: exact, because each part knows how much weight it saw. The result keeps the inputs' dtypes."""
    precise = torch.float64
    lse = torch.logsumexp(lses.to(precise), dim=0)
    shares = torch.exp(lses.to(precise) - lse.masked_fill(lse.isneginf(), 0.0))
    out = (outs.to(precise) * shares[..., None]).sum(dim=0)
    return out.to(outs.dtype), lse.to(lses.dtype)


def _attend(
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    scoring: Scoring,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> None:
    check_batch_bounds(batch, cache)
    result, log_sum = attention(q, cache, batch, scoring)
    out.copy_(result)
    if lse is not None:
        lse.copy_(log_sum)


def _write(k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
    check_write_bounds(cache, slots)
    write_kv(k, v, cache, slots)


def _copy(pool: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    check_copy_bounds(pool, src, dst)
    copy_blocks(pool, src, dst)


def take(
    ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor, tables: torch.Tensor, changes: torch.Tensor
) -> None:
    """ids[i] = last[taken[i]] where that is no -1, in place: ids int64 [tokens], taken int32 [rows], last int64. And
    tables[place] = block for each of the changes: tables int32, seen as one row; changes int32 [1 + most, 2]: how many
    there are, then each one's place and block."""
    there = ids[: len(taken)]
    there.copy_(torch.where(taken < 0, there, last.index_select(0, taken.clamp_min(0))))
    count = int(changes[0, 0])
    tables.view(-1)[changes[1 : 1 + count, 0].long()] = changes[1 : 1 + count, 1]


def grouped_product(x: torch.Tensor, weight: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Rows [pairs, depth] times the weight [columns, depth] of each one's expert, of `weight` [experts, ...]: [pairs,
    columns] in the dtype of accumulation."""
    precise = torch.float64 if x.dtype == torch.float32 else torch.float32
    return torch.stack([weight[e].to(precise) @ row.to(precise) for row, e in zip(x, expert.tolist(), strict=True)])


class ReferenceBackend:
    """The functions above behind the same calls as the fast backends, on any device; always checks bounds."""

    name: Literal["reference"] = "reference"

    def __init__(self, device: torch.device, *, debug: bool = False) -> None:
        self.device = device
        self._seam = device_of(device)

    def key_order(self, dtype: torch.dtype, block_size: int) -> KeyOrder:
        return "slot_dim"

    def prepare(
        self, batch: AttentionBatch, *, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
    ) -> AttentionBatch:
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
        if out is None:
            out = torch.empty((*q.shape[:2], cache.value_dim), dtype=q.dtype, device=q.device)
        self._seam.call(_attend, q, cache, batch, scoring, out, lse)
        return out

    def write_kv(self, k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
        check_write(k, v, cache, slots)
        self._seam.call(_write, k, v, cache, slots)

    def copy_blocks(
        self, pool: torch.Tensor, src: Sequence[int] | torch.Tensor, dst: Sequence[int] | torch.Tensor
    ) -> None:
        here, there = (
            ids if isinstance(ids, torch.Tensor) else self._seam.send(np.array(ids, np.int64)) for ids in (src, dst)
        )
        check_copy(pool, here, there)
        self._seam.call(_copy, pool, here, there)

    def take(
        self, ids: torch.Tensor, taken: torch.Tensor, last: torch.Tensor, tables: torch.Tensor, changes: torch.Tensor
    ) -> None:
        self._seam.call(take, ids, taken, last, tables, changes)

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return merge(outs, lses)

    def warm_up(self, layout: BlockLayout, num_heads: int, *, softcap: bool = False, sinks: bool = False) -> None:
        """Nothing is compiled here."""
