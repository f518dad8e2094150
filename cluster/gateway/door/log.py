"""The log of one request: what its sequences have said, which is the truth about what the client may see.

Tokens are put in their places by position, whatever attempt or road brings them; attempts up to a seal are dropped;
what was logged once never changes. Text is made beside it, token by token (`cluster/gateway/texts.py`), and tells the
log where a stop string ended a sequence. Nothing here knows of text, streams or clocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import ProtocolError
from cluster.messages import Ids, Logprobs, Reason, Tokens, ids


class SequenceLog:
    """One sequence of the request. `logprobs`, where they are asked for, is as long as `ids`."""

    __slots__ = ("detail", "ids", "index", "is_cut", "logprobs", "prompt_logprobs", "reason", "score")

    def __init__(self, index: int, has_logprobs: bool) -> None:
        self.index = index
        self.ids = ids()
        self.logprobs: list[Logprobs | None] | None = [] if has_logprobs else None
        self.prompt_logprobs: tuple[Logprobs | None, ...] = ()
        self.reason = Reason.NONE
        # A stop string ended it: what a worker says behind that never existed.
        self.is_cut = False
        self.score = 0.0
        self.detail = ""

    def end(self, reason: Reason, detail: str = "") -> None:
        """The sequence has all its tokens."""
        self.reason = reason
        self.detail = detail

    def extend(self, new: Ids, logprobs: tuple[Logprobs, ...]) -> None:
        self.ids.extend(new)
        if self.logprobs is not None:
            # Tokens of an earlier attempt are repeated without them.
            self.logprobs.extend(logprobs[: len(new)])
            self.logprobs.extend([None] * (len(new) - len(logprobs)))


class RequestLog:
    """All sequences of a request."""

    __slots__ = ("attempt", "num_dropped", "num_stale", "sealed", "sequences")

    def __init__(self, num_sequences: int, has_logprobs: bool = False) -> None:
        self.sequences = [SequenceLog(index, has_logprobs) for index in range(num_sequences)]
        # The last attempt that was heard of; attempts up to `sealed` are deaf.
        self.attempt = 0
        self.sealed = 0
        self.num_stale = 0
        # Tokens that were here and that nobody is to have.
        self.num_dropped = 0

    @property
    def is_complete(self) -> bool:
        return Reason.NONE not in [sequence.reason for sequence in self.sequences]

    @property
    def failed(self) -> SequenceLog | None:
        """The first that a worker could not go on with."""
        return next((sequence for sequence in self.sequences if sequence.reason is Reason.FAILED), None)

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

    def fresh(self, tokens: Tokens) -> Ids | None:
        """Those of these tokens that are not logged yet; None: nothing of them counts. Raises `ProtocolError` for
        tokens that leave a gap or differ from what is logged."""
        if not 0 <= tokens.index < len(self.sequences):
            raise ProtocolError(f"tokens of sequence {tokens.index}, and the request has {len(self.sequences)}")
        sequence = self.sequences[tokens.index]
        if tokens.attempt <= self.sealed or sequence.reason is not Reason.NONE:
            self.num_stale += 1
            return None
        known = len(sequence.ids) - tokens.position
        if not known:
            return tokens.ids
        self._check_known(sequence, tokens, known)
        return tokens.ids[known:]

    def _check_known(self, sequence: SequenceLog, tokens: Tokens, known: int) -> None:
        where = f"sequence {tokens.index}, attempt {tokens.attempt}"
        if known < 0:
            raise ProtocolError(f"{where} jumps from token {len(sequence.ids)} to {tokens.position}")
        first = tokens.position
        if sequence.ids[first : first + len(tokens.ids)] != tokens.ids[:known]:
            raise ProtocolError(f"{where} changes tokens from {first} on, which were sent already")

    def take(self, tokens: Tokens, fresh: Ids, cut: int | None = None) -> SequenceLog:
        """Logs what `fresh` has found of these tokens. `cut`: a stop string ended the sequence, which has so many
        tokens in all; what is behind it never existed."""
        self.attempt = max(self.attempt, tokens.attempt)
        sequence = self.sequences[tokens.index]
        if tokens.prompt_logprobs and not sequence.prompt_logprobs:
            sequence.prompt_logprobs = tokens.prompt_logprobs
        logprobs = tokens.logprobs[len(tokens.ids) - len(fresh) :] if tokens.logprobs else ()
        if cut is not None:
            known = len(sequence.ids)
            assert known < cut <= known + len(fresh), f"a cut at {cut}, and tokens {known} to {known + len(fresh)} came"
            sequence.extend(fresh[: cut - known], logprobs)
            sequence.is_cut = True
            sequence.end(Reason.STOP)
            return sequence
        sequence.extend(fresh, logprobs)
        # What a worker was told to drop goes on elsewhere, or was ended by whoever had it dropped.
        if tokens.reason is not Reason.NONE and tokens.reason is not Reason.DROPPED:
            sequence.score = tokens.score
            sequence.end(tokens.reason, tokens.detail)
        return sequence

    def abort(self, index: int | None = None) -> None:
        """Whatever has not ended is over; with `index` only that sequence."""
        for sequence in self.sequences:
            if sequence.reason is Reason.NONE and index in (None, sequence.index):
                sequence.end(Reason.DROPPED)

    def drop(self, positions: Sequence[int]) -> None:
        """Nobody is to have what lies behind these positions: its memory is wanted."""
        self.abort()
        for sequence, position in zip(self.sequences, positions, strict=True):
            self.num_dropped += max(0, len(sequence.ids) - position)
            del sequence.ids[position:]
            sequence.prompt_logprobs = ()
            if sequence.logprobs is not None:
                del sequence.logprobs[position:]
