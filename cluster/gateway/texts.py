"""The text of a request beside its log: cut per token where it is certain, and where a stop string ended a sequence.

Text is kept per token, so that the text of any run of tokens is the same however it is merged or resumed. The gateway
and the embedded engine hand in what their log has found to be new, and tell the log of the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.gateway.door.log import RequestLog, SequenceLog
from cluster.messages import Ids, Tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """The text that a token makes certain: possibly none, or also what earlier tokens had to hold back.

    `stop_string`: the text ended before (or with) this stop string, and the sequence with it.
    """

    text: str
    stop_string: str | None = None


class TextCutter(Protocol):
    """Turns the tokens of one sequence into text, cut where it is certain."""

    def add(self, token: int) -> Piece: ...

    def rest(self) -> str:
        """What is still held back, when the sequence has ended."""
        ...


class SequenceText:
    """Of one sequence. `pieces` is as long as its log."""

    __slots__ = ("_cutter", "_rest", "pieces", "stop_string")

    def __init__(self, cutter: TextCutter) -> None:
        self._cutter: TextCutter | None = cutter
        self._rest = ""
        self.pieces: list[str] = []
        self.stop_string: str | None = None

    def add(self, new: Ids) -> int | None:
        """With a stop string in the text of these tokens: how many tokens the sequence has in all."""
        assert self._cutter is not None, "tokens came behind the end of a sequence"
        for token in new:
            piece = self._cutter.add(token)
            self.pieces.append(piece.text)
            if piece.stop_string is not None:
                self.stop_string = piece.stop_string
                self._cutter = None
                return len(self.pieces)
        return None

    def text(self, first: int, last: int) -> str:
        return "".join(self.pieces[first:last])

    def rest(self) -> str:
        """What was held back when the sequence ended."""
        if self._cutter is not None:
            # A cutter holds the decoder's state, which nobody needs any longer.
            self._rest, self._cutter = self._cutter.rest(), None
        return self._rest


class Texts:
    """Of all sequences of a request; of none where no text is wanted."""

    __slots__ = ("sequences",)

    def __init__(self, num_sequences: int, make_cutter: Callable[[], TextCutter | None]) -> None:
        cutters = [make_cutter() for _ in range(num_sequences)]
        self.sequences = [SequenceText(cutter) for cutter in cutters if cutter is not None]

    def add(self, index: int, new: Ids) -> int | None:
        """See `SequenceText.add`."""
        return self.sequences[index].add(new) if self.sequences else None

    def drop(self, log: RequestLog) -> None:
        """Keeps no more than the log does."""
        for text, sequence in zip(self.sequences, log.sequences, strict=False):
            del text.pieces[len(sequence.ids) :]

    def text(self, index: int, first: int, last: int) -> str:
        return self.sequences[index].text(first, last) if self.sequences else ""

    def rest(self, index: int) -> str:
        return self.sequences[index].rest() if self.sequences else ""

    def stop_string(self, index: int) -> str | None:
        return self.sequences[index].stop_string if self.sequences else None


def take_tokens(log: RequestLog, texts: Texts, tokens: Tokens) -> SequenceLog | None:
    """For who keeps a log without a door: the sequence, if a stop string has just ended it."""
    new = log.fresh(tokens)
    if new is None:
        return None
    cut = texts.add(tokens.index, new)
    sequence = log.take(tokens, new, cut)
    return None if cut is None else sequence
