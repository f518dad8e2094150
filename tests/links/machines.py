"""A dialer and a listener with bytes between them, which the test carries, holds back, cuts and loses as it likes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cluster.links.dialer import Dialer
from cluster.links.frames import FrameBuffer
from cluster.links.listener import Listener
from cluster.links.terms import PULSES, Close, Heard, Met, Order, PeerLost, RefusedByPeer, Send, Terms

TERMS = Terms(1, 1, silence_s=4.0, broken_s=1.0, part_bytes=8, max_message_bytes=1000)
SILENT = 3.9


@dataclass
class Wire:
    """One connection: bytes on their way up (to the listener) and down."""

    number: int
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    up_frames: FrameBuffer = field(default_factory=FrameBuffer)
    down_frames: FrameBuffer = field(default_factory=FrameBuffer)
    # Which end still holds it open.
    at_listener: bool = True
    at_dialer: bool = True


def frames_of(buffer: FrameBuffer, raw: bytes) -> list[Any]:
    room = buffer.room()
    room[: len(raw)] = raw
    return buffer.took(len(raw))


class Pair:
    """Both ends. `piece`: so many bytes arrive at a time; 0: as they were sent."""

    def __init__(self, terms: Terms = TERMS, *, piece: int = 0, has_state: bool = True) -> None:
        self.now = 0.0
        self.terms = terms
        self.piece = piece
        self.dialer = Dialer("d", 1, "l", terms, bytes, has_state=has_state)
        self.listener = self.new_listener(1)
        self.wires: list[Wire] = []
        self.up: list[bytes] = []  # what the listener heard
        self.down: list[bytes] = []  # what the dialer heard
        self.met_below: list[Met] = []
        self.met_above: list[Met] = []
        self.lost: list[PeerLost] = []
        self.refused: list[RefusedByPeer] = []
        self.closed: list[Close] = []
        # What the dialer holds: it is told whenever a listener asks.
        self.state = b"state"
        self.num_steps = 0

    def new_listener(self, life: int) -> Listener:
        return Listener("l", life, self.terms, bytes, lambda name, life, raw: bytes(raw), b"welcome card")

    @property
    def wire(self) -> Wire | None:
        """The connection that the dialer has."""
        return self.wires[-1] if self.wires and self.wires[-1].at_dialer else None

    # -- what ends do

    def open(self) -> None:
        wire = Wire(len(self.wires) + 1)
        self.wires.append(wire)
        self.listener.opened(wire.number, self.now)
        self._send(wire.up, self.dialer.open(b"card", self.now))

    def say_up(self, message: bytes) -> None:
        for frame in self.dialer.say(message):
            self._send(self.wires[-1].up, frame)

    def say_down(self, message: bytes) -> None:
        if "d" in self.listener.peers:
            self._listener_does(self.listener.say("d", message, self.now))

    def tick(self, seconds: float) -> None:
        """So long passes, with a tick for every pulse in it."""
        until, pulse_s = self.now + seconds, self.terms.silence_s / PULSES
        while self.now < until:
            self.now = min(until, self.now + pulse_s)
            if self.wire is not None:
                for frame in self.dialer.pulse():
                    self._send(self.wire.up, frame)
            self._dialer_does(self.dialer.silence(self.now))
            self._listener_does(self.listener.tick(self.now))

    # -- what the network does

    def step(self) -> bool:
        """Something arrives: of the oldest connection that has anything under way. False: nothing is."""
        for wire in self.wires:
            if wire.up and wire.at_listener:
                self._arrive_up(wire)
                return True
            if wire.down and wire.at_dialer:
                self._arrive_down(wire)
                return True
        return False

    def run(self, most: int = 10_000) -> None:
        while self.step():
            self.num_steps += 1
            assert self.num_steps < most, "the two ends go round in circles"
            self.dialer.check()
            self.listener.check()

    def cut(self, *, dialer: bool = True, listener: bool = True, loses: bool = True) -> None:
        """The newest connection breaks: for one end or both, with or without what is under way."""
        if not self.wires:
            return
        wire = self.wires[-1]
        if loses:
            wire.up.clear()
            wire.down.clear()
        if dialer and wire.at_dialer:
            wire.at_dialer = False
            self.dialer.broke()
        if listener and wire.at_listener:
            wire.at_listener = False
            self.listener.broke(wire.number, self.now)

    def _send(self, queue: deque[bytes], frame: bytes) -> None:
        piece = self.piece or len(frame)
        queue.extend(frame[at : at + piece] for at in range(0, len(frame), piece))

    def _arrive_up(self, wire: Wire) -> None:
        frames = frames_of(wire.up_frames, wire.up.popleft())
        self.listener.touched(wire.number, self.now)
        self._listener_does(self.listener.heard(wire.number, frames, self.now))

    def _arrive_down(self, wire: Wire) -> None:
        frames = frames_of(wire.down_frames, wire.down.popleft())
        self.dialer.touched(self.now)
        self._dialer_does(self.dialer.heard(frames))

    # -- orders

    def _listener_does(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Send):
                wire = self._at(order.connection)
                if wire.at_listener:
                    self._send(wire.down, order.frame)
            elif isinstance(order, Close):
                self.closed.append(order)
                self._at(order.connection).at_listener = False
            elif isinstance(order, Met):
                self.met_above.append(order)
            elif isinstance(order, Heard):
                self.up.append(order.message)
            elif isinstance(order, PeerLost):
                self.lost.append(order)

    def _at(self, connection: object) -> Wire:
        assert isinstance(connection, int)
        return self.wires[connection - 1]

    def _dialer_does(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Send):
                assert self.wire is not None
                self._send(self.wire.up, order.frame)
            elif isinstance(order, Close):
                self.closed.append(order)
                self.wires[-1].at_dialer = False
            elif isinstance(order, Met):
                self.met_below.append(order)
                if order.wants_state:
                    for frame in self.dialer.say_state(self.state):
                        self._send(self.wires[-1].up, frame)
            elif isinstance(order, Heard):
                self.down.append(order.message)
            elif isinstance(order, RefusedByPeer):
                self.refused.append(order)
