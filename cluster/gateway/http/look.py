"""How the answer to one HTTP request is to look: what its client asked beside what the model is asked.

It travels with the request as a short text (`Submit.look`), so that another gateway can go on with the stream for a
client that names the request and says nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_KINDS = ("chat", "completion")


@dataclass(frozen=True, slots=True)
class Look:
    """The defaults are what a request shows that was asked at another door."""

    kind: str = "completion"
    num_top: int | None = None  # top logprobs of each token; None: no logprobs
    includes_usage: bool = False
    counts_on: bool = False  # each chunk of a stream says how many tokens there are so far
    returns_ids: bool = False
    tools: tuple[str, ...] = ()  # names of those that may be called
    created: int = 0  # seconds since 1970

    def to_text(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of_text(cls, text: str) -> Look:
        """What a gateway wrote, of this version or another: what is not understood has its default."""
        try:
            told = json.loads(text)
        except ValueError:
            return cls()
        if not isinstance(told, Mapping):
            return cls()
        known = {field.name: told[field.name] for field in fields(cls) if _fits(field.name, told.get(field.name))}
        if "tools" in known:
            known["tools"] = tuple(known["tools"])
        return cls(**known)


def _fits(name: str, value: Any) -> bool:
    if name == "kind":
        return value in _KINDS
    if name == "tools":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return type(value) is (int if name in ("num_top", "created") else bool)
