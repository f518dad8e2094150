"""Paged attention in Triton against the reference: shapes, features, schedules, blocks and tiles of any size."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from kernels import reference
from kernels.batch import AttentionBatch, Scoring
from kernels.gpu.backend import TritonBackend
from kernels.layout import BlockLayout, LayerShape
from tests.kernels.cases import RAGGED, Geometry, assert_close, make_case
from tests.kernels.triton_device import DEVICE, DTYPES, GPU, NAN, facts_with, merges_of, plans, run, units_of


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_decodes(dtype: torch.dtype, seed: int) -> None:
    run(make_case(Geometry(dtype=dtype), [1] * len(RAGGED), RAGGED, seed=seed, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_decodes_beside_prefill_chunks(dtype: torch.dtype, seed: int) -> None:
    queries, contexts = (1, 1, 1, 15, 16, 17, 63, 40), (111, 16, 1, 15, 63, 17, 111, 199)
    case = make_case(Geometry(dtype=dtype), queries, contexts, seed=seed, device=DEVICE)
    run(case)
    assert [launch.group.schedule for launch in plans(case)] == ["flat", "parts"]


@pytest.mark.parametrize(("tile", "block_size"), list(itertools.product((16, 32, 64, 128), (1, 5, 16, 64, 256))))
def test_tiles_and_blocks_are_independent(tile: int, block_size: int, seed: int) -> None:
    backend = TritonBackend(DEVICE, facts=facts_with(tile=tile, **({"rows": 16, "stages": 1} if GPU else {})))
    geometry = Geometry(num_heads=4, num_kv_heads=2, head_dim=32, block_size=block_size)
    run(make_case(geometry, (1, 1, 1, 17), (1, 111, 300, 150), seed=seed, device=DEVICE), backend=backend)


@pytest.mark.parametrize("dim", [32, 48, 64, 80, 96, 112, 128, 256])
def test_head_sizes(dim: int, seed: int) -> None:
    geometry = Geometry(num_heads=2, num_kv_heads=1, head_dim=dim)
    run(make_case(geometry, (1, 1, 20), (17, 63, 40), seed=seed, device=DEVICE))


def test_values_of_another_size_than_keys(seed: int) -> None:
    geometry = Geometry(num_heads=4, num_kv_heads=2, head_dim=96, value_dim=40)
    run(make_case(geometry, (1, 1, 20), (17, 63, 40), seed=seed, device=DEVICE))


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (8, 1), (20, 4), (71, 1)])
def test_multi_head_grouped_and_multi_query(heads: int, kv_heads: int, seed: int) -> None:
    geometry = Geometry(num_heads=heads, num_kv_heads=kv_heads, head_dim=32)
    run(make_case(geometry, (1, 1, 3, 40), (17, 63, 30, 64), seed=seed, device=DEVICE))


@pytest.mark.parametrize("window", [1, 7, 16, 33, 100, 1000])
def test_sliding_window(window: int, seed: int) -> None:
    case = make_case(Geometry(), (1, 1, 1, 40, 64), (1, 111, 300, 199, 64), seed=seed, device=DEVICE)
    run(case, window=window)
    if window <= 33:
        flat = plans(case)[0]
        _, _, lo, hi = units_of(flat)[2][:4]
        assert hi - lo <= -(-window // flat.group.choice.tile) + 1, "tiles outside the window are read"


@pytest.mark.parametrize("split_edges", [True, False])
def test_softcap_sinks_and_scales(split_edges: bool, seed: int) -> None:
    case = make_case(Geometry(), (1, 1, 17, 40), (1, 200, 111, 40), seed=seed, device=DEVICE)
    backend = TritonBackend(DEVICE, facts=facts_with(split_edges=split_edges))
    sinks = torch.randn(6, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    run(case, backend=backend, softcap=3.0)
    run(case, backend=backend, sinks=sinks)
    run(case, backend=backend, sinks=sinks * 40, window=20, softcap=50.0, scale=1.0)
    run(case, backend=backend, scale=0.0)
    run(case, backend=backend, scale=-0.3, window=9)


def test_large_scores_stay_finite(seed: int) -> None:
    """Scores in the thousands that are either equal or far apart, so that rounding decides nothing."""
    case = make_case(Geometry(), (1, 20), (100, 40), seed=seed, device=DEVICE)
    case.cache.k.copy_(case.cache.k.round().clamp(-1, 1))
    case.q = (case.q * 4).round() * 64
    run(case, scale=1.0)


def test_queries_that_see_nothing_get_zeros(seed: int) -> None:
    """A padded step has sequences without tokens, and ones with a query and no key."""
    case = make_case(Geometry(), (1, 1, 1), (40, 1, 17), seed=seed, device=DEVICE)
    case.batch.context_len[1] = 0
    _, out = run(case)
    assert not out[1].any()
    case = make_case(Geometry(), (1, 0, 30), (40, 0, 30), seed=seed, device=DEVICE)
    run(case, window=8)


def test_short_queries_go_with_the_flat_schedule(seed: int) -> None:
    case = make_case(Geometry(), (1, 3, 10, 2), (40, 111, 300, 2), seed=seed, device=DEVICE)
    run(case)
    assert [launch.group.schedule for launch in plans(case)] == ["flat", "flat"]


def test_a_long_sequence_among_short_ones_is_split(seed: int) -> None:
    case = make_case(Geometry(), [1] * 8, (1500, *[37] * 7), seed=seed, device=DEVICE)
    backend, _ = run(case, window=0)
    run(case, backend=backend, window=700, softcap=20.0, sinks=torch.ones(6, device=DEVICE))
    units, total, share = plans(case)[0].plan[:3].tolist()
    assert units == 8
    assert share < 700 // 16, "the long sequence is not split"
    assert share * plans(case)[0].group.programs < total * 2 + share + 6 * 4


def test_few_queries_over_long_context_are_cut_in_parts(seed: int) -> None:
    case = make_case(Geometry(), (24, 12), (1500, 12), seed=seed, device=DEVICE)
    run(case)
    (launch,) = plans(case)
    assert launch.group.schedule == "parts"
    assert merges_of(launch), "nothing was split"


def test_queries_of_another_dtype_than_the_cache(seed: int) -> None:
    for dtype, query_dtype in ((torch.float16, torch.float32), (torch.float32, torch.float16)):
        geometry = Geometry(dtype=dtype, query_dtype=query_dtype)
        run(make_case(geometry, (1, 1, 20), (17, 63, 40), seed=seed, device=DEVICE))


def test_queries_and_outputs_inside_larger_tensors(seed: int) -> None:
    case = make_case(Geometry(), (1, 1, 20), (17, 63, 40), seed=seed, device=DEVICE)
    tokens = case.q.shape[0]
    merged = torch.full((tokens, 10, 64), NAN, device=DEVICE)
    merged[:, 2:8] = case.q
    case.q = merged[:, 2:8]
    out = torch.full((tokens, 8, 64), NAN, device=DEVICE)
    backend = TritonBackend(DEVICE, facts=facts_with())
    backend.attention(case.q, case.cache, case.batch, Scoring(0.125), out=out[:, 1:7])
    assert_close(out[:, 1:7], reference.attention(case.q, case.cache, case.batch, Scoring(0.125))[0], torch.float32)
    assert out[:, 0].isnan().all()
    assert out[:, 7].isnan().all()


def test_blocks_beyond_32_bit_offsets(seed: int) -> None:
    """The pool is larger than 2^31 elements; only the pages of the blocks in use are ever touched."""
    layout = BlockLayout((LayerShape(2, 64),) * 8, 16, torch.float16, "slot_dim")
    num_blocks = (1 << 32) // layout.block_bytes + 1000
    pool = torch.empty((num_blocks, layout.block_bytes), dtype=torch.uint8, device=DEVICE)
    cache = layout.views(pool)[5]
    table = torch.tensor([[num_blocks - 1, 3, num_blocks - 2]], dtype=torch.int32, device=DEVICE)
    slots = (table[0].long()[:, None] * 16 + torch.arange(16, device=DEVICE)).flatten()
    assert int(slots[0]) // 16 * (layout.block_bytes // 2) > 1 << 31
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn((48, 2, 64), generator=generator).half().to(DEVICE) for _ in range(2))
    backend = TritonBackend(DEVICE)
    backend.write_kv(k, v, cache, slots)
    queries = 20
    batch = AttentionBatch(
        query_start=torch.tensor([0, queries], dtype=torch.int32, device=DEVICE),
        context_len=torch.tensor([48], dtype=torch.int32, device=DEVICE),
        tables=table,
        rows=torch.zeros(1, dtype=torch.int32, device=DEVICE),
        slots=slots[-queries:],
        positions=slots[-queries:],
        max_query_len=queries,
        max_context_len=48,
        num_decodes=0,
    )
    q = torch.randn((queries, 4, 64), generator=generator).half().to(DEVICE)
    wanted, _ = reference.sequence_attention(q.float(), k.float(), v.float(), Scoring(0.125))
    assert_close(backend.attention(q, cache, batch, Scoring(0.125)), wanted, torch.float16)
    backend.copy_blocks(pool, [num_blocks - 1], [num_blocks - 3])
    assert torch.equal(pool[num_blocks - 3], pool[num_blocks - 1])


def test_attention_over_halves_merges_to_the_whole(seed: int) -> None:
    case = make_case(Geometry(), (1, 1), (64, 160), seed=seed, device=DEVICE)
    backend = TritonBackend(DEVICE, facts=facts_with())
    parts = []
    for first, blocks in ((0, 2), (2, 100)):
        batch = replace(case.batch, tasks=None)
        batch.tables = case.batch.tables[:, first : first + blocks].contiguous()
        batch.context_len = (case.batch.context_len - first * 16).clamp(max=blocks * 16)
        lse = torch.empty(case.q.shape[:2], device=DEVICE)
        parts.append((backend.attention(case.q, case.cache, batch, Scoring(0.125), lse=lse), lse))
    outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    out, lse = backend.merge(outs, lses)
    wanted, wanted_lse = reference.attention(case.q, case.cache, case.batch, Scoring(0.125))
    assert_close(out, wanted, torch.float32, "out")
    assert_close(lse, wanted_lse, torch.float32, "lse")


def test_one_batch_serves_layers_of_several_kinds(seed: int) -> None:
    """Plans are kept by shape and window, and forgotten when the next step is prepared."""
    case = make_case(Geometry(), (1, 1, 30), (64, 111, 40), seed=seed, device=DEVICE)
    backend, _ = run(case)
    for window in (20, 0, 20):
        got = backend.attention(case.q, case.cache, case.batch, Scoring(0.125, window=window))
        wanted, _ = reference.attention(case.q, case.cache, case.batch, Scoring(0.125, window=window))
        assert_close(got, wanted, torch.float32)
    assert len(plans(case)) == 4
    case.batch.context_len[1] -= 50
    run(case, backend=backend)
    assert len(plans(case)) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_captured_decode_step_follows_growing_sequences(seed: int) -> None:
    geometry = Geometry(num_heads=8, num_kv_heads=2, head_dim=128, dtype=torch.bfloat16)
    case = make_case(geometry, [1] * 6, (900, 17, 63, 1, 300, 511), seed=seed, device=DEVICE)
    backend = TritonBackend(DEVICE)
    backend.warm_up(geometry.layout(), 8)
    out = torch.full_like(case.q, NAN)
    full = case.batch.context_len.clone()
    case.batch.context_len.fill_(1)

    def step() -> None:
        backend.prepare(case.batch, num_heads=8, num_kv_heads=2, head_dim=128, block_size=16)
        for _ in range(2):
            backend.attention(case.q, case.cache, case.batch, Scoring(0.1), out=out)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in (full, full.clamp(max=100), torch.zeros_like(full), full):
        case.batch.context_len.copy_(lengths)
        out.fill_(NAN)
        graph.replay()
        assert_close(out, reference.attention(case.q, case.cache, case.batch, Scoring(0.1))[0], torch.bfloat16)
