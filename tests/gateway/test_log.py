"""The gateway's log: every token in its place once, whatever attempts bring it, and what is logged never changes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ProtocolError
from cluster.gateway.door.log import RequestLog
from cluster.gateway.texts import Piece, Texts, take_tokens
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


class Log(RequestLog):
    """With its text."""

    def __init__(self, num: int, make_cutter, has_logprobs: bool = False) -> None:
        super().__init__(num, has_logprobs)
        self.texts = Texts(num, make_cutter)

    def add(self, one: Tokens) -> bool:
        """True: a stop string has ended the sequence."""
        return take_tokens(self, self.texts, one) is not None


def test_pieces_are_the_text_however_they_come():
    log = Log(1, Letters)
    for part in (tokens("ab", 0), tokens("Sx", 2), tokens("ST", 4), tokens("", 6, reason=Reason.LENGTH)):
        assert not log.add(part)
    (text,) = log.texts.sequences
    assert text.text(0, 6) == "abSx" and text.rest() == "ST" and len(text.pieces) == 6
    assert log.is_complete and log.reasons == (Reason.LENGTH,)


def test_a_stop_string_ends_the_sequence_at_its_last_token():
    log = Log(2, Letters)
    log.add(tokens("on", 0, index=1))
    assert log.add(tokens("ab STOP and more", 0))
    stopped, text = log.sequences[0], log.texts.sequences[0]
    assert text.text(0, 99) == "ab " and text.rest() == "" and text.stop_string == "STOP"
    assert len(stopped.ids) == 7 and stopped.is_cut and stopped.reason is Reason.STOP
    # What the worker says behind it never existed.
    assert not log.add(tokens("xyz", 16)) and len(stopped.ids) == 7
    assert log.num_stale == 1 and not log.is_complete


def test_sealed_attempts_are_deaf_and_the_next_one_repeats():
    log = Log(1, Letters)
    log.add(tokens("abc", 0, attempt=1))
    log.seal(1)
    assert log.fresh(tokens("late", 3, attempt=1)) is None
    assert log.outputs == (ids(letters("abc")),)
    # What is repeated is not new.
    assert log.fresh(tokens("abcd", 0, attempt=2)) == ids(letters("d"))
    log.add(tokens("abcd", 0, attempt=2))
    log.add(tokens("e", 4, attempt=2, reason=Reason.STOP))
    assert log.outputs == (ids(letters("abcde")),) and log.attempt == 2


def test_what_does_not_fit_is_refused():
    log = Log(1, Letters)
    log.add(tokens("abc", 0))
    with pytest.raises(ProtocolError, match="jumps from token 3 to 5"):
        log.add(tokens("f", 5))
    with pytest.raises(ProtocolError, match="changes tokens from 1 on"):
        log.add(tokens("bX", 1))
    with pytest.raises(ProtocolError, match="sequence 4, and the request has 1"):
        log.add(tokens("f", 0, index=4))


def test_a_dropped_attempt_does_not_end_the_sequence():
    log = Log(1, Letters)
    log.add(tokens("ab", 0, reason=Reason.DROPPED))
    assert not log.is_complete
    log.abort()
    assert log.reasons == (Reason.DROPPED,)


def test_logprobs_stay_with_their_tokens():
    log = Log(1, lambda: None, has_logprobs=True)
    first = tuple(Logprobs(token, -0.5, 1) for token in (1, 2))
    log.add(Tokens(7, 0, 1, 0, ids([1, 2]), logprobs=first))
    # A new attempt repeats the tokens without them.
    log.seal(1)
    log.add(Tokens(7, 0, 2, 0, ids([1, 2, 3])))
    log.add(Tokens(7, 0, 2, 2, ids([3, 4]), logprobs=(Logprobs(3, -1.0, 1), Logprobs(4, -2.0, 2))))
    assert log.sequences[0].logprobs == [*first, None, Logprobs(4, -2.0, 2)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.text("abSTOP", max_size=40))
def test_any_order_of_attempts_gives_the_same_log(seed, text):
    """Chunks of several attempts, cut, doubled and repeated at random: what comes out is the text up to its stop."""
    rng = random.Random(seed)
    log, plain = Log(1, Letters), Log(1, Letters)
    plain.add(tokens(text, 0, reason=Reason.LENGTH))
    attempt, known, stopped = 1, 0, False
    while known < len(text) and not stopped:
        if rng.random() < 0.2:
            log.seal(attempt)
            attempt += 1
        start = rng.randrange(known + 1)
        end = min(len(text), max(known, start) + rng.randrange(4))
        stopped = log.add(tokens(text[start:end], start, attempt))
        if rng.random() < 0.3 and attempt > 1:
            log.add(tokens(text, 0, rng.randrange(1, attempt)) if log.sealed else tokens("", known, attempt))
        known = max(known, end)
    log.add(tokens("", known, attempt, Reason.LENGTH))
    assert log.sequences[0].ids == plain.sequences[0].ids
    mine, other = log.texts.sequences[0], plain.texts.sequences[0]
    assert (mine.pieces, mine.rest(), mine.stop_string) == (other.pieces, other.rest(), other.stop_string)
