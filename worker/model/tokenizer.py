"""A model folder's tokenizer, for whoever turns text into tokens or must know how tokens are spelt. No torch.

Gateways and the embedded engine encode and decode with it; a worker needs it only where an answer is to be of a given
structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import ModelError
from worker.model.checkpoint import eos_token_ids
from worker.model.config_check import read_json
from worker.sampling.guide import tokenizer_of

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # all of them is in tokenizer.json
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, as transformers would choose it; None if it has none. Raises `ModelError`.

    Where the folder says that tokenizer.json is all there is, the choosing is left out: it imports torch, seconds of
    work for a process that has no use for it.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        named = str(_settings(folder).get("tokenizer_class", ""))
        if named in PLAIN_CLASSES and (folder / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            found = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            from transformers import AutoTokenizer

            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Some are only found to be broken when they are used.
        found.decode(found.encode("a b"))
        return found
    except BaseException as error:
        # Tokenizers raise whatever their own parsers do, and Rust's panics are no exceptions of Python's.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())
        raise ModelError(f"the tokenizer of {folder} can't be loaded: {why}; fetch it again") from error


def guide_of(folder: Path, vocab_size: int, defaults: Mapping[str, Any]) -> Any:
    """What tells which tokens a structure allows."""
    return tokenizer_of(load_tokenizer(folder), vocab_size, eos_token_ids(defaults))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    return read_json(path)
