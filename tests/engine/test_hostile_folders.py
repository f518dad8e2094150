"""Model folders that somebody wrote with bad intent, or a broken disk: each ends in one line, soon, and reads nothing
outside of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import LLM, ModelError
from cluster.cli.size import read_config
from cluster.errors import QuireError
from cluster.gateway.models import TextModel
from cluster.sizing import kv_shape
from worker.demo import PATH as DEMO
from worker.model import checkpoint
from worker.model.config_check import MAX_JSON_BYTES, weight_files
from worker.model.tokenizer import load_tokenizer

DEEP = "[" * 200_000
VALUES: list[Any] = [None, -1, 0, 10**18, "x", [1], {"a": 1}, 1.5, float("nan"), True]
READS: dict[str, Callable[[Path], object]] = {
    "size": lambda folder: kv_shape(read_config(str(folder))).block_bytes(16),
    "text": lambda folder: TextModel.load("m", folder),
    "weights": checkpoint.check_weights,
}


def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def look(folder: Path) -> list[str]:
    """What each reader says against it."""
    said = []
    for read in READS.values():
        try:
            read(folder)
        except QuireError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_whatever_a_figure_is_the_answer_is_one_line(tiny_llama: Path, tmp_path: Path, value: Any) -> None:
    """Every key of the configuration in turn; nothing else than `QuireError` comes out."""
    folder = copied(tiny_llama, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key in config:
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        for line in look(folder):
            assert "\n" not in line and len(line) < 600, (key, line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**18),
        ("num_hidden_layers", 0),
        ("head_dim", 0),
        ("max_position_embeddings", -1),
        ("max_position_embeddings", 10**18),
        ("vocab_size", "x"),
        ("eos_token_id", {"a": 1}),
        ("layer_types", 5),
        ("quantization_config", "x"),
        ("model_type", 7),
    ],
)
def test_what_would_take_all_memory_is_refused_before(tiny_llama: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = copied(tiny_llama, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match=r"config\.json|quantised") as caught:
        LLM(str(folder), quiet=True, kv_blocks=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", DEEP, "\xff\xfe", '{"a": ' + "9" * 5_000 + "}"], ids=range(6))
def test_files_that_are_no_json(tiny_llama: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = copied(tiny_llama, tmp_path)
    (folder / name).write_text(content, encoding="latin-1")
    (folder / "tokenizer.json").touch()
    said = look(folder)
    assert said and all("\n" not in line for line in said)
    if name == "tokenizer.json":
        with pytest.raises(ModelError) as caught:
            load_tokenizer(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["single", "pair"])
def test_a_tokenizer_that_falls_over_in_use_is_refused_when_it_is_loaded(tmp_path: Path, where: str) -> None:
    """Rust's panics are no exceptions of Python's, and go past whoever expects some."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, tmp_path / name)
    told = json.loads((tmp_path / "tokenizer.json").read_text())
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    told["post_processor"][where].append({"SpecialToken": {"id": "nobody", "type_id": 0}})
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    if where == "pair":
        # Nothing here is ever a pair.
        assert TextModel.load("m", tmp_path).encode("a b")
        return
    with pytest.raises(ModelError, match="tokenizer") as caught:
        TextModel.load("m", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_without_end_is_not_read(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama, tmp_path)
    with (folder / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    assert len([line for line in look(folder) if "bytes" in line]) == 2


@pytest.mark.parametrize(
    "named",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "a/../../x.safetensors",
        "sub/model.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_an_index_names_files_of_its_folder_and_no_others(tmp_path: Path, named: Any) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"\0" * 100)
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(ModelError, match=r"index\.json") as caught:
        checkpoint.check_weights(folder)
    assert "\n" not in str(caught.value)
    for wrong in ("[]", '{"weight_map": [1]}', '{"weight_map": "x"}', "{}"):
        index.write_text(wrong)
        with pytest.raises(ModelError):
            weight_files(index)
