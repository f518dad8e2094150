"""Reasoning between `<think>` and `</think>` before an answer, or from its beginning where the prompt opened it."""

from __future__ import annotations

from cluster.speech.parts import Blanks, Parser, Part, PartKind, split

OPEN, CLOSE = "<think>", "</think>"


class ThinkingParser:
    """`behind` reads what follows the reasoning; None: it is text. `is_open`: the answer begins inside of it."""

    def __init__(self, behind: Parser | None, is_open: bool) -> None:
        self._behind = behind
        self._held = ""
        self._state = "inside" if is_open else "before"
        self._blanks = Blanks()
        self._has_thought = False

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        if self._state == "before":
            self._before()
        if self._state == "inside":
            self._inside(parts)
        if self._state == "trailing":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "behind"
        if self._state == "behind":
            parts += self._pass_on()
        return parts

    def end(self) -> list[Part]:
        parts: list[Part] = []
        if self._state == "inside":
            self._think(self._held, parts)
        elif self._state != "trailing":
            parts += self._pass_on()
        if self._behind is not None:
            parts += self._behind.end()
        return parts

    def _before(self) -> None:
        rest = self._held.lstrip()
        if rest.startswith(OPEN):
            self._held, self._state = rest[len(OPEN) :], "inside"
        elif not OPEN.startswith(rest):
            self._state = "behind"

    def _inside(self, parts: list[Part]) -> None:
        said, marker, self._held = split(self._held, (CLOSE,))
        self._think(said, parts)
        if marker:
            self._state = "trailing"

    def _think(self, text: str, parts: list[Part]) -> None:
        said = self._blanks.add(text)
        if not self._has_thought:
            said = said.lstrip()
        if said:
            self._has_thought = True
            parts.append(Part(PartKind.REASONING, said))

    def _pass_on(self) -> list[Part]:
        text, self._held = self._held, ""
        if self._behind is not None:
            return self._behind.feed(text)
        return [Part(PartKind.TEXT, text)] if text else []
