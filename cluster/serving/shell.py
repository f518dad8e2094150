"""The shell around the scheduler: gives it events and the time, and carries its orders to whoever they are for.

One asyncio loop owns it. Servers post events; a turn takes everything that is queued, so under load turns grow instead
of queues. Links (one per replica, one per gateway) are registered here by the servers that hold the streams. The shell
decides nothing; it is all that has a clock.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable

from cluster.centre.journal import JournalWriter
from cluster.centre.scheduler import Scheduler
from cluster.messages import Event, Expel, GiveUp, Order, Plan, Tick, TurnAway
from cluster.settings import SchedulerSettings
from cluster.watching.metrics import TURN_BOUNDS, Histogram
from cluster.wire.front import Notice

log = logging.getLogger(__name__)

# Events of one turn at most: what is behind them waits for the next, which follows at once.
MAX_EVENTS = 4096
IDLE_S = 1.0
# Notes about replicas and host pools, as the log tells them; the others are about requests.
ABOUT_MEMBERS = {"lost": "is lost", "left": "has left", "turned away": "is turned away"}


def tune_collector() -> None:
    """The scheduler leaves next to nothing to Python's collector, so what has survived once is looked at again rarely:
    with a hundred thousand requests alive that takes a second. New objects are looked at by the thousand, because
    each look is a pause of a turn: a thousand take about 1 ms. What is alive now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 5_000, 1_000)


class SchedulerShell:
    """Runs turns. `post` may be called from the loop's thread only."""

    def __init__(self, settings: SchedulerSettings, epoch: int, journal: JournalWriter | None = None) -> None:
        self.scheduler = Scheduler(settings, epoch)
        self.started_at = time.monotonic()
        self.num_turns = 0
        self.turn_seconds = 0.0
        self.longest_turn_s = 0.0
        self.turns = Histogram(TURN_BOUNDS)
        self._num_notes = 0
        # By replica: takes plans. By host pool: takes what is given up. By gateway: takes notices.
        self.replica_links: dict[str, Callable[[Plan], None]] = {}
        self.pool_links: dict[str, Callable[[GiveUp], None]] = {}
        # Tells a replica that it can't join; set by whoever holds their streams.
        self.turn_away: Callable[[TurnAway], None] = lambda order: None
        # Closes the stream of a replica that told what cannot be so; set likewise.
        self.expel: Callable[[Expel], None] = lambda order: None
        self.gateway_links: dict[str, Callable[[Notice], None]] = {}
        # Called after every turn, for whoever watches.
        self.after_turn: list[Callable[[], None]] = []
        self._journal = journal
        self._events: list[Event] = []
        self._wake = asyncio.Event()

    @property
    def now(self) -> float:
        return time.monotonic()

    def post(self, event: Event) -> None:
        self._events.append(event)
        self._wake.set()

    async def run(self) -> None:
        """Turns until cancelled. An error of the machine itself ends the process: the next one rebuilds."""
        try:
            while True:
                await self._something_due()
                events, self._events = self._events[:MAX_EVENTS], self._events[MAX_EVENTS:]
                if not self._events:
                    self._wake.clear()
                self._turn(events or [Tick()])
                # Streams get their turn even when events keep coming.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self._journal is not None:
                self._journal.close()
            raise

    async def _something_due(self) -> None:
        due = self.scheduler.next_deadline
        wait_s = IDLE_S if due is None else min(IDLE_S, max(0.0, due - self.now))
        if not self._wake.is_set():
            try:
                await asyncio.wait_for(self._wake.wait(), wait_s)
            except TimeoutError:
                return

    def _turn(self, events: list[Event]) -> None:
        began = time.perf_counter()
        now = self.now
        if self._journal is not None:
            self._journal.begin(events, now)
        orders = self.scheduler.turn(events, now)
        for order in orders:
            self._carry(order)
        seconds = time.perf_counter() - began
        self.num_turns += 1
        self.turn_seconds += seconds
        self.longest_turn_s = max(self.longest_turn_s, seconds)
        self.turns.observe(seconds)
        if self.scheduler.notes.num_notes != self._num_notes:
            self._log_notes()
        if self._journal is not None:
            self._write_down(self._journal, orders)
        for watcher in self.after_turn:
            watcher()

    def _write_down(self, journal: JournalWriter, orders: list[Order]) -> None:
        journal.end(orders)
        if journal.stopped:
            # A full disk stops nobody: it is said once.
            log.warning("%s; the scheduler goes on without one", journal.stopped)
            self._journal = None

    def _log_notes(self) -> None:
        for note in self.scheduler.notes.since(self._num_notes):
            if note.kind in ABOUT_MEMBERS:
                level = logging.WARNING if note.kind == "lost" else logging.INFO
                log.log(level, "%s %s: %s", note.subject, ABOUT_MEMBERS[note.kind], note.why)
            else:
                log.info("%s: %s", note.kind, note.why, extra={"request_id": note.subject})
        self._num_notes = self.scheduler.notes.num_notes

    def _carry(self, order: Order) -> None:
        """To the link that it is for. Without one the receiver is gone, and the scheduler hears of that by an event."""
        if isinstance(order, Plan):
            link = self.replica_links.get(order.replica)
            if link is not None:
                link(order)
        elif isinstance(order, TurnAway):
            self.turn_away(order)
        elif isinstance(order, Expel):
            self.expel(order)
        elif isinstance(order, GiveUp):
            pool = self.pool_links.get(order.pool)
            if pool is not None:
                pool(order)
        else:
            notify = self.gateway_links.get(order.gateway)
            if notify is not None:
                notify(order)
