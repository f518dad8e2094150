"""Cache writes, block copies, merging, and what the Triton backend says to wrong arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels import reference
from kernels.batch import Scoring
from kernels.gpu.backend import TritonBackend
from kernels.layout import BlockLayout, LayerCache, LayerShape
from tests.kernels.cases import Geometry, assert_close, make_case
from tests.kernels.triton_device import DEVICE, DTYPES


@pytest.mark.parametrize("dim", [48, 64])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.float16])
def test_write(dim: int, query_dtype: torch.dtype, seed: int) -> None:
    geometry = Geometry(num_heads=3, num_kv_heads=3, head_dim=dim, value_dim=32, dtype=torch.float16, block_size=5)
    case = make_case(geometry, (5, 9), (9, 14), seed=seed, device=DEVICE)
    generator = torch.Generator().manual_seed(seed)
    # As they come out of one merged product: rows wider than the keys.
    merged = torch.randn((14, 3 * (dim + 32) + 8), generator=generator).to(query_dtype).to(DEVICE)
    k = merged[:, : 3 * dim].unflatten(1, (3, dim))
    v = merged[:, 3 * dim : 3 * (dim + 32)].unflatten(1, (3, 32))
    slots = case.batch.slots.clone()
    slots[[2, 7]] = -1
    wanted = case.pool.clone()
    reference.write_kv(k, v, geometry.layout().views(wanted)[1], slots)
    TritonBackend(DEVICE, debug=True).write_kv(k, v, case.cache, slots)
    assert torch.equal(case.pool, wanted), "something else than the slots changed, or what is there is wrong"


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = cos.shape[1]
    turned, rest = x[..., : 2 * half].double(), x[..., 2 * half :].double()
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    pair = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1), rest], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (80, 32)])
def test_rotary_write(dim: int, rotary_dim: int, interleaved: bool, seed: int) -> None:
    geometry = Geometry(num_heads=20, num_kv_heads=3, head_dim=dim, dtype=torch.float16)
    geometry = replace(geometry, num_heads=21)
    case = make_case(geometry, (4, 9), (9, 14), seed=seed, device=DEVICE)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = case.q, *(torch.randn((13, 3, dim), generator=generator).half().to(DEVICE) for _ in range(2))
    angles = torch.randn((13, rotary_dim // 2), generator=generator).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    slots = case.batch.slots.clone()
    slots[5] = -1
    wanted_q, wanted_k = rotated(q, cos, sin, interleaved), rotated(k, cos, sin, interleaved)
    filled = case.pool.clone()
    TritonBackend(DEVICE).rotary_write_kv(q, k, v, cos, sin, case.cache, slots, interleaved=interleaved)
    assert_close(q, wanted_q, torch.float16, "q")
    kept = slots >= 0
    blocks, at = slots[kept] // 16, slots[kept] % 16
    assert_close(case.cache.k[blocks, :, at], wanted_k[kept], torch.float16, "k")
    assert torch.equal(case.cache.v[blocks, :, at], v[kept])
    before = geometry.layout().views(filled)[1]
    before.k[blocks, :, at], before.v[blocks, :, at] = case.cache.k[blocks, :, at], case.cache.v[blocks, :, at]
    assert torch.equal(filled, case.pool), "something else than the slots changed"


@pytest.mark.parametrize("block_bytes", [64, 70, 65600])
def test_copy_blocks(block_bytes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randint(0, 256, (9, block_bytes), dtype=torch.uint8, generator=generator).to(DEVICE)
    wanted = pool.clone()
    wanted[[7, 0, 3]] = wanted[[1, 1, 8]]
    backend = TritonBackend(DEVICE, debug=True)
    backend.copy_blocks(pool, [1, 1], [7, 0])
    backend.copy_blocks(pool, torch.tensor([8]), torch.tensor([3]))
    backend.copy_blocks(pool, [], [])
    assert torch.equal(pool, wanted)
    with pytest.raises(ValueError, match="both read and written"):
        backend.copy_blocks(pool, [1, 2], [2, 3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outs = torch.randn((4, 7, 5, 48), generator=generator).to(dtype).to(DEVICE)
    lses = (torch.randn((4, 7, 5), generator=generator) * 5).to(DEVICE)
    lses[1, 2:5] = float("-inf")
    lses[:, 6, 3] = float("-inf")
    out, lse = TritonBackend(DEVICE).merge(outs, lses)
    wanted, wanted_lse = reference.merge(outs, lses)
    assert_close(out, wanted, dtype, "out")
    assert_close(lse, wanted_lse, torch.float32, "lse")


def test_wrong_arguments_are_named(seed: int) -> None:
    case = make_case(Geometry(), (1, 1), (17, 63), seed=seed, device=DEVICE)
    backend = TritonBackend(DEVICE)
    q, cache, batch = case.q, case.cache, case.batch

    def attend(**changes: Any) -> None:
        backend.attention(**({"q": q, "cache": cache, "batch": batch, "scoring": Scoring(1.0)} | changes))

    with pytest.raises(ValueError, match="q must have shape"):
        attend(q=q[:, :, :32])
    with pytest.raises(ValueError, match="q's 5 heads cannot be shared out over 2"):
        attend(q=q[:, :5])
    with pytest.raises(ValueError, match="q must be dense"):
        attend(q=q.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(ValueError, match=r"out must be torch\.float32"):
        attend(out=torch.empty_like(q, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"batch\.context_len must be torch\.int32"):
        attend(batch=replace(batch, context_len=batch.context_len.long(), tasks=None))
    with pytest.raises(ValueError, match="slot_dim order"):
        attend(cache=LayerCache(cache.k.transpose(2, 3), cache.v, 16, "dim_slot"))
    with pytest.raises(ValueError, match=r"cache\.k must hold"):
        attend(cache=LayerCache(cache.k[:, :, ::2], cache.v[:, :, ::2], 8, "slot_dim"))
    wide = make_case(Geometry(num_heads=129, num_kv_heads=1, head_dim=16), (1,), (3,), seed=seed, device=DEVICE)
    with pytest.raises(ValueError, match="129 query heads share"):
        attend(q=wide.q, cache=wide.cache, batch=wide.batch)
    with pytest.raises(ValueError, match=r"k must have shape \[1, 2, 64\]"):
        backend.write_kv(q[:, :2], q[:, :2], cache, batch.slots[:1])


def test_debug_mode_finds_what_does_not_fit(seed: int) -> None:
    backend = TritonBackend(DEVICE, debug=True)

    def attend(**values: tuple[Any, int]) -> None:
        case = make_case(Geometry(), (1, 1, 3), (17, 63, 40), seed=seed, device=DEVICE)
        for name, (at, value) in values.items():
            if at is None:
                setattr(case.batch, name, value)
            else:
                getattr(case.batch, name)[at] = value
        backend.attention(case.q, case.cache, case.batch, Scoring(1.0))

    attend()
    with pytest.raises(ValueError, match=r"batch\.context_len\[1\] is 64; it must be 0 to 63"):
        attend(context_len=(1, 64))
    with pytest.raises(ValueError, match=r"more than a row of 5 blocks"):
        attend(context_len=(1, 90), max_context_len=(None, 100))
    with pytest.raises(ValueError, match=r"batch\.rows\[2\] is 5; batch\.tables has rows 0 to 4"):
        attend(rows=(2, 5))
    with pytest.raises(ValueError, match=r"query_start gives sequence 2 3 query tokens; it must have 0 to 2"):
        attend(max_query_len=(None, 2))
    case = make_case(Geometry(), (1, 1, 3), (17, 63, 40), seed=seed, device=DEVICE)
    case.batch.tables[case.batch.rows[1], 2] = case.cache.num_blocks
    with pytest.raises(ValueError, match=f"names block {case.cache.num_blocks} as number 2 of sequence 1"):
        backend.attention(case.q, case.cache, case.batch, Scoring(1.0))
    with pytest.raises(ValueError, match="slots must be -1 to"):
        backend.write_kv(case.q[:, :2], case.q[:, :2], case.cache, case.batch.slots + 100000)


def test_warm_up_runs_every_kernel() -> None:
    layout = BlockLayout((LayerShape(2, 32), LayerShape(1, 32, 16)), 16, torch.float16, "slot_dim")
    backend = TritonBackend(DEVICE)
    backend.warm_up(layout, 4)
    backend.warm_up(layout, 4, softcap=True, sinks=True)
    assert backend.key_order(torch.float16, 16) == layout.keys
