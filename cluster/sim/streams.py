"""The links of a simulated cluster: who calls whom with what, as the shells that ship do it.

Scheduler and gateways are called (`SchedulerEnds`, `intake_of`); workers call the scheduler with results and gateways
with tokens, host pools and gateways the scheduler with events. A link belongs to one life of the process that calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cluster.links.dialer import Dialer
from cluster.links.terms import Heard, Met, Order, PeerLost, RefusedByPeer
from cluster.messages import (
    Event,
    Expel,
    GatewayLost,
    GatewayState,
    GiveUp,
    HostPoolJoined,
    HostPoolLost,
    HostPoolSettled,
    Plan,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Result,
    Tokens,
    TurnAway,
)
from cluster.messages import Order as SchedulerOrder
from cluster.sim.client import Violation
from cluster.sim.gateway import SimGateway
from cluster.sim.hostpool import SimHostPool
from cluster.sim.network import Called, Network, SimLink, terms
from cluster.sim.shell import SimShell
from cluster.sim.worker import SimWorker

SCHEDULER = "scheduler"
GATEWAY_LIVES = 1 << 20
"""A gateway that was given up and lives goes on with its next life, below those of its next start."""


class Site(Protocol):
    """What the ends of links ask of the cluster that they lie in."""

    network: Network
    loses: bool  # the scheduler's links declare lost who is silent for too long

    @property
    def ends(self) -> SchedulerEnds:
        """Of the scheduler that counts now."""

    @property
    def intakes(self) -> Mapping[str, Called]:
        """Of the last life of each gateway."""

    def note_joined(self, worker: str, epoch: int) -> None: ...

    def is_refused(self, name: str, life: int) -> None:
        """A worker or host pool hears that this life of it was declared lost."""


class SchedulerEnds:
    """What one life of the scheduler is called by."""

    def __init__(self, world: Site, shell: SimShell) -> None:
        self._world = world
        self.shell = shell
        # Workers and host pools.
        own = terms(loses=world.loses)
        self.workers = Called(world.network, shell, SCHEDULER, shell.epoch, own, self._from_worker)
        self.gateways = Called(world.network, shell, SCHEDULER, shell.epoch, own, self._from_gateway)
        # Of each worker the number of its last result; of each peer what it is.
        self._results: dict[str, int] = {}
        self._cards: dict[str, object] = {}

    def plan(self, plan: Plan) -> None:
        if self.workers.life_of(plan.replica) == plan.incarnation:
            self.workers.say(plan.replica, plan)

    def turn_away(self, order: TurnAway) -> None:
        self.workers.turn_away(order.replica, order.incarnation, order.detail)

    def expel(self, order: Expel) -> None:
        self.workers.lose(order.replica, order.incarnation, order.detail)

    def give_up(self, order: GiveUp) -> None:
        if self.workers.life_of(order.pool) == order.incarnation:
            self.workers.say(order.pool, order)

    def tell(self, gateway: str, order: SchedulerOrder) -> None:
        self.gateways.say(gateway, order)

    def _from_worker(self, order: Order) -> None:
        if isinstance(order, PeerLost):
            if _by_silence(order):
                self.workers.check_loss(order.peer)
            kind = HostPoolLost if isinstance(self._cards[order.peer], HostPoolJoined) else ReplicaLost
            self.shell.take(kind(order.peer, order.life, order.detail))
        elif isinstance(order, Met) and order.is_new:
            self._results[order.peer] = 0
            self._cards[order.peer] = order.card
            if not order.wants_state:
                self._join(order.card)
        elif isinstance(order, Heard):
            message = order.message
            if isinstance(message, Result):
                if message.number != self._results[order.peer] + 1 or message.epoch != self.shell.epoch:
                    raise Violation(f"{order.peer} says result {message.number} after {self._results[order.peer]}")
                self._results[order.peer] = message.number
                self.shell.take(message)
            elif isinstance(message, HostPoolSettled):
                self.shell.take(message)
            else:
                self._join(message)

    def _join(self, message: ReplicaJoined | ReplicaState | HostPoolJoined) -> None:
        if isinstance(message, HostPoolJoined):
            self.shell.take(message)
            return
        joined = message.joined if isinstance(message, ReplicaState) else message
        self._world.note_joined(joined.replica, self.shell.epoch)
        self.shell.take(message)

    def _from_gateway(self, order: Order) -> None:
        if isinstance(order, Heard):
            self.shell.take(order.message)
        elif isinstance(order, PeerLost):
            if _by_silence(order):
                self.gateways.check_loss(order.peer)
            self.shell.take(GatewayLost(order.peer))


def _by_silence(lost: PeerLost) -> bool:
    return lost.detail.startswith("nothing was heard")


class WorkerStream:
    """Results up, plans down, for all schedulers that a worker meets."""

    def __init__(self, world: Site, worker: SimWorker) -> None:
        self._world = world
        self.worker = worker
        # Of the last scheduler that has heard of it.
        self.joined_epoch = 0
        dialer = Dialer(worker.name, worker.incarnation, SCHEDULER, terms(), world.network.read, bytes, has_state=True)
        self.link = SimLink(
            world.network, worker, dialer, lambda: world.ends.workers, self._take, lambda: self.worker.joined
        )

    def result(self, result: Result) -> None:
        # What it had for an earlier scheduler means nothing to this one.
        if result.epoch == self.link.dialer.peer_life:
            self.link.say(result)

    def _take(self, order: Order) -> None:
        if isinstance(order, Heard):
            self.worker.take_plan(order.message)
        elif isinstance(order, Met) and order.is_new:
            state = self.worker.meet(order.life)
            if order.wants_state:
                self.link.say_state(state)
        elif isinstance(order, RefusedByPeer) and order.is_lost:
            self._world.is_refused(self.worker.name, self.worker.incarnation)


class SimPoolStream:
    """What a host pool has settled up, what the scheduler gave up down."""

    def __init__(self, world: Site, pool: SimHostPool) -> None:
        self._world = world
        self.pool = pool
        dialer = Dialer(pool.name, pool.incarnation, SCHEDULER, terms(), world.network.read)
        self.link = SimLink(world.network, pool, dialer, lambda: world.ends.workers, self._take, lambda: pool.joined)

    def _take(self, order: Order) -> None:
        pool = self.pool
        if isinstance(order, Heard):
            told = order.message
            assert isinstance(told, GiveUp) and (told.incarnation, told.epoch) == (
                pool.incarnation,
                self.link.dialer.peer_life,
            )
            pool.give_up(told.epoch, told.transfers)
        elif isinstance(order, Met) and order.is_new:
            pool.adopt_epoch(order.life)
        elif isinstance(order, RefusedByPeer) and order.is_lost:
            self._world.is_refused(pool.name, pool.incarnation)


class FrontStream:
    """Events of a gateway up, notices down."""

    def __init__(self, world: Site, gateway: SimGateway) -> None:
        self.gateway = gateway
        life = gateway.life * GATEWAY_LIVES
        read = world.network.read
        dialer = Dialer(gateway.name, life, SCHEDULER, terms(), read, bytes, has_state=True)
        self.link = SimLink(world.network, gateway, dialer, lambda: world.ends.gateways, self._take)
        gateway.hears_scheduler = lambda: dialer.is_met

    def tell(self, event: Event) -> None:
        if isinstance(event, GatewayState):
            self.link.say_state(event)
        else:
            self.link.say(event)

    def _take(self, order: Order) -> None:
        if isinstance(order, Heard):
            self.gateway.take_order(order.message)
        elif isinstance(order, Met):
            self.gateway.meet(wants_state=order.wants_state)
        elif isinstance(order, RefusedByPeer) and order.is_lost:
            self.link.dialer.begin(self.link.dialer.life + 1, holds_state=True)


class TokenStream:
    """Batches of tokens from a worker to a gateway, whichever life of it is there."""

    def __init__(self, world: Site, worker: SimWorker, gateway: str) -> None:
        self.worker = worker
        self.gateway = gateway
        read = world.network.read
        dialer = Dialer(worker.name, worker.incarnation, gateway, terms(keeps=True), read, bytes)
        self.link = SimLink(world.network, worker, dialer, lambda: world.intakes.get(gateway), lambda order: None)

    def send(self, batch: list[Tokens]) -> None:
        self.link.say(batch)


def intake_of(world: Site, gateway: SimGateway) -> Called:
    """Where workers bring tokens to this life of a gateway."""

    def take(order: Order) -> None:
        if isinstance(order, Heard):
            gateway.take_tokens(order.message)

    return Called(world.network, gateway, gateway.name, gateway.life, terms(keeps=True), take)
