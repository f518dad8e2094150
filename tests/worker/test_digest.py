"""A model's digest: what changes its keys and values changes it, what does not leaves it; lost files are named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ModelError
from cluster.hashing import DIGEST_BYTES
from cluster.settings import WorkerSettings
from tests.engine import models
from worker.model import digest, loading


def digest_of(folder: Path, dtype: str = "float32") -> bytes:
    settings = WorkerSettings(model=str(folder), dtype=dtype, show_progress=False)
    return loading.load(settings, loading.pick_device("cpu")).digest


def test_models_of_one_layout_have_digests_of_their_own(tmp_path: Path) -> None:
    first, second = (models.build(tmp_path / f"{seed}", "llama", seed=seed) for seed in (1, 2))
    found = digest_of(first)
    assert len(found) == DIGEST_BYTES and found != digest_of(second)
    assert found != digest_of(first, "bfloat16")
    # The same bytes elsewhere are the same model.
    assert found == digest_of(first.rename(tmp_path / "elsewhere"))


def test_a_configuration_that_bends_positions_is_another_model(tmp_path: Path) -> None:
    folder = models.build(tmp_path / "m", "llama")
    found, path = digest_of(folder), folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(config.items()))))
    assert found == digest_of(folder), "the order of the words means nothing"
    path.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}))
    assert found != digest_of(folder)


def test_every_byte_counts_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "PIECE_BYTES", 1000)
    raw = random.Random(3).randbytes(2500)
    found = set()
    for number, content in enumerate((raw, raw[1000:2000] + raw[:1000] + raw[2000:], raw[:-1], raw[:-1] + b"\0", b"")):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(content)
        with digest.ModelDigest([file], {}, "float32") as going:
            found.add(going.result())
    with digest.ModelDigest([tmp_path / "0.safetensors"], {}, "float32", adapter=b"lora") as going:
        found.add(going.result())
    assert len(found) == 6


def test_a_file_that_goes_meanwhile_is_named(tmp_path: Path) -> None:
    # It was checked, and is no file any more.
    with digest.ModelDigest([tmp_path], {}, "float32") as going, pytest.raises(ModelError, match="can't be read"):
        going.result()
