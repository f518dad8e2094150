"""`quire size`: how many blocks and bytes a pool should have for an expected load.

Reads a config.json and needs no torch; the arithmetic is in cluster/sizing.py.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError, ModelError

_BLOCK_SIZES = (8, 16, 32, 64, 128)


def register(app: typer.Typer) -> None:
    app.command()(size)


def size(
    model: Annotated[str, typer.Option(help="Folder with a config.json, or that file, or demo.")] = "demo",
    requests: Annotated[int, typer.Option(help="Requests at once at the busiest time.")] = 50,
    length: Annotated[float, typer.Option(help="Their mean length in tokens, prompt and output.")] = 200,
    safety: Annotated[float, typer.Option(help="How many times that the pool shall hold.")] = 1.5,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: what `quire up` would take here.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    block_size: Annotated[int, typer.Option(help="Slots in a block, 1 to 256.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say how much KV memory an expected load needs.

    In blocks and bytes, and what last blocks waste.
    """
    from cluster.bench.report import Row, render
    from cluster.sizes import format_bytes
    from cluster.sizing import ExpectedLoad, kv_shape

    config = read_config(model)
    asked = device
    device, chosen = chosen_by_up(config, device, dtype)
    shape, load = kv_shape(config, chosen), ExpectedLoad(requests, length, safety)
    if shape.max_model_len is not None and length > shape.max_model_len:
        raise ConfigError(f"length is {length:g}, and this model ends at {shape.max_model_len:,} tokens; give less")
    blocks = load.num_blocks(block_size)
    kv_bytes = blocks * shape.block_bytes(block_size)
    figures: list[dict[str, Any]] = [
        {
            "block_size": each,
            "blocks": load.num_blocks(each),
            "block_bytes": shape.block_bytes(each),
            "kv_bytes": load.num_blocks(each) * shape.block_bytes(each),
            "last_block_waste": round(load.expected_waste(each), 5),
        }
        for each in sorted({*_BLOCK_SIZES, block_size})
    ]
    if as_json:
        summary = {"requests": requests, "length": length, "safety": safety, "device": device, "dtype": shape.dtype}
        answer = {"block_size": block_size, "kv_blocks": blocks, "kv_bytes": kv_bytes, "token_bytes": shape.token_bytes}
        print(json.dumps({**summary, **answer, "by_block_size": figures}, indent=1))
        return
    print(
        f"{requests:,} requests of {length:g} tokens, {safety:g} times over: {blocks:,} blocks of {block_size} tokens "
        f"= {format_bytes(kv_bytes)} of KV memory\n"
        f"({shape.num_layers} layers, {shape.num_kv_heads} key-value heads of {shape.head_dim}, {shape.dtype} on "
        f"{device}: {format_bytes(shape.token_bytes)} a token)\n"
    )
    rows: list[Row] = [
        {
            "block size": row["block_size"],
            "blocks": row["blocks"],
            "bytes a block": format_bytes(row["block_bytes"]),
            "KV memory": format_bytes(row["kv_bytes"]),
            "wasted in last blocks": f"{100 * row['last_block_waste']:.1f} %",
        }
        for row in figures
    ]
    print(render(rows))
    words = ["quire", "up", "--kv-blocks", str(blocks), "--block-size", str(block_size)]
    words += ["--model", model] if model != "demo" else []
    words += ["--dtype", dtype] if dtype != "auto" else []
    words += ["--device", device] if asked != "auto" else []
    print(f"\nStart with: {shlex.join(words)}")


def chosen_by_up(config: dict[str, Any], device: str, dtype: str) -> tuple[str, str]:
    """The device and the dtype that `quire up` would take on this machine. Raises `ConfigError`."""
    from cluster.lifecycle.preflight import num_gpus

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; give auto, cpu or cuda")
    if device == "auto":
        device = "cuda" if num_gpus() else "cpu"
    if dtype != "auto":
        return device, dtype
    inner = config.get("text_config")
    named = [part.get(name) for part in (inner, config) if isinstance(part, dict) for name in ("dtype", "torch_dtype")]
    return device, "float32" if device == "cpu" else str(next(filter(None, named), "bfloat16"))


def read_config(model: str) -> dict[str, Any]:
    """The config.json of a model folder as a dict; raises ModelError with one line if there is none to read."""
    from worker.model.checkpoint import DEMO, find_folder
    from worker.model.config_check import check_figures, read_json

    # A hub id is not looked up: for its configuration alone that would download the whole model.
    path = find_folder(model) if model == DEMO else Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a folder with a config.json, or that file")
    config = read_json(path)
    check_figures(path, config)
    return config
