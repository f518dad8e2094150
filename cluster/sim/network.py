"""The network between simulated processes: streams that delay, break, resume, double and reorder by seed.

It owns what lies between two ends. A link carries messages both ways in order, as a gRPC stream over TCP does, so a
lost message is a broken stream: nothing behind it arrives either. Once the stream is up again each end sends anew what
the other has not acknowledged, so an end sees messages twice, and sees stragglers of the old stream after those of the
new one. Ends drop by number what they have taken; the link drops nothing for them. It never looks into a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from cluster.sim.clock import Clock, Process


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network is: seconds of delay, and chances per message."""

    delay_s: float = 0.001
    slow: float = 0.0  # chance that a message takes up to `slow_s`
    slow_s: float = 0.1
    loss: float = 0.0  # chance that a message breaks the stream
    double: float = 0.0  # chance that a copy comes later
    reconnect_s: float = 0.05


class Side:
    """One direction of a link: what was sent and not acknowledged, and to whom it goes."""

    def __init__(self, receiver: Process, take: Callable[[int, Any], None]) -> None:
        self.receiver = receiver
        self.take = take
        self.kept: deque[tuple[int, Any]] = deque()
        self.last_arrival = 0.0


class Link:
    """One stream between two processes; `sides[i]` goes to end i. Numbers of messages rise by one in each direction."""

    def __init__(self, network: Network, name: str, ends: tuple[Side, Side]) -> None:
        self.network = network
        self.name = name
        self.sides = ends
        self.stream = 0  # which connection this is; stragglers belong to an older one
        self.up = True
        self.cut = False
        self.closed = False
        self.on_up: Callable[[], None] | None = None
        self.random = Random(f"{network.seed}/{name}")

    def send(self, to: int, number: int, message: object) -> None:
        side = self.sides[to]
        side.kept.append((number, message))
        if self.up and not self.closed:
            self._transmit(side, number, message)

    def acknowledge(self, to: int, number: int) -> None:
        """The other end has all up to `number`: no need to keep it."""
        kept = self.sides[to].kept
        while kept and kept[0][0] <= number:
            kept.popleft()

    def forget(self, to: int) -> None:
        """Numbers of this direction start anew."""
        self.sides[to].kept.clear()

    def close(self) -> None:
        """An end has died: nothing arrives any more in either direction, apart from what the network still holds."""
        self.closed = True
        self.up = False

    def break_stream(self) -> None:
        if not self.up:
            return
        self.up = False
        self.stream += 1
        self.network.num_breaks += 1
        self.network.clock.after(self.network.weather.reconnect_s * (0.5 + self.random.random()), self._reconnect)

    def set_cut(self, cut: bool) -> None:
        """Cut the two ends off from each other, or let them find each other again."""
        self.cut = cut
        if cut:
            self.break_stream()
        elif not self.up and not self.closed:
            self.network.clock.after(self.network.weather.reconnect_s, self._reconnect)

    def _reconnect(self) -> None:
        if self.up or self.cut or self.closed:
            return
        self.up = True
        for side in self.sides:
            for number, message in tuple(side.kept):
                if not self.up:
                    return
                self._transmit(side, number, message)
        if self.on_up is not None:
            self.on_up()

    def _transmit(self, side: Side, number: int, message: object) -> None:
        weather, random, clock = self.network.weather, self.random, self.network.clock
        if weather.loss and random.random() < weather.loss:
            self.break_stream()
            return
        delay = weather.delay_s * (0.2 + 1.6 * random.random())
        if weather.slow and random.random() < weather.slow:
            delay += weather.slow_s * random.random()
        side.last_arrival = max(side.last_arrival, clock.now + delay)
        clock.at(side.last_arrival, self._arrive, side, self.stream, number, message)
        if weather.double and random.random() < weather.double:
            clock.at(side.last_arrival + weather.slow_s * random.random(), self._copy, side, number, message)

    def _arrive(self, side: Side, stream: int, number: int, message: object) -> None:
        # What was under way when a stream broke is lost, or was in the receiver's buffers already and comes late.
        if stream != self.stream and (self.random.random() < 0.6 or self.cut):
            return
        side.receiver.run(side.take, number, message)

    def _copy(self, side: Side, number: int, message: object) -> None:
        if not self.cut:
            side.receiver.run(side.take, number, message)


class Inbox:
    """Takes framed messages of one direction in order, once each, and acknowledges them to the sender's side."""

    def __init__(self, handle: Callable[[Any], None]) -> None:
        self.handle = handle
        self.taken = 0
        self.link: Link | None = None
        self.to = 0

    def bind(self, link: Link, to: int) -> None:
        self.link = link
        self.to = to

    def take(self, number: int, message: object) -> None:
        if number != self.taken + 1:
            return  # seen before, or a straggler with a gap before it: it is sent again
        self.taken = number
        assert self.link is not None
        self.link.acknowledge(self.to, number)
        self.handle(message)


class Network:
    """All links of a cluster, under one weather."""

    def __init__(self, clock: Clock, seed: str, weather: Weather) -> None:
        self.clock = clock
        self.seed = seed
        self.weather = weather
        self.links: dict[str, Link] = {}
        self.num_breaks = 0

    def connect(self, name: str, ends: tuple[Side, Side]) -> Link:
        link = Link(self, name, ends)
        self.links[name] = link
        return link
