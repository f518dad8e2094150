"""Calls in Llama 3's form: an answer that is nothing but `{"name": ..., "parameters": ...}`, several parted by `;`.

`<|python_tag|>` may stand before them, also behind text. An object that names none of the tools is text.
"""

from __future__ import annotations

from collections.abc import Collection

from cluster.speech.json_call import JsonCall
from cluster.speech.parts import Part, PartKind, split

TAG = "<|python_tag|>"
_BETWEEN = " \t\r\n;"


class LlamaParser:
    """`names`: of the tools."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._call: JsonCall | None = None
        # What stands before a call that is not known to be one.
        self._before = ""
        self._may_call = True

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while self._held:
            before = len(self._held), self._call, self._may_call
            if self._call is not None:
                self._in_call(parts)
            elif self._may_call:
                self._at_beginning(parts)
            else:
                self._in_text(parts)
            if before == (len(self._held), self._call, self._may_call):
                break
        return parts

    def end(self) -> list[Part]:
        call, held = self._call, self._held
        if call is not None:
            held = "" if call.is_known else self._before + call.raw
        elif self._may_call and not held.strip(_BETWEEN):
            held = ""
        return [Part(PartKind.TEXT, held)] if held else []

    def _at_beginning(self, parts: list[Part]) -> None:
        rest = self._held.lstrip(_BETWEEN)
        has_tag = rest.startswith(TAG)
        if has_tag:
            rest = rest[len(TAG) :].lstrip()
        if rest.startswith("{"):
            self._before = self._held[: len(self._held) - len(rest)]
            self._held, self._call = rest, JsonCall(self._names)
        elif rest and (has_tag or not TAG.startswith(rest)):
            self._may_call = False
            if has_tag:
                # It must not be found once more.
                parts.append(Part(PartKind.TEXT, self._held[: len(self._held) - len(rest)]))
                self._held = rest

    def _in_text(self, parts: list[Part]) -> None:
        said, marker, rest = split(self._held, (TAG,))
        if said:
            parts.append(Part(PartKind.TEXT, said))
        self._held = marker + rest
        self._may_call = bool(marker)

    def _in_call(self, parts: list[Part]) -> None:
        call = self._call
        assert call is not None
        new, self._held = call.take(self._held)
        parts += new
        if call.is_broken:
            self._call, self._may_call = None, False
            if not call.is_known:
                parts.append(Part(PartKind.TEXT, self._before + call.raw))
        elif call.is_done:
            self._call = None
