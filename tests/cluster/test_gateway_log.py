"""The gateway's log: every token in its place once, whatever attempts bring it, and what is logged never changes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ProtocolError
from cluster.gateway.log import Piece, RequestLog
from cluster.messages import Logprobs, Reason, Tokens, ids


class Letters:
    """Token n is letter n; the text ends before "STOP"."""

    def __init__(self) -> None:
        self.text = ""
        self.given = 0

    def add(self, token: int) -> Piece:
        self.text += chr(token)
        found = self.text.find("STOP")
        if found >= 0:
            return Piece(self.text[self.given : found], "STOP")
        held = next((n for n in (3, 2, 1) if self.text.endswith("STOP"[:n])), 0)
        end = len(self.text) - held
        piece, self.given = self.text[self.given : end], max(end, self.given)
        return Piece(piece)

    def rest(self) -> str:
        return self.text[self.given :]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def tokens(text: str, position: int, attempt: int = 1, reason: Reason = Reason.NONE, index: int = 0) -> Tokens:
    return Tokens(7, index, attempt, position, ids(letters(text)), reason)


def test_pieces_are_the_text_however_they_come():
    log = RequestLog(1, Letters)
    for part in (tokens("ab", 0), tokens("Sx", 2), tokens("ST", 4), tokens("", 6, reason=Reason.LENGTH)):
        assert log.take(part) is None
    (sequence,) = log.sequences
    assert sequence.text(0, 6) == "abSx" and sequence.rest == "ST" and len(sequence.pieces) == 6
    assert log.is_complete and log.reasons == (Reason.LENGTH,)


def test_a_stop_string_ends_the_sequence_at_its_last_token():
    log = RequestLog(2, Letters)
    log.take(tokens("on", 0, index=1))
    stopped = log.take(tokens("ab STOP and more", 0))
    assert stopped is log.sequences[0]
    assert log.num_new == 7
    assert stopped.text(0, 99) == "ab " and len(stopped.ids) == 7 and stopped.stop_string == "STOP"
    # What the worker says behind it never existed.
    assert log.take(tokens("xyz", 16)) is None and len(stopped.ids) == 7
    assert log.num_stale == 1 and not log.is_complete


def test_sealed_attempts_are_deaf_and_the_next_one_repeats():
    log = RequestLog(1, Letters)
    log.take(tokens("abc", 0, attempt=1))
    log.seal(1)
    log.take(tokens("late", 3, attempt=1))
    assert log.num_new == 0
    assert log.outputs == (ids(letters("abc")),)
    log.take(tokens("abcd", 0, attempt=2))
    # What is repeated is not new.
    assert log.num_new == 1
    log.take(tokens("e", 4, attempt=2, reason=Reason.STOP))
    assert log.outputs == (ids(letters("abcde")),) and log.attempt == 2


def test_what_does_not_fit_is_refused():
    log = RequestLog(1, Letters)
    log.take(tokens("abc", 0))
    with pytest.raises(ProtocolError, match="jumps from token 3 to 5"):
        log.take(tokens("f", 5))
    with pytest.raises(ProtocolError, match="changes tokens from 1 on"):
        log.take(tokens("bX", 1))
    with pytest.raises(ProtocolError, match="sequence 4, and the request has 1"):
        log.take(tokens("f", 0, index=4))


def test_a_dropped_attempt_does_not_end_the_sequence():
    log = RequestLog(1, Letters)
    log.take(tokens("ab", 0, reason=Reason.DROPPED))
    assert not log.is_complete
    log.abort()
    assert log.reasons == (Reason.DROPPED,)


def test_logprobs_stay_with_their_tokens():
    log = RequestLog(1, lambda: None, has_logprobs=True)
    first = tuple(Logprobs(token, -0.5, 1) for token in (1, 2))
    log.take(Tokens(7, 0, 1, 0, ids([1, 2]), logprobs=first))
    # A new attempt repeats the tokens without them.
    log.seal(1)
    log.take(Tokens(7, 0, 2, 0, ids([1, 2, 3])))
    log.take(Tokens(7, 0, 2, 2, ids([3, 4]), logprobs=(Logprobs(3, -1.0, 1), Logprobs(4, -2.0, 2))))
    assert log.sequences[0].logprobs == [*first, None, Logprobs(4, -2.0, 2)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.text("abSTOP", max_size=40))
def test_any_order_of_attempts_gives_the_same_log(seed, text):
    """Chunks of several attempts, cut, doubled and repeated at random: what comes out is the text up to its stop."""
    rng = random.Random(seed)
    log, plain = RequestLog(1, Letters), RequestLog(1, Letters)
    plain.take(tokens(text, 0, reason=Reason.LENGTH))
    attempt, known, stopped = 1, 0, False
    while known < len(text) and not stopped:
        if rng.random() < 0.2:
            log.seal(attempt)
            attempt += 1
        start = rng.randrange(known + 1)
        end = min(len(text), max(known, start) + rng.randrange(4))
        stopped = log.take(tokens(text[start:end], start, attempt)) is not None
        if rng.random() < 0.3 and attempt > 1:
            log.take(tokens(text, 0, rng.randrange(1, attempt)) if log.sealed else tokens("", known, attempt))
        known = max(known, end)
    log.take(tokens("", known, attempt, Reason.LENGTH))
    mine, other = log.sequences[0], plain.sequences[0]
    assert (mine.ids, mine.pieces, mine.rest, mine.stop_string) == (
        other.ids,
        other.pieces,
        other.rest,
        other.stop_string,
    )
