"""A simulated cluster: its processes, the streams between them, and whose word goes where.

It starts processes in their first and later lives and lays their streams; a scheduler that starts again meets all who
live. What befalls them is in `cluster/sim/mishaps.py`; nothing here fails by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from cluster.centre.scheduler import Scheduler
from cluster.gateway.door.unread import UnreadBounds
from cluster.messages import (
    EPOCH_BITS,
    Event,
    Expel,
    GiveUp,
    HostPoolSettled,
    Order,
    Plan,
    Tokens,
    Transfer,
    TurnAway,
)
from cluster.settings import SchedulerSettings
from cluster.sim.client import Violation
from cluster.sim.clock import Clock
from cluster.sim.gateway import SimGateway
from cluster.sim.hostpool import SimHostPool
from cluster.sim.model import pairs_of
from cluster.sim.network import Called, Network, SimLink, Weather
from cluster.sim.pool_end import Pool
from cluster.sim.shell import SimShell
from cluster.sim.streams import FrontStream, SchedulerEnds, SimPoolStream, TokenStream, WorkerStream, intake_of
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
    loses: bool = False  # the scheduler's links declare lost who is silent, be it dead, cut off or standing still
    unread: UnreadBounds | None = None  # of each gateway; None: those that ship


SETTLE_S = 0.03
"""Until a process that was declared lost is proven dead, or refused by all others."""


def node_name(number: int) -> str:
    return f"node{number}"


class World:
    """All processes of one history, by name."""

    def __init__(
        self, shape: WorldShape, seed: str, look: Callable[[Scheduler, list[Event], list[Order]], None]
    ) -> None:
        self.shape = shape
        self.loses = shape.loses
        self.seed = seed
        self.clock = Clock()
        self.random = Random(f"{seed}/world")
        self.network = Network(self.clock, seed, shape.weather)
        self.look = look
        self.workers: dict[str, SimWorker] = {}
        self.pools: dict[str, SimHostPool] = {}
        self.gateways: dict[str, SimGateway] = {}
        # Of the last life of each worker, host pool and gateway.
        self.worker_streams: dict[str, WorkerStream] = {}
        self.pool_streams: dict[str, SimPoolStream] = {}
        self.front_streams: dict[str, FrontStream] = {}
        self.token_streams: dict[tuple[str, str], TokenStream] = {}
        self.intakes: dict[str, Called] = {}
        self.cut_nodes: set[str] = set()
        self.lost: set[str] = set()  # declared lost while cut off; to be killed when reached
        self.buried: set[str] = set()  # workers that do not come back
        # Models that were unloaded, and when they were loaded again.
        self.unloaded: dict[str, float] = {}
        # Requests that were in a step which a device refused.
        self.failed: set[str] = set()
        # Requests of which a gateway had too much that nobody read.
        self.cut_off: set[str] = set()
        # Models of whose name other weights have come, and workers that tell what cannot be.
        self.replaced: set[str] = set()
        self.liars: set[tuple[str, int]] = set()
        self.num_turned_away = self.num_expelled = 0
        # Where tenants are cleared: all that was ever written into host memory.
        self.written: set[bytes] = set()
        self.num_ranks_lost = 0
        self.num_outlasted = 0  # schedulers, by replicas that they had given up
        self.num_frozen = 0  # for longer than any silence is borne
        # What a worker or host pool does that hears of its loss.
        self.on_refused: Callable[[str, int], None] = lambda name, life: None
        # What befalls the cluster when a stop string is found next.
        self.at_a_stop: Callable[[], None] = lambda: None
        self.num_silent_stops = 0
        self._incarnations: dict[str, int] = {}
        # When every replica had joined for the first time.
        self.complete_at = float("inf")
        self._unjoined = {f"w{number}" for number in range(len(shape.workers))}
        # Of the scheduler that counts.
        self.ends: SchedulerEnds
        # Replicas as they come next, and the smallest pool that there has been if any changed.
        self.shapes = list(shape.workers)
        self.fewest: int | None = None
        self.shell = self.new_shell(1)
        for number in range(len(shape.workers)):
            self.start_worker(number)
        for number, blocks in enumerate(shape.host_blocks):
            if blocks:
                self.start_pool(number)
        for number in range(shape.num_gateways):
            self.start_gateway(f"g{number}")

    # -- births

    def start_scheduler(self, epoch: int, clock_ahead_s: float, late: Sequence[SimLink] = ()) -> None:
        """The next life of the scheduler: everybody alive but those of `late` leaves the last one and tells this one
        what it holds."""
        self.shell = self.new_shell(epoch)
        self.shell.clock_ahead_s = clock_ahead_s
        for link in [link for link in self.scheduler_links() if link not in late]:
            link.break_stream(is_told=True)

    def scheduler_links(self) -> list[SimLink]:
        links = [stream.link for stream in self.worker_streams.values()]
        links += [stream.link for stream in self.pool_streams.values()]
        return links + [stream.link for stream in self.front_streams.values()]

    def new_shell(self, epoch: int) -> SimShell:
        shell = SimShell(epoch, self.shape.settings, self.clock, lambda order: self.hand_out(ends, order), self.look)
        # Those of this life; an older one that wakes up late still has its own.
        self.ends = ends = SchedulerEnds(self, shell)
        return shell

    def _incarnation(self, name: str) -> int:
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        return self._incarnations[name]

    def start_worker(self, number: int) -> None:
        name = f"w{number}"
        outlets = Outlets(
            result=lambda number, result: stream.result(result),
            tokens=lambda gateway, batch: self._tokens(name, gateway, batch),
            pool=self.pool,
            reaches=self.reaches,
            unreached=lambda: self._unreached(name),
            landed=self._landed,
            weather=self.shape.weather,
        )
        worker = SimWorker(name, self._incarnation(name), self.shapes[number], self.clock, self.seed, outlets)
        self.workers[name] = worker
        stream = self.worker_streams[name] = WorkerStream(self, worker)

    def resize_worker(self, number: int, num_blocks: int) -> None:
        """Its next life has a pool of so many blocks."""
        sizes = [shape.num_blocks for shape in self.shapes]
        self.fewest = min(num_blocks, *sizes, *([] if self.fewest is None else [self.fewest]))
        self.shapes[number] = replace(self.shapes[number], num_blocks=num_blocks)

    def start_pool(self, number: int) -> None:
        name = f"h{number}"
        # It is for the layout of one of the workers beside it.
        num_ranks = next((shape.num_ranks for shape in self.shapes if shape.node == node_name(number)), 1)
        size = (self.shape.host_blocks[number], self.shape.workers[0].block_size, num_ranks)

        def tell(settled: HostPoolSettled) -> None:
            stream.link.say(settled)

        pool = SimHostPool(name, self._incarnation(name), node_name(number), size, self.clock, self.seed, tell)
        self.pools[name] = pool
        stream = self.pool_streams[name] = SimPoolStream(self, pool)

    def start_gateway(self, name: str) -> None:
        shape = self.shape.workers[0]
        life = self._incarnation(name)

        def tell(event: Event) -> None:
            stream.tell(event)

        names = shape.block_size, shape.key
        unread = self.shape.unread or UnreadBounds()
        gateway = SimGateway(name, life, self.clock, tell, names, unread)
        gateway.at_a_stop = self._stop_found
        gateway.unloaded, gateway.replaced, gateway.serves = self.unloaded, self.replaced, self.serves
        gateway.failed, gateway.cut_off = self.failed, self.cut_off
        self.gateways[name] = gateway
        self.intakes[name] = intake_of(self, gateway)
        stream = self.front_streams[name] = FrontStream(self, gateway)

    def _stop_found(self) -> None:
        befalls, self.at_a_stop = self.at_a_stop, lambda: None
        befalls()
        self.num_silent_stops += not self.shell.alive or self.shell.stopped

    def is_refused(self, name: str, life: int) -> None:
        if self.loses:
            self.on_refused(name, life)

    def note_joined(self, worker: str, epoch: int) -> None:
        """This scheduler has heard what the worker is."""
        if worker in self.worker_streams:
            # One that wakes up late hears of it behind its successor.
            stream = self.worker_streams[worker]
            stream.joined_epoch = max(stream.joined_epoch, epoch)
        self._unjoined.discard(worker)
        if not self._unjoined:
            self.complete_at = min(self.complete_at, self.clock.now)

    def _note_turned_away(self, order: TurnAway) -> None:
        stream = self.worker_streams[order.replica]
        if stream.worker.incarnation == order.incarnation:
            stream.joined_epoch = 0

    def serves(self, model: str) -> bool:
        """A gateway takes requests once it was told that their model is served."""
        streams = self.worker_streams.values()
        epoch = self.shell.epoch
        return any(
            stream.joined_epoch == epoch
            for stream in streams
            if stream.worker.shape.model == model and stream.worker.name not in self.buried
        )

    # -- who reaches whom

    def pool(self, name: str) -> Pool | None:
        return self.workers.get(name) or self.pools.get(name)

    def reaches(self, node: str, other: str) -> bool:
        return node == other or not (node in self.cut_nodes or other in self.cut_nodes)

    def _landed(self, transfer: Transfer, block: int, content: bytes) -> None:
        """A write that the scheduler no longer counts on must find its target in quarantine.

        Left out are transfers that a scheduler before this one ordered: of those it can learn from replicas only.
        """
        if self.shape.settings.clear_tenants:
            self.written.update(pairs_of(content))
        scheduler = self.shell.scheduler
        host = scheduler.pools.get(transfer.peer)
        if host is None or host.incarnation != transfer.peer_incarnation:
            return
        known = transfer.transfer in scheduler.transfers
        if transfer.transfer >> EPOCH_BITS != scheduler.epoch or known:
            return
        state = host.ledger.state(block)
        if state != "quarantined":
            raise Violation(f"transfer {transfer.transfer:#x} writes late into block {block} of {host.name}: {state}")

    def _tokens(self, worker: str, gateway: str, batch: list[Tokens]) -> None:
        stream = self.token_streams.get((worker, gateway))
        if stream is None or stream.worker is not self.workers[worker]:
            stream = self.token_streams[worker, gateway] = TokenStream(self, self.workers[worker], gateway)
        stream.send(batch)

    def _unreached(self, worker: str) -> tuple[str, ...]:
        """Gateways that take no tokens of this worker, as far as it can know."""
        unheard, now = list[str](), self.clock.now
        for (name, gateway), stream in self.token_streams.items():
            # It is asked of every stream: that is how it knows since when.
            if name == worker and stream.link.dialer.is_unheard(now):
                unheard.append(gateway)
        return tuple(sorted(unheard))

    # -- orders and notices

    def hand_out(self, ends: SchedulerEnds, order: Order) -> None:
        if isinstance(order, Plan):
            ends.plan(order)
            return
        if isinstance(order, TurnAway):
            if not self.replaced:
                raise Violation(f"{order.replica} was turned away: {order.detail}")
            self.num_turned_away += 1
            ends.turn_away(order)
            self._note_turned_away(order)
            return
        if isinstance(order, Expel):
            if (order.replica, order.incarnation) not in self.liars:
                raise Violation(f"{order.replica} was expelled: {order.detail}")
            self.num_expelled += 1
            ends.expel(order)
            self.clock.after(SETTLE_S, self.on_refused, order.replica, order.incarnation)
            return
        if isinstance(order, GiveUp):
            ends.give_up(order)
            return
        ends.tell(order.gateway, order)

    def notify(self, event: Event) -> None:
        """Word of Ray or of a node, straight to the scheduler; a dead one hears nothing."""
        self.clock.after(0.001, self.shell.run, self.shell.take, event)
