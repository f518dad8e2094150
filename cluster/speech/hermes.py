"""Calls in Hermes's form, which Qwen has too: `<tool_call>`, a JSON object, `</tool_call>`; what is around is text."""

from __future__ import annotations

from cluster.speech.json_call import JsonCall
from cluster.speech.parts import Blanks, Part, PartKind, split

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser:
    def __init__(self) -> None:
        self._held = ""
        self._blanks = Blanks()
        self._call: JsonCall | None = None
        self._has_called = False
        self._has_ended_call = False

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while True:
            before = len(self._held), self._call, self._has_ended_call
            if self._call is not None:
                self._in_call(parts)
            elif self._has_ended_call:
                self._behind_call()
            else:
                self._in_text(parts)
            if before == (len(self._held), self._call, self._has_ended_call):
                return parts

    def end(self) -> list[Part]:
        parts: list[Part] = []
        if self._call is not None and not self._call.is_known:
            # A call of which nothing was told.
            self._say(BEGIN + self._call.raw, parts)
        elif self._call is None and not self._has_ended_call:
            self._say(self._held, parts)
        if self._blanks.held and not self._has_called:
            parts.append(Part(PartKind.TEXT, self._blanks.held))
        return parts

    def _in_text(self, parts: list[Part]) -> None:
        said, marker, self._held = split(self._held, (BEGIN,))
        self._say(said, parts)
        if marker:
            self._call = JsonCall()

    def _in_call(self, parts: list[Part]) -> None:
        call = self._call
        assert call is not None
        new, self._held = call.take(self._held)
        if new:
            # Blanks between text and call are the form's, not the answer's.
            self._has_called = True
            self._blanks.drop()
        parts += new
        if call.is_done and not call.is_broken:
            self._call, self._has_ended_call = None, True
        elif call.is_broken:
            self._call = None
            if call.is_known:
                self._has_ended_call = True
            else:
                self._say(BEGIN + call.raw, parts)

    def _behind_call(self) -> None:
        """The end marker, or whatever else follows."""
        rest = self._held.lstrip()
        if rest.startswith(END):
            self._held, self._has_ended_call = rest[len(END) :], False
        elif not END.startswith(rest):
            self._has_ended_call = False

    def _say(self, text: str, parts: list[Part]) -> None:
        said = self._blanks.add(text)
        if said:
            parts.append(Part(PartKind.TEXT, said))
