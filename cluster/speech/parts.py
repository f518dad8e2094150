"""What a parser makes of an answer's text, and how markers are found in text that is still on its way.

A parser's word after some text is a function of that text, however it was cut. Doors feed it and tell what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol


class PartKind(Enum):
    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"  # a call begins; the part's text is the tool's name
    ARGUMENTS = "arguments"  # more of the last call's arguments


class Part(NamedTuple):
    kind: PartKind
    text: str


class Parser(Protocol):
    """Of one sequence."""

    def feed(self, text: str) -> list[Part]: ...

    def end(self) -> list[Part]:
        """What was held back, once no text is to come."""
        ...


def split(text: str, markers: Sequence[str]) -> tuple[str, str, str]:
    """What certainly stands before the first of the markers, the marker or "", and what is left: what stands behind
    the marker, or without one what may yet become one."""
    found = min(((at, marker) for marker in markers if (at := text.find(marker)) >= 0), default=None)
    if found is not None:
        at, marker = found
        return text[:at], marker, text[at + len(marker) :]
    longest = max(map(len, markers)) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if any(marker.startswith(text[at:]) for marker in markers):
            return text[:at], "", text[at:]
    return text, "", ""


class Blanks:
    """Holds back blanks until something else follows them. However many there are, each is looked at once."""

    def __init__(self) -> None:
        self._held: list[str] = []

    @property
    def held(self) -> str:
        return "".join(self._held)

    def add(self, text: str) -> str:
        """What is certain to be followed by more than blanks."""
        said = text.rstrip()
        blanks = text[len(said) :]
        if said:
            said = self.held + said
            self._held.clear()
        if blanks:
            self._held.append(blanks)
        return said

    def drop(self) -> None:
        self._held.clear()


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same with neighbours of one kind as one. Calls stay apart."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].kind is part.kind and part.kind is not PartKind.CALL:
            found[-1] = Part(part.kind, found[-1].text + part.text)
        elif part.text:
            found.append(part)
    return found
