"""Random batches over shuffled blocks for the tests of kernels, with everything that must not be read made of NaN.

Both the CPU's and the GPU's tests build their inputs here, so that all kernels face the same cases. The tolerances are
here too, one pair per dtype, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels import reference
from kernels.batch import AttentionBatch
from kernels.layout import BlockLayout, KeyOrder, LayerCache, LayerShape

# (absolute, relative) against a reference that accumulates in higher precision over the same stored inputs.
TOLERANCES = {torch.float32: (2e-5, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2), torch.float16: (2e-3, 2e-3)}

# Around the edges of blocks and tiles.
RAGGED = (1, 15, 16, 17, 63, 111, 511)


@dataclass
class Case:
    """A batch with its queries and one layer's cache, filled through the reference."""

    q: torch.Tensor
    cache: LayerCache
    batch: AttentionBatch
    pool: torch.Tensor


@dataclass(frozen=True)
class Geometry:
    """Heads and blocks of a case."""

    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    value_dim: int = 0
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    keys: KeyOrder = "slot_dim"
    query_dtype: torch.dtype | None = None

    def layout(self) -> BlockLayout:
        """A layer of another shape before and after the one in use, so that offsets count."""
        own = LayerShape(self.num_kv_heads, self.head_dim, self.value_dim)
        other = LayerShape(1, self.head_dim, self.value_dim)
        return BlockLayout((other, own, other), self.block_size, self.dtype, self.keys)


def make_case(
    geometry: Geometry,
    queries: Sequence[int],
    contexts: Sequence[int],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    spare_blocks: int = 3,
) -> Case:
    """Sequence i has its last `queries[i]` tokens as queries and `contexts[i]` keys; decodes must come first.

    Blocks are shuffled over a pool of NaN, slots behind a sequence's end stay NaN, and so do blocks of nobody. Entries
    of tables behind a sequence's last block name no block at all.
    """
    print(f"seed {seed} {geometry} queries {list(queries)} contexts {list(contexts)}")
    generator = torch.Generator().manual_seed(seed)
    layout = geometry.layout()
    size = geometry.block_size
    counts = [-(-context // size) for context in contexts]
    num_blocks = sum(counts) + spare_blocks
    pool = torch.empty((num_blocks, layout.block_bytes), dtype=torch.uint8)
    pool.view(geometry.dtype).fill_(float("nan"))
    cache = layout.views(pool)[1]
    ids = torch.randperm(num_blocks, generator=generator).tolist()
    row_ids = torch.randperm(len(contexts) + 2, generator=generator)[: len(contexts)].to(torch.int32)
    tables = torch.full((len(contexts) + 2, max(counts, default=0) + 1), -(1 << 30), dtype=torch.int32)
    slots = []
    for row, count, context, query in zip(row_ids.tolist(), counts, contexts, queries, strict=True):
        mine = torch.tensor([ids.pop() for _ in range(count)], dtype=torch.int64)
        tables[row, :count] = mine.to(torch.int32)
        at = torch.arange(context)
        places = mine[at // size] * size + at % size
        shape = (context, geometry.num_kv_heads)
        k = torch.randn((*shape, geometry.head_dim), generator=generator).to(geometry.dtype)
        v = torch.randn((*shape, cache.value_dim), generator=generator).to(geometry.dtype)
        reference.write_kv(k, v, cache, places)
        slots.append(places[context - query :])
    total = sum(queries)
    q = torch.randn((total, geometry.num_heads, geometry.head_dim), generator=generator)
    device = torch.device(device)
    batch = AttentionBatch(
        query_start=torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32, device=device),
        context_len=torch.tensor(contexts, dtype=torch.int32, device=device),
        tables=tables.to(device),
        rows=row_ids.to(device),
        slots=torch.cat(slots).to(device),
        positions=torch.cat([torch.arange(c - n, c) for n, c in zip(queries, contexts, strict=True)]).to(device),
        max_query_len=max(queries),
        max_context_len=max(contexts),
        num_decodes=next((i for i, n in enumerate(queries) if n != 1), len(queries)),
    )
    pool = pool.to(device)
    return Case(q.to(geometry.query_dtype or geometry.dtype).to(device), layout.views(pool)[1], batch, pool)


def assert_close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, what: str = "result") -> None:
    """Within the tolerance of `dtype`, everywhere; says where and how far off the worst one is."""
    absolute, relative = TOLERANCES[dtype]
    got, wanted = got.double().cpu(), wanted.double().cpu()
    assert got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, wanted {list(wanted.shape)}"
    same = (got == wanted) | ((got - wanted).abs() <= absolute + relative * wanted.abs())
    if not bool(same.all()):
        error = torch.where(same, 0.0, (got - wanted).abs().nan_to_num(float("inf")))
        worst = int(error.argmax())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape))
        raise AssertionError(
            f"{what}: {int((~same).sum())} of {same.numel()} are off, the worst at {at}: "
            f"{got.flatten()[worst]:.6g}, wanted {wanted.flatten()[worst]:.6g}"
        )
