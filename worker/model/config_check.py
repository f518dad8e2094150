"""Reads the JSON files of a model folder, which anybody may have written: bounded in size, with figures that can be.

Pure checks over what stands in the files; each thing that is wrong is one ModelError. What an architecture makes of a
configuration is transformers' to know, and checked where it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import ModelError

MAX_JSON_BYTES = 64 << 20
# The largest that any published model comes near, and far more: past them it is no model, but would take all memory.
FIGURES = {
    "num_hidden_layers": 4_096,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 27,
}
# Of which some architectures have one for each layer.
PER_LAYER = {"intermediate_size", "num_attention_heads", "num_key_value_heads"}
MAX_ENDS = 1_024


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model; ModelError if it is none."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path} has {size:,} bytes, and at most {MAX_JSON_BYTES:,} are read; is it a model's?")
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path} can't be read as JSON: {why[0].rstrip('.')}; fetch the model again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object; fetch the model again")
    return found


def check_figures(path: Path, config: Mapping[str, Any]) -> None:
    """The figures of a configuration, of its decoder too; those that are not there are left to the architecture."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name, most in FIGURES.items():
            value = part.get(name)
            for one in value if isinstance(value, list) and name in PER_LAYER else [] if value is None else [value]:
                if isinstance(one, bool) or not isinstance(one, int) or not 1 <= one <= most:
                    detail = f"{path} has {name} = {_short(value)}"
                    raise ModelError(f"{detail}; it must be a whole number from 1 to {most:,}")
        check_ends(path, part.get("eos_token_id"))


def check_ends(path: Path, ends: Any) -> None:
    """End tokens: none, one or a list."""
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    wrong = [one for one in listed if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 1 << 31]
    if wrong or len(listed) > MAX_ENDS:
        raise ModelError(f"{path} has eos_token_id = {_short(ends)}; it must be a token id or a list of some")


def weight_files(index: Path) -> list[str]:
    """The names of files that an index names: files of its folder, none elsewhere."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{index} has no weight_map of names; fetch the model again")
    names = sorted(set(listed.values()))
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors") or "\0" in name:
            raise ModelError(f"{index} names the weight file {_short(name)}; it must be a .safetensors file beside it")
    return names


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
