"""gpt-oss's channels: `<|channel|>analysis<|message|>...<|end|>` is reasoning, `final` is text, and a message that is
addressed `to=functions.NAME` is a call. The prompt ends behind `<|start|>assistant`, so an answer begins with a header.
"""

from __future__ import annotations

import re

from cluster.speech.parts import Part, PartKind, split

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MAX_HEADER_CHARS = 1_000
_TO = re.compile(r"\bto=([^\s<]+)")
_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser:
    """`may_call`: there are tools; without them what is addressed to one is text."""

    def __init__(self, may_call: bool = True) -> None:
        self._may_call = may_call
        self._held = ""
        # What the message that is being read is; None: its header.
        self._kind: PartKind | None = None

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while True:
            before = len(self._held), self._kind
            if self._kind is None:
                self._in_header(parts)
            else:
                self._in_message(parts)
            if before == (len(self._held), self._kind):
                return parts

    def end(self) -> list[Part]:
        held, kind = self._held, self._kind
        if kind is None:
            # A header that never ended says nothing; a text without one is what it is.
            return [] if _is_header(held) else [Part(PartKind.TEXT, held)]
        return [Part(kind, held)] if held else []

    def _in_header(self, parts: list[Part]) -> None:
        said, marker, rest = split(self._held[:MAX_HEADER_CHARS], (MESSAGE,))
        if not _is_header(self._held):
            self._kind = PartKind.TEXT
        elif marker:
            self._held = rest + self._held[MAX_HEADER_CHARS:]
            self._kind = self._read(said, parts)
        elif len(self._held) > MAX_HEADER_CHARS:
            self._kind = PartKind.TEXT

    def _read(self, header: str, parts: list[Part]) -> PartKind:
        to, channel = _TO.search(header), _NAME.search(header)
        if to is not None and self._may_call:
            parts.append(Part(PartKind.CALL, to[1].removeprefix("functions.")))
            return PartKind.ARGUMENTS
        return PartKind.REASONING if channel is not None and channel[1] == "analysis" else PartKind.TEXT

    def _in_message(self, parts: list[Part]) -> None:
        assert self._kind is not None
        said, marker, self._held = split(self._held, (*ENDS, START))
        if said:
            parts.append(Part(self._kind, said))
        if marker:
            self._kind = None


def _is_header(text: str) -> bool:
    """Whether a header can begin so: blanks, a recipient, a channel, or the start of another message."""
    text = text.lstrip()
    return any(text.startswith(word) or word.startswith(text) for word in (CHANNEL, START, "to=", "assistant", *ENDS))
