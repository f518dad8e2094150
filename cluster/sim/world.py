"""A simulated cluster: its processes, the streams between them, and whose word goes where.

It starts processes in their first and later lives and lays their streams; a scheduler that starts again meets all who
live. What befalls them is in `cluster/sim/mishaps.py`; nothing here fails by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    EPOCH_BITS,
    Event,
    Expel,
    GiveUp,
    Order,
    Plan,
    Result,
    Tokens,
    Transfer,
    TurnAway,
)
from cluster.settings import SchedulerSettings
from cluster.sim.client import Violation
from cluster.sim.clock import Clock
from cluster.sim.gateway import SimGateway
from cluster.sim.hostpool import SimHostPool
from cluster.sim.network import Network, Weather
from cluster.sim.shell import SimShell
from cluster.sim.streams import FrontStream, TokenStream, WorkerStream
from cluster.sim.transfers import Pool
from cluster.sim.worker import Outlets, SimWorker, WorkerShape


@dataclass(frozen=True, slots=True)
class WorldShape:
    """What a simulated cluster is made of; times in seconds."""

    workers: tuple[WorkerShape, ...]
    host_blocks: tuple[int, ...]  # of the host pool on node i; 0: none there
    num_gateways: int
    settings: SchedulerSettings
    weather: Weather
    detect_s: float = 0.05  # until a death is noticed
    lost_after_s: float = 0.6  # of silence until a process is declared lost
    restart_s: float = 0.3


def node_name(number: int) -> str:
    return f"node{number}"


class World:
    """All processes of one history, by name."""

    def __init__(
        self, shape: WorldShape, seed: str, look: Callable[[Scheduler, list[Event], list[Order]], None]
    ) -> None:
        self.shape = shape
        self.seed = seed
        self.clock = Clock()
        self.random = Random(f"{seed}/world")
        self.network = Network(self.clock, seed, shape.weather)
        self.look = look
        self.workers: dict[str, SimWorker] = {}
        self.pools: dict[str, SimHostPool] = {}
        self.gateways: dict[str, SimGateway] = {}
        self.token_streams: dict[tuple[str, str], TokenStream] = {}
        self.cut_nodes: set[str] = set()
        self.lost: set[str] = set()  # declared lost while cut off; to be killed when reached
        self._incarnations: dict[str, int] = {}
        self.num_stale = 0
        # When every replica had joined for the first time.
        self.complete_at = float("inf")
        self._unjoined = {f"w{number}" for number in range(len(shape.workers))}
        self.shell = self.new_shell(1)
        for number in range(len(shape.workers)):
            self.start_worker(number)
        for number, blocks in enumerate(shape.host_blocks):
            if blocks:
                self.start_pool(number)
        for number in range(shape.num_gateways):
            self.start_gateway(f"g{number}")

    # -- births

    def start_scheduler(self, epoch: int, clock_ahead_s: float) -> None:
        """The next life of the scheduler: everybody alive gets a stream to it, and gateways tell it their state."""
        self.shell = self.new_shell(epoch)
        self.shell.clock_ahead_s = clock_ahead_s
        for worker in self.workers.values():
            if worker.alive:
                self.worker_streams[worker.name] = WorkerStream(self, worker)
        for pool in self.pools.values():
            if pool.alive:
                pool.run(pool.adopt_epoch, epoch)
                self.notify(pool.joined)
        for gateway in self.gateways.values():
            if gateway.alive:
                self.front_streams[gateway.name] = FrontStream(self, gateway, is_new=False)

    def new_shell(self, epoch: int) -> SimShell:
        # The streams of this life of the scheduler; an older one that wakes up late still has its own.
        self.worker_streams: dict[str, WorkerStream] = {}
        self.front_streams: dict[str, FrontStream] = {}
        hand_out = partial(self.hand_out, self.worker_streams, self.front_streams)
        return SimShell(epoch, self.shape.settings, self.clock, hand_out, self.look)

    def _incarnation(self, name: str) -> int:
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        return self._incarnations[name]

    def start_worker(self, number: int) -> None:
        name = f"w{number}"
        outlets = Outlets(
            result=lambda number, result: self._result(name, number, result),
            tokens=lambda gateway, batch: self._tokens(name, gateway, batch),
            pool=self.pool,
            reaches=self.reaches,
            landed=self._landed,
            weather=self.shape.weather,
        )
        worker = SimWorker(name, self._incarnation(name), self.shape.workers[number], self.clock, self.seed, outlets)
        self.workers[name] = worker
        if self.shell.alive:
            self.worker_streams[name] = WorkerStream(self, worker)

    def start_pool(self, number: int) -> None:
        name = f"h{number}"
        size = (self.shape.host_blocks[number], self.shape.workers[0].block_size)
        pool = SimHostPool(name, self._incarnation(name), node_name(number), size, self.clock, self.seed, self.notify)
        pool.adopt_epoch(self.shell.epoch)
        self.pools[name] = pool
        self.notify(pool.joined)

    def start_gateway(self, name: str) -> None:
        shape = self.shape.workers[0]
        life = self._incarnation(name)
        gateway = SimGateway(name, life, self.clock, lambda event: self._tell(name, event), shape.block_size, shape.key)
        self.gateways[name] = gateway
        if self.shell.alive:
            self.front_streams[name] = FrontStream(self, gateway, is_new=True)

    def count_stale(self, result: Result) -> None:
        """A result of a replica's earlier life, or for a scheduler that is no more; the scheduler must refuse it."""
        if result.epoch != self.shell.epoch or result.incarnation != self.workers[result.replica].incarnation:
            self.num_stale += 1

    def note_joined(self, worker: str) -> None:
        self._unjoined.discard(worker)
        if not self._unjoined:
            self.complete_at = min(self.complete_at, self.clock.now)

    def serves(self, model: str) -> bool:
        """A gateway takes requests once it was told that their model is served."""
        streams = self.worker_streams.values()
        return any(stream.has_joined for stream in streams if stream.worker.shape.model == model)

    # -- who reaches whom

    def pool(self, name: str) -> Pool | None:
        return self.workers.get(name) or self.pools.get(name)

    def reaches(self, node: str, other: str) -> bool:
        return node == other or not (node in self.cut_nodes or other in self.cut_nodes)

    def _landed(self, transfer: Transfer, block: int) -> None:
        """A write that the scheduler no longer counts on must find its target in quarantine.

        Left out are transfers that a scheduler before this one ordered: of those it can learn from replicas only.
        """
        scheduler = self.shell.scheduler
        host = scheduler.swapper.pools.get(transfer.peer)
        if host is None or host.incarnation != transfer.peer_incarnation:
            return
        known = transfer.transfer in scheduler.swapper.transfers or transfer.transfer in scheduler.host_cache.under_way
        if transfer.transfer >> EPOCH_BITS != scheduler.epoch or known:
            return
        state = host.ledger.state(block)
        if state != "quarantined":
            raise Violation(f"transfer {transfer.transfer:#x} writes late into block {block} of {host.name}: {state}")

    # The stream that is the current one is looked up at each word: its ends may have started again.

    def _tell(self, gateway: str, event: Event) -> None:
        stream = self.front_streams.get(gateway)
        if stream is not None:
            stream.tell(event)

    def _result(self, worker: str, number: int, result: Result) -> None:
        stream = self.worker_streams.get(worker)
        if stream is not None:
            stream.result(number, result)

    def _tokens(self, worker: str, gateway: str, batch: list[Tokens]) -> None:
        process = self.gateways.get(gateway)
        if process is None or not process.alive:
            return
        stream = self.token_streams.get((worker, gateway))
        if stream is None or stream.gateway is not process or stream.worker is not self.workers[worker]:
            stream = self.token_streams[worker, gateway] = TokenStream(self, self.workers[worker], process)
        stream.send(batch)

    # -- orders and notices

    def hand_out(self, workers: dict[str, WorkerStream], fronts: dict[str, FrontStream], order: Order) -> None:
        if isinstance(order, Plan):
            stream = workers.get(order.replica)
            if stream is not None and stream.worker.incarnation == order.incarnation:
                stream.plan(order)
            return
        if isinstance(order, TurnAway):
            raise Violation(f"{order.replica} was turned away: {order.detail}")
        if isinstance(order, Expel):
            raise Violation(f"{order.replica} was expelled: {order.detail}")
        if isinstance(order, GiveUp):
            self._give_up(order)
            return
        front = fronts.get(order.gateway)
        if front is not None:
            front.order(order)

    def _give_up(self, order: GiveUp) -> None:
        pool = self.pools.get(order.pool)
        if pool is not None and pool.alive and pool.incarnation == order.incarnation:
            self.clock.after(0.001, pool.run, pool.give_up, order.epoch, order.transfers)

    def notify(self, event: Event) -> None:
        """Word of Ray or of a node, straight to the scheduler; a dead one hears nothing."""
        self.clock.after(0.001, self.shell.run, self.shell.take, event)
