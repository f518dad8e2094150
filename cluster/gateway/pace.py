"""How often streams may be written to, at every door of a gateway."""

from __future__ import annotations

import asyncio
import time

MAX_GAP_S = 0.040


class Pace:
    """How soon a stream may write again, so that all that write together write no more than `rate` messages a second.

    What arrives before that is merged into the next message. The wait is never longer than `MAX_GAP_S`, however many
    streams there are, and a lone stream does not notice it, nor that others are open and have nothing to say.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.num_writing = 0

    @property
    def gap_s(self) -> float:
        """The least time between two messages of one stream."""
        return min(MAX_GAP_S, self.num_writing / self._rate)


class PacedStream:
    """One stream: it counts from its first tokens on, until it `rests`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._wrote_at = 0.0
        self._writes = False

    async def wait(self) -> None:
        left_s = self._wrote_at + self._pace.gap_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)

    def writes(self) -> None:
        """Tokens go out now."""
        self._wrote_at = time.monotonic()
        self._pace.num_writing += not self._writes
        self._writes = True

    def rests(self) -> None:
        """It has nothing more to write, or not for now."""
        self._pace.num_writing -= self._writes
        self._writes = False
