"""Finds a model's folder and checks what lies in it before anything is loaded: configuration, weights, what we can run.

`worker/model/loading.py` and the tokenizer's owners call it. Each thing that is wrong becomes one ModelError that says
what, where and what to change. It reads headers only, never a weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, ModelError
from worker.model import gguf
from worker.model.config_check import check_ends, check_figures, read_json, weight_files

DEMO = "demo"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_OTHER_LAYOUTS = ["original/*", "consolidated*", "metal/*"]
# Layers whose state is keys and values of all tokens or of a window; all others keep something that blocks can't hold.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def find_folder(model: str) -> Path:
    """The folder of a local path, of a GGUF file, of the demo model, of SmolLM2 from its package, or of a hub id
    (downloaded if it is not there yet)."""
    if model == DEMO:
        return Path(__file__).parent.parent / "demo"
    if model == gguf.SMOLLM2:
        return gguf.folder_of(gguf.smollm2())
    if not model.strip():
        raise ModelError(f"the name of the model is empty; give a folder, a GGUF file, a hub id or {DEMO!r}")
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        return gguf.folder_of(path)
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelError(f"there is no model folder {model}; give a folder, a GGUF file, a hub id or {DEMO!r}")
    return _download(model)


def _download(model: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_PATTERNS, ignore_patterns=_OTHER_LAYOUTS))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"model {model} is gated: accept its terms on its hub page and set HF_TOKEN to a token that may read it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no folder {model} here and no model {model} on the hub (or it is private: set HF_TOKEN)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"there is no folder {model} here, it is not in the hub's cache, and the hub can't be reached "
            f"({_first_line(error)}); give a local folder or connect"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelError(f"the hub refused model {model}: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model} is neither a folder nor a hub id (owner/name)") from error


def check_config(folder: Path) -> Mapping[str, Any]:
    """The configuration as it stands in the file, if it is one that we can run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is no model folder; give one that has")
    config = read_json(path)
    name = config.get("model_type")
    if not name or not isinstance(name, str):
        raise ModelError(f"{path} names no model_type; fetch the model again")
    check_figures(path, config)
    if config.get("quantization_config"):
        told = config["quantization_config"]
        method = told.get("quant_method", "unknown") if isinstance(told, dict) else "unknown"
        raise ModelError(
            f"{folder} has weights quantised with {method}, which are not supported; give a checkpoint in "
            "float32, bfloat16 or float16"
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{name} is an encoder-decoder; only decoders are supported")
    layers = config.get("layer_types") or ()
    if not isinstance(layers, list | tuple) or not all(isinstance(kind, str) for kind in layers):
        raise ModelError(f"{path} has layer_types that are no list of names; fetch the model again")
    odd = [kind for kind in layers if kind not in _LAYER_TYPES]
    if odd:
        raise ModelError(
            f"{name} has {len(odd)} of {len(layers)} layers of type {odd[0]}, which keep a state that blocks of keys "
            "and values can't hold; only full and sliding attention are supported"
        )
    return config


def check_heads(config: Mapping[str, Any], size: int) -> None:
    """Every one of `size` ranks has whole heads, queries and their keys together; several may have the same head of
    keys. A file that does not give the number of heads is left to whoever knows the architecture's own names."""
    told = config.get("num_attention_heads"), config.get("num_key_value_heads")
    heads = told[0] if isinstance(told[0], int) else 0
    kv_heads = told[1] if isinstance(told[1], int) and told[1] else heads

    def fits_evenly(count: int) -> bool:
        return heads % count == 0 and (kv_heads % count == 0 or count % kv_heads == 0)

    if heads and not fits_evenly(size):
        fits = [str(count) for count in range(1, heads + 1) if fits_evenly(count)]
        raise ConfigError(
            f"tensor_parallel_size is {size}, and {config['model_type']} has {heads} query heads and {kv_heads} KV "
            f"heads, which {size} ranks can't share evenly; give {' or '.join(fits[-3:])}"
        )


def check_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files, all there and whole as far as their headers tell."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = tuple(folder / name for name in weight_files(index))
        lacking = [file.name for file in files if not file.is_file()]
        if lacking or not files:
            raise ModelError(
                f"{folder} lacks {len(lacking)} of {len(files)} weight files that its index names, "
                f"such as {lacking[0] if lacking else 'any'}; fetch the model again"
            )
    else:
        files = tuple(sorted(folder.glob("model*.safetensors")))
    if not files:
        pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        why = f"only pickled ones ({pickled[0]})" if pickled else "none at all"
        raise ModelError(f"{folder} has no safetensors weights, {why}; give a folder with model.safetensors")
    for file in files:
        _check_header(file)
    return files


def _check_header(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} ({file.stat().st_size:,} bytes) is broken or cut short: {_first_line(error)}; fetch it again"
        ) from error


def generation_defaults(folder: Path, *configs: Any) -> dict[str, Any]:
    """The model's generation settings; end tokens fall back to those of the first configuration that has any."""
    path = folder / "generation_config.json"
    defaults = read_json(path) if path.is_file() else {}
    check_ends(path, defaults.get("eos_token_id"))
    for config in configs:
        if defaults.get("eos_token_id") is None and getattr(config, "eos_token_id", None) is not None:
            defaults["eos_token_id"] = config.eos_token_id
    return defaults


def eos_token_ids(defaults: Mapping[str, Any]) -> tuple[int, ...]:
    """All end tokens; models write none, one or a list."""
    found = defaults.get("eos_token_id")
    if found is None:
        return ()
    return tuple(int(token) for token in found) if isinstance(found, list) else (int(found),)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
