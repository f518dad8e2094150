"""Turns the tokens of a sequence into text as they come, cut where it is certain, and ends it at a stop string.

Gateways and the embedded engine hold one `Detokenizer` for each sequence whose text is read before its end. Text leaves
it only where later tokens cannot change it and no stop string can have begun; what was let out is never taken back. It
works over any `decode(ids) -> text` and looks at a window of a few tokens, so that a token costs the same at the end
of a long text as at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cluster.gateway.texts import Piece
from cluster.sampling import SamplingParams

Decode = Callable[[list[int]], str]

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are not, or not yet, a character."""

LONGEST_BROKEN = 3
"""A character of four bytes is at most so many marks while it is incomplete: one in all, or one per byte."""

WINDOW = 32
"""Tokens that are decoded again with a new one; more only until the text is complete for once."""

LONGEST_WINDOW = 64
"""Tokens that may go by without that: a model that writes only broken bytes costs no more."""

KEPT = 12
"""Tokens that stay as context when the window moves on: more than any incomplete end can span."""


class Window(Protocol):
    """Text from tokens, let out as soon as later ones cannot change it."""

    def add(self, token: int) -> str: ...

    def rest(self) -> str: ...


class TextWindow:
    """Incremental decoding. The text let out and `rest` together are the decoding of all tokens at once.

    That holds for every decoder that works byte by byte. Where a decoder changes its mind about characters that were
    complete (byte fallback, when a broken byte follows), what was let out stays.
    """

    __slots__ = ("_clean", "_decode", "_ids", "_out", "_text")

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Whether the text was complete behind each of these tokens: there the window may begin anew.
        self._clean: list[bool] = []
        self._text = ""
        # Characters of the window's text that are out.
        self._out = 0

    def add(self, token: int) -> str:
        """The text that has become certain."""
        self._ids.append(token)
        text = self._decode(self._ids)
        # All marks at the end: with byte fallback, half a character makes marks of the whole ones before it as well.
        certain = len(text.rstrip(BROKEN))
        clean = certain == len(text)
        if clean and text and text == self._text:
            # A special token that is left out. A window of nothing else would forget that a text has begun.
            self._ids.pop()
            return ""
        self._text = text
        self._clean.append(clean)
        is_hopeless = len(self._ids) >= LONGEST_WINDOW
        if is_hopeless:
            # Broken for good, but for what may be the beginning of a character.
            certain = max(certain, len(text) - LONGEST_BROKEN)
        new = text[self._out : certain]
        self._out = max(self._out, certain)
        if is_hopeless or (clean and len(self._ids) >= WINDOW):
            self._move_on()
        return new

    def rest(self) -> str:
        """What is still held back, at the end of the tokens."""
        return self._text[self._out :]

    def _move_on(self) -> None:
        """Begins the window behind a token where the text was complete, for a decoder may read half a character as
        none; without such a place all of it is broken, and any place will do."""
        cut = len(self._ids) - KEPT
        for behind in range(cut, 0, -1):
            if self._clean[behind - 1]:
                cut = behind
                break
        held = len(self._text) - self._out
        del self._ids[:cut], self._clean[:cut]
        # A decoder may treat the first token in its own way, so that only the end of the two texts is the same.
        self._text = self._decode(self._ids)
        self._out = max(0, len(self._text) - held)


class StopFinder:
    """Finds stop strings in text that comes in pieces. Which one ends the text, and where, depends on the text alone:
    the one that is complete first, and of two that end together the longer."""

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self._stops = stops
        self._include = include
        self._held = ""

    def add(self, text: str, may_stop: bool = True) -> Piece:
        """The text that no stop string can begin in. Without `may_stop` a string that completes here does not count."""
        buffer = self._held + text
        if may_stop:
            found = self._first_complete(buffer, len(self._held))
            if found is not None:
                start, stop = found
                self._held = ""
                return Piece(buffer[: start + len(stop)] if self._include else buffer[:start], stop)
        begin = min(_beginning(stop, buffer) for stop in self._stops)
        self._held = buffer[begin:]
        return Piece(buffer[:begin])

    def rest(self) -> str:
        return self._held

    def _first_complete(self, text: str, known: int) -> tuple[int, str] | None:
        """Start and stop string. Those that end within the `known` characters did not count when they came."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, known + 1 - len(stop)))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else best[1:]


def _beginning(stop: str, text: str) -> int:
    """Where, at the end of the text, the stop string may have begun without being complete; else the text's length."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)


class Detokenizer:
    """One sequence. `add` takes its tokens in order; after a stop string it is spent."""

    __slots__ = ("_hidden", "_min_tokens", "_num_tokens", "_stops", "_window")

    def __init__(self, decode: Decode, params: SamplingParams, window: Window | None = None) -> None:
        """`params` are resolved: they say which tokens end the sequence, and so give no text unless it is asked for.
        `window` where the text of tokens can be had for less than by `decode`."""
        include = params.include_stop_str_in_output
        self._window: Window = TextWindow(decode) if window is None else window
        self._stops = StopFinder(params.stop, include) if params.stop else None
        self._hidden = () if include else params.stop_ids
        # No stop string counts that is complete within so many tokens.
        self._min_tokens = params.min_tokens or 0
        self._num_tokens = 0

    def add(self, token: int) -> Piece:
        """The text that this token makes certain."""
        self._num_tokens += 1
        if token in self._hidden:
            return Piece("")
        text = self._window.add(token)
        if self._stops is None:
            return Piece(text)
        return self._stops.add(text, self._num_tokens > self._min_tokens)

    def rest(self) -> str:
        """What is still held back, when the sequence has ended without a stop string."""
        if self._stops is None:
            return self._window.rest()
        return self._stops.rest() + self._window.rest()


def detokenizers(
    params: SamplingParams, decode: Decode, make_window: Callable[[], Window] | None = None
) -> Callable[[], Detokenizer]:
    """Makes one for each sequence of a request with these settings; see `cluster/gateway/byte_level.py` for
    `make_window`."""
    return lambda: Detokenizer(decode, params, None if make_window is None else make_window())
