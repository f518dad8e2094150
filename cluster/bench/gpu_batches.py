"""The batches that GPU kernels are timed on: head shapes of models, lengths of requests, blocks shuffled over a pool.

Contents are random normal; only sizes and lengths matter to time, and the sampled reference below checks what is
computed, in float32 or better, on rows of the longest, the shortest and some other sequences.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kernels.batch import AttentionBatch
from kernels.layout import BlockLayout, LayerCache, LayerShape
from kernels.reference import gather_tokens

# (absolute, relative) error allowed, per dtype.
TOLERANCES = {torch.float32: (2e-5, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2), torch.float16: (2e-3, 2e-3)}


@dataclass(frozen=True)
class LayerHeads:
    """Attention of one layer of a model."""

    name: str
    num_heads: int
    num_kv_heads: int
    dim: int
    window: int = 0
    softcap: float = 0.0

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values per token."""
        return 2 * self.num_kv_heads * self.dim * int(dtype.itemsize)


LLAMA_8B = LayerHeads("llama-8b", 32, 8, 128)
LLAMA_1B = LayerHeads("llama-1b", 32, 8, 64)
LLAMA_70B = LayerHeads("llama-70b", 64, 8, 128)
QWEN3_30B = LayerHeads("qwen3-30b-a3b", 32, 4, 128)
QWEN3_06B = LayerHeads("qwen3-0.6b", 16, 8, 128)
GEMMA3_12B = LayerHeads("gemma-3-12b", 16, 8, 256)
GEMMA3_LOCAL = LayerHeads("gemma-3-12b local", 16, 8, 256, window=1024)
GEMMA2_9B = LayerHeads("gemma-2-9b", 16, 8, 256, window=4096, softcap=50.0)
SHAPES = (LLAMA_8B, LLAMA_70B, LLAMA_1B, QWEN3_30B, QWEN3_06B, GEMMA3_12B, GEMMA3_LOCAL, GEMMA2_9B)


@dataclass(frozen=True)
class GpuWorkload:
    """Lengths of a batch: sequence i has `contexts[i]` keys, its last `queries[i]` tokens being queried."""

    name: str
    queries: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.queries)

    @property
    def uniform(self) -> bool:
        return len(set(self.queries)) == 1 and len(set(self.contexts)) == 1

    @property
    def decode(self) -> bool:
        return max(self.queries) == 1

    def visible_pairs(self, window: int) -> int:
        """Pairs of a query and a key that it sees."""
        total = 0
        for query, context in zip(self.queries, self.contexts, strict=True):
            if not window:
                total += query * (context - query) + query * (query + 1) // 2
            else:
                total += sum(min(window, context - query + i + 1) for i in range(query))
        return total

    def read_keys(self, window: int) -> int:
        """Keys that must be read at least once."""
        return sum(
            min(context, window + query - 1) if window else context
            for query, context in zip(self.queries, self.contexts, strict=True)
        )


def decodes(name: str, contexts: Sequence[int]) -> GpuWorkload:
    return GpuWorkload(name, (1,) * len(contexts), tuple(contexts))


def sharegpt_like(batch: int, seed: int) -> GpuWorkload:
    """Sequences of prompts of 161 and outputs of 338 tokens in the mean (log-normal), met at a random moment."""
    draw = random.Random(seed)
    contexts = [
        1 + int(draw.lognormvariate(4.58, 1.0)) + int(draw.random() * draw.lognormvariate(5.32, 1.0))
        for _ in range(batch)
    ]
    return decodes(f"sharegpt x{batch}", contexts)


@dataclass
class Built:
    """A workload on the device: one layer's queries, cache and batch per entry of `caches`."""

    shape: LayerHeads
    workload: GpuWorkload
    q: torch.Tensor
    caches: list[LayerCache]
    batch: AttentionBatch
    pool: torch.Tensor

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.shape.dim)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one layer's attention must read."""
        return self.workload.read_keys(self.shape.window) * self.shape.token_bytes(self.q.dtype)

    @property
    def flop(self) -> float:
        return 4.0 * self.shape.num_heads * self.shape.dim * self.workload.visible_pairs(self.shape.window)


def build(
    shape: LayerHeads,
    workload: GpuWorkload,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    layers: int = 1,
    shuffled: bool = True,
) -> Built:
    """Blocks of all sequences shuffled over one pool, or in one run."""
    layout = BlockLayout((LayerShape(shape.num_kv_heads, shape.dim),) * layers, block_size, dtype, "slot_dim")
    counts = [-(-context // block_size) for context in workload.contexts]
    num_blocks = sum(counts)
    pool = torch.empty((num_blocks, layout.block_bytes), dtype=torch.uint8, device=device)
    pool.view(dtype).normal_()
    ids = torch.randperm(num_blocks, device=device) if shuffled else torch.arange(num_blocks, device=device)
    tables = torch.zeros((len(counts), max(counts)), dtype=torch.int32, device=device)
    begin = 0
    for row, count in enumerate(counts):
        tables[row, :count] = ids[begin : begin + count]
        begin += count

    def ints(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    starts = [0]
    for query in workload.queries:
        starts.append(starts[-1] + query)
    at = torch.cat(
        [torch.arange(c - n, c, device=device) for n, c in zip(workload.queries, workload.contexts, strict=True)]
    )
    owner = torch.repeat_interleave(
        torch.arange(len(counts), device=device), torch.tensor(workload.queries, device=device)
    )
    slots = tables[owner, at // block_size].long() * block_size + at % block_size
    batch = AttentionBatch(
        query_start=ints(starts),
        context_len=ints(workload.contexts),
        tables=tables,
        rows=ints(range(len(counts))),
        slots=slots,
        positions=at,
        max_query_len=max(workload.queries),
        max_context_len=max(workload.contexts),
        num_decodes=sum(1 for n in workload.queries if n == 1),
    )
    q = torch.randn((workload.num_tokens, shape.num_heads, shape.dim), device=device).to(dtype)
    return Built(shape, workload, q, layout.views(pool), batch, pool)


def contiguous(built: Built) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all sequences in one run each: [total keys, kv heads, dim]."""
    parts = [
        gather_tokens(built.caches[0], built.batch.tables[row], context)
        for row, context in enumerate(built.workload.contexts)
    ]
    return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])


def worst_error(built: Built, out: torch.Tensor, *, rows: int = 8, sequences: int = 5) -> float:
    """How far `out` is off the reference where that was looked up, in units of what is allowed; NaN counts as infinite.

    The reference is computed in float32 over the stored keys (float64 for float32), for the first, last and some other
    queries of some sequences.
    """
    workload, shape = built.workload, built.shape
    order = sorted(range(len(workload.contexts)), key=workload.contexts.__getitem__)
    step = max(1, len(order) // sequences)
    picked = dict.fromkeys([order[-1], order[0], *order[::step]])
    if not bool(torch.isfinite(out).all()):
        return float("inf")
    absolute, relative = TOLERANCES[out.dtype]
    starts = built.batch.query_start.tolist()
    worst = 0.0
    for seq in picked:
        query, context = workload.queries[seq], workload.contexts[seq]
        k, v = gather_tokens(built.caches[0], built.batch.tables[seq], context)
        lines = torch.linspace(0, query - 1, min(rows, query)).long().tolist()
        for line in lines:
            token, at = starts[seq] + line, context - query + line
            first = max(0, at + 1 - shape.window) if shape.window else 0
            wanted = _attend(built, built.q[token], k[first : at + 1], v[first : at + 1])
            error = (out[token].to(wanted.dtype) - wanted).abs() / (absolute + relative * wanted.abs())
            worst = max(worst, float(error.max()))
    return worst


def _attend(built: Built, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One query [heads, dim] over keys [keys, kv heads, dim]."""
    precise = torch.float64 if q.dtype == torch.float32 else torch.float32
    shape = built.shape
    grouped = q.to(precise).view(shape.num_kv_heads, shape.group, shape.dim)
    scores = torch.einsum("hgd,khd->hgk", grouped, k.to(precise)) * built.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    return torch.einsum("hgk,khd->hgd", scores.softmax(-1), v.to(precise)).flatten(0, 1)


def scaled_down(workload: GpuWorkload, factor: int) -> GpuWorkload:
    """The same pattern with fewer and shorter sequences, for an interpreter: some of the first and of the last."""
    count = len(workload.contexts)
    keep = sorted({*range(min(2, count)), *range(max(0, count - max(2, count // factor)), count)})
    contexts = tuple(max(2, workload.contexts[i] // (factor * 8)) for i in keep)
    queries = tuple(
        1 if workload.queries[i] == 1 else max(2, min(context, workload.queries[i] // (factor * 8)))
        for i, context in zip(keep, contexts, strict=True)
    )
    return replace(workload, queries=queries, contexts=contexts)
