"""A call that a model writes as a JSON object, read while it comes: its name once known, its arguments as they grow.

Hermes's and Llama's parsers hold one for each call. Keys may come in any order; other keys are passed over, or are the
sign that this is no call.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from cluster.speech.parts import Part, PartKind

_BLANKS = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
MAX_KEY_CHARS = 64
"""No key of a call is longer."""


class JsonValue:
    """The end of one JSON value, found by its brackets and quotes."""

    def __init__(self) -> None:
        self.is_done = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def take(self, text: str, at: int) -> int:
        """Where the value ends, or the text."""
        while at < len(text) and not self.is_done:
            letter = text[at]
            if self._in_string:
                if self._is_escaped or letter == "\\":
                    self._is_escaped = not self._is_escaped
                elif letter == '"':
                    self._in_string = False
                    self.is_done = not self._depth
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif not self._depth and letter in ",}]":
                # The end of a number or word, which is not part of it.
                self.is_done = True
                return at
            elif letter in "}]":
                self._depth -= 1
                self.is_done = not self._depth
            at += 1
        return at


class JsonCall:
    """One call. `names`: only these are calls, and no other keys are; None: whatever has a name is one."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.is_done = False
        self.is_broken = False
        # All that was taken, until a name is known: if this is no call, it is text.
        self.raw = ""
        self._names = names
        self._wants = "{"
        self._key = ""
        self._value = JsonValue()
        self._written = ""
        self._name = ""
        self._early = ""  # arguments that came before the name
        self._has_arguments = False
        # What comes under such a key once more is passed over.
        self._has_all_arguments = False

    @property
    def is_known(self) -> bool:
        """It has a name, and is a call."""
        return bool(self._name)

    def take(self, text: str) -> tuple[list[Part], str]:
        """What is new, and the text that does not belong to the call. Nothing of either once it is broken."""
        parts: list[Part] = []
        at = 0
        while at < len(text) and not (self.is_done or self.is_broken):
            if self._wants == "value":
                at = self._take_value(text, at, parts)
            else:
                self._take_sign(text[at])
                at += 1
        if not self.is_known:
            self.raw += text[:at]
        elif self.is_broken:
            at -= 1  # what broke it is no part of it
        if self.is_done and not self._name:
            self.is_broken = True
        elif self.is_done and not self._has_arguments:
            parts.append(Part(PartKind.ARGUMENTS, "{}"))
            self._has_arguments = True
        return parts, text[at:]

    def _take_sign(self, letter: str) -> None:
        """Everything but values: brackets, keys, colons, commas."""
        if self._wants == "key":
            self._key += letter
            if letter == '"' and not self._key.endswith('\\"'):
                self._key = self._key[:-1]
                self._wants = ":"
            elif len(self._key) > MAX_KEY_CHARS:
                self.is_broken = True
        elif letter in _BLANKS:
            pass
        elif self._wants == "{" and letter == "{":
            self._wants = '"}'
        elif self._wants in ('"', '"}') and letter == '"':
            self._wants, self._key = "key", ""
        elif self._wants == ":" and letter == ":":
            self._wants, self._value, self._written = "value", JsonValue(), ""
        elif self._wants == ",}" and letter == ",":
            self._wants = '"'
        elif self._wants in (",}", '"}') and letter == "}":
            self.is_done = True
        else:
            self.is_broken = True

    def _take_value(self, text: str, at: int, parts: list[Part]) -> int:
        end = self._value.take(text, at)
        said = text[at:end] if self._written else text[at:end].lstrip()
        self._written += said
        if self._key in _ARGUMENTS:
            if not self._has_all_arguments:
                self._take_arguments(said, parts)
                self._has_all_arguments = self._value.is_done
        elif self._key == "name" and self._value.is_done:
            self._take_name(parts)
        elif self._key not in ("name", "id", "type") and self._names is not None:
            self.is_broken = True
        if self._value.is_done:
            self._wants = ",}"
        return end

    def _take_name(self, parts: list[Part]) -> None:
        name = _string(self._written)
        if not name or (self._names is not None and name not in self._names):
            self.is_broken = True
        elif not self._name:
            self._name = name
            parts.append(Part(PartKind.CALL, name))
            if self._early:
                parts.append(Part(PartKind.ARGUMENTS, self._early))

    def _take_arguments(self, said: str, parts: list[Part]) -> None:
        """As they come; arguments that are a string which holds JSON, once they are there."""
        if self._written.startswith('"'):
            whole = _string(self._written) if self._value.is_done else ""
            said = self._written if whole is None else whole
        self._has_arguments = self._has_arguments or bool(said)
        if said and self._name:
            parts.append(Part(PartKind.ARGUMENTS, said))
        else:
            self._early += said


def _string(written: str) -> str | None:
    """What a JSON string says; None for another value, and for half of a surrogate pair, which no answer can hold."""
    if not written.startswith('"'):
        return None
    try:
        found = str(json.loads(written))
        found.encode()
    except ValueError:
        return None
    return found
