"""The books: all that the scheduler knows, and what it tells. Every rule holds them; no rule stands in here.

Requests, replicas, host pools, tenants, the prefix index, clock, counters, notes, and the orders of this turn. Attempts
and arrivals are numbered here, and never twice; pools too, whose numbers are used again.
"""

from __future__ import annotations

import heapq
from collections import Counter

from cluster.centre.computing import Computing
from cluster.centre.ledger import TurnClock
from cluster.centre.notes import Notes
from cluster.centre.nouns import HostPool, Replica, Request
from cluster.centre.prefix import PrefixIndex
from cluster.centre.tenants import Tenants
from cluster.messages import EPOCH_BITS, Departed, Find, Order, Pin, Refused, ReplicaJoined, Submit
from cluster.settings import SchedulerSettings


class Hearing:
    """How long a new scheduler listens: meanwhile nothing is refused for what is not known yet. `Rebuild` ends it."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        # While replicas and gateways report; until when a gateway may still come that has not told what it holds; and a
        # replica that could hold what one before this scheduler had accepted, which no late report puts off.
        self.ends_at: float | None = None
        self._gateways_until: float | None = None
        self.replicas_until = 0.0
        # Requests that a gateway knows and no replica has claimed yet.
        self.unplaced: dict[str, Request] = {}

    def begin_anew(self, now: float) -> None:
        """From a first turn of a later epoch on."""
        self.begin(now)
        self.replicas_until = now + self._settings.rebuild_s + self._settings.replica_return_s

    def begin(self, now: float) -> None:
        """From a late report on."""
        if self.ends_at is None:
            self.ends_at = now + self._settings.rebuild_s
            self._gateways_until = self.ends_at + self._settings.orphan_grace_s

    def may_join(self, now: float) -> bool:
        """A replica may still come that served before this scheduler: one that died with the last one starts anew."""
        return now < self.replicas_until

    def may_hear(self, now: float) -> bool:
        """A gateway may still come that knows of a request which nobody has told of."""
        return self._gateways_until is not None and now <= self._gateways_until

    def rest_s(self, now: float) -> float:
        """How long it is worth to wait for word of a request that is not known."""
        if not self.may_hear(now):
            return 0.0
        return max(0.0 if self.ends_at is None else self.ends_at - now, self._settings.rebuild_s)


class Books(TurnClock):
    """One scheduler's knowledge. Plain dicts, in the order in which things came. They are the clock of all ledgers:
    `now` is the time of the turn."""

    def __init__(self, settings: SchedulerSettings, epoch: int) -> None:
        super().__init__()
        self.settings = settings
        self.epoch = epoch
        self.replicas: dict[str, Replica] = {}
        self.pools: dict[str, HostPool] = {}
        self.requests: dict[str, Request] = {}
        # Ended requests whose gateway may still lack tokens, until it says Closed.
        self.unclosed: dict[str, Request] = {}
        # Gateways that have said anything to this scheduler, and are not lost since.
        self.gateways: set[str] = set()
        # Whose pool each number in the prefix index is.
        self.owners: dict[int, Replica | HostPool] = {}
        # What has left replicas, as a new scheduler was told: the last attempts of requests of which nobody else has
        # told, by sequence (see `Recall`).
        self.departed: dict[str, dict[int, tuple[Departed, ReplicaJoined]]] = {}
        # What pins keep warm, by their requests.
        self.pinned: dict[str, Request] = {}
        self.tenants = Tenants(settings.tenant_weights, settings.clear_tenants)
        self.index = PrefixIndex()
        self.computing = Computing()
        self.hearing = Hearing(settings)
        self.counters: Counter[str] = Counter()
        self.notes = Notes()
        # Replicas that something happened to in this turn: no others are looked at.
        self.touched: dict[str, Replica] = {}
        self.orders: list[Order] = []
        self._num_attempts = self._num_pools = 0
        self._free_pools: list[int] = []
        # Behind all requests of schedulers before this one, whose numbers stay theirs.
        self._first_arrival = self._num_arrivals = ((epoch - 1) & 0xFF) << 32

    def find(self, request_id: str) -> Request | None:
        """It is under way, or has ended and was not closed."""
        return self.requests.get(request_id) or self.unclosed.get(request_id)

    def is_here(self, pool: Replica | HostPool) -> bool:
        """This very incarnation of it has not been lost."""
        return (self.replicas if isinstance(pool, Replica) else self.pools).get(pool.name) is pool

    # -- what is told

    def tell(self, order: Order) -> None:
        self.orders.append(order)

    def refuse(self, event: Submit | Pin | Find, code: str, detail: str, retry_after_s: float = 0.0) -> None:
        self.counters[f"refused {code}"] += 1
        self.tell(Refused(event.gateway, event.route, event.request_id, code, detail, retry_after_s))

    def note(self, kind: str, subject: str, why: str) -> None:
        """For people, who ask afterwards."""
        self.notes.add(self.now, kind, subject, why)

    # -- numbers

    def next_arrival(self) -> int:
        self._num_arrivals += 1
        return self._num_arrivals

    def is_before_this_epoch(self, arrival: int) -> bool:
        """No request of this scheduler can have this number."""
        return arrival <= self._first_arrival

    def next_seq(self) -> int:
        """A number for an attempt of a sequence, never given before, in no epoch."""
        self._num_attempts += 1
        return self.epoch << EPOCH_BITS | self._num_attempts

    def next_pool(self) -> int:
        """A number for a pool in the prefix index, the lowest that is free: masks of pools have a bit for each."""
        if self._free_pools:
            return heapq.heappop(self._free_pools)
        self._num_pools += 1
        return self._num_pools

    def give_back_pool(self, number: int) -> None:
        """Its ledger is closed, and nobody goes by its number any more."""
        heapq.heappush(self._free_pools, number)
