"""The end that is called: a pure machine with all peers of one port, who they are, and who of them is lost.

A peer is known by its name and counts in its highest life, on its newest connection; a life that was lost or outlived
is refused, and so is whoever has met a later life of this end. A peer that is silent for too long, does not come back
or takes nothing is lost. It knows no socket and no clock; `Dialer` is the other end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.errors import ProtocolError
from cluster.links.frames import HELLO, MESSAGE, PART, PULSE, Frame, Hello, Refusal, Welcome, hello_from
from cluster.links.numbers import Numbers
from cluster.links.terms import (
    PULSES,
    Close,
    Connection,
    Heard,
    Met,
    Order,
    PeerLost,
    Pulsed,
    Read,
    Send,
    Terms,
    unreadable,
)

ReadCard: TypeAlias = Callable[[str, int, bytes], Any]
"""Makes what a hello brings along of its bytes, for a name and a life; raises ProtocolError."""


@dataclass(slots=True)
class Peer:
    """One life of another end, over all its connections."""

    name: str
    life: int
    numbers: Numbers
    heard_at: float
    connection: Connection | None = None
    # Which of its connections it is, as the peer counts them.
    connection_number: int = 0
    # Its connection broke then and it has not come back.
    broken_at: float | None = None
    # It knew an earlier life of this end, and has not told yet what it holds.
    wants_state: bool = False
    was_told: bool = False


class Listener:
    """All conversations with those who call `me`. `welcome` is what each welcome brings along."""

    def __init__(self, me: str, life: int, terms: Terms, read: Read, read_card: ReadCard, welcome: bytes = b"") -> None:
        self.me = me
        self.life = life
        self.terms = terms
        self.welcome = welcome
        self.peers: dict[str, Peer] = {}
        self._read = read
        self._read_card = read_card
        # The highest life of each name that was lost.
        self._lost: dict[str, int] = {}
        # The life of each name that was turned away, and may not have heard that.
        self._away: dict[str, int] = {}
        # Connections that have said nothing yet, by when they came; and whose the others are.
        self._silent: dict[Connection, float] = {}
        self._owners: dict[Connection, Peer] = {}
        # When something last happened here, and for how long nothing could: this end itself stood still.
        self._last_at = float("inf")
        self._missed_s = 0.0

    # -- connections

    def opened(self, connection: Connection, now: float) -> None:
        self._silent[connection] = self._here(now)

    def broke(self, connection: Connection, now: float) -> None:
        self._silent.pop(connection, None)
        peer = self._owners.pop(connection, None)
        if peer is not None:
            peer.connection, peer.broken_at = None, self._here(now)

    def touched(self, connection: Connection, now: float) -> None:
        """Bytes have come, be they a whole frame or not."""
        peer = self._owners.get(connection)
        if peer is not None:
            peer.heard_at = self._here(now)

    def heard(self, connection: Connection, frames: Sequence[Frame], now: float) -> list[Order]:
        orders: list[Order] = []
        peer = self._owners.get(connection)
        try:
            for frame in frames:
                if peer is not None:
                    kind, number, taken, body = frame
                    numbers = peer.numbers
                    numbers.acknowledge(taken)
                    if kind in (MESSAGE, PART):
                        message = numbers.take(kind, number, body, self._read)
                        if message is not None:
                            peer.wants_state = False
                            orders.append(Heard(peer.name, message))
                    elif kind == PULSE:
                        orders.append(Pulsed(peer.name, body))
                    else:
                        raise ProtocolError(f"a frame of kind {kind} in the midst of a conversation")
                elif connection in self._silent:
                    self._greet(connection, frame, now, orders)
                    peer = self._owners.get(connection)
        except ProtocolError as error:
            orders.append(self._close(connection, now, str(error), is_garbled=True))
            peer = None
        if peer is not None:
            peer.heard_at = self._here(now)
            if peer.numbers.num_sent != peer.numbers.num_kept:
                orders += self._due(peer)
            if peer.numbers.owes_word:
                orders.append(Send(connection, peer.numbers.pulse()))
        return orders

    def _close(self, connection: Connection, now: float, detail: str, *, is_garbled: bool = False) -> Close:
        self.broke(connection, now)
        return Close(connection, detail, is_garbled)

    # -- hellos

    def _greet(self, connection: Connection, frame: Frame, now: float, orders: list[Order]) -> None:
        kind, _, taken, body = frame
        if kind != HELLO:
            raise ProtocolError(f"the first word of a connection is a frame of kind {kind} and no hello")
        hello = hello_from(body)
        refusal, card = self._refusal(hello, taken)
        if refusal is not None:
            orders += [Send(connection, refusal.pack()), self._close(connection, now, refusal.detail)]
            return
        peer = self.peers.get(hello.name)
        if peer is not None and peer.life == hello.life and hello.connection <= peer.connection_number:
            orders.append(self._close(connection, now, f"{hello.name} has opened a newer connection"))
            return
        is_new = peer is None or peer.life != hello.life
        if peer is not None and is_new:
            orders += self.lose(peer.name, f"it started anew as {hello.life}", now)
        if peer is None or is_new:
            self._away.pop(hello.name, None)
            peer = self.peers[hello.name] = Peer(hello.name, hello.life, Numbers(self.terms), self._here(now))
            peer.wants_state = hello.has_state
        self._adopt(peer, connection, hello, now, orders)
        if hello.peer_life == self.life:
            peer.numbers.acknowledge(taken)
        orders.append(Met(peer.name, peer.life, is_new, peer.wants_state, card))

    def _adopt(self, peer: Peer, connection: Connection, hello: Hello, now: float, orders: list[Order]) -> None:
        """This connection of the peer is the one that counts from now on."""
        if peer.connection is not None:
            orders.append(self._close(peer.connection, now, f"{peer.name} has opened a newer connection"))
        del self._silent[connection]
        self._owners[connection] = peer
        peer.connection, peer.connection_number = connection, hello.connection
        peer.broken_at, peer.heard_at, peer.was_told = None, self._here(now), True
        peer.numbers.reopen()
        terms = self.terms
        protocol = min(terms.newest_protocol, hello.newest_protocol)
        welcome = Welcome(protocol, self.life, peer.wants_state, terms.silence_s, self.welcome)
        orders.append(Send(connection, welcome.pack(peer.numbers.taken)))

    def _refusal(self, hello: Hello, taken: int) -> tuple[Refusal | None, Any]:
        """Why this hello is not answered; else what it brings along."""
        name, life, terms = hello.name, hello.life, self.terms

        def refused(reason: str, detail: str) -> tuple[Refusal, None]:
            return Refusal(reason, self.life, detail), None

        if hello.peer != self.me:
            return refused("another", f"{name} calls {hello.peer}, and here is {self.me}")
        if terms.oldest_protocol > hello.newest_protocol or hello.oldest_protocol > terms.newest_protocol:
            spoken = f"{hello.oldest_protocol} to {hello.newest_protocol}"
            ours = f"{terms.oldest_protocol} to {terms.newest_protocol}"
            return refused("protocol", f"{self.me} speaks protocol {ours}, {name} {spoken}; install the same Quire")
        if hello.peer_life > self.life:
            return refused("old", f"this is life {self.life} of {self.me}, and {name} has met {hello.peer_life}")
        if life <= self._lost.get(name, 0):
            return refused("lost", f"life {life} of {name} was declared lost; come with a higher one")
        peer = self.peers.get(name)
        if peer is not None and peer.life > life:
            return refused("outlived", f"{name} lives as {peer.life}; this is {life}")
        is_known = peer is not None and peer.life == life
        if hello.peer_life == self.life and not is_known and not hello.is_anew:
            if self._away.get(name) == life:
                return refused("away", f"life {life} of {name} was turned away; begin anew")
            return refused("lost", f"life {life} of {name} is not known here any more; come with a higher one")
        if is_known and peer is not None and taken > peer.numbers.said and hello.peer_life == self.life:
            return refused("numbers", f"{name} has taken {taken} frames, and was said {peer.numbers.said}")
        try:
            return None, self._read_card(name, life, hello.card)
        except Exception as error:
            return refused("card", f"{name}: {unreadable(hello.card, error)}")

    # -- words

    def say(self, name: str, message: bytes, now: float) -> list[Order]:
        """To a peer that is not lost, over whatever connection it has now or next. Raises ProtocolError where it is too
        large for any link."""
        peer = self.peers[name]
        peer.numbers.say(message)
        if peer.numbers.is_full:
            return self.lose(name, f"it has not taken {peer.numbers.kept_bytes:,} bytes", now)
        return self._due(peer)

    def _due(self, peer: Peer) -> list[Order]:
        connection = peer.connection
        if connection is None:
            return []
        frames = peer.numbers.due()
        if frames:
            peer.was_told = True
        return [Send(connection, frame) for frame in frames]

    # -- silence

    def tick(self, now: float) -> list[Order]:
        """Called `PULSES` times in `Terms.silence_s`: who is gone, and a pulse for those who were told nothing."""
        terms, orders, here = self.terms, list[Order](), self._here(now)
        for connection, since in list(self._silent.items()):
            if here - since > terms.silence_s:
                orders.append(self._close(connection, now, "it has not said who it is"))
        for peer in list(self.peers.values()):
            silent_s = here - peer.heard_at
            if silent_s > terms.silence_s and terms.loses:
                orders += self.lose(peer.name, f"nothing was heard of it for {silent_s:.1f} s", now)
            elif silent_s > terms.silence_s and peer.connection is not None:
                orders.append(self._close(peer.connection, now, f"{peer.name} said nothing for {silent_s:.1f} s"))
            elif peer.broken_at is not None and terms.broken_s is not None and here - peer.broken_at > terms.broken_s:
                detail = f"its connection broke and has not come back for {here - peer.broken_at:.1f} s"
                orders += self.lose(peer.name, detail, now)
            elif peer.connection is not None and not peer.was_told:
                orders.append(Send(peer.connection, peer.numbers.pulse()))
            peer.was_told = False
        return orders

    def _here(self, now: float) -> float:
        """Time as this end has listened: that in which it stood still counts as nobody's silence."""
        pulse_s = self.terms.silence_s / PULSES
        missed_s = now - self._last_at - pulse_s
        self._last_at = now
        if missed_s > pulse_s:
            self._missed_s += missed_s
        return now - self._missed_s

    def lose(self, name: str, detail: str, now: float) -> list[Order]:
        """This life of the peer is over."""
        peer = self.peers.pop(name)
        self._lost[name] = peer.life
        orders: list[Order] = [PeerLost(name, peer.life, detail)]
        if peer.connection is not None:
            orders.append(self._close(peer.connection, now, f"{name} is lost: {detail}"))
        return orders

    def turn_away(self, name: str, detail: str, now: float) -> list[Order]:
        """As things are this peer is of no use here: it is as if it had never come, and may come again."""
        peer = self.peers.pop(name)
        self._away[name] = peer.life
        if peer.connection is None:
            return []
        refusal = Refusal("away", self.life, detail)
        return [Send(peer.connection, refusal.pack()), self._close(peer.connection, now, f"{name} is turned away")]

    def check(self) -> None:
        """Raises AssertionError if anything here does not fit together."""
        terms, here = self.terms, self._last_at - self._missed_s
        # A tick may be as late as is not counted as standing still.
        late_s = 2 * terms.silence_s / PULSES
        for since in self._silent.values():
            assert 0 <= here - since <= terms.silence_s + late_s, (
                f"a stranger is silent since {since}, and it is {here}"
            )
        for peer in self.peers.values():
            if terms.loses or peer.connection is not None:
                assert 0 <= here - peer.heard_at <= terms.silence_s + late_s, f"{peer.name} is silent, and is kept"
            if terms.broken_s is not None and peer.broken_at is not None:
                assert 0 <= here - peer.broken_at <= terms.broken_s + late_s, f"{peer.name} is away, and is kept"
        for connection, owner in self._owners.items():
            assert self.peers.get(owner.name) is owner and owner.connection == connection, owner.name
            assert connection not in self._silent, owner.name
        for peer in self.peers.values():
            assert peer.life > self._lost.get(peer.name, 0), f"{peer.name} is lost as {peer.life}"
            assert peer.connection is None or self._owners.get(peer.connection) is peer, peer.name
            assert (peer.connection is None) == (peer.broken_at is not None), peer.name
            peer.numbers.check()
