"""What can happen to the processes and streams of a simulated cluster: deaths, silence, cuts, leaps of a clock.

It does what Ray and the nodes do around our processes: it notices deaths, starts again, gives up who is silent, fences.
What it holds for the scheduler: after a replica was told lost its old life may still write into host pools, until each
pool has said HostPoolSettled for its transfers; by then it is dead, or refused. A process that was given up while its
node is cut off lives on until it is reached, then it is killed and starts anew. Faults call its verbs.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.messages import GatewayLost, HostPoolLost, ReplicaLost
from cluster.sim.client import Client
from cluster.sim.network import Link
from cluster.sim.shell import SimShell
from cluster.sim.streams import FrontStream
from cluster.sim.worker import SimWorker
from cluster.sim.world import World, node_name

SETTLE_S = 0.03
"""Until a process that was declared lost is proven dead, or refused by all others."""


class Mishaps:
    """The verbs of misfortune of one world."""

    def __init__(self, world: World) -> None:
        self.world = world

    # -- deaths

    def kill_worker(self, number: int) -> None:
        worker = self.world.workers[f"w{number}"]
        if not worker.alive:
            return
        self._end_worker(number, worker)
        self.world.clock.after(self.world.shape.detect_s, self._lose_worker, worker, "its process died")

    def _end_worker(self, number: int, worker: SimWorker) -> None:
        if not worker.alive:
            return  # something else ended it meanwhile
        worker.die()
        self._close_streams(worker.name)
        self.world.clock.after(self.world.shape.restart_s, self._restart_worker, number, worker)

    def _give_up_worker(self, number: int, worker: SimWorker, settle_s: float = SETTLE_S) -> None:
        """It was silent for too long. It is ended, but what it began may still be written until that is sure."""
        if not worker.alive:
            return
        self._lose_worker(worker, "it is silent")
        self.world.clock.after(settle_s, self._end_worker, number, worker)

    def _lose_worker(self, worker: SimWorker, detail: str) -> None:
        self.world.notify(ReplicaLost(worker.name, worker.incarnation, detail))

    def _restart_worker(self, number: int, dead: SimWorker) -> None:
        if self.world.workers[dead.name] is dead:
            self.world.start_worker(number)

    def _close_streams(self, name: str) -> None:
        if name in self.world.worker_streams:
            self.world.worker_streams[name].link.close()
        for (worker, gateway), stream in self.world.token_streams.items():
            if name in (worker, gateway):
                stream.link.close()

    def kill_pool(self, number: int) -> None:
        pool = self.world.pools.get(f"h{number}")
        if pool is None or not pool.alive:
            return
        pool.die()
        lost = HostPoolLost(pool.name, pool.incarnation, "its process died")
        self.world.clock.after(self.world.shape.detect_s, self.world.notify, lost)
        self.world.clock.after(self.world.shape.restart_s, self.world.start_pool, number)

    def kill_gateway(self, number: int, clients: list[Client], come_back: Callable[[Client], None]) -> None:
        """Those of its clients that resume come back by `come_back`; the others are left with what they have."""
        gateway = self.world.gateways[f"g{number}"]
        if not gateway.alive:
            return
        gateway.die()
        self._close_streams(gateway.name)
        stream = self.world.front_streams.get(gateway.name)
        if stream is not None:
            stream.link.close()
        self.world.clock.after(self.world.shape.detect_s, self._lose_gateway, gateway.name, stream)
        restart_s = max(self.world.shape.restart_s, self.world.shape.detect_s)
        self.world.clock.after(restart_s, self.world.start_gateway, gateway.name)
        for client in clients:
            if client.gateway != gateway.name or client.outcome:
                continue
            client.gateway = ""
            if client.ask.resumes:
                self.world.clock.after(0.1 + 0.4 * self.world.random.random(), come_back, client)
            else:
                client.outcome = "broken"

    def _lose_gateway(self, name: str, stream: FrontStream | None) -> None:
        """Its session ends before a new life of it is heard."""
        if stream is not None:
            stream.is_lost = True
        self.world.shell.run(self.world.shell.take, GatewayLost(name))

    def kill_scheduler(self, down_s: float) -> None:
        if not self.world.shell.alive:
            return
        self.world.shell.die()
        for link in self._scheduler_links():
            link.close()
        self.world.clock.after(down_s, self._restart_scheduler, self.world.shell)

    def usurp_scheduler(self, down_s: float) -> None:
        """The scheduler stands still for so long that another is started; then it wakes up and goes on."""
        if not self.world.shell.alive or self.world.shell.stopped:
            return
        self.world.shell.stop()
        self.world.clock.after(down_s, self._restart_scheduler, self.world.shell)
        self.world.clock.after(down_s + 0.2, self.world.shell.wake)

    def _scheduler_links(self) -> list[Link]:
        workers = [stream.link for stream in self.world.worker_streams.values()]
        return workers + [stream.link for stream in self.world.front_streams.values()]

    def _restart_scheduler(self, old: SimShell) -> None:
        if self.world.shell is not old:
            return
        self.world.start_scheduler(old.epoch + 1, old.clock_ahead_s)

    def kill_node(self, number: int) -> None:
        node = node_name(number)
        for index, shape in enumerate(self.world.shape.workers):
            if shape.node == node:
                self.kill_worker(index)
        self.kill_pool(number)

    # -- silence

    def stop_worker(self, number: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later. One that is silent for too long is killed: the node it runs on is reached."""
        worker = self.world.workers[f"w{number}"]
        if not worker.alive or worker.stopped:
            return
        worker.stop()
        if seconds > self.world.shape.lost_after_s:
            self.world.clock.after(self.world.shape.lost_after_s, self._kill_stopped, number, worker)
        self.world.clock.after(seconds, worker.wake)

    def _kill_stopped(self, number: int, worker: SimWorker) -> None:
        if self.world.workers[worker.name] is worker and worker.stopped:
            self._give_up_worker(number, worker)

    def stop_writer(self, settle_s: float, tries: int = 1000) -> None:
        """Stops the next worker that writes into a pool until it is given up; then it wakes up and writes on."""
        for number, worker in enumerate(self.world.workers.values()):
            if worker.alive and not worker.stopped and worker.transfers.is_writing:
                worker.stop()
                # Its node's own watch is quicker than the scheduler's.
                silent_s = 0.1 * self.world.shape.lost_after_s
                self.world.clock.after(silent_s, self._give_up_worker, number, worker, settle_s)
                self.world.clock.after(silent_s + settle_s * self.world.random.random(), worker.wake)
                return
        if tries:
            self.world.clock.after(0.002, self.stop_writer, settle_s, tries - 1)

    def cut_worker(self, number: int, seconds: float) -> None:
        """A replica and the scheduler do not hear each other for a while; all else of the network works."""
        worker = self.world.workers[f"w{number}"]
        stream = self.world.worker_streams.get(worker.name)
        if stream is None or not worker.alive or worker.name in self.world.lost:
            return
        stream.link.set_cut(True)
        if seconds > self.world.shape.lost_after_s:
            self.world.clock.after(self.world.shape.lost_after_s, self._kill_silent, number, worker)
        self.world.clock.after(seconds, stream.link.set_cut, False)

    def _kill_silent(self, number: int, worker: SimWorker) -> None:
        """Its node is reached by other ways, so it can be proven dead."""
        stream = self.world.worker_streams.get(worker.name)
        if self.world.workers[worker.name] is worker and worker.alive and stream is not None and stream.link.cut:
            self._give_up_worker(number, worker)

    def cut_node(self, number: int, seconds: float) -> None:
        """A node and all others do not hear each other for a while. Gateways run elsewhere."""
        node = node_name(number)
        if node in self.world.cut_nodes:
            return
        self.world.cut_nodes.add(node)
        workers = [index for index, shape in enumerate(self.world.shape.workers) if shape.node == node]
        for index in workers:
            self._cut_streams(f"w{index}", True)
        if seconds > self.world.shape.lost_after_s:
            self.world.clock.after(self.world.shape.lost_after_s, self._lose_node, number, workers)
        self.world.clock.after(seconds, self._heal_node, number, workers)

    def _cut_streams(self, name: str, cut: bool) -> None:
        if name in self.world.worker_streams:
            self.world.worker_streams[name].link.set_cut(cut)
        for (worker, _), stream in self.world.token_streams.items():
            if worker == name:
                stream.link.set_cut(cut)

    def _lose_node(self, number: int, workers: list[int]) -> None:
        """Nobody can say whether its processes live. They are given up; what they still do reaches no other pool."""
        for index in workers:
            worker = self.world.workers[f"w{index}"]
            if worker.alive and worker.name not in self.world.lost:
                self.world.lost.add(worker.name)
                self._lose_worker(worker, "its node is cut off")
        pool = self.world.pools.get(f"h{number}")
        if pool is not None and pool.alive and pool.name not in self.world.lost:
            self.world.lost.add(pool.name)
            self.world.notify(HostPoolLost(pool.name, pool.incarnation, "its node is cut off"))

    def _heal_node(self, number: int, workers: list[int]) -> None:
        self.world.cut_nodes.discard(node_name(number))
        for index in workers:
            name = f"w{index}"
            if name in self.world.lost:
                self.world.lost.discard(name)
                self.kill_worker(index)
            else:
                self._cut_streams(name, False)
        if f"h{number}" in self.world.lost:
            self.world.lost.discard(f"h{number}")
            self.kill_pool(number)

    def break_worker_stream(self, number: int) -> None:
        stream = self.world.worker_streams.get(f"w{number}")
        if stream is not None:
            stream.link.break_stream()

    def break_token_streams(self, number: int) -> None:
        for (worker, _), stream in self.world.token_streams.items():
            if worker == f"w{number}":
                stream.link.break_stream()

    def stop_gateway(self, number: int, seconds: float) -> None:
        gateway = self.world.gateways[f"g{number}"]
        if gateway.alive and not gateway.stopped:
            gateway.stop()
            self.world.clock.after(seconds, gateway.wake)

    def cut_gateway(self, number: int, seconds: float) -> None:
        stream = self.world.front_streams.get(f"g{number}")
        if stream is None:
            return
        link = stream.link
        link.set_cut(True)
        self.world.clock.after(seconds, link.set_cut, False)

    def stop_scheduler(self, seconds: float) -> None:
        shell = self.world.shell
        if shell.alive and not shell.stopped:
            shell.stop()
            self.world.clock.after(seconds, shell.wake)

    def jump(self, seconds: float) -> None:
        """The scheduler's clock leaps ahead, as it does where a machine was suspended."""
        self.world.shell.clock_ahead_s += seconds

    def spoil_transfers(self, number: int, fail: int, corrupt: int) -> None:
        """The next transfers of a worker break half-way, or carry a chunk whose checksum is wrong."""
        faults = self.world.workers[f"w{number}"].transfers.faults
        faults.fail_next += fail
        faults.corrupt_next += corrupt
