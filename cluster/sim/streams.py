"""The three kinds of stream in a simulated cluster, laid over links that break, double and delay.

Plans and results carry their own numbers and are deduplicated by the two ends themselves; events and notices of
gateways and batches of tokens are numbered by their stream and taken once each. A stream belongs to one life of each
of its ends: whoever starts again gets a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.messages import Event, Order, Plan, ReplicaJoined, ReplicaState, Result, Tokens
from cluster.sim.gateway import SimGateway
from cluster.sim.network import Inbox, Side
from cluster.sim.worker import SimWorker

if TYPE_CHECKING:
    from cluster.sim.world import World

UP, DOWN = 0, 1
"""The directions of a stream: to the scheduler or gateway, and to the other end."""


class WorkerStream:
    """Results up, plans down. Number 0 is the welcome with the scheduler's epoch, and the worker's answer to it."""

    def __init__(self, world: World, worker: SimWorker) -> None:
        self.worker = worker
        self.shell = world.shell
        self._world = world
        name = f"{worker.name}.{worker.incarnation}-{self.shell.epoch}"
        self.link = world.network.connect(name, (Side(self.shell, self._take_up), Side(worker, self._take_down)))
        self._has_met = False
        self.has_joined = False
        self.link.send(DOWN, 0, self.shell.epoch)

    def plan(self, plan: Plan) -> None:
        self.link.send(DOWN, plan.number, plan)

    def result(self, number: int, result: Result) -> None:
        self.link.send(UP, number, result)

    def _take_down(self, number: int, message: Any) -> None:
        if number:
            if message.epoch == self.worker.epoch:
                self.link.acknowledge(UP, message.result)
            self.worker.take_plan(message)
        elif not self._has_met and message >= self.worker.epoch:
            self._has_met = True
            self.link.acknowledge(DOWN, 0)
            self.link.send(UP, 0, self.worker.meet(message))

    def _take_up(self, number: int, message: Result | ReplicaJoined | ReplicaState) -> None:
        if isinstance(message, Result):
            self._world.count_stale(message)
            # What it had said to an earlier scheduler tells of that one's plans.
            if self.shell.take_result(message) and message.epoch == self.shell.epoch:
                self.link.acknowledge(DOWN, message.plan)
        elif not self.has_joined:
            self.has_joined = True
            self._world.note_joined(self.worker.name)
            self.link.acknowledge(UP, 0)
            self.shell.take(message)


class FrontStream:
    """Events of a gateway up, notices down. A gateway that the scheduler's new life finds tells its state first."""

    def __init__(self, world: World, gateway: SimGateway, is_new: bool) -> None:
        self.gateway = gateway
        self._up = Inbox(world.shell.take)
        self.is_lost = False
        self._down = Inbox(gateway.take_order)
        epoch = world.shell.epoch
        name = f"{gateway.name}.{gateway.life}-{epoch}"
        self.link = world.network.connect(name, (Side(world.shell, self._take_up), Side(gateway, self._take_down)))
        self._up.bind(self.link, UP)
        self._down.bind(self.link, DOWN)
        self._num_up = 0
        self._num_down = 0
        self._world = world
        if not is_new:
            self.tell(gateway.state())
            for event in gateway.repeated():
                self.tell(event)

    def tell(self, event: Event) -> None:
        if self.link.closed:
            return  # the scheduler is away; its next life is told the whole state
        self._num_up += 1
        self.link.send(UP, self._num_up, event)

    def order(self, order: Order) -> None:
        self._num_down += 1
        self.link.send(DOWN, self._num_down, order)

    def _take_up(self, number: int, event: Event) -> None:
        # The scheduler's process ends the session of a gateway as it tells of its loss: no straggler gets through.
        if not self.is_lost:
            self._up.take(number, event)

    def _take_down(self, number: int, order: Order) -> None:
        if self._world.front_streams.get(self.gateway.name) is not self:
            self.gateway.num_stale += 1  # of a scheduler that is no more
            return
        self._down.take(number, order)


class TokenStream:
    """Batches of tokens from a worker to a gateway."""

    def __init__(self, world: World, worker: SimWorker, gateway: SimGateway) -> None:
        self.worker = worker
        self.gateway = gateway
        self._inbox = Inbox(gateway.take_tokens)
        name = f"{worker.name}.{worker.incarnation}>{gateway.name}.{gateway.life}"
        self.link = world.network.connect(name, (Side(gateway, self._inbox.take), Side(worker, lambda *_: None)))
        self._inbox.bind(self.link, UP)
        self._num_sent = 0

    def send(self, batch: list[Tokens]) -> None:
        self._num_sent += 1
        self.link.send(UP, self._num_sent, batch)
