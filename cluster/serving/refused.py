"""Says in the log who was refused at a door: at once the first time, and then at most once a minute, with a count.

Whoever knocks without end fills no disk with it. It keeps machines and words of ours, never a token.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY_S = 60.0
MAX_MACHINES = 1_024


class RefusedCallers:
    """Of one process. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When this machine was last told of at this door, and how often it was refused since.
        self._known: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def note(self, door: str, machine: str, why: str) -> None:
        """`door`: what for; `machine`: where from."""
        key, now = (door, machine), self._clock()
        told, count = self._known.pop(key, (-EVERY_S, 0))
        if now - told < EVERY_S:
            self._known[key] = told, count + 1
            return
        more = f" ({count:,} more times since it was last said)" if count else ""
        log.warning("%s was refused to %s: %s%s", door, machine or "somebody", why, more)
        self._known[key] = now, 0
        if len(self._known) > MAX_MACHINES:
            self._known.popitem(last=False)


refused = RefusedCallers()
"""This process's."""
