"""The scheduler: a pure, deterministic machine that owns every block table of the cluster.

`turn(events, now)` takes what happened and returns what is to be done: plans for replicas, notices for gateways. No
clock, no I/O, no randomness, no torch. The embedded engine, the Ray actor and the simulator run this same code.

The road of a request: submit -> waiting queue -> `Admission` finds room and a cached prefix -> Start in a replica's
plan -> the replica's results renew leases (`Leases.advance`, once per block) -> Stopped frees the blocks -> Done.
Under pressure `Pressure.relieve` sends a request back into the queue. When a replica is lost, the
gateway is asked what it has (Seal), and the request starts again from there.

Only this file knows all the rules: each is given the books and the few rules that it asks, those above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.centre import residents
from cluster.centre.admission import Admission
from cluster.centre.adoption import Adoption
from cluster.centre.arrivals import Arrivals
from cluster.centre.balance import Balance
from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.clients import Clients
from cluster.centre.confirming import Confirming
from cluster.centre.deadlines import Deadlines
from cluster.centre.detours import Detours
from cluster.centre.drains import Drains
from cluster.centre.endings import Endings
from cluster.centre.fetch import Fetches
from cluster.centre.flaws import flaw_of
from cluster.centre.host_cache import HostCache
from cluster.centre.host_memory import HostMemory
from cluster.centre.leases import Leases
from cluster.centre.leaving import Leaving
from cluster.centre.movable import Movable
from cluster.centre.moves import Moves
from cluster.centre.nouns import State
from cluster.centre.pauses import Pauses
from cluster.centre.pins import Pins
from cluster.centre.plans import Plans
from cluster.centre.pressure import Pressure
from cluster.centre.rebuild import Rebuild
from cluster.centre.recall import Recall
from cluster.centre.recovery import Recovery
from cluster.centre.results import Results
from cluster.centre.revokes import Revokes
from cluster.centre.roads import Roads
from cluster.centre.sealing import Sealing
from cluster.centre.starts import Starts
from cluster.centre.stops import Stops
from cluster.centre.swap import Swaps
from cluster.centre.takeover import Takeover
from cluster.centre.transfers import Transfers
from cluster.centre.waiting import Waiting
from cluster.messages import (
    Adopt,
    Cancel,
    Claim,
    Closed,
    CloseModel,
    Drain,
    Event,
    Find,
    GatewayLost,
    GatewayState,
    HostPoolJoined,
    HostPoolLost,
    HostPoolSettled,
    Order,
    Pin,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Result,
    Sealed,
    StopAt,
    Submit,
    Tick,
)
from cluster.settings import SchedulerSettings


class Scheduler:
    """Owns requests, tables, ledgers and leases. One turn at a time; nothing of it is shared."""

    def __init__(self, settings: SchedulerSettings, epoch: int = 1) -> None:
        self.settings, self.epoch = settings, epoch
        books = self.books = Books(settings, epoch)
        self.replicas, self.pools = books.replicas, books.pools
        self.requests, self.unclosed, self.tenants = books.requests, books.unclosed, books.tenants
        self.index, self.counters, self.notes = books.index, books.counters, books.notes
        # What every rule above may ask.
        self.boards = boards = Boards(books)
        self.waiting = waiting = Waiting(books, boards)
        self.deadlines = deadlines = Deadlines(books)
        self.transfers = transfers = Transfers(books)
        self.host_memory = host_memory = HostMemory(books)
        self.leases = leases = Leases(settings)
        self.plans = plans = Plans(epoch)
        revokes = Revokes(settings, leases)
        # How a request ends, leaves its replica, and starts on one.
        endings = Endings(books, boards, waiting, deadlines, host_memory, transfers)
        self.sealing = sealing = Sealing(books, waiting, deadlines, host_memory, endings)
        pins = Pins(books, deadlines)
        leaving = Leaving(books, waiting, host_memory, endings, sealing, pins)
        starts = Starts(books, boards, host_memory, endings, leases)
        # The roads that blocks take.
        swaps = Swaps(books, host_memory, transfers, leaving, starts)
        fetches = Fetches(books, boards, transfers, endings, leaving, starts)
        self.host_cache = HostCache(books, boards, host_memory, transfers)
        self.movable = movable = Movable(settings)
        self.pauses, arrivals = Pauses(books.counters), Arrivals(books, leases)
        self.moves = moves = Moves(books, movable, transfers, endings, leaving, starts, arrivals, self.pauses)
        roads = Roads(transfers, swaps, fetches, moves, self.host_cache)
        # Who starts, who goes, and where to.
        self.admission = Admission(books, boards, waiting, endings, pins, starts, swaps, fetches, sealing)
        self.balance = Balance(books, boards, transfers, movable, moves)
        self.pressure = Pressure(books, leases, revokes, endings, pins, swaps, moves, self.balance)
        self.drains = Drains(books, boards, movable, moves, self.pressure)
        # What replicas, gateways and their clients tell.
        self.recovery = recovery = Recovery(
            books, boards, waiting, transfers, host_memory, endings, sealing, leaving, roads
        )
        stops = Stops(books, leases, endings, sealing, leaving, swaps, moves, Detours(books, sealing))
        results = Results(books, waiting, plans, leases, revokes, roads, self.pauses, stops, recovery)
        confirming = Confirming(books, waiting, deadlines)
        self.recall = recall = Recall(books, deadlines)
        self.adoption = Adoption(books, endings, sealing, confirming, recall)
        takeover = Takeover(books, waiting, transfers, endings, leases, sealing, confirming, recovery, recall)
        self.rebuild = Rebuild(books, waiting, deadlines, endings, sealing, confirming, self.adoption, takeover)
        self.clients = clients = Clients(
            books, boards, waiting, deadlines, endings, sealing, pins, self.adoption, self.admission
        )
        self._obey: dict[type, Callable[[Any], None]] = {
            Submit: clients.on_submit,
            Pin: clients.on_pin,
            Cancel: clients.on_cancel,
            StopAt: clients.on_stop_at,
            Closed: clients.on_closed,
            Sealed: sealing.on_sealed,
            Adopt: self.adoption.on_adopt,
            Find: self.adoption.on_find,
            Claim: self.adoption.on_claim,
            Result: results.on_result,
            ReplicaJoined: recovery.on_replica_joined,
            ReplicaLost: recovery.on_replica_lost,
            HostPoolJoined: recovery.on_pool_joined,
            HostPoolLost: recovery.on_pool_lost,
            HostPoolSettled: host_memory.on_settled,
            GatewayLost: self._on_gateway_lost,
            ReplicaState: takeover.on_replica_state,
            GatewayState: self.rebuild.on_gateway_state,
            Drain: recovery.on_drain,
            CloseModel: recovery.on_close_model,
            Tick: lambda event: None,
        }

    def turn(self, events: Sequence[Event], now: float) -> list[Order]:
        """Takes all that has happened since the last turn, in order, and says what is to be done."""
        books = self.books
        books.now = now
        self.boards.expire()
        self.recall.expire()
        self.rebuild.begin_if_due()
        for event in events:
            flaw = flaw_of(event)
            if flaw:
                self._refuse(event, flaw)
            else:
                self._obey[type(event)](event)
        self.rebuild.expire()
        self.adoption.turn()
        self.clients.expire()
        for replica in list(books.touched.values()):
            if replica.is_draining and replica.requests:
                self.drains.drain(replica)
            if replica.wanting:
                self.pressure.relieve(replica)
        self.moves.turn()
        self.balance.level()
        self.admission.admit(list(books.touched.values()))
        orders, books.orders = books.orders, []
        self.clients.say_why(orders)
        for replica in books.touched.values():
            self.host_cache.turn(replica)
            plan = self.plans.next(replica)
            if plan is not None:
                orders.append(plan)
            self.leases.watch_pressure(replica)
        books.touched.clear()
        return orders

    @property
    def next_deadline(self) -> float | None:
        """When a turn is due even if nothing happens."""
        times = (
            self.deadlines.next,
            self.books.hearing.ends_at,
            self.waiting.next_due,
            self.adoption.next_deadline,
        )
        return min((time for time in times if time is not None), default=None)

    @property
    def now(self) -> float:
        return self.books.now

    def _refuse(self, event: Event, flaw: str) -> None:
        """Nothing that comes over a stream ends the scheduler: what cannot be so is refused by name and counted."""
        books = self.books
        books.counters["events refused"] += 1
        if isinstance(event, Submit | Pin | Find | Adopt):
            books.refuse(event.submit if isinstance(event, Adopt) else event, "INVALID_ARGUMENT", flaw)
        elif isinstance(event, ReplicaJoined):
            self.recovery.turn_away(event, flaw)
        elif isinstance(event, ReplicaState):
            self.recovery.turn_away(event.joined, flaw)
        elif isinstance(event, Result):
            replica = books.replicas.get(event.replica)
            if replica is not None and (event.incarnation, event.epoch) == (replica.incarnation, self.epoch):
                self.recovery.expel(replica, flaw)
        else:
            books.note("refused", type(event).__name__, flaw)

    def _on_gateway_lost(self, lost: GatewayLost) -> None:
        self.adoption.give_up(lost.gateway)
        self.sealing.on_gateway_lost(lost)

    def check(self) -> None:
        """Proves the rules of the ledgers and of every request; raises AssertionError with the figures."""
        for replica in self.replicas.values():
            kept = [*(move.kept() for move in self.movable.incoming(replica)), *self.host_cache.kept(replica)]
            residents.check(replica, kept, self.settings, self.epoch)
        for host in self.pools.values():
            tables = self.host_cache.held(host)
            for request in host.requests.values():
                assert request.host is host
                tables.append(request.reserved)
                tables += [sequence.host_table for sequence in request.sequences]
            host.ledger.check(tables)
        self.index.check()
        self.host_memory.check()
        self.deadlines.check()
        self.moves.check()
        self.recall.check()
        for queue in self.waiting.queues.values():
            queue.check()
        for request in self.requests.values():
            on_replica = [sequence for sequence in request.sequences if sequence.seq]
            assert bool(on_replica) == (request.state in (State.RUNNING, State.STOPPING, State.RESTORING)), (
                f"{request}: {on_replica}"
            )
            assert request.state is not State.PARKED or request.parked_on is not None, f"{request} waits for nobody"
