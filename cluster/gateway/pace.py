"""How often streams may be written to, at every door of a gateway."""

from __future__ import annotations

import asyncio
import time

MAX_GAP_S = 0.040


class Pace:
    """How soon a stream may write again, so that all streams together write no more than `rate` messages a second.

    What arrives before that is merged into the next message. The wait is never longer than `MAX_GAP_S`, however many
    streams there are, and a lone stream does not notice it.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.num_streams = 0

    @property
    def gap_s(self) -> float:
        """The least time between two messages of one stream."""
        return min(MAX_GAP_S, self.num_streams / self._rate)

    async def wait(self, wrote_at: float) -> None:
        left_s = wrote_at + self.gap_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
