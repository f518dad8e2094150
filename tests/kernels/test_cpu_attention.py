"""Paged attention on the CPU against the reference: shapes, features, blocks and tiles of any size, cut work."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kernels import reference
from kernels.batch import Scoring
from kernels.cpu.backend import CpuBackend
from kernels.cpu.jit import Target, host
from kernels.cpu.plan import AttentionPlan
from kernels.cpu.shapes import Tiling
from kernels.layout import KeyOrder
from tests.kernels.cases import RAGGED, Case, Geometry, assert_close, make_case

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")


def geometry(
    heads: tuple[int, int] = (6, 2),
    head_dim: int = 32,
    *,
    value_dim: int = 0,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    query_dtype: torch.dtype | None = None,
    keys: KeyOrder | None = None,
) -> Geometry:
    order = keys or CpuBackend(CPU).key_order(dtype, block_size)
    return Geometry(*heads, head_dim, value_dim, block_size, dtype, order, query_dtype)


def run(
    case: Case,
    backend: CpuBackend | None = None,
    *,
    scale: float = 0.2,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Runs the case with outputs full of NaN and checks output and log-sum-exp; returns the output."""
    backend = backend or CpuBackend(CPU, debug=True)
    scoring = Scoring(scale, window, softcap, sinks)
    batch, cache, heads = case.batch, case.cache, case.q.shape[1]
    before = case.pool.clone()
    out = torch.full((*case.q.shape[:2], cache.value_dim), NAN, dtype=case.q.dtype)
    lse = torch.full(case.q.shape[:2], NAN)
    backend.prepare(
        batch,
        num_heads=heads,
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        block_size=cache.block_size,
    )
    assert backend.attention(case.q, cache, batch, scoring, out=out, lse=lse) is out
    wanted, wanted_lse = reference.attention(case.q, cache, batch, scoring)
    assert_close(out, wanted, case.q.dtype, "out")
    assert_close(lse, wanted_lse, case.q.dtype, "lse")
    assert torch.equal(before, case.pool), "attention wrote to the pool"
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_decodes(dtype: torch.dtype, seed: int) -> None:
    run(make_case(geometry((12, 4), 64, dtype=dtype), [1] * len(RAGGED), RAGGED, seed=seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_decodes_beside_prefill_chunks(dtype: torch.dtype, seed: int) -> None:
    queries, contexts = (1, 1, 1, 1, 15, 16, 17, 63, 111, 300), (1, 16, 111, 1500, 15, 63, 17, 511, 111, 900)
    run(make_case(geometry((12, 4), 64, dtype=dtype), queries, contexts, seed=seed))


TILINGS = (Tiling(16, 16, 32, 6), Tiling(64, 48, 64, 40), Tiling(300, 1024, 4096, 500))


@pytest.mark.parametrize(
    ("tiling", "block_size"), list(itertools.product(TILINGS, (1, 2, 5, 8, 16, 24, 64, 256))), ids=str
)
def test_tiles_and_blocks_are_independent(tiling: Tiling, block_size: int, seed: int) -> None:
    case = make_case(geometry(block_size=block_size), (1, 1, 1, 17, 130), (1, 111, 700, 150, 311), seed=seed)
    run(case, CpuBackend(CPU, debug=True, tiling=tiling))


@pytest.mark.parametrize("block_size", [2, 4, 6, 8, 16, 48, 256])
@pytest.mark.parametrize("query_dtype", [torch.bfloat16, torch.float32])
def test_bf16_pairs_in_blocks_of_any_size(block_size: int, query_dtype: torch.dtype, seed: int) -> None:
    shape = geometry(block_size=block_size, dtype=torch.bfloat16, query_dtype=query_dtype)
    run(make_case(replace(shape, keys="pairs"), (1, 1, 1, 40), (1, 111, 300, 75), seed=seed))


@pytest.mark.parametrize("dim", [32, 48, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_sizes(dim: int, dtype: torch.dtype, seed: int) -> None:
    run(make_case(geometry((6, 2), dim, dtype=dtype), (1, 1, 20), (17, 63, 40), seed=seed), scale=dim**-0.5)


@pytest.mark.parametrize(("dim", "value_dim"), [(96, 40), (32, 256), (192, 128), (36, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_another_size_than_keys(dim: int, value_dim: int, dtype: torch.dtype, seed: int) -> None:
    shape = geometry((4, 2), dim, value_dim=value_dim, dtype=dtype)
    run(make_case(shape, (1, 1, 20), (17, 63, 40), seed=seed), scale=dim**-0.5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (8, 1), (20, 4), (13, 1), (71, 1), (128, 1)])
def test_multi_head_grouped_and_multi_query(heads: int, kv_heads: int, seed: int) -> None:
    run(make_case(geometry((heads, kv_heads)), (1, 1, 3, 40), (17, 700, 30, 64), seed=seed))


@pytest.mark.parametrize("window", [1, 7, 16, 33, 100, 1000])
def test_sliding_window(window: int, seed: int) -> None:
    run(make_case(geometry(), (1, 1, 1, 1, 40, 200), (1, 111, 300, 1300, 199, 900), seed=seed), window=window)


def test_blocks_behind_the_window_are_not_read(seed: int) -> None:
    """A worker may have freed them: their table entries name no block."""
    case = make_case(geometry(), (1, 40), (900, 800), seed=seed)
    wanted, _ = reference.attention(case.q, case.cache, case.batch, Scoring(0.2, window=50))
    for seq, first_seen in enumerate((900 - 50, 800 - 40 - 49)):
        case.batch.tables[case.batch.rows[seq], : first_seen // 16] = -(1 << 30)
    out = torch.full_like(case.q, NAN)
    CpuBackend(CPU).attention(case.q, case.cache, case.batch, Scoring(0.2, window=50), out=out)
    assert_close(out, wanted, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.2, 3.0, 0.0, -0.3])
def test_softcap_sinks_and_any_scale(dtype: torch.dtype, scale: float, seed: int) -> None:
    case = make_case(geometry(dtype=dtype), (1, 1, 1, 40), (1, 111, 1100, 199), seed=seed)
    sinks = torch.randn(6, generator=torch.Generator().manual_seed(seed)) * 3
    run(case, scale=scale)
    run(case, scale=scale, softcap=2.5)
    run(case, scale=scale, sinks=sinks.to(dtype))
    run(case, scale=scale, softcap=30.0, sinks=sinks, window=77)


def test_scores_far_from_zero(seed: int) -> None:
    """Exponentials neither overflow nor all vanish where scores are in the hundreds."""
    case = make_case(geometry(dtype=torch.float16), (1, 1, 40), (111, 1100, 199), seed=seed)
    for scale in (40.0, -40.0):
        run(case, scale=scale)
    run(case, scale=0.2, sinks=torch.tensor([-500.0, -50.0, 0.0, 50.0, 500.0, 5.0]))


@pytest.mark.parametrize("query_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_of_another_dtype_than_the_cache(dtype: torch.dtype, query_dtype: torch.dtype, seed: int) -> None:
    shape = geometry(dtype=dtype, query_dtype=query_dtype)
    run(make_case(shape, (1, 1, 40), (17, 111, 63), seed=seed))


def test_strided_queries_and_outputs(seed: int) -> None:
    """Queries are mostly a slice of one merged projection."""
    case = make_case(geometry(), (1, 1, 40), (17, 111, 63), seed=seed)
    merged = torch.full((case.q.shape[0], 10, 32), NAN)
    merged[:, 2:8] = case.q
    out = torch.full((case.q.shape[0], 9, 40), NAN)
    CpuBackend(CPU).attention(merged[:, 2:8], case.cache, case.batch, Scoring(0.2), out=out[:, 1:7, :32])
    wanted, _ = reference.attention(case.q, case.cache, case.batch, Scoring(0.2))
    assert_close(out[:, 1:7, :32], wanted, torch.float32)
    assert out[:, 0].isnan().all() and out[:, 7:].isnan().all() and out[:, :, 32:].isnan().all()


def test_beyond_a_hundred_thousand_positions(seed: int) -> None:
    case = make_case(geometry((2, 1)), (1, 1, 33), (131_072 + 5, 40, 100_100), seed=seed)
    run(case)
    plan = case.batch.tasks
    assert isinstance(plan, AttentionPlan)
    spans = plan.items[:, 5] - plan.items[:, 4]
    assert (spans[plan.items[:, 1] == 1] < 2 * Tiling().part_keys).all(), "a long decode must be cut into parts"


def test_blocks_beyond_four_gigabytes(seed: int) -> None:
    """Offsets are 64 bits wide: the pool's last blocks lie behind 2**32 bytes and 2**31 elements of any dtype."""
    case = make_case(geometry((2, 1)), (1, 20), (100, 50), seed=seed)
    stride = 1 << 28
    num_blocks = case.cache.num_blocks
    # Untouched memory costs nothing: only the few blocks in use are ever written.
    sparse = torch.empty(num_blocks * stride + case.pool.shape[1], dtype=torch.uint8)
    far = torch.as_strided(sparse, (num_blocks, case.pool.shape[1]), (stride, 1))
    far.copy_(case.pool)
    element_stride = stride // 4
    k, v = case.cache.k, case.cache.v
    elements = sparse.view(torch.float32)
    cache = replace(
        case.cache,
        k=elements.as_strided(k.shape, (element_stride, *k.stride()[1:]), k.storage_offset()),
        v=elements.as_strided(v.shape, (element_stride, *v.stride()[1:]), v.storage_offset()),
    )
    wanted = run(case)
    out = torch.full_like(case.q, NAN)
    CpuBackend(CPU).attention(case.q, cache, case.batch, Scoring(0.2), out=out)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_does_not_depend_on_its_batch(dtype: torch.dtype, seed: int) -> None:
    """The same bits alone and among others, with one thread and with more."""
    queries, contexts = (1, 1, 1, 60, 5), (1700, 63, 511, 300, 2000)
    case = make_case(geometry(dtype=dtype), queries, contexts, seed=seed)
    together = run(case)
    threads = torch.get_num_threads()
    try:
        for number, backend in itertools.product((1, 2, 5), (CpuBackend(CPU), CpuBackend(CPU))):
            torch.set_num_threads(number)
            again = torch.full_like(together, NAN)
            backend.attention(case.q, case.cache, case.batch, Scoring(0.2), out=again)
            assert torch.equal(again, together), f"{number} threads give other bits"
    finally:
        torch.set_num_threads(threads)
    for seq, query in enumerate(queries):
        start = int(case.batch.query_start[seq])
        alone = replace(
            case.batch,
            query_start=torch.tensor([0, query], dtype=torch.int32),
            context_len=case.batch.context_len[seq : seq + 1],
            rows=case.batch.rows[seq : seq + 1],
            slots=case.batch.slots[start : start + query],
            num_decodes=int(query == 1),
            tasks=None,
        )
        got = CpuBackend(CPU).attention(case.q[start : start + query], case.cache, alone, Scoring(0.2))
        assert torch.equal(got, together[start : start + query]), f"sequence {seq} differs when it is alone"


def test_partials_over_disjoint_blocks_merge_exactly(seed: int) -> None:
    """Two calls, each over some of the blocks, and a merge by log-sum-exp give what one call gives."""
    case = make_case(geometry(), [1] * 3, (64, 320, 1600), seed=seed)
    backend = CpuBackend(CPU)
    sinks = torch.randn(6)
    whole_lse = torch.empty(3, 6)
    whole = backend.attention(case.q, case.cache, case.batch, Scoring(0.2, sinks=sinks), lse=whole_lse)
    parts, lses = [], []
    for first, last in ((0, 3), (3, None)):
        lengths = case.batch.context_len - 48 if last is None else torch.full((3,), 48, dtype=torch.int32)
        part = replace(
            case.batch, context_len=lengths, tables=case.batch.tables[:, first:last].contiguous(), tasks=None
        )
        lse = torch.empty(3, 6)
        # The sink counts once.
        parts.append(
            backend.attention(case.q, case.cache, part, Scoring(0.2, sinks=sinks if first == 0 else None), lse=lse)
        )
        lses.append(lse)
    merged, merged_lse = backend.merge(torch.stack(parts), torch.stack(lses))
    assert_close(merged, whole, torch.float32)
    assert_close(merged_lse, whole_lse, torch.float32)


def test_a_query_that_sees_nothing_gets_zero(seed: int) -> None:
    case = make_case(geometry(), [1, 1, 1], [1, 17, 40], seed=seed)
    case.batch.context_len[0] = 0
    assert not run(case)[0].any()
    assert not run(case, sinks=torch.zeros(6))[0].any()


def test_no_sequences_at_all() -> None:
    case = make_case(geometry(), [1], [16], seed=1)
    none = replace(
        case.batch,
        query_start=torch.zeros(1, dtype=torch.int32),
        context_len=case.batch.context_len[:0],
        rows=case.batch.rows[:0],
        slots=case.batch.slots[:0],
        num_decodes=0,
        tasks=None,
    )
    assert CpuBackend(CPU).attention(case.q[:0], case.cache, none, Scoring(0.2)).shape == (0, 6, 32)


def without_wide_vectors() -> Target:
    features = [f"-{f[1:]}" if f.startswith(("+avx512", "+avx10")) else f for f in host().features.split(",")]
    return Target("haswell", ",".join(features), accumulators=6, pair_products=False)


@pytest.mark.skipif("+avx2" not in host().features, reason="narrows AVX processors")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["no pair products", "avx2"])
def test_code_for_older_processors(kind: str, dtype: torch.dtype, seed: int) -> None:
    target = replace(host(), pair_products=False)
    if kind == "avx2":
        target = without_wide_vectors()
    case = make_case(geometry((12, 4), 80, dtype=dtype), (1, 1, 40), (17, 1100, 163), seed=seed)
    run(case, CpuBackend(CPU, target=target))
