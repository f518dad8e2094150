"""The task map that a kernel builds on the device, against one worked out on the host."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kernels.batch import AttentionBatch
from kernels.gpu.backend import TritonBackend
from kernels.gpu.plan import MIN_PART_TILES, MIN_SHARE_TILES
from kernels.gpu.step import AttentionShape
from tests.kernels.cases import Case, Geometry
from tests.kernels.triton_device import DEVICE, facts_with, merges_of, units_of


def wanted_tiles(case: Case, launch: Any, window: int) -> dict[tuple[int, int], tuple[int, int]]:
    """For each sequence and query tile of a group: the key tiles that its rows can see, worked out on the host."""
    group, tile = launch.group, launch.group.choice.tile
    found = {}
    starts, contexts = case.batch.query_start.tolist(), case.batch.context_len.tolist()
    for seq in range(group.first_seq, group.first_seq + group.num_seqs):
        query_len, context = starts[seq + 1] - starts[seq], contexts[seq]
        for q_tile in range(-(-query_len // group.block_q)):
            first = context - query_len + q_tile * group.block_q
            last = min(first + group.block_q, context) - 1
            lo = max(first - window + 1, 0) // tile if window else 0
            found[(seq, q_tile)] = (lo, max(last, 0) // tile + 1)
    return found


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("flat", "many"), [(True, 5), (True, 300), (False, 3), (False, 40)])
def test_plans_cover_each_tile_once_and_evenly(flat: bool, many: int, window: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = [1] * many if flat else torch.randint(20, 90, (many,), generator=generator).tolist()
    contexts = [n + int(torch.randint(0, 700, (1,), generator=generator)) for n in queries]
    contexts[many // 2] += 5000
    case = counted_case(queries, contexts)
    backend = TritonBackend(DEVICE, facts=facts_with())
    (launch,) = backend._launches(case.batch, shape_of(case), window)
    heads = case.cache.num_kv_heads
    units = units_of(launch)
    assert {(seq, q_tile): (lo, hi) for seq, q_tile, lo, hi, *_ in units} == wanted_tiles(case, launch, window)
    starts, contexts = case.batch.query_start.tolist(), case.batch.context_len.tolist()
    for seq, q_tile, *_, row, first, left, context, _, _, _, _, _ in units:
        assert (row, context) == (int(case.batch.rows[seq]), contexts[seq])
        assert first == starts[seq] + q_tile * launch.group.block_q
        assert left == starts[seq + 1] - first
    (check_shares if flat else check_parts)(backend, launch, heads, shape_of(case))


def check_shares(backend: TritonBackend, launch: Any, heads: int, shape: AttentionShape) -> None:
    """All tiles in one row, the same number for each program; what is cut is merged from the pieces it was cut into."""
    units, plan, programs = units_of(launch), launch.plan.tolist(), launch.group.programs
    tiles = [hi - lo for _, _, lo, hi, *_ in units]
    share, owners = plan[2], plan[launch.layout.owners_at :]
    assert plan[1] == sum(tiles)
    assert [unit[4] for unit in units] == [sum(tiles[:i]) for i in range(len(tiles))]
    assert share == max(-(-sum(tiles) * heads // programs), MIN_SHARE_TILES)
    wanted = []
    for i, unit in enumerate(units):
        for head in range(heads):
            begin = unit[4] * heads + head * tiles[i]
            first, last = begin // share, (begin + tiles[i] - 1) // share
            if last > first:
                wanted.append([last - first + 1, head, programs + first, first + 1, unit[8], unit[9]])
    assert [record[:6] for record in merges_of(launch)] == wanted
    for program in range(-(-sum(tiles) * heads // share)):
        unit = owners[program]
        assert units[unit][4] * heads <= program * share < (units[unit][4] + tiles[unit]) * heads


def check_parts(backend: TritonBackend, launch: Any, heads: int, shape: AttentionShape) -> None:
    """Each part belongs to its unit, those of split units have a slot of their own, and no part outlasts all others."""
    units, plan = units_of(launch), launch.plan.tolist()
    tiles, parts = [unit[3] - unit[2] for unit in units], [unit[5] for unit in units]
    owners = plan[launch.layout.owners_at :]
    assert plan[1] == sum(parts)
    assert [unit[4] for unit in units] == [sum(parts[:i]) for i in range(len(parts))]
    assert owners[: plan[1]] == [unit for unit, count in enumerate(parts) for _ in range(count)]
    split = [count if count > 1 else 0 for count in parts]
    wanted = [
        [count, 0, sum(split[:i]) * heads, (sum(split[:i]) + 1) * heads, units[i][8], units[i][9]]
        for i, count in enumerate(parts)
        if count > 1
    ]
    assert [record[:6] for record in merges_of(launch)] == wanted
    assert [unit[6] for unit in units if unit[5] > 1] == [sum(split[:i]) for i, n in enumerate(parts) if n > 1]
    assert sum(split) * heads <= backend._workspace(launch.group, shape)[0].shape[0]
    longest = max(-(-n // count) for n, count in zip(tiles, parts, strict=True))
    assert longest <= max(1.5 * sum(tiles) * heads / launch.group.programs, MIN_PART_TILES), (
        "one part outlasts all others"
    )


def counted_case(queries: Sequence[int], contexts: Sequence[int]) -> Case:
    """Lengths only: for what never looks at keys."""
    layout = Geometry().layout()
    pool = torch.zeros((1, layout.block_bytes), dtype=torch.uint8, device=DEVICE)
    starts = [0, *itertools.accumulate(queries)]
    ints = {"dtype": torch.int32, "device": DEVICE}
    slots = torch.zeros(starts[-1], dtype=torch.int64, device=DEVICE)
    batch = AttentionBatch(
        query_start=torch.tensor(starts, **ints),  # type: ignore[arg-type]
        context_len=torch.tensor(list(contexts), **ints),  # type: ignore[arg-type]
        tables=torch.zeros((len(queries), 1), **ints),  # type: ignore[arg-type]
        rows=torch.arange(len(queries), **ints).flip(0),  # type: ignore[arg-type]
        slots=slots,
        positions=slots,
        max_query_len=max(queries),
        max_context_len=max(contexts),
        num_decodes=sum(n == 1 for n in queries),
    )
    return Case(torch.zeros((starts[-1], 6, 64), device=DEVICE), layout.views(pool)[1], batch, pool)


def shape_of(case: Case) -> AttentionShape:
    cache = case.cache
    return AttentionShape(
        case.q.shape[1], cache.num_kv_heads, cache.head_dim, cache.value_dim, cache.block_size, case.q.element_size()
    )
