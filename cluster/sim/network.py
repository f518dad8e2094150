"""The network between simulated processes: connections of bytes that delay, break and half-break by seed.

At both ends of a connection are the machines that ship (`cluster/links/`): a `SimLink` is a dialer and its road to
whoever it calls, a `Called` is a listener with all who call it. What lies between is a socket as TCP has it: bytes come
in order, cut and merged anywhere; a connection that breaks loses all behind some byte, or nothing, and either end hears
of that at once, late, or never. Messages themselves stay here, and their names travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from cluster.errors import ProtocolError
from cluster.links.dialer import Dialer
from cluster.links.frames import Frame, FrameBuffer
from cluster.links.listener import Listener
from cluster.links.terms import PULSES, Close, Order, RefusedByPeer, Send, Terms
from cluster.sim.clock import Clock, Process

SILENCE_S = 1.6
BROKEN_S = 0.9
AWAY_S = 0.3
"""Until whoever was turned away asks again."""
HEARS_S = 4 * SILENCE_S
"""An end that was left with a dead connection is left alone for so long: a client waits for no gateway for ever."""
_NAME_BYTES = 8
_NO_END = float("inf")


def terms(*, loses: bool = False, keeps: bool = False) -> Terms:
    """Bounds so small that messages go in parts, windows are full and words of their own are owed."""
    return Terms(
        1,
        1,
        silence_s=SILENCE_S,
        broken_s=BROKEN_S if loses else None,
        loses=loses,
        keeps=keeps,
        window_bytes=2_000,
        part_bytes=16,
        max_message_bytes=1_000,
        untold_frames=8,
        untold_bytes=200,
    )


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network is: seconds of delay, and chances per write."""

    delay_s: float = 0.001
    slow: float = 0.0  # chance that bytes take up to `slow_s`
    slow_s: float = 0.1
    loss: float = 0.0  # chance that the connection breaks, and what is under way is lost
    double: float = 0.0  # chance that it breaks and all under way arrives, to be sent again nevertheless
    reconnect_s: float = 0.05


class SimWay:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.frames = FrameBuffer()
        self.last_arrival = 0.0
        # What is written now is lost; so is what arrives later than `ends_at`.
        self.is_over = False
        self.ends_at = _NO_END
        # Arrived, and not read yet.
        self.inbox: list[bytes] = []

    def read(self) -> list[Frame]:
        """All frames that are whole. Raises ProtocolError."""
        found: list[Frame] = []
        for piece in self.inbox:
            # The room is 64 KB, of which a history's words fill little before a frame is whole.
            self.frames.room()[: len(piece)] = piece
            found += self.frames.took(len(piece))
        self.inbox.clear()
        return found


class Wire:
    """One connection, from a link to whom it found."""

    def __init__(self, link: SimLink, called: Called) -> None:
        self.link = link
        self.called = called
        self.up, self.down = SimWay(), SimWay()
        # Whatever is written from now on goes nowhere, whether its ends know or not.
        self.is_broken = False


class Called:
    """The end that is called, in one life of `process`. `take` gets what its listener says."""

    def __init__(
        self, network: Network, process: Process, me: str, life: int, terms: Terms, take: Callable[[Order], None]
    ) -> None:
        self.process = process
        self.listener = Listener(me, life, terms, network.read, lambda name, life, raw: network.read(raw))
        self._network = network
        self._take = take
        self._wires: set[Wire] = set()
        # When anything of each peer last arrived.
        self._heard: dict[str, float] = {}
        # A look at silences is due, and has not been taken yet.
        self._is_due = False
        self._tick()

    def check_loss(self, name: str) -> None:
        """Raises AssertionError if this peer was declared lost by its silence and has not been silent."""
        for link in self._network.links:
            if (link.dialer.me, link.dialer.peer) == (name, self.listener.me) and link.has_talked_to(self):
                raise AssertionError(f"{name} was declared lost, and it lives and talks")

    def life_of(self, name: str) -> int:
        """Of a peer that is there; 0: none."""
        peer = self.listener.peers.get(name)
        return 0 if peer is None else peer.life

    def say(self, name: str, message: object) -> None:
        if name in self.listener.peers:
            self._do(self.listener.say(name, self._network.pack(message), self.process.clock.now))

    def lose(self, name: str, life: int, detail: str) -> None:
        if self.life_of(name) == life:
            self._do(self.listener.lose(name, detail, self.process.clock.now))

    def turn_away(self, name: str, life: int, detail: str) -> None:
        if self.life_of(name) == life:
            self._do(self.listener.turn_away(name, detail, self.process.clock.now))

    def hear(self, wire: Wire) -> None:
        """Bytes have arrived, or what has is read now."""
        now = self.process.clock.now
        if wire not in self._wires:
            self._wires.add(wire)
            self.listener.opened(wire, now)
        self.listener.touched(wire, now)
        self._heard[wire.link.dialer.me] = now
        frames = wire.up.read()
        if frames:
            self._do(self.listener.heard(wire, frames, now))

    def broke(self, wire: Wire) -> None:
        """It sees the end of a connection; nothing of it is read any more."""
        self._wires.add(wire)
        self.listener.broke(wire, self.process.clock.now)

    def _do(self, orders: list[Order]) -> None:
        if not orders:
            return
        told: list[Order] = []
        wire: Any
        for order in orders:
            if isinstance(order, Send):
                wire = order.connection
                wire.link.carry(wire, wire.down, order.frame)
            elif isinstance(order, Close):
                assert not order.is_garbled, order.detail
                wire = order.connection
                wire.link.closed_above(wire)
            else:
                told.append(order)
        # What its owner says to that comes behind.
        for order in told:
            self._take(order)

    def _tick(self) -> None:
        if self.process.alive:
            if not self._is_due:
                self._is_due = True
                self.process.run(self._look)
            self.process.clock.after(SILENCE_S / PULSES, self._tick)

    def _look(self) -> None:
        """Of one that wakes up: before it has heard all that came meanwhile."""
        self._is_due = False
        self.listener.check()
        self._do(self.listener.tick(self.process.clock.now))
        self._check_silence()

    def _check_silence(self) -> None:
        """Raises AssertionError if a peer is silent for longer than is borne, and is here all the same."""
        since = self.process.clock.now - 2 * SILENCE_S
        if self.listener.terms.loses and self.process.woke_at < since:
            for name in self.listener.peers:
                assert self._heard[name] >= since, f"{name} is not declared lost, and says nothing"


class SimLink:
    """The end that calls: `find` says whom, as of now; `take` gets what its dialer says."""

    def __init__(
        self,
        network: Network,
        process: Process,
        dialer: Dialer,
        find: Callable[[], Called | None],
        take: Callable[[Order], None],
        card: Callable[[], object] = lambda: None,
    ) -> None:
        self.network = network
        self.process = process
        self.dialer = dialer
        self.random = Random(f"{network.seed}/{dialer.me}.{dialer.life}>{dialer.peer}")
        self.is_cut = self.is_closed = False
        # When it last began, was cut off or lost a connection otherwise than by leaving it itself.
        self._troubled_at = network.clock.now
        self._hears_until = 0.0
        self._is_away = False
        self._find = find
        self._take = take
        self._card = card
        self._wire: Wire | None = None
        network.links.append(self)
        self._dial_after(network.weather.delay_s)
        self._tick()

    def has_talked_to(self, called: Called) -> bool:
        """For longer than any silence is borne nothing has kept this end from being heard there."""
        since, process = self.network.clock.now - 2 * SILENCE_S, self.process
        is_there = process.alive and not process.stopped and not self.is_closed and not self.is_cut
        return is_there and self._find() is called and max(process.woke_at, self._troubled_at) < since

    # -- words

    def say(self, message: object) -> None:
        self._send(self.dialer.say(self.network.pack(message)))

    def say_state(self, message: object) -> None:
        self._send(self.dialer.say_state(self.network.pack(message)))

    def _send(self, frames: list[bytes]) -> None:
        for frame in frames:
            if self._wire is not None:
                self.carry(self._wire, self._wire.up, frame)

    # -- connections

    def close(self) -> None:
        """Its process has died."""
        self.is_closed = True
        self.break_stream(is_told=True)

    def set_cut(self, cut: bool) -> None:
        """Cut the two ends off from each other, or let them find each other again. Nobody is told of either."""
        self.is_cut = cut
        self._troubled_at = self.network.clock.now
        if cut:
            self.break_stream()

    def break_stream(self, *, is_told: bool | None = None, is_late: bool = False) -> None:
        """The connection is gone: with what is under way, or behind some of it, or (`is_late`) behind all of it. Not
        `is_told`: its ends find out by themselves, soon or by the silence."""
        wire, random, weather, clock = self._wire, self.random, self.network.weather, self.network.clock
        if wire is None:
            return
        if wire.is_broken:
            # It was half-open, and whoever calls is told now at last.
            if is_told:
                self.process.run(self._lost_wire, wire)
            return
        wire.is_broken = True
        self._troubled_at = clock.now
        self.network.num_breaks += 1
        for way in (wire.up, wire.down):
            rest_s = 0.0 if self.is_cut else weather.delay_s * 2 * random.random()
            way.ends_at = _NO_END if is_late else clock.now + rest_s
        hears = not self.is_cut and (random.random() < 0.8 or clock.now < self._hears_until)
        if not hears:
            self._hears_until = clock.now + HEARS_S
        if hears if is_told is None else is_told:
            self.process.run(self._lost_wire, wire)
        if is_told or random.random() < 0.7:
            when = max(clock.now, wire.up.last_arrival) + weather.slow_s * random.random()
            clock.at(when, wire.called.process.run, wire.called.broke, wire)

    def _break(self, wire: Wire) -> None:
        if self._wire is wire:
            self.break_stream()

    def closed_above(self, wire: Wire) -> None:
        """The other end has closed this one: what it wrote before still arrives."""
        wire.is_broken = True
        when = max(self.network.clock.now, wire.down.last_arrival) + self.network.weather.delay_s
        self.network.clock.at(when, self.process.run, self._lost_wire, wire)

    def _lost_wire(self, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None
            self.dialer.broke()
            wait_s, self._is_away = AWAY_S if self._is_away else self.network.weather.reconnect_s, False
            self._dial_after(wait_s * (0.5 + self.random.random()))

    def _dial_after(self, delay_s: float) -> None:
        self.process.after(delay_s, self._dial)

    def _dial(self) -> None:
        if self.is_closed or self._wire is not None:
            return
        called = None if self.is_cut else self._find()
        if called is None or not called.process.alive:
            self._dial_after(self.network.weather.reconnect_s * (0.5 + self.random.random()))
            return
        self._wire = Wire(self, called)
        self._send([self.dialer.open(self.network.pack(self._card()), self.process.clock.now)])

    # -- bytes

    def carry(self, wire: Wire, way: SimWay, raw: bytes) -> None:
        """Of either end, to the other."""
        if wire.is_broken or way.is_over:
            return
        weather, drawn, clock = self.network.weather, self.random.random, self.network.clock
        now = clock.now
        if weather.loss and drawn() < weather.loss:
            # What was written before still arrives.
            way.is_over = True
            clock.at(max(way.last_arrival, now) + weather.delay_s, self._break, wire)
            return
        pieces: tuple[bytes, ...] = (raw,)
        if drawn() < 0.06:
            cut = self.random.randrange(1, len(raw))
            pieces = (raw[:cut], raw[cut:])
        for piece in pieces:
            delay = weather.delay_s * (0.2 + 1.6 * drawn())
            if weather.slow and drawn() < weather.slow:
                delay += weather.slow_s * drawn()
            way.last_arrival = max(way.last_arrival, now + delay)
            clock.at(way.last_arrival, self._arrive, wire, way, piece)
        if weather.double and drawn() < weather.double:
            self.break_stream(is_late=True)

    def _arrive(self, wire: Wire, way: SimWay, piece: bytes) -> None:
        if self.network.clock.now <= way.ends_at:
            way.inbox.append(piece)
            process, read = (self.process, self._hear) if way is wire.down else (wire.called.process, wire.called.hear)
            if self.random.random() < 0.1:
                # Whoever reads finds what has come meanwhile too.
                process.after(2 * self.network.weather.delay_s, read, wire)
            else:
                process.run(read, wire)

    def _hear(self, wire: Wire) -> None:
        if self._wire is wire:
            self.dialer.touched(self.process.clock.now)
            frames = wire.down.read()
            if frames:
                self._do(self.dialer.heard(frames))

    def _do(self, orders: list[Order]) -> None:
        if not orders:
            return
        told: list[Order] = []
        self._is_away = any(isinstance(order, RefusedByPeer) and order.reason == "away" for order in orders)
        for order in orders:
            if isinstance(order, Send):
                self._send([order.frame])
            elif isinstance(order, Close):
                assert not order.is_garbled, order.detail
                if self._wire is not None:
                    troubled_at = self._troubled_at
                    self.break_stream(is_told=True, is_late=True)
                    self._troubled_at = troubled_at
                    if self._wire is not None:
                        self._lost_wire(self._wire)
            else:
                told.append(order)
        for order in told:
            self._take(order)

    def _tick(self) -> None:
        if self.process.alive and not self.is_closed:
            if not self.process.stopped:
                self.dialer.check()
                self._send(self.dialer.pulse())
                self._do(self.dialer.silence(self.process.clock.now))
            self.process.clock.after(SILENCE_S / PULSES, self._tick)


def _padding(number: int) -> int:
    """Every eighth message goes in parts."""
    return 0 if number % 8 else 28


class Network:
    """All links of a cluster, under one weather, and the messages that they carry."""

    def __init__(self, clock: Clock, seed: str, weather: Weather) -> None:
        self.clock = clock
        self.seed = seed
        self.weather = weather
        self.links: list[SimLink] = []
        self.num_breaks = 0
        self._messages: list[object] = []

    def pack(self, message: object) -> bytes:
        """Its name, behind which the message lies; some are longer than a part."""
        number = len(self._messages)
        self._messages.append(message)
        return number.to_bytes(_NAME_BYTES, "little") + bytes(_padding(number))

    def read(self, raw: bytes) -> Any:
        number = int.from_bytes(raw[:_NAME_BYTES], "little")
        if len(raw) != _NAME_BYTES + _padding(number):
            raise ProtocolError(f"{len(raw)} bytes are not message {number}")
        return self._messages[number]
