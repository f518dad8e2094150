"""A model that a cluster serves: the name that clients call it by, and where its files are.

Read from the words of `--model` and `quire load`: NAME=PATH, or a path alone, which is its name then. Where a model of
some name lies is kept by Ray, so that whoever starts a worker or reads a tokenizer later finds it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import ConfigError
from cluster.limits import MAX_MODEL_NAME_CHARS

if TYPE_CHECKING:
    from cluster.lifecycle.ray_state import RayState

PREFIX = "model "
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ModelToServe:
    """`path`: a folder, a GGUF file, a hub id, or demo."""

    name: str
    path: str

    @staticmethod
    def read(text: str) -> ModelToServe:
        """Raises `ConfigError` for what names nothing."""
        if len(text) > MAX_MODEL_NAME_CHARS:
            raise ConfigError(f"a model's name has {len(text):,} characters; give at most {MAX_MODEL_NAME_CHARS:,}")
        # A path that has an = in it is one as long as it is there.
        found = None if os.path.exists(text) else _NAMED.fullmatch(text)
        name, path = (text, text) if found is None else (found[1], found[2])
        if not Path(name).name or not path:
            raise ConfigError(f"model is {text!r}, which has no name; give a folder, a hub id, or NAME=FOLDER")
        return ModelToServe(name, path)

    @property
    def stem(self) -> str:
        """What its workers are named after."""
        return Path(self.name).name

    def __str__(self) -> str:
        return self.name if self.name == self.path else f"{self.name}={self.path}"


def read_models(texts: Sequence[str]) -> tuple[ModelToServe, ...]:
    """No two may have a name, or the last part of it, in common. Raises `ConfigError`."""
    models = tuple(map(ModelToServe.read, texts))
    stems = [model.stem for model in models]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(
                f"models {', '.join(texts)}: {stem} is there twice; give one another name, as in --model OTHER=FOLDER"
            )
    return models


def note_model(state: RayState, model: ModelToServe) -> None:
    state.put(PREFIX + model.name, model.path)


def noted_model(state: RayState, name: str) -> ModelToServe:
    """One that a worker was started for; its path is its name where nobody noted another."""
    return ModelToServe(name, state.get(PREFIX + name) or name)
