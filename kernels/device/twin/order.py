"""When work of the twin is done: streams, events, and a schedule that lets it be as late as they allow.

Work is issued to a stream and done later: when the host waits for it, or when the schedule's dice say that the device
has come on. Work of one stream is done in order; between streams only events order anything. One lock guards it all,
and whichever thread waits does the work.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

# So much may be issued and not done; a real device makes the host wait then too.
MOST_PENDING = 20_000
# How likely it is, whenever something is issued, that the device does one more piece of work; by schedule.
HASTES = (0.0, 0.5, 0.02, 0.2, 0.8, 0.0, 0.05, 1.0)


class OrderFault(AssertionError):
    """What would have gone wrong on a real device, most often without a word."""


@dataclass(slots=True, eq=False)
class Order:
    """The streams of one process and how far each has come."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    # Those with work that is not done, in the order in which they came to have some.
    busy: list[TwinStream] = field(default_factory=list)
    # The one whose work becomes a graph.
    capturing: TwinStream | None = None
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    haste: float = 0.0
    # What was done so far: single launches and replays, and times the host waited.
    num_launches: int = 0
    num_waits: int = 0
    num_bytes: int = 0

    def schedule(self, seed: int) -> None:
        """From here on the device is as late as this seed says; 0: as late as can be."""
        with self.lock:
            self.busy = [stream for stream in self.busy if stream.give_up()]
            self.dice = random.Random(seed)
            self.haste = HASTES[seed % len(HASTES)]

    def finish(self, index: int | None = None) -> None:
        """Does all that was issued, on one card or all."""
        for stream in list(self.busy):
            if index is None or stream.index == index:
                stream.catch_up()

    def come_on(self) -> None:
        """The device may have done some of its work meanwhile."""
        while self.haste and self.busy and self.dice.random() < self.haste:
            stream = self.dice.choice(self.busy)
            stream.reach(stream.num_done + 1)


class TwinStream:
    """See `contract.Stream`."""

    def __init__(self, order: Order, index: int) -> None:
        self.index = index  # of the device
        self.order = order
        self.pending: deque[Callable[[], object]] = deque()
        self.num_issued = self.num_done = 0
        # Where work goes instead while it is captured.
        self.tape: list[Callable[[], object]] | None = None

    def issue(self, work: Callable[[], object], *, is_taped: bool = True) -> None:
        """Work that is done some time after what was issued before; or, in a capture, whenever the graph runs."""
        if self.tape is not None and is_taped:
            self.tape.append(work)
            return
        if not self.pending:
            self.order.busy.append(self)
        self.pending.append(work)
        self.num_issued += 1
        if len(self.pending) > MOST_PENDING:
            self.reach(self.num_issued - MOST_PENDING // 2)
        self.order.come_on()

    def reach(self, number: int) -> None:
        """Does what is issued up to there, and whatever that waits for."""
        while self.num_done < number:
            work = self.pending.popleft()
            if not self.pending:
                self.order.busy.remove(self)
            self.num_done += 1
            work()

    def catch_up(self) -> None:
        self.reach(self.num_issued)

    def give_up(self) -> bool:
        """What is pending will never be done: whoever issued it is gone."""
        self.num_done += len(self.pending)
        self.pending.clear()
        return False

    def wait_for(self, other: object) -> None:
        assert isinstance(other, TwinStream)
        with self.order.lock:
            if self.tape is not None or other.tape is not None:
                raise OrderFault("streams were ordered inside a capture, which would become a part of it")
            number = other.num_issued
            self.issue(lambda: other.reach(number))

    def wait(self) -> None:
        with self.order.lock:
            self.host_waits()
            self.catch_up()

    def host_waits(self) -> None:
        """The host is about to wait for this stream."""
        if self.order.capturing is not None:
            raise OrderFault("the host waits for the device inside a capture")
        self.order.num_waits += 1
        self.order.come_on()


class TwinEvent:
    """See `contract.Event`."""

    def __init__(self, current: Callable[[], TwinStream]) -> None:
        self._current = current
        self._stream: TwinStream | None = None
        self._number = 0

    def record(self, stream: object = None) -> None:
        chosen = self._current() if stream is None else stream
        assert isinstance(chosen, TwinStream)
        with chosen.order.lock:
            if chosen.tape is not None:
                raise OrderFault("an event was recorded inside a capture: it comes in no replay")
            self._stream, self._number = chosen, chosen.num_issued

    def wait(self) -> None:
        stream = self._stream
        if stream is None:
            # A real one that was never recorded is over at once.
            return
        with stream.order.lock:
            stream.host_waits()
            stream.reach(self._number)
