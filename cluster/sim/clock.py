"""Virtual time: the event loop of a simulated cluster, and the processes that live in it.

It owns the order in which things happen; every part of the simulator schedules its work here. It never reads a real
clock and holds no randomness, so that the same calls give the same order: events at one time run as they were added.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

Action: TypeAlias = Callable[..., None]


class Clock:
    """A heap of (time, number, action). `now` is the time of the event that runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_events = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when: float, action: Action, *args: Any) -> None:
        assert when >= self.now, f"an event at {when} was added at {self.now}"
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, action, args))

    def after(self, delay_s: float, action: Action, *args: Any) -> None:
        self.at(self.now + delay_s, action, *args)

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Runs events in order until `done()` holds, the heap is empty, or the next event lies behind `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until and not done():
            self.now, _, action, args = heapq.heappop(heap)
            self.num_events += 1
            action(*args)


class Process:
    """Something that can die, or stop and wake up late. All that it does is called through `run` or its timers.

    A stopped process keeps what comes to it, as the kernel keeps a socket's bytes, and does all of it when it wakes
    up: that is how a late writer happens.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.alive = True
        self.stopped = False
        # When it last went on after standing still.
        self.woke_at = float("-inf")
        self._kept: list[tuple[Action, tuple[Any, ...]]] = []

    def run(self, action: Action, *args: Any) -> None:
        if not self.alive:
            return
        if self.stopped:
            self._kept.append((action, args))
            return
        action(*args)

    def after(self, delay_s: float, action: Action, *args: Any) -> None:
        """A timer of this process: it does not fire in a dead one, and fires late in a stopped one."""
        self.clock.after(delay_s, self.run, action, *args)

    def stop(self) -> None:
        self.stopped = True

    def wake(self) -> None:
        self.stopped = False
        self.woke_at = self.clock.now
        kept, self._kept = self._kept, []
        for index, (action, args) in enumerate(kept):
            if self.stopped:
                self._kept.extend(kept[index:])
                return
            self.run(action, *args)

    def die(self) -> None:
        self.alive = False
        self._kept = []
