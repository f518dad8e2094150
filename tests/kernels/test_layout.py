"""Where keys and values lie in a block: sizes, views without copies, fingerprints, and what a layout refuses."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.layout import BlockLayout, KeyOrder, LayerShape

ORDERS: list[tuple[KeyOrder, torch.dtype]] = [
    ("slot_dim", torch.float32),
    ("slot_dim", torch.bfloat16),
    ("dim_slot", torch.float32),
    ("dim_slot", torch.float16),
    ("pairs", torch.bfloat16),
]
LAYERS = (LayerShape(2, 32), LayerShape(3, 48, 20), LayerShape(1, 32, 64))


@pytest.mark.parametrize(("keys", "dtype"), ORDERS)
def test_layers_fill_a_block_without_overlap(keys: KeyOrder, dtype: torch.dtype) -> None:
    """Every element of a block belongs to exactly one place of one layer, up to the rounding at its end."""
    layout = BlockLayout(LAYERS, 6, dtype, keys)
    pool = torch.zeros((3, layout.block_bytes), dtype=torch.uint8)
    seen = torch.zeros((3, layout.block_bytes // dtype.itemsize), dtype=torch.int64)
    for shape, cache in zip(LAYERS, layout.views(pool), strict=True):
        assert (cache.num_blocks, cache.num_kv_heads) == (3, shape.num_kv_heads)
        assert (cache.head_dim, cache.value_dim, cache.block_size) == (shape.head_dim, shape.value_dim, 6)
        for tensor in (cache.k, cache.v):
            assert tensor.data_ptr() >= pool.data_ptr()
            seen.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).add_(1)
    used = layout.token_bytes * 6 // dtype.itemsize
    assert (seen[:, :used] == 1).all()
    assert not seen[:, used:].any()
    assert layout.block_bytes % 64 == 0 and 0 <= layout.block_bytes - layout.token_bytes * 6 < 64


@pytest.mark.parametrize(("keys", "dtype"), ORDERS)
def test_what_is_written_to_slots_is_read_back(keys: KeyOrder, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layout = BlockLayout(LAYERS, 6, dtype, keys)
    pool = torch.zeros((5, layout.block_bytes), dtype=torch.uint8)
    written = []
    for shape, cache in zip(LAYERS, layout.views(pool), strict=True):
        slots = torch.randperm(30, generator=generator)
        k = torch.randn((30, shape.num_kv_heads, shape.head_dim), generator=generator).to(dtype)
        v = torch.randn((30, shape.num_kv_heads, shape.value_dim), generator=generator).to(dtype)
        reference.write_kv(k, v, cache, slots)
        written.append((slots, k, v))
    # Read after all layers are written, so that one layer over another would show.
    for cache, (slots, k, v) in zip(layout.views(pool), written, strict=True):
        got_k, got_v = reference.gather_tokens(cache, torch.arange(5), 30)
        assert torch.equal(got_k[slots], k) and torch.equal(got_v[slots], v)


def test_a_pool_in_the_middle_of_an_allocation() -> None:
    layout = BlockLayout(LAYERS, 16, torch.float32, "slot_dim")
    memory = torch.zeros(4 * layout.block_bytes + 128, dtype=torch.uint8)
    pool = memory[64 : 64 + 4 * layout.block_bytes].view(4, -1)
    layout.views(pool)[1].k[3, 2, 15] = 7.0
    start = 64 + 3 * layout.block_bytes
    assert not memory[:start].any() and memory[start : start + layout.block_bytes].any()


def test_fingerprints_differ_where_bytes_would() -> None:
    base = BlockLayout(LAYERS, 16, torch.bfloat16, "slot_dim")
    others = [
        BlockLayout(LAYERS, 32, torch.bfloat16, "slot_dim"),
        BlockLayout(LAYERS, 16, torch.float16, "slot_dim"),
        BlockLayout(LAYERS, 16, torch.bfloat16, "dim_slot"),
        BlockLayout(LAYERS, 16, torch.bfloat16, "pairs"),
        BlockLayout(LAYERS[::-1], 16, torch.bfloat16, "slot_dim"),
        BlockLayout((*LAYERS, LayerShape(1, 32)), 16, torch.bfloat16, "slot_dim"),
    ]
    assert len({layout.fingerprint() for layout in (base, *others)}) == len(others) + 1
    assert base.fingerprint() == BlockLayout((*LAYERS,), 16, torch.bfloat16, "slot_dim").fingerprint()
    assert LayerShape(3, 48) == LayerShape(3, 48, 48)


def test_what_a_layout_refuses() -> None:
    layer = (LayerShape(2, 32),)
    for size in (0, 257):
        with pytest.raises(ValueError, match=f"1 to 256 slots, got {size}"):
            BlockLayout(layer, size, torch.float32, "slot_dim")
    with pytest.raises(ValueError, match=r"2 bytes each, got torch\.float32"):
        BlockLayout(layer, 16, torch.float32, "pairs")
    with pytest.raises(ValueError, match="even block size"):
        BlockLayout(layer, 5, torch.bfloat16, "pairs")
    with pytest.raises(ValueError, match="at least one layer"):
        BlockLayout((), 16, torch.float32, "slot_dim")
    with pytest.raises(ValueError, match="at least one head"):
        LayerShape(0, 64)
    layout = BlockLayout(layer, 16, torch.float32, "slot_dim")
    with pytest.raises(ValueError, match=r"pool must be uint8 \[num_blocks, 8192\]"):
        layout.views(torch.zeros((2, 8191), dtype=torch.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        layout.views(torch.zeros((4, 8192), dtype=torch.uint8)[::2])
