"""Loads a checkpoint into transformers' own modules with our attention in them.

`worker/model/model.py` takes the result, once at start. Modules are made without memory, then filled from memory-mapped
safetensors files in the wanted dtype; tied weights stay one. What transformers would only warn of (weights missing,
shapes that differ) is a ModelError here. It computes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.errors import ConfigError, ModelError
from cluster.settings import WorkerSettings
from kernels.device.seam import device_of, find_device
from worker.model import attention, checkpoint
from worker.model.digest import ModelDigest
from worker.model.side_by_side import lay_out
from worker.model.slices import slice_model
from worker.ranks.team import Team

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with what its folder says about it."""

    folder: Path
    module: torch.nn.Module
    config: Any  # transformers' configuration of the decoder
    dtype: torch.dtype
    max_model_len: int
    defaults: Mapping[str, Any]
    digest: bytes

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights in this process, tied ones once."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def pick_device(name: str) -> torch.device:
    """The device of a setting. Raises ConfigError."""
    try:
        return find_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def pick_dtype(name: str, config: Mapping[str, Any], device: torch.device) -> torch.dtype:
    if name == "auto":
        if device_of(device).facts().family == "interpreter":
            return torch.float32
        name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    name = name.removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f'dtype is {name!r}; give "float32", "bfloat16", "float16" or "auto"')
    return DTYPES[name]


def load(settings: WorkerSettings, device: torch.device, team: Team | None = None) -> Loaded:
    """The model on `device`, ready for our attention; with a team this rank's slice of it. Raises ModelError or
    ConfigError."""
    folder = checkpoint.find_folder(settings.model)
    raw = checkpoint.check_config(folder)
    files = checkpoint.check_weights(folder)
    config = _config(folder, raw)
    chosen = pick_dtype(settings.dtype, raw, device)
    decoder = config.get_text_config(decoder=True)
    # What can be wrong without the weights is looked at first.
    defaults = checkpoint.generation_defaults(folder, config, decoder)
    max_model_len = _max_model_len(decoder, settings.max_model_len)
    if team is not None:
        _check_slices(config, team.size)
    # Whichever slice a rank loads, its blocks are those of the whole model; only rank 0 tells.
    with ModelDigest(files if team is None or team.leads else (), raw, str(chosen)) as digest:
        module = _module(folder, config, chosen, settings.show_progress)
        if team is not None:
            slice_model(module, decoder, team, device)
        module = _on_device(module, device, folder)
        return Loaded(folder, module, decoder, chosen, max_model_len, defaults, digest.result())


def _on_device(module: torch.nn.Module, device: torch.device, folder: Path) -> torch.nn.Module:
    """From the file's pages to where weights stay, each once."""
    try:
        if device_of(device).is_apart:
            lay_out(module, device)
        return module.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"the weights of {folder} do not fit on {device}: {error}") from error


def check_slices(model: str, size: int) -> None:
    """Whether `size` ranks can share this model, before any of them is started. Raises ModelError or ConfigError."""
    folder = checkpoint.find_folder(model)
    _check_slices(_config(folder, checkpoint.check_config(folder)), size)


def _check_slices(config: Any, size: int) -> None:
    if not getattr(config, "base_model_tp_plan", None):
        raise ModelError(
            f"transformers has no plan to share {config.model_type} among ranks; set tensor_parallel_size=1 or give "
            "another model"
        )
    names = ("model_type", "num_attention_heads", "num_key_value_heads")
    decoder = config.get_text_config(decoder=True)
    checkpoint.check_heads({name: getattr(decoder, name, None) for name in names}, size)


def _config(folder: Path, raw: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    name = raw["model_type"]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        why = str(error).strip().splitlines()[0]
        if "model type" in why or "trust_remote_code" in why or isinstance(error, KeyError):
            raise ModelError(
                f"{folder} is of architecture {name!r}, which this version of transformers does not know; "
                "upgrade transformers or give another model"
            ) from error
        raise ModelError(f"{folder / 'config.json'} is not a valid configuration of {name}: {why}") from error
    except Exception as error:
        # transformers' strict configurations raise classes of their own, one per wrong field.
        why = " ".join(str(error).split())
        raise ModelError(f"{folder / 'config.json'} is not a valid configuration of {name}: {why}") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(f"{name} has no causal language model in transformers; give a decoder")
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
    if not (getattr(model_class, "_supports_attention_backend", False) or model_class._can_set_attn_implementation()):
        raise ModelError(
            f"{model_class.__name__} of transformers has no exchangeable attention (attention backend), so that paged "
            "attention can't run in it; give another model"
        )
    if not getattr(config, "is_causal", True):
        raise ModelError(f"{folder} attends to both sides (is_causal is false); only causal decoders are supported")
    return config


def _module(folder: Path, config: Any, dtype: torch.dtype, show_progress: bool) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    attention.register()
    try:
        with _quiet(show_progress):
            module, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention.IMPLEMENTATION,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(f"the weights of {folder} do not fit on the device: {error}") from error
    except Exception as error:
        # Whatever an architecture stumbles over in a configuration that does not fit it.
        raise ModelError(f"{folder} can't be loaded: {' '.join(str(error).split())}") from error
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        key, found, wanted = wrong[0]
        raise ModelError(
            f"{len(wrong)} weights of {folder} do not have the shapes that config.json says, such as {key}: "
            f"{list(found)} instead of {list(wanted)}; config and weights belong to different models"
        )
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise ModelError(
            f"{folder} lacks {len(lacking)} weights that config.json asks for, such as {lacking[0]}; "
            "config and weights belong to different models"
        )
    module.eval()
    module.requires_grad_(False)
    return module  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet(show_progress: bool) -> Iterator[None]:
    """transformers' warnings during loading are errors of ours; its bars are shown where they are wanted."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not show_progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _max_model_len(config: Any, wanted: int | None) -> int:
    """Tokens of one sequence, prompt and output: what the model has positions for, or less if that is wanted."""
    trained = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(part.get("rope_type", "default")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    # These scale all positions of a sequence by its length so far; keys that are written would have to change.
    if kinds & {"dynamic", "longrope"}:
        trained = rope.get("original_max_position_embeddings") or trained
        trained = getattr(config, "original_max_position_embeddings", None) or trained
    if trained is None:
        return wanted or 8192
    if wanted is not None and wanted > trained:
        raise ConfigError(f"max_model_len is {wanted:,}, and the model has {trained:,} positions; give at most that")
    return int(wanted or trained)
