"""The sizing rule, the bytes of a block, and the waste in last blocks against simulated lengths."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from cluster.errors import ConfigError, ModelError
from cluster.sizing import DTYPE_BYTES, ExpectedLoad, KvShape, kv_shape

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def test_the_rule_of_the_example() -> None:
    # 50 requests of 200 tokens, 1.5 times over, in blocks of 16: 937.5 blocks.
    assert ExpectedLoad(50, 200, 1.5).num_blocks(16) == 938
    assert ExpectedLoad(1, 1, 1.0).num_blocks(256) == 1


def test_an_8b_model_has_blocks_of_2_mib() -> None:
    shape = kv_shape(LLAMA_8B)
    assert shape == KvShape(32, 8, 128, "bfloat16", 8192)
    assert shape.block_bytes(16) == 2 << 20
    assert kv_shape(LLAMA_8B, "fp32").block_bytes(16) == 4 << 20


@pytest.mark.parametrize("block_size", [1, 7, 16, 256])
@pytest.mark.parametrize("dtype", list(DTYPE_BYTES))
@pytest.mark.parametrize(("layers", "heads", "dim"), [(1, 1, 1), (3, 2, 20), (24, 4, 64)])
def test_bytes_are_those_of_the_pools(block_size: int, dtype: str, layers: int, heads: int, dim: int) -> None:
    import torch

    from kernels.layout import BlockLayout, LayerShape

    layout = BlockLayout((LayerShape(heads, dim),) * layers, block_size, getattr(torch, dtype), "slot_dim")
    shape = KvShape(layers, heads, dim, dtype, None)
    assert (shape.token_bytes, shape.block_bytes(block_size)) == (layout.token_bytes, layout.block_bytes)


@pytest.mark.parametrize("mean", [3, 19, 77, 500])
@pytest.mark.parametrize("block_size", [8, 16, 128])
def test_expected_waste_is_that_of_drawn_lengths(mean: int, block_size: int, seed: int) -> None:
    rng = random.Random(seed)
    lengths = [1 + int(math.log(1 - rng.random()) / math.log1p(-1 / mean)) for _ in range(40_000)]
    held = sum(-(-length // block_size) * block_size for length in lengths)
    assert ExpectedLoad(1, mean).expected_waste(block_size) == pytest.approx(1 - sum(lengths) / held, abs=0.012)


def test_waste_of_extremes() -> None:
    assert ExpectedLoad(1, 1).expected_waste(8) == pytest.approx(7 / 8)
    assert ExpectedLoad(1, 1e7).expected_waste(16) == pytest.approx(7.5 / 1e7, rel=1e-2)


def test_configs_of_other_shapes() -> None:
    gpt2 = {"n_embd": 768, "n_layer": 12, "n_head": 12}
    assert kv_shape(gpt2) == KvShape(12, 12, 64, "float32", None)
    nested = {"dtype": "float16", "text_config": {**LLAMA_8B, "torch_dtype": None, "head_dim": 64}}
    assert kv_shape(nested).dtype == "float16"
    assert kv_shape(nested).head_dim == 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 5}, "key-value heads"),
        ({"kv_lora_rank": 512}, "compressed"),
    ],
)
def test_a_config_that_cannot_be_counted(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        kv_shape({**LLAMA_8B, **change})


@pytest.mark.parametrize("load", [(0, 10, 1.5), (5, 0, 1.5), (5, 10, 0.5), (5, math.nan, 1.5), (5, math.inf, 1.5)])
def test_a_load_that_makes_no_sense(load: tuple[int, float, float]) -> None:
    with pytest.raises(ConfigError, match="give"):
        ExpectedLoad(*load)


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    model = ["--model", str(tmp_path), "--device", "cuda"]
    assert main(["size", *model, "--requests", "50", "--length", "200"]) == 0
    table = capsys.readouterr().out
    assert "938 blocks of 16 tokens" in table
    assert "--kv-blocks 938 --block-size 16" in table
    assert main(["size", *model, "--requests", "50", "--length", "200", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["kv_blocks"], answer["kv_bytes"]) == (938, 938 << 21)
    assert [row["block_size"] for row in answer["by_block_size"]] == [8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "nowhere"], "does not exist"),
        (["--requests", "0"], "requests is 0"),
        (["--requests", "ten"], "--requests"),
        (["--length", "nan"], "length is nan"),
        (["--length", "9000"], "8,192 tokens"),
        (["--safety", "0.2"], "safety is 0.2"),
        (["--block-size", "257"], "block_size is 257"),
        (["--dtype", "int3"], "int3"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert main(["size", "--model", str(tmp_path), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert says in shown.err


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\x00\xff"])
def test_a_broken_config_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(text)
    assert main(["size", "--model", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown


def test_it_counts_for_what_up_would_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU computes in float32 whatever the checkpoint is in; a GPU in the checkpoint's own, else in bfloat16."""
    from cluster.lifecycle import preflight

    nameless = {name: value for name, value in LLAMA_8B.items() if name != "torch_dtype"}
    half = {**LLAMA_8B, "torch_dtype": "float16"}
    for gpus, config, chosen in (
        (0, LLAMA_8B, ("cpu", "float32")),
        (1, LLAMA_8B, ("cuda", "bfloat16")),
        (1, nameless, ("cuda", "bfloat16")),
        (1, half, ("cuda", "float16")),
    ):
        monkeypatch.setattr(preflight, "num_gpus", lambda gpus=gpus: gpus)
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert main(["size", "--model", str(tmp_path), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["device"], answer["dtype"]) == chosen
    assert main(["size", "--model", str(tmp_path), "--dtype", "fp32"]) == 0
    said = capsys.readouterr().out
    assert "float32 on cuda" in said and f"quire up --kv-blocks 938 --block-size 16 --model {tmp_path}" in said
    assert main(["size", "--device", "abacus"]) == 2
