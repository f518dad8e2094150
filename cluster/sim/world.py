"""A simulated cluster: its processes, the streams between them, their deaths and new lives.

It does what Ray and the shells around our processes do: it starts, notices deaths, starts again, fences. What it holds
for the scheduler: after a replica was told lost its old life may still write into host pools, until each pool has said
HostPoolSettled for its transfers; by then it is dead, or refused. A process that was declared lost while its node is
cut off lives on until it is reached, then it is killed and starts anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from cluster.messages import (
    Event,
    GatewayLost,
    HostPoolLost,
    HostPoolSettled,
    Order,
    Plan,
    ReplicaLost,
    Result,
    Tokens,
    Transfer,
)
from cluster.scheduler import Scheduler
from cluster.settings import SchedulerSettings
from cluster.sim.client import Client
from cluster.sim.clock import Clock
from cluster.sim.gateway import SimGateway
from cluster.sim.hostpool import SimHostPool
from cluster.sim.network import Link, Network, Weather
from cluster.sim.shell import SimShell
from cluster.sim.streams import FrontStream, TokenStream, WorkerStream
from cluster.sim.transfers import Pool
from cluster.sim.worker import Outlets, SimWorker, WorkerShape

SETTLE_S = 0.03
"""Until a process that was declared lost is proven dead, or refused by all others."""


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
    """All processes of one history. Faults call its verbs (`kill_worker`, `cut`, ...)."""

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
        # Transfers that were ordered of a life of a replica, and the pool that each was to touch.
        self._ordered: dict[tuple[str, int], list[Transfer]] = {}
        self._incarnations: dict[str, int] = {}
        self.num_stale = 0
        self.shell = self._new_shell(1)
        for number in range(len(shape.workers)):
            self.start_worker(number)
        for number, blocks in enumerate(shape.host_blocks):
            if blocks:
                self.start_pool(number)
        for number in range(shape.num_gateways):
            self.start_gateway(f"g{number}")

    # -- births

    def _new_shell(self, epoch: int) -> SimShell:
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
        )
        worker = SimWorker(name, self._incarnation(name), self.shape.workers[number], self.clock, self.seed, outlets)
        self.workers[name] = worker
        if self.shell.alive:
            self.worker_streams[name] = WorkerStream(self, worker)

    def start_pool(self, number: int) -> None:
        name = f"h{number}"
        size = (self.shape.host_blocks[number], self.shape.workers[0].block_size)
        pool = SimHostPool(name, self._incarnation(name), node_name(number), size, self.clock, self.seed)
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

    @property
    def serves(self) -> bool:
        """A gateway takes requests once it was told that its model is served."""
        return any(stream.has_joined for stream in self.worker_streams.values())

    # -- who reaches whom

    def pool(self, name: str) -> Pool | None:
        return self.workers.get(name) or self.pools.get(name)

    def reaches(self, node: str, other: str) -> bool:
        return node == other or not (node in self.cut_nodes or other in self.cut_nodes)

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
            if order.transfers:
                self._ordered.setdefault((order.replica, order.incarnation), []).extend(order.transfers)
            stream = workers.get(order.replica)
            if stream is not None and stream.worker.incarnation == order.incarnation:
                stream.plan(order)
            return
        front = fronts.get(order.gateway)
        if front is not None:
            front.order(order)

    def notify(self, event: Event) -> None:
        """Word of Ray or of a node, straight to the scheduler; a dead one hears nothing."""
        self.clock.after(0.001, self.shell.run, self.shell.take, event)

    # -- deaths

    def kill_worker(self, number: int) -> None:
        worker = self.workers[f"w{number}"]
        if not worker.alive:
            return
        self._end_worker(number, worker)
        self.clock.after(self.shape.detect_s, self._lose_worker, worker, "its process died")
        self.clock.after(self.shape.detect_s + SETTLE_S, self._settle_transfers, worker)

    def _end_worker(self, number: int, worker: SimWorker) -> None:
        worker.die()
        self._close_streams(worker.name)
        self.clock.after(self.shape.restart_s, self._restart_worker, number, worker)

    def _give_up_worker(self, number: int, worker: SimWorker) -> None:
        """It was silent for too long. It is ended, but what it began may still be written until that is sure."""
        if not worker.alive:
            return
        self._lose_worker(worker, "it is silent")
        self.clock.after(SETTLE_S, self._end_worker, number, worker)
        self.clock.after(2 * SETTLE_S, self._settle_transfers, worker)

    def _lose_worker(self, worker: SimWorker, detail: str) -> None:
        self.notify(ReplicaLost(worker.name, worker.incarnation, detail))

    def _settle_transfers(self, worker: SimWorker) -> None:
        """The lost life can write no more: it is dead or refused. The pools say so of each transfer it was to do."""
        worker.transfers.is_fenced = True
        for transfer in self._ordered.pop((worker.name, worker.incarnation), ()):
            if transfer.peer in self.pools:
                settled = HostPoolSettled(transfer.peer, transfer.peer_incarnation, transfer.transfer)
                self.notify(settled)

    def _restart_worker(self, number: int, dead: SimWorker) -> None:
        if self.workers[dead.name] is dead:
            self.start_worker(number)

    def _close_streams(self, name: str) -> None:
        if name in self.worker_streams:
            self.worker_streams[name].link.close()
        for (worker, gateway), stream in self.token_streams.items():
            if name in (worker, gateway):
                stream.link.close()

    def kill_pool(self, number: int) -> None:
        pool = self.pools.get(f"h{number}")
        if pool is None or not pool.alive:
            return
        pool.die()
        lost = HostPoolLost(pool.name, pool.incarnation, "its process died")
        self.clock.after(self.shape.detect_s, self.notify, lost)
        self.clock.after(self.shape.restart_s, self.start_pool, number)

    def kill_gateway(self, number: int, clients: list[Client], come_back: Callable[[Client], None]) -> None:
        """Those of its clients that resume come back by `come_back`; the others are left with what they have."""
        gateway = self.gateways[f"g{number}"]
        if not gateway.alive:
            return
        gateway.die()
        self._close_streams(gateway.name)
        if gateway.name in self.front_streams:
            self.front_streams[gateway.name].link.close()
        self.clock.after(self.shape.detect_s, self.notify, GatewayLost(gateway.name))
        self.clock.after(self.shape.restart_s, self.start_gateway, gateway.name)
        for client in clients:
            if client.gateway != gateway.name or client.outcome:
                continue
            client.gateway = ""
            if client.ask.resumes:
                self.clock.after(0.1 + 0.4 * self.random.random(), come_back, client)
            else:
                client.outcome = "broken"

    def kill_scheduler(self, down_s: float) -> None:
        if not self.shell.alive:
            return
        self.shell.die()
        for link in self._scheduler_links():
            link.close()
        self.clock.after(down_s, self._restart_scheduler, self.shell)

    def usurp_scheduler(self, down_s: float) -> None:
        """The scheduler stands still for so long that another is started; then it wakes up and goes on."""
        if not self.shell.alive or self.shell.stopped:
            return
        self.shell.stop()
        self.clock.after(down_s, self._restart_scheduler, self.shell)
        self.clock.after(down_s + 0.2, self.shell.wake)

    def _scheduler_links(self) -> list[Link]:
        workers = [stream.link for stream in self.worker_streams.values()]
        return workers + [stream.link for stream in self.front_streams.values()]

    def _restart_scheduler(self, old: SimShell) -> None:
        if self.shell is not old:
            return
        self.shell = self._new_shell(old.epoch + 1)
        self.shell.clock_ahead_s = old.clock_ahead_s
        for worker in self.workers.values():
            if worker.alive:
                self.worker_streams[worker.name] = WorkerStream(self, worker)
        for pool in self.pools.values():
            if pool.alive:
                self.notify(pool.joined)
        for gateway in self.gateways.values():
            if gateway.alive:
                self.front_streams[gateway.name] = FrontStream(self, gateway, is_new=False)

    def kill_node(self, number: int) -> None:
        node = node_name(number)
        for index, shape in enumerate(self.shape.workers):
            if shape.node == node:
                self.kill_worker(index)
        self.kill_pool(number)

    # -- silence

    def stop_worker(self, number: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later. One that is silent for too long is killed: the node it runs on is reached."""
        worker = self.workers[f"w{number}"]
        if not worker.alive or worker.stopped:
            return
        worker.stop()
        if seconds > self.shape.lost_after_s:
            self.clock.after(self.shape.lost_after_s, self._kill_stopped, number, worker)
        self.clock.after(seconds, worker.wake)

    def _kill_stopped(self, number: int, worker: SimWorker) -> None:
        if self.workers[worker.name] is worker and worker.stopped:
            self._give_up_worker(number, worker)

    def cut_worker(self, number: int, seconds: float) -> None:
        """A replica and the scheduler do not hear each other for a while; all else of the network works."""
        worker = self.workers[f"w{number}"]
        stream = self.worker_streams.get(worker.name)
        if stream is None or not worker.alive or worker.name in self.lost:
            return
        stream.link.set_cut(True)
        if seconds > self.shape.lost_after_s:
            self.clock.after(self.shape.lost_after_s, self._kill_silent, number, worker)
        self.clock.after(seconds, stream.link.set_cut, False)

    def _kill_silent(self, number: int, worker: SimWorker) -> None:
        """Its node is reached by other ways, so it can be proven dead."""
        stream = self.worker_streams.get(worker.name)
        if self.workers[worker.name] is worker and worker.alive and stream is not None and stream.link.cut:
            self._give_up_worker(number, worker)

    def cut_node(self, number: int, seconds: float) -> None:
        """A node and all others do not hear each other for a while. Gateways run elsewhere."""
        node = node_name(number)
        if node in self.cut_nodes:
            return
        self.cut_nodes.add(node)
        workers = [index for index, shape in enumerate(self.shape.workers) if shape.node == node]
        for index in workers:
            self._cut_streams(f"w{index}", True)
        if seconds > self.shape.lost_after_s:
            self.clock.after(self.shape.lost_after_s, self._lose_node, number, workers)
        self.clock.after(seconds, self._heal_node, number, workers)

    def _cut_streams(self, name: str, cut: bool) -> None:
        if name in self.worker_streams:
            self.worker_streams[name].link.set_cut(cut)
        for (worker, _), stream in self.token_streams.items():
            if worker == name:
                stream.link.set_cut(cut)

    def _lose_node(self, number: int, workers: list[int]) -> None:
        """Nobody can say whether its processes live. They are given up; what they still do reaches no other pool."""
        for index in workers:
            worker = self.workers[f"w{index}"]
            if worker.alive and worker.name not in self.lost:
                self.lost.add(worker.name)
                self._lose_worker(worker, "its node is cut off")
                self.clock.after(SETTLE_S, self._settle_transfers, worker)
        pool = self.pools.get(f"h{number}")
        if pool is not None and pool.alive and pool.name not in self.lost:
            self.lost.add(pool.name)
            self.notify(HostPoolLost(pool.name, pool.incarnation, "its node is cut off"))

    def _heal_node(self, number: int, workers: list[int]) -> None:
        self.cut_nodes.discard(node_name(number))
        for index in workers:
            name = f"w{index}"
            if name in self.lost:
                self.lost.discard(name)
                self.kill_worker(index)
            else:
                self._cut_streams(name, False)
        if f"h{number}" in self.lost:
            self.lost.discard(f"h{number}")
            self.kill_pool(number)

    def break_worker_stream(self, number: int) -> None:
        stream = self.worker_streams.get(f"w{number}")
        if stream is not None:
            stream.link.break_stream()

    def break_token_streams(self, number: int) -> None:
        for (worker, _), stream in self.token_streams.items():
            if worker == f"w{number}":
                stream.link.break_stream()

    def stop_gateway(self, number: int, seconds: float) -> None:
        gateway = self.gateways[f"g{number}"]
        if gateway.alive and not gateway.stopped:
            gateway.stop()
            self.clock.after(seconds, gateway.wake)

    def cut_gateway(self, number: int, seconds: float) -> None:
        stream = self.front_streams.get(f"g{number}")
        if stream is None:
            return
        link = stream.link
        link.set_cut(True)
        self.clock.after(seconds, link.set_cut, False)

    def stop_scheduler(self, seconds: float) -> None:
        shell = self.shell
        if shell.alive and not shell.stopped:
            shell.stop()
            self.clock.after(seconds, shell.wake)

    def jump(self, seconds: float) -> None:
        """The scheduler's clock leaps ahead, as it does where a machine was suspended."""
        self.shell.clock_ahead_s += seconds

    def spoil_transfers(self, number: int, fail: int, corrupt: int) -> None:
        """The next transfers of a worker break half-way, or carry a chunk whose checksum is wrong."""
        faults = self.workers[f"w{number}"].transfers.faults
        faults.fail_next += fail
        faults.corrupt_next += corrupt
