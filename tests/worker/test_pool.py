"""Pools: one aligned allocation, views per layer, blocks that hold nothing are NaN; and the budget that sizes them."""

import pytest
import torch

from cluster.errors import ConfigError
from cluster.settings import WorkerSettings
from cluster.sizes import format_bytes, parse_bytes
from kernels.layout import BlockLayout, KeyOrder, LayerShape
from worker.model import budget
from worker.pool import DevicePool

CPU = torch.device("cpu")
LAYERS = (LayerShape(2, 8), LayerShape(1, 12), LayerShape(2, 8))


@pytest.mark.parametrize("order", ["slot_dim", "dim_slot", "pairs"])
@pytest.mark.parametrize("block_size", [2, 16, 256])
def test_a_block_is_one_run_of_bytes(order: KeyOrder, block_size: int) -> None:
    dtype = torch.bfloat16 if order == "pairs" else torch.float32
    pool = DevicePool(BlockLayout(LAYERS, block_size, dtype, order), 5, CPU, debug=True)
    assert pool.bytes.data_ptr() % 4096 == 0
    assert pool.layout.block_bytes % 64 == 0
    assert all(layer.k.isnan().all() and layer.v.isnan().all() for layer in pool.layers)
    pool.bytes[3] = 0
    for layer in pool.layers:
        assert layer.k.isnan().flatten(1).all(1).tolist() == [True, True, True, False, True]
        assert not layer.k[3].any() and not layer.v[3].any()


@pytest.mark.parametrize("order", ["slot_dim", "dim_slot", "pairs"])
def test_forgotten_blocks_and_slots_cannot_be_read(order: KeyOrder) -> None:
    dtype = torch.bfloat16 if order == "pairs" else torch.float32
    pool = DevicePool(BlockLayout(LAYERS, 8, dtype, order), 4, CPU, debug=True)
    pool.bytes.zero_()
    pool.forget([2])
    pool.forget_from([1], 5)
    blocks = torch.arange(4)
    for layer in pool.layers:
        keys, values = layer.slot_dim_keys(blocks).isnan(), layer.slot_dim_values(blocks).isnan()
        for found in (keys, values):
            assert not found[0].any() and not found[3].any() and found[2].all()
            assert not found[1, :, :5].any() and found[1, :, 5:].all()


def test_cleared_blocks_are_zero() -> None:
    pool = DevicePool(BlockLayout(LAYERS, 8, torch.float32, "dim_slot"), 4, CPU)
    pool.bytes.fill_(7)
    pool.clear([0, 2])
    assert [bool(block.any()) for block in pool.bytes] == [False, True, False, True]


def size(settings: WorkerSettings, free: int) -> budget.Budget:
    layout = BlockLayout(LAYERS, 16, torch.float32, "dim_slot")
    return budget.decide(
        settings, layout, free_bytes=free, weights_bytes=1000, working_bytes=1 << 20, max_model_len=1024
    )


def test_budget_follows_what_is_asked() -> None:
    block_bytes = BlockLayout(LAYERS, 16, torch.float32, "dim_slot").block_bytes
    assert size(WorkerSettings("m", kv_blocks=77), 1 << 30).num_blocks == 77
    assert size(WorkerSettings("m", kv_memory="1MiB"), 1 << 30).num_blocks == (1 << 20) // block_bytes
    # A share of what is free behind the working space, but no more than the largest batch could fill.
    assert size(WorkerSettings("m", kv_share=0.5), (1 << 20) + 100 * block_bytes).num_blocks == 50
    assert size(WorkerSettings("m", max_batch=3), 1 << 40).num_blocks == 3 * 64


def test_budget_lines_have_the_figures() -> None:
    text = "\n".join(size(WorkerSettings("m", kv_blocks=96), 1 << 30).lines(1024))
    for figure in ("weights 1000 B", "working space 1.0 MiB", "96 blocks", "1,536 tokens", "3 of 512, 1 of 1,024"):
        assert figure in text


def test_what_does_not_fit_names_what_would() -> None:
    with pytest.raises(
        ConfigError, match=r"kv_blocks asks for 10,000 blocks .* set kv_blocks=[0-9,]+ or less"
    ) as caught:
        size(WorkerSettings("m", kv_blocks=10_000), 20 << 20)
    advised = int(str(caught.value).split("kv_blocks=")[1].split()[0].replace(",", ""))
    assert size(WorkerSettings("m", kv_blocks=advised), 20 << 20).num_blocks == advised
    with pytest.raises(ConfigError, match="no block of KV memory fits"):
        size(WorkerSettings("m"), 1 << 20)


def test_amounts_of_memory() -> None:
    assert [parse_bytes(text, "x") for text in ("2GiB", "1.5 kb", "64", "3M")] == [2 << 30, 1500, 64, 3_000_000]
    assert [format_bytes(size) for size in (17, 2048, 3 << 30)] == ["17 B", "2.0 KiB", "3.0 GiB"]
    for wrong in ("", "two", "2 bananas", "-1GiB", "0"):
        with pytest.raises(ConfigError, match="kv_memory"):
            parse_bytes(wrong, "kv_memory")
