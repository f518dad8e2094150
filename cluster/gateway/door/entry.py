"""One request as the door keeps it, and what its client was told of it.

An Entry lives from the question until nothing is said of it any more; the door changes it. A Reader belongs to one
stream of one client and remembers what that stream has: a client that comes back is a new reader at other positions
over the same log. What a reader is given are parts, which the shell words; here they are numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cluster.errors import QuireError
from cluster.gateway.door.log import RequestLog, SequenceLog
from cluster.gateway.door.refusals import FINAL
from cluster.messages import Accepted, Cancel, Claim, Done, OpenRequest, Reason, Started, Submit

MAX_DETAIL = 1_024
"""Characters of the reason with which a request is given up."""

MAX_CHUNK = 2_048
MAX_CHUNK_LOGPROBS = 256
"""Tokens of one sequence in one part."""

WIRE_TOKEN_BYTES, WIRE_LOGPROB_BYTES, WIRE_ACCEPTED_BYTES = 9, 240, 64
"""About what a token, its logprobs and the word of acceptance take in a message."""

KEPT_TOKEN_BYTES, KEPT_LOGPROB_BYTES, KEPT_TOP_BYTES = 80, 200, 120
"""About what a gateway's memory pays for a token and its text, for its logprobs, and for each candidate among them."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The request was accepted, and has started if `started` is not None."""

    accepted: Accepted
    started: Started | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `first` to `last` - 1 of a sequence."""

    sequence: SequenceLog
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Logprobs of prompt tokens `first` to `last` - 1; the stream has `position` tokens of the sequence."""

    sequence: SequenceLog
    position: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence has ended, and the stream has all of it."""

    sequence: SequenceLog


@dataclass(frozen=True, slots=True)
class Whole:
    """All has ended, and the stream has all."""

    done: Done


Part: TypeAlias = Begun | Chunk | PromptChunk | Finished | Whole


class Reader:
    """What one stream has of an entry. `tag` is the shell's."""

    __slots__ = (
        "begun",
        "entry",
        "finished",
        "has_left",
        "has_more",
        "is_ahead",
        "is_told",
        "prompt_sent",
        "sent",
        "tag",
    )

    def __init__(self, entry: Entry, positions: Sequence[int] = (), tag: int = 0) -> None:
        num = len(entry.log.sequences)
        self.entry = entry
        self.tag = tag
        self.sent = list(positions) or [0] * num
        # Prompt logprobs go with the first tokens, so that who has those has them.
        self.prompt_sent = [0 if not sent else -1 for sent in self.sent]
        self.finished = [False] * num
        # Another gateway sent it more than had come here when it began.
        self.is_ahead = any(sent > len(one.ids) for sent, one in zip(self.sent, entry.log.sequences, strict=True))
        # How much of the beginning it was told: nothing, that it was accepted, that it has started.
        self.begun = 0
        # The last read stopped at its bound.
        self.has_more = False
        # The stream has all of the answer; if that failed, its shell says so.
        self.is_told = False
        self.has_left = False

    def read(self, most_bytes: int) -> tuple[list[Part], int]:
        """What the stream does not have yet, up to about so many bytes on the wire, and how many these are. See
        `has_more` and `is_told`."""
        entry = self.entry
        parts: list[Part] = []
        size = self._read_begun(parts)
        self.has_more = True
        for sequence in entry.log.sequences:
            size += self._read_tokens(parts, sequence, most_bytes - size)
            if size >= most_bytes:
                return parts, size
            # What a failure cut off did not finish: the failure itself is the word on that.
            is_cut_off = sequence.reason is Reason.DROPPED and entry.failure is not None
            if sequence.reason is not Reason.NONE and not is_cut_off and not self.finished[sequence.index]:
                self.finished[sequence.index] = True
                parts.append(Finished(sequence))
        self.has_more = False
        if entry.is_over:
            self.is_told = True
            if entry.failure is None:
                assert entry.done is not None
                parts.append(Whole(entry.done))
        return parts, size

    def _read_begun(self, parts: list[Part]) -> int:
        entry = self.entry
        known = 0 if entry.accepted is None else 2 if entry.started is not None else 1
        if known <= self.begun:
            return 0
        assert entry.accepted is not None
        self.begun = known
        parts.append(Begun(entry.accepted, entry.started))
        return WIRE_ACCEPTED_BYTES

    def _read_tokens(self, parts: list[Part], sequence: SequenceLog, room: int) -> int:
        index, size = sequence.index, 0
        if sequence.prompt_logprobs and 0 <= self.prompt_sent[index] < len(sequence.prompt_logprobs):
            size += self._read_prompt(parts, sequence, room)
        longest, each = MAX_CHUNK, WIRE_TOKEN_BYTES
        if sequence.logprobs is not None:
            longest, each = MAX_CHUNK_LOGPROBS, WIRE_TOKEN_BYTES + WIRE_LOGPROB_BYTES
        sent, known = self.sent[index], len(sequence.ids)
        while sent < known and size < room:
            last = min(known, sent + longest)
            parts.append(Chunk(sequence, sent, last))
            size += each * (last - sent)
            sent = last
        self.sent[index] = sent
        return size

    def _read_prompt(self, parts: list[Part], sequence: SequenceLog, room: int) -> int:
        index, known = sequence.index, len(sequence.prompt_logprobs)
        first, size = self.prompt_sent[index], 0
        while first < known and size < room:
            last = min(known, first + MAX_CHUNK_LOGPROBS)
            parts.append(PromptChunk(sequence, self.sent[index], first, last))
            size += WIRE_LOGPROB_BYTES * (last - first)
            first = last
        self.prompt_sent[index] = first
        return size

    def unread_bytes(self) -> int:
        """What the log has beyond what the stream has, in bytes of this process's memory."""
        entry, num_tokens, num_prompt = self.entry, 0, 0
        for sequence, sent, prompt_sent in zip(entry.log.sequences, self.sent, self.prompt_sent, strict=True):
            num_tokens += max(0, len(sequence.ids) - sent)
            if prompt_sent >= 0:
                num_prompt += len(sequence.prompt_logprobs) - prompt_sent
        return num_tokens * entry.token_bytes + num_prompt * entry.prompt_token_bytes


class Entry:
    """The state of a request here. `client_id` is the tenant's own name for it."""

    __slots__ = (
        "accepted",
        "away_since",
        "digest_before",
        "done",
        "ended",
        "failure",
        "grace_s",
        "grace_until",
        "is_adopted",
        "is_behind",
        "is_cancelled",
        "is_gone",
        "log",
        "num_answered",
        "num_claims",
        "prompt_token_bytes",
        "reader",
        "route",
        "started",
        "submit",
        "token_bytes",
        "turn",
        "unread",
        "waits_until",
    )

    def __init__(self, submit: Submit, grace_s: float) -> None:
        sampling = submit.sampling
        self.submit = submit
        self.route = submit.route
        self.grace_s = grace_s
        self.log = RequestLog(sampling.n, sampling.logprobs is not None)
        self.token_bytes = KEPT_TOKEN_BYTES + _logprob_bytes(sampling.logprobs)
        self.prompt_token_bytes = _logprob_bytes(sampling.prompt_logprobs)
        self.accepted: Accepted | None = None
        self.started: Started | None = None
        self.done: Done | None = None
        self.failure: QuireError | None = None
        # When it was complete.
        self.ended: float | None = None
        self.is_cancelled = False
        # It began at another gateway, and a client came back through this one.
        self.is_adopted = False
        # A client came back with tokens that had not come here.
        self.is_behind = False
        # Of the weights that it was asked of, where it began anew with others.
        self.digest_before = b""
        # The door keeps it no longer.
        self.is_gone = False
        # How often its client came back here and the scheduler was told so, and to which of these it has answered.
        self.num_claims = self.num_answered = 0
        # Which of its owners this gateway is (see Accepted).
        self.turn = 0
        # Until then the scheduler must have taken it, or, behind its Done, its last tokens must have come.
        self.waits_until: float | None = None
        # Until then its client must be back; and when it left, or nobody could hear it any more.
        self.grace_until: float | None = None
        self.away_since = 0.0
        # The last stream that showed it, and the bytes that it had not taken (see `Reader.unread_bytes`).
        self.reader = Reader(self)
        self.unread = 0

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def tenant(self) -> str:
        return self.submit.tenant

    @property
    def client_id(self) -> str:
        return self.submit.request_id.removeprefix(f"{self.submit.tenant}/")

    @property
    def place(self) -> tuple[str, str, int]:
        """By what the scheduler knows it."""
        return self.submit.request_id, self.submit.gateway, self.route

    @property
    def is_read(self) -> bool:
        return not self.reader.has_left

    @property
    def is_over(self) -> bool:
        """Nothing of it is to come: not from the scheduler, not from a worker."""
        return self.failure is not None or (self.done is not None and self.log.is_complete)

    @property
    def is_asking(self) -> bool:
        """It was adopted, and whether the request is known is not said yet."""
        return self.is_adopted and self.accepted is None

    @property
    def is_claiming(self) -> bool:
        """Its client came back here, and the scheduler has not answered yet that it is told here."""
        return self.num_answered < self.num_claims

    def claim(self) -> Claim:
        return Claim(*self.place, self.num_claims)

    def given_up(self) -> Cancel:
        """Nobody waits for it here: it ends, unless its client has come back elsewhere.

        Why a client was told that it ended is said with it: the scheduler that said so may be dead.
        """
        failure = self.failure
        if failure is None or failure.grpc_status in (*FINAL, "UNAVAILABLE"):
            return Cancel(*self.place)
        return Cancel(*self.place, failure.grpc_status, str(failure)[:MAX_DETAIL])

    @property
    def finished(self) -> tuple[Reason, ...]:
        """Why each sequence has ended, for the scheduler. Where nobody waits here a Cancel says so, and another gateway
        may go on with it: only behind Done is that an end."""
        reasons = self.log.reasons
        if self.ended is not None:
            return reasons
        return tuple([Reason.NONE if reason is Reason.DROPPED else reason for reason in reasons])

    def open_request(self) -> OpenRequest:
        log = self.log
        return OpenRequest(self.submit, log.next_attempt, log.outputs, self.finished, self.turn)


def _logprob_bytes(num_top: int | None) -> int:
    return 0 if num_top is None else KEPT_LOGPROB_BYTES + KEPT_TOP_BYTES * num_top
