"""What a door keeps: entries by route and name, when something of each is due, what they cost, and what is to be told.

How an entry comes and how it ends stands here; what leads to that is the clients' (`door.py`) and the scheduler's
(`notices.py`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from cluster.errors import Aborted, QuireError, WorkFailed
from cluster.gateway.door.entry import Entry
from cluster.gateway.door.quotas import Quotas, num_asked
from cluster.gateway.door.unread import Unread, UnreadBounds
from cluster.messages import (
    Adopt,
    Cancel,
    Claim,
    Closed,
    Find,
    Found,
    GatewayState,
    OpenRequest,
    Pin,
    Sealed,
    StopAt,
    Submit,
)
from cluster.messages.resume import why_replaced

ToldEvent: TypeAlias = Submit | Cancel | StopAt | Sealed | Closed | Adopt | Find | Claim | Pin | GatewayState

ROUTE_BITS = 32
"""A route is `life << ROUTE_BITS | number`: routes of an earlier life of a gateway mean nothing to this one."""

CLOSE_AFTER_S = 1.0
"""The scheduler is told a little later that it may forget a request: what was written last may die with this process on
its way to the client, who then asks another gateway for it."""


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Of one door. Times in seconds."""

    gateway: str
    life: int = 1
    max_open: int = 20_000
    # A request that the scheduler has not taken by then is given up.
    accept_timeout_s: float = 30.0
    unread: UnreadBounds = field(default_factory=UnreadBounds)


@dataclass(slots=True)
class Orders:
    """What is to be told: events to the scheduler in this order; entries that have news, or are gone, to whoever shows
    them; pins that are warm (None) or refused; what was looked for and is found or refused."""

    events: list[ToldEvent] = field(default_factory=list)
    news: dict[int, Entry] = field(default_factory=dict)
    pins: list[tuple[int, QuireError | None]] = field(default_factory=list)
    found: list[tuple[int, Found | QuireError]] = field(default_factory=list)


class Kept:
    """All that one door knows. The clients' rules and the scheduler's share it."""

    def __init__(self, settings: DoorSettings) -> None:
        self.settings = settings
        self.entries: dict[int, Entry] = {}
        self.by_id: dict[str, Entry] = {}
        self.pins: dict[int, Pin] = {}
        # Requests that clients name who come back, and that are not known here.
        self.finds: dict[int, Find] = {}
        # Requests that went on through another gateway, as they were here, and until when they are remembered.
        self.handed: dict[int, tuple[float, OpenRequest]] = {}
        self.unread = Unread(settings.unread)
        self.quotas = Quotas()
        # Closed is said of these from then on.
        self.closing: list[tuple[float, Closed]] = []
        # A heap of times and routes.
        self.deadlines: list[tuple[float, int]] = []
        self.orders = Orders()
        self._num_routes = (settings.life & 0x7FFF_FFFF) << ROUTE_BITS

    # -- what is to be told

    def take_orders(self) -> Orders:
        orders, self.orders = self.orders, Orders()
        return orders

    def tell(self, event: ToldEvent) -> None:
        self.orders.events.append(event)

    def news(self, entry: Entry) -> None:
        self.orders.news[entry.route] = entry

    # -- one comes, and is due

    def enter(self, submit: Submit, grace_s: float, now: float) -> Entry:
        submit = replace(submit, gateway=self.settings.gateway, route=self.next_route())
        entry = Entry(submit, grace_s)
        self.entries[entry.route] = self.by_id[submit.request_id] = entry
        self.wait(entry, now + self.settings.accept_timeout_s)
        return entry

    def is_of_this_life(self, route: int) -> bool:
        return route >> ROUTE_BITS == self.settings.life & 0x7FFF_FFFF

    def next_route(self) -> int:
        self._num_routes += 1
        return self._num_routes

    def wait(self, entry: Entry, until: float) -> None:
        entry.waits_until = until
        heapq.heappush(self.deadlines, (until, entry.route))

    def set_grace(self, entry: Entry, until: float) -> None:
        entry.grace_until = until
        heapq.heappush(self.deadlines, (until, entry.route))

    # -- one ends

    def settle(self, entry: Entry, now: float) -> None:
        """Notes when an answer is complete; one that nobody waits for is then closed."""
        if entry.done is None or not entry.log.is_complete or entry.is_gone:
            return
        entry.waits_until = None
        failed = entry.log.failed
        if failed is not None and entry.failure is None and not entry.is_cancelled:
            # As the scheduler says too, unless it died before anybody heard that.
            self.fail(entry, WorkFailed(failed.detail or f"a worker could not go on with {entry.client_id}"))
        if entry.ended is None:
            entry.ended = now
        if not entry.is_read and (entry.failure is not None or entry.is_cancelled):
            self.close(entry, now)

    def refuse_others(self, entry: Entry, now: float) -> None:
        """What its client has and this gateway never had nobody knows of: other weights than those that it was asked of
        would go on with another answer."""
        before, digest = entry.digest_before, entry.submit.digest
        if entry.is_behind and before and before != digest and entry.failure is None and entry.ended is None:
            self.drop(entry, Aborted(why_replaced(entry.submit.model, before, digest)), now)

    def abandon(self, entry: Entry, now: float) -> None:
        """Nobody waits for it any more: what still runs is cancelled, and closed here when the scheduler says Done."""
        if entry.ended is not None:
            self.close(entry, now)
            return
        entry.is_cancelled = True
        entry.log.abort()
        self.tell(entry.given_up())
        self.settle(entry, now)
        self.news(entry)

    def drop(self, entry: Entry, error: QuireError, now: float) -> None:
        """This gateway gives the request up."""
        self.fail(entry, error)
        self.tell(entry.given_up())
        if entry.accepted is None:
            self.forget(entry)
        else:
            self.settle(entry, now)

    def fail(self, entry: Entry, error: QuireError) -> None:
        entry.waits_until = None
        entry.failure = error
        entry.log.abort()
        self.news(entry)

    def close(self, entry: Entry, now: float) -> None:
        self.forget(entry)
        self.closing.append((now + CLOSE_AFTER_S, Closed(*entry.place)))

    def forget(self, entry: Entry, *, goes_on: bool = False) -> None:
        """Nothing more is said of it: not by this gateway, nor to it. `goes_on`: another gateway has it, where it costs
        its tenant nothing."""
        is_new = not entry.is_gone
        if is_new:
            # What was written costs its tenant, had anybody read it or not.
            num_written = entry.log.num_tokens + entry.log.num_dropped
            unwritten = num_asked(entry.submit) - len(entry.submit.prompt) - num_written
            self.quotas.leave(entry.submit, 0 if entry.is_adopted or goes_on else unwritten)
        self.entries.pop(entry.route, None)
        if self.by_id.get(entry.request_id) is entry:
            del self.by_id[entry.request_id]
        self.unread.set(entry, 0)
        entry.is_gone = True
        self.news(entry)
        if is_new and not entry.is_read:
            part(entry)


def part(entry: Entry) -> None:
    """It is gone, and so is its last stream. They name each other: taken apart they are freed at once, without the
    collector."""
    del entry.reader.entry
