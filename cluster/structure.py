"""Answers of a given structure: what a client asks for, under vLLM's names, and as kind and text for messages.

Whether a structure can be obeyed is checked by every door, and done by workers (`worker/sampling/guide.py`).
"""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cluster.errors import InvalidRequest

MAX_CHARS = 200_000
"""Of a schema, expression or grammar, and of all choices together."""
MAX_CHOICES = 10_000
BLANKS = r"\x20?|\x0D?\x0A[\x20\x09]{0,32}"
"""Between two words of JSON: nothing, a blank, or a new line with its indent. More would let a model that does not know
what to say fill its answer with blanks."""
_FIELD = "structured_outputs"


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """One of these. An answer that ends by itself is of this structure; one that `max_tokens` cut begins so."""

    json: str | Mapping[str, Any] | None = None
    """A JSON schema."""
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    """In Lark's form, or GBNF."""
    json_object: bool | None = None
    """Any JSON object."""

    def __post_init__(self) -> None:
        if self.json is not None and not isinstance(self.json, str):
            try:
                object.__setattr__(self, "json", json_text.dumps(self.json))
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidRequest(f"{_FIELD}.json", f"is no JSON: {error}", "give a JSON schema") from error
        if self.choice is not None:
            _check_choice(self.choice)
            object.__setattr__(self, "choice", tuple(self.choice))
        given = [name for name in ("json", "regex", "choice", "grammar") if getattr(self, name) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            names = " and ".join(given) or "nothing"
            raise InvalidRequest(_FIELD, f"asks for {names}", "give one of json, regex, choice, grammar, json_object")
        text = self.text
        if not isinstance(text, str):
            raise InvalidRequest(f"{_FIELD}.{given[0]}", f"is {str(text)[:60]!r}", "give a string")
        if len(text) > MAX_CHARS:
            raise InvalidRequest(f"{_FIELD}.{given[0]}", f"has {len(text):,} characters", f"give at most {MAX_CHARS:,}")

    @property
    def kind(self) -> str:
        """As llguidance calls it."""
        if self.json is not None or self.json_object:
            return "json_schema"
        return "regex" if self.regex is not None else "choice" if self.choice is not None else "grammar"

    @property
    def text(self) -> str:
        """The structure as text, whatever its kind."""
        if self.json_object:
            return '{"type": "object"}'
        if self.choice is not None:
            return json_text.dumps(list(self.choice))
        # __post_init__ made it a string, or refuses it.
        return cast(str, next(one for one in (self.json, self.regex, self.grammar) if one is not None))


def _check_choice(choice: object) -> None:
    where = f"{_FIELD}.choice"
    if not isinstance(choice, Sequence) or isinstance(choice, str) or not choice:
        raise InvalidRequest(where, f"is {str(choice)[:60]!r}", "give a list of strings")
    if len(choice) > MAX_CHOICES:
        raise InvalidRequest(where, f"has {len(choice):,} entries", f"give at most {MAX_CHOICES:,}")
    for at, one in enumerate(choice):
        if not isinstance(one, str) or not one:
            raise InvalidRequest(f"{where}[{at}]", f"is {str(one)[:60]!r}", "give a string that is not empty")


def structure_from(kind: str, text: str) -> StructuredOutputsParams:
    """The same structure from its kind and text. Raises `InvalidRequest`."""
    if kind == "json_schema":
        return StructuredOutputsParams(json=text)
    if kind == "regex":
        return StructuredOutputsParams(regex=text)
    if kind == "grammar":
        return StructuredOutputsParams(grammar=text)
    try:
        return StructuredOutputsParams(choice=json_text.loads(text))
    except ValueError as error:
        raise InvalidRequest(_FIELD, f"has a choice that is no JSON: {error}", "give a list of strings") from error
