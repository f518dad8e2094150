"""What attention needs to know beside queries and keys: one step's batch, and how a layer scores.

The worker builds one AttentionBatch per step (reusing its buffers) and has the backend prepare it once; the kernels
then read it in every layer. Nothing here is changed by a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class Scoring(NamedTuple):
    """How products of queries and keys become weights; of one layer. A tuple, for layers may make one at each call."""

    scale: float
    # A query sees this many keys, its own included; 0: all.
    window: int = 0
    # softcap * tanh(score / softcap); 0: none.
    softcap: float = 0.0
    # [heads]: one more score per head that takes weight and gives no value.
    sinks: torch.Tensor | None = None


@dataclass
class AttentionBatch:
    """Sequences of one step, decodes first, then prefill chunks. Query tokens of a sequence are its last ones.

    A query token i of sequence s stands at key position `context_len[s] - query_len[s] + i` and sees the keys up to and
    including its own. Tables may hold anything behind a sequence's last block.
    """

    query_start: torch.Tensor  # int32 [seqs + 1]: where each sequence's query tokens begin, and the end
    context_len: torch.Tensor  # int32 [seqs]: tokens with keys in blocks, this step's included
    tables: torch.Tensor  # int32 [rows, max_blocks]: physical block ids, the worker's persistent array
    rows: torch.Tensor  # int32 [seqs]: which row of `tables` is whose
    slots: torch.Tensor  # int64 [tokens]: block * block_size + slot where each token's keys go, -1: nowhere
    positions: torch.Tensor  # int64 [tokens]: absolute positions, for rotary embedding
    max_query_len: int
    max_context_len: int
    num_decodes: int  # sequences with exactly one query token; they come first
    tasks: object | None = field(default=None, repr=False)  # what a backend's `prepare` made of it

    @property
    def num_seqs(self) -> int:
        return self.context_len.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.slots.shape[0]
