"""How often streams may be written to, at every door of a gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

MAX_GAP_S = 0.040


class Pace:
    """How soon a stream may write again, so that all that write together write no more than `rate` messages a second.

    What arrives before that is merged into the next message. The wait is never longer than `MAX_GAP_S`, however many
    streams there are, and a lone stream does not notice it, nor that others are open and have nothing to say. All write
    at the same times, a gap apart, so that gateway and clients wake once for many messages.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.num_writing = 0
        # Who writes then, by time.
        self._turns: dict[float, list[Callable[[], None]]] = {}

    @property
    def gap_s(self) -> float:
        """The most time until a stream that has written may write again."""
        return min(MAX_GAP_S, self.num_writing / self._rate)

    def call(self, write: Callable[[], None], wrote_at: float) -> None:
        """Calls once a stream that wrote last at this time may write again, which may be now."""
        gap_s = self.gap_s
        at = (wrote_at // gap_s + 1) * gap_s if gap_s else wrote_at
        if at in self._turns:
            self._turns[at].append(write)
            return
        left_s = at - time.monotonic()
        if left_s <= 0:
            write()
            return
        self._turns[at] = [write]
        asyncio.get_running_loop().call_later(left_s, self._turn, at)

    def _turn(self, at: float) -> None:
        for write in self._turns.pop(at):
            write()


class PacedStream:
    """One stream: it counts from its first tokens on, until it `rests`."""

    __slots__ = ("_pace", "_writes", "_wrote_at")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._wrote_at = 0.0
        self._writes = False

    def call(self, write: Callable[[], None]) -> None:
        """Calls once it may write, which may be now."""
        self._pace.call(write, self._wrote_at)

    def writes(self) -> None:
        """Tokens go out now."""
        self._wrote_at = time.monotonic()
        self._pace.num_writing += not self._writes
        self._writes = True

    def rests(self) -> None:
        """It has nothing more to write, or not for now."""
        self._pace.num_writing -= self._writes
        self._writes = False
