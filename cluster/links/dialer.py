"""The end of a conversation that opens connections: a pure machine that says hello and goes on where both ends stand.

Its owner opens a connection, sends what `open` returns, and passes on what comes; what was said meanwhile waits. Only
the newest life of the other end counts: an older one that answers is left. It has one connection at a time. It knows no
socket and no clock; `Listener` is the other end.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import ProtocolError
from cluster.links.frames import (
    HELLO,
    MESSAGE,
    PART,
    PULSE,
    REFUSAL,
    WELCOME,
    Frame,
    Hello,
    refusal_from,
    welcome_from,
)
from cluster.links.numbers import Numbers
from cluster.links.terms import Close, Heard, Met, Order, Pulsed, Read, RefusedByPeer, Send, Terms, unreadable


class Dialer:
    """Talks to `peer` as `me`. `read` makes messages of bytes, `read_card` what a welcome brings along."""

    def __init__(
        self, me: str, life: int, peer: str, terms: Terms, read: Read, read_card: Read = bytes, has_state: bool = False
    ) -> None:
        """`has_state`: what an earlier life of the other end ordered is held here; the next one is to ask for it."""
        self.me = me
        self.life = life
        self.peer = peer
        self.terms = terms
        self.has_state = has_state
        # The highest life of the other end that was met; 0: none.
        self.peer_life = 0
        self.numbers = Numbers(terms)
        self.silence_s = terms.silence_s
        # Counts the connections of this life; 0: none yet.
        self.connection = 0
        self.is_open = False
        # The other end has answered on this connection.
        self.is_met = False
        # It was turned away: both ends begin anew with the next welcome.
        self.is_anew = False
        # A new life of the other end asks what is held here. What is said before that is a part of it.
        self.owes_state = False
        self._read = read
        self._read_card = read_card
        self._heard_at = 0.0
        self._was_told = False
        # How much had been taken when `is_unheard` was asked (-1: it was not yet), and since when no more is.
        self._taken_there, self._stands_since = -1, 0.0
        # Of an earlier life.
        self._holds_state = False

    def begin(self, life: int, *, holds_state: bool = False) -> None:
        """Another life of this end, on the next connection: nothing that was said counts, and nobody was met.
        `holds_state`: what is held here is the earlier life's, and whoever is met is to ask for it."""
        assert life > self.life, f"life {life} of {self.me} after {self.life}"
        self.life, self.peer_life, self.connection = life, 0, 0
        self._holds_state = holds_state
        self.numbers = Numbers(self.terms)
        self.is_open = self.is_met = self.owes_state = self.is_anew = False

    # -- connections

    def open(self, card: bytes, now: float) -> bytes:
        """There is a connection; returns what goes out first on it."""
        self.connection += 1
        self.is_open, self.is_met, self._heard_at, self._was_told = True, False, now, True
        self.numbers.reopen()
        hello = Hello(
            self.me,
            self.life,
            self.peer,
            self.peer_life,
            self.connection,
            self.has_state and (self.peer_life != 0 or self._holds_state),
            self.is_anew,
            self.terms.oldest_protocol,
            self.terms.newest_protocol,
            card,
        )
        return hello.pack(self.numbers.taken)

    def broke(self) -> None:
        self.is_open = self.is_met = False

    def touched(self, now: float) -> None:
        """Bytes have come, be they a whole frame or not."""
        self._heard_at = now

    # -- words

    def say(self, message: bytes) -> list[bytes]:
        """Returns the frames that go out now; what does not is kept. Raises ProtocolError where it is too large."""
        if self.owes_state:
            return []
        self.numbers.say(message)
        return self._due()

    def say_state(self, message: bytes) -> list[bytes]:
        """What is held here, for a new life of the other end that asked. Not asked (any more): nothing is said."""
        if not self.owes_state:
            return []
        self.owes_state = False
        return self.say(message)

    def pulse(self, note: bytes = b"") -> list[bytes]:
        """Called `PULSES` times in `silence_s`: a word of life, where nothing was said since the last time."""
        was_told, self._was_told = self._was_told, False
        if not self.is_met or (was_told and not note):
            return []
        return [self.numbers.pulse(note)]

    def silence(self, now: float) -> list[Order]:
        """Called when all that has come was heard."""
        if not self.is_open or now - self._heard_at <= self.silence_s:
            return []
        return [self._close(f"{self.peer} has said nothing for {now - self._heard_at:.1f} s")]

    def is_unheard(self, now: float) -> bool:
        """Whether the other end takes nothing of what is kept for it. Asked several times in `Terms.unheard_s`."""
        numbers = self.numbers
        taken = numbers.said - numbers.num_kept
        if not numbers.num_kept or taken != self._taken_there:
            self._taken_there, self._stands_since = taken, now
        return now - self._stands_since > self.terms.unheard_s

    def heard(self, frames: Sequence[Frame]) -> list[Order]:
        """Of the connection that is open."""
        orders: list[Order] = []
        numbers, read = self.numbers, self._read
        try:
            for kind, number, taken, body in frames:
                if not self.is_met:
                    self._answered(kind, taken, body, orders)
                    # A welcome of another life begins new ones, and words may come right behind it.
                    numbers = self.numbers
                    continue
                numbers.acknowledge(taken)
                if kind in (MESSAGE, PART):
                    message = numbers.take(kind, number, body, read)
                    if message is not None:
                        orders.append(Heard(self.peer, message))
                elif kind == PULSE:
                    orders.append(Pulsed(self.peer, body))
                elif kind == REFUSAL:
                    self._refused(body, orders)
                    break
                else:
                    raise ProtocolError(f"a frame of kind {kind} in the midst of a conversation")
        except ProtocolError as error:
            orders.append(self._close(str(error), is_garbled=True))
        if self.is_met:
            if numbers.num_sent != numbers.num_kept:
                orders += [Send(self.connection, frame) for frame in self._due()]
            if numbers.owes_word:
                orders.append(Send(self.connection, numbers.pulse()))
        return orders

    def _due(self) -> list[bytes]:
        if not self.is_met:
            return []
        frames = self.numbers.due()
        if frames:
            self._was_told = True
        return frames

    def _answered(self, kind: int, taken: int, body: bytes, orders: list[Order]) -> None:
        if not self.is_open:
            return
        if kind == REFUSAL:
            self._refused(body, orders)
            return
        if kind != WELCOME:
            known = "a hello" if kind == HELLO else f"a frame of kind {kind}"
            raise ProtocolError(f"the answer to a hello was {known}")
        welcome = welcome_from(body)
        terms = self.terms
        if not terms.oldest_protocol <= welcome.protocol <= terms.newest_protocol:
            raise ProtocolError(f"{self.peer} speaks protocol {welcome.protocol}; install the same Quire on both")
        if welcome.life < self.peer_life:
            raise ProtocolError(f"life {welcome.life} of {self.peer} answers, and {self.peer_life} was met")
        try:
            card = self._read_card(welcome.card)
        except Exception as error:
            raise unreadable(welcome.card, error) from error
        is_new = welcome.life != self.peer_life or self.is_anew
        if is_new:
            self._meet_anew(welcome.life, welcome.wants_state)
        self.numbers.acknowledge(taken)
        if is_new:
            self.owes_state = welcome.wants_state
        self.silence_s, self.is_met = welcome.silence_s, True
        orders.append(Met(self.peer, welcome.life, is_new, self.owes_state, card))

    def _refused(self, body: bytes, orders: list[Order]) -> None:
        """Who is turned away hears so in the midst of a conversation, or with its next hello: what was said is void."""
        refusal = refusal_from(body)
        if refusal.reason == "away":
            self.is_anew, self.owes_state, self.numbers = True, False, Numbers(self.terms)
        elif self.is_met:
            raise ProtocolError(f"a refusal in the midst of a conversation: {refusal.detail}")
        orders += [RefusedByPeer(refusal.reason, refusal.detail), self._close(f"it refuses: {refusal.detail}")]

    def _meet_anew(self, life: int, wants_state: bool) -> None:
        is_first, self.peer_life, self.is_anew = self.peer_life == 0, life, False
        self._holds_state = False
        if self.terms.keeps or (is_first and not wants_state):
            # What was said to nobody yet is for whoever is met first.
            self.numbers.renumber()
        else:
            self.numbers = Numbers(self.terms)

    def _close(self, detail: str, *, is_garbled: bool = False) -> Close:
        connection = self.connection
        self.broke()
        return Close(connection, detail, is_garbled)

    def check(self) -> None:
        """Raises AssertionError if anything here does not fit together."""
        self.numbers.check()
        assert self.is_open or not self.is_met, "met without a connection"
        assert self.peer_life or not self.is_met, "met nobody"
        assert not self.owes_state or not self.numbers.said, "something was said before the state"
