"""The shell around the real scheduler in a simulated cluster: it gathers events, runs turns and hands out orders.

It does what the Ray actor does around the same scheduler: it keeps a monotonic clock (which may jump forward), wakes
the scheduler at its own deadlines, and lets the judge look after every turn. A shell lives for one epoch; the next
scheduler gets a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.centre.scheduler import Scheduler
from cluster.messages import Event, Order, Tick
from cluster.settings import SchedulerSettings
from cluster.sim.clock import Clock, Process

TURN_S = 0.0005
TICK_S = 0.25


class SimShell(Process):
    """One life of the scheduler. `hand_out` gets every order of a turn; `look` is called after it."""

    def __init__(
        self,
        epoch: int,
        settings: SchedulerSettings,
        clock: Clock,
        hand_out: Callable[[Order], None],
        look: Callable[[Scheduler, list[Event], list[Order]], None],
    ) -> None:
        super().__init__("scheduler", clock)
        self.epoch = epoch
        self.scheduler = Scheduler(settings, epoch)
        self.num_turns = 0
        self.busy_s = 0.0
        self.clock_ahead_s = 0.0
        self._hand_out = hand_out
        self._look = look
        self._queue: list[Event] = []
        self._is_due = False
        self._wakes_at: float | None = None
        self.after(TICK_S, self._tick)

    def take(self, event: Event) -> None:
        self._queue.append(event)
        if not self._is_due:
            self._is_due = True
            self.after(TURN_S, self._turn)

    def _tick(self) -> None:
        self.take(Tick())
        self.after(TICK_S, self._tick)

    def _turn(self) -> None:
        self._is_due = False
        events, self._queue = self._queue, []
        began = time.perf_counter()
        orders = self.scheduler.turn(events, self.clock.now + self.clock_ahead_s)
        self.busy_s += time.perf_counter() - began
        self.num_turns += 1
        self._look(self.scheduler, events, orders)
        for order in orders:
            self._hand_out(order)
        self._wake()

    def _wake(self) -> None:
        deadline = self.scheduler.next_deadline
        if deadline is None:
            return
        when = max(self.clock.now, deadline - self.clock_ahead_s)
        if self._wakes_at is None or when < self._wakes_at or self._wakes_at < self.clock.now:
            self._wakes_at = when
            self.clock.at(when, self.run, self.take, Tick())
