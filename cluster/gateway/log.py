"""A gateway's log of one request: what its sequences have said, which is the truth about what the client may see.

Tokens are put in their places by position, whatever attempt or road brings them; attempts up to a seal are dropped;
what was logged once never changes. Text is cut per token, so that the text of any run of tokens is the same however it
is merged or resumed. The gateway reads the log to write streams; nothing here knows of streams, clocks or gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import ProtocolError
from cluster.messages import Ids, Logprobs, Reason, Tokens, ids


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


class SequenceLog:
    """One sequence of the request. `pieces` is as long as `ids` where text is wanted."""

    __slots__ = (
        "cutter",
        "detail",
        "ids",
        "index",
        "logprobs",
        "pieces",
        "prompt_logprobs",
        "reason",
        "rest",
        "score",
        "stop_string",
    )

    def __init__(self, index: int, cutter: TextCutter | None, has_logprobs: bool) -> None:
        self.index = index
        self.cutter = cutter
        self.ids = ids()
        self.pieces: list[str] = []
        self.logprobs: list[Logprobs | None] | None = [] if has_logprobs else None
        self.prompt_logprobs: tuple[Logprobs | None, ...] = ()
        self.reason = Reason.NONE
        self.rest = ""
        self.stop_string: str | None = None
        self.score = 0.0
        self.detail = ""

    def text(self, first: int, last: int) -> str:
        return "".join(self.pieces[first:last])

    def end(self, reason: Reason, detail: str = "") -> None:
        """The sequence has all its tokens."""
        self.reason = reason
        self.detail = detail
        if self.cutter is not None and self.stop_string is None:
            self.rest = self.cutter.rest()
        # A cutter holds the decoder's state, which nobody needs any longer.
        self.cutter = None

    def extend(self, new: Ids, logprobs: tuple[Logprobs, ...]) -> bool:
        """Appends tokens. True: a stop string ended the sequence, and what was behind it never existed."""
        cutter = self.cutter
        if cutter is None:
            self.ids.extend(new)
            self._extend_logprobs(len(new), logprobs)
            return False
        for at, token in enumerate(new):
            piece = cutter.add(token)
            self.pieces.append(piece.text)
            if piece.stop_string is not None:
                self.ids.extend(new[: at + 1])
                self._extend_logprobs(at + 1, logprobs)
                self.stop_string = piece.stop_string
                self.end(Reason.STOP)
                return True
        self.ids.extend(new)
        self._extend_logprobs(len(new), logprobs)
        return False

    def _extend_logprobs(self, count: int, logprobs: tuple[Logprobs, ...]) -> None:
        if self.logprobs is not None:
            # Tokens of an earlier attempt are repeated without them.
            self.logprobs.extend(logprobs[:count])
            self.logprobs.extend([None] * (count - len(logprobs)))


class RequestLog:
    """All sequences of a request."""

    __slots__ = ("attempt", "num_new", "num_stale", "sealed", "sequences")

    def __init__(
        self, num_sequences: int, make_cutter: Callable[[], TextCutter | None], has_logprobs: bool = False
    ) -> None:
        self.sequences = [SequenceLog(index, make_cutter(), has_logprobs) for index in range(num_sequences)]
        # The last attempt that was heard of; attempts up to `sealed` are deaf.
        self.attempt = 0
        self.sealed = 0
        self.num_stale = 0
        # Tokens that were not here before the last `take`: a new attempt repeats what is known.
        self.num_new = 0

    @property
    def is_complete(self) -> bool:
        return all(sequence.reason is not Reason.NONE for sequence in self.sequences)

    @property
    def outputs(self) -> tuple[Ids, ...]:
        return tuple([ids(sequence.ids) for sequence in self.sequences])

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return tuple([sequence.reason for sequence in self.sequences])

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.ids) for sequence in self.sequences)

    @property
    def next_attempt(self) -> int:
        """The lowest attempt that still counts: the last one that was heard of, or the one behind a seal."""
        return max(self.attempt, self.sealed + 1 if self.sealed else 0)

    def seal(self, attempt: int) -> None:
        self.sealed = max(self.sealed, attempt)
        self.attempt = max(self.attempt, attempt)

    def take(self, tokens: Tokens) -> SequenceLog | None:
        """Puts tokens in their place; returns the sequence if a stop string has just ended it, so that the scheduler
        must be told. Raises `ProtocolError` for tokens that leave a gap or differ from what is logged."""
        self.num_new = 0
        if tokens.attempt <= self.sealed:
            self.num_stale += 1
            return None
        if tokens.attempt > self.attempt:
            self.attempt = tokens.attempt
        if not 0 <= tokens.index < len(self.sequences):
            raise ProtocolError(f"tokens of sequence {tokens.index}, and the request has {len(self.sequences)}")
        sequence = self.sequences[tokens.index]
        if sequence.reason is not Reason.NONE:
            self.num_stale += 1
            return None
        new, logprobs = tokens.ids, tokens.logprobs
        known = len(sequence.ids) - tokens.position
        if known:
            self._check_known(sequence, tokens, known)
            new, logprobs = new[known:], logprobs[known:]
        if tokens.prompt_logprobs and not sequence.prompt_logprobs:
            sequence.prompt_logprobs = tokens.prompt_logprobs
        before = len(sequence.ids)
        is_stopped = bool(new) and sequence.extend(new, logprobs)
        self.num_new = len(sequence.ids) - before
        if is_stopped:
            return sequence
        # What a worker was told to drop goes on elsewhere, or was ended by whoever had it dropped.
        if tokens.reason is not Reason.NONE and tokens.reason is not Reason.DROPPED:
            sequence.score = tokens.score
            sequence.end(tokens.reason, tokens.detail)
        return None

    def _check_known(self, sequence: SequenceLog, tokens: Tokens, known: int) -> None:
        where = f"sequence {tokens.index}, attempt {tokens.attempt}"
        if known < 0:
            raise ProtocolError(f"{where} jumps from token {len(sequence.ids)} to {tokens.position}")
        first = tokens.position
        if sequence.ids[first : first + len(tokens.ids)] != tokens.ids[:known]:
            raise ProtocolError(f"{where} changes tokens from {first} on, which were sent already")

    def abort(self, index: int | None = None) -> None:
        """Whatever has not ended is over; with `index` only that sequence."""
        for sequence in self.sequences:
            if sequence.reason is Reason.NONE and index in (None, sequence.index):
                sequence.end(Reason.DROPPED)
