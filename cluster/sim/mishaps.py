"""What can happen to the processes and streams of a simulated cluster: deaths, silence, cuts, leaps of a clock.

It does what Ray and the nodes do around our processes: it notices deaths, starts again, gives up who is silent, fences.
What it holds for the scheduler: after a replica was told lost its old life may still write into host pools, until each
pool has said HostPoolSettled for its transfers; by then it is dead, or refused. A process that was given up while its
node is cut off lives on until it is reached, then it is killed and starts anew. Faults call its verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cluster.messages import HostPoolLost, ReplicaLost
from cluster.sim.client import SimClient
from cluster.sim.gateway import SimGateway
from cluster.sim.hostpool import SimHostPool
from cluster.sim.network import SimLink
from cluster.sim.shell import SimShell
from cluster.sim.streams import SchedulerEnds
from cluster.sim.worker import SimWorker
from cluster.sim.world import SETTLE_S, World, node_name


class Mishaps:
    """The verbs of misfortune of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.on_refused = self._end_refused

    # -- deaths

    def _end_refused(self, name: str, life: int) -> None:
        """It hears that its life is over: what it holds means nothing any more, so it starts anew."""
        if name in self.world.pools:
            self.kill_pool(int(name[1:]))
        elif self.world.workers[name].incarnation == life:
            self.kill_worker(int(name[1:]))

    def kill_worker(self, number: int) -> None:
        worker = self.world.workers[f"w{number}"]
        if not worker.alive:
            return
        self._end_worker(number, worker)
        self.world.clock.after(self.world.shape.detect_s, self.lose_worker, worker, "its process died")

    def kill_rank(self, number: int, seconds: float) -> None:
        """One of its ranks dies: the others wait for it in vain until that is noticed, and then all end. Until then the
        first one goes on to obey and to answer."""
        worker = self.world.workers[f"w{number}"]
        if worker.alive and worker.shape.num_ranks > 1:
            worker.steps.stream.hang()
            self.world.num_ranks_lost += 1
        self.world.clock.after(seconds, self._kill_hung, number, worker)

    def _kill_hung(self, number: int, worker: SimWorker) -> None:
        if self.world.workers[worker.name] is worker:
            self.kill_worker(number)

    def kill_teller(self, number: int) -> None:
        """It dies as it has told the last token of a sequence, and nobody else that this was the last."""
        worker = self.world.workers[f"w{number}"]
        worker.at_an_end = lambda: self.kill_worker(number)

    def fail_step(self, number: int) -> None:
        """Its device refuses the next step: all requests in it fail."""
        self.world.workers[f"w{number}"].steps.refused = self.world.failed

    def kill_scheduler_at_a_stop(self, down_s: float) -> None:
        """It dies as the next stop string is found, so that it is told of that while it is away, or never."""
        self.world.at_a_stop = lambda: self.kill_scheduler(down_s)

    def resize_worker(self, number: int, share: float) -> None:
        """It dies and comes back with a pool of another size, of two blocks at least: its memory was set anew."""
        num_blocks = max(2, int(self.world.shape.workers[number].num_blocks * share))
        self.world.resize_worker(number, num_blocks)
        self.kill_worker(number)

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
        self.lose_worker(worker, "it is silent")
        self.world.clock.after(settle_s, self._end_worker, number, worker)

    def lose_worker(self, worker: SimWorker, detail: str) -> None:
        lost = ReplicaLost(worker.name, worker.incarnation, detail)
        self.world.clock.after(0.001, self.world.shell.run, self._forget, self.world.ends, worker.name, lost)

    def _forget(self, ends: SchedulerEnds, name: str, lost: ReplicaLost | HostPoolLost) -> None:
        """Nothing that it still says is heard."""
        ends.workers.lose(name, lost.incarnation, lost.detail)
        ends.shell.take(lost)

    def _restart_worker(self, number: int, dead: SimWorker) -> None:
        if self.world.workers[dead.name] is dead and dead.name not in self.world.buried:
            self.world.start_worker(number)

    def _close_streams(self, name: str) -> None:
        if name in self.world.worker_streams:
            self.world.worker_streams[name].link.close()
        if name in self.world.pool_streams:
            self.world.pool_streams[name].link.close()
        if name in self.world.front_streams:
            self.world.front_streams[name].link.close()
        for (worker, gateway), stream in self.world.token_streams.items():
            if name == worker:
                stream.link.close()
            elif name == gateway:
                stream.link.break_stream(is_told=True)

    def kill_pool(self, number: int) -> None:
        pool = self.world.pools.get(f"h{number}")
        if pool is None or not pool.alive:
            return
        pool.die()
        self._close_streams(pool.name)
        self.world.clock.after(self.world.shape.detect_s, self._lose_pool, pool, "its process died")
        self.world.clock.after(self.world.shape.restart_s, self.world.start_pool, number)

    def _lose_pool(self, pool: SimHostPool, detail: str) -> None:
        lost = HostPoolLost(pool.name, pool.incarnation, detail)
        self.world.clock.after(0.001, self.world.shell.run, self._forget, self.world.ends, pool.name, lost)

    def kill_gateway(self, number: int, clients: list[SimClient], come_back: Callable[[SimClient], None]) -> None:
        """Those of its clients that resume come back by `come_back`; the others are left with what they have."""
        gateway = self.world.gateways[f"g{number}"]
        if not gateway.alive:
            return
        # Also of those whose clients are on their way elsewhere, or have gone there.
        held = {entry.request_id for entry in gateway.door.entries.values()}
        held.update(request.submit.request_id for _, request in gateway.door.handed.values())
        gateway.die()
        self._close_streams(gateway.name)
        self.world.clock.after(self.world.shape.detect_s, self._lose_gateway, gateway)
        restart_s = max(self.world.shape.restart_s, self.world.shape.detect_s)
        self.world.clock.after(restart_s, self.world.start_gateway, gateway.name)
        for client in clients:
            if client.outcome:
                continue
            is_here = client.gateway == gateway.name
            client.num_orphaned += is_here or client.ask.request_id in held
            if not is_here:
                continue
            client.gateway, client.stream = "", None
            if client.ask.resumes:
                self.world.clock.after(0.1 + 0.4 * self.world.random.random(), come_back, client)
            else:
                client.outcome = "broken"

    def _lose_gateway(self, gateway: SimGateway) -> None:
        """Its session ends before a new life of it is heard."""
        ends = self.world.ends
        ends.shell.run(self._forget_gateway, ends, gateway.name)

    def _forget_gateway(self, ends: SchedulerEnds, name: str) -> None:
        """One that this scheduler has never met can't be lost to it."""
        life = ends.gateways.life_of(name)
        if life:
            ends.gateways.lose(name, life, "its process died")

    def kill_scheduler(self, down_s: float) -> None:
        if not self.world.shell.alive:
            return
        self.world.shell.die()
        for link in self.world.scheduler_links():
            link.break_stream(is_told=True)
        self.world.clock.after(down_s, self._restart_scheduler, self.world.shell)

    def usurp_scheduler(self, down_s: float, late: Sequence[SimLink] = ()) -> None:
        """The scheduler stands still for so long that another is started; then it wakes up and goes on. Who is at the
        other end of `late` stays with the old one."""
        if not self.world.shell.alive or self.world.shell.stopped:
            return
        self.world.shell.stop()
        self.world.clock.after(down_s, self._restart_scheduler, self.world.shell, late)
        self.world.clock.after(down_s + 0.2, self.world.shell.wake)

    def two_schedulers(self, down_s: float) -> None:
        """As `usurp_scheduler`, and some workers hear nothing of the new one, and obey the old one for a while more."""
        world = self.world
        if not world.shell.alive or world.shell.stopped:
            return
        late = [stream.link for stream in world.worker_streams.values() if world.random.random() < 0.5]
        self.usurp_scheduler(down_s, late)
        for link in late:
            world.clock.after(down_s + 0.2 + 0.2 * world.random.random(), partial(link.break_stream, is_told=True))

    def _restart_scheduler(self, old: SimShell, late: Sequence[SimLink] = ()) -> None:
        if self.world.shell is old:
            self.world.start_scheduler(old.epoch + 1, old.clock_ahead_s, late)

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
        if self.world.workers[worker.name] is worker and worker.alive and stream is not None and stream.link.is_cut:
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
        self._cut_streams(f"h{number}", True)
        if seconds > self.world.shape.lost_after_s:
            self.world.clock.after(self.world.shape.lost_after_s, self._lose_node, number, workers)
        self.world.clock.after(seconds, self._heal_node, number, workers)

    def _cut_streams(self, name: str, cut: bool) -> None:
        for streams in (self.world.worker_streams, self.world.pool_streams):
            if name in streams:
                streams[name].link.set_cut(cut)
        for (worker, _), stream in self.world.token_streams.items():
            if worker == name:
                stream.link.set_cut(cut)

    def _lose_node(self, number: int, workers: list[int]) -> None:
        """Nobody can say whether its processes live. They are given up; what they still do reaches no other pool."""
        for index in workers:
            worker = self.world.workers[f"w{index}"]
            if worker.alive and worker.name not in self.world.lost:
                self.world.lost.add(worker.name)
                self.lose_worker(worker, "its node is cut off")
        pool = self.world.pools.get(f"h{number}")
        if pool is not None and pool.alive and pool.name not in self.world.lost:
            self.world.lost.add(pool.name)
            self._lose_pool(pool, "its node is cut off")

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
        else:
            self._cut_streams(f"h{number}", False)

    def break_worker_stream(self, number: int) -> None:
        stream = self.world.worker_streams.get(f"w{number}")
        if stream is not None:
            stream.link.break_stream()

    def break_token_streams(self, number: int) -> None:
        for (worker, _), stream in self.world.token_streams.items():
            if worker == f"w{number}":
                stream.link.break_stream()

    def cut_tokens(self, number: int, gateway: str, seconds: float) -> None:
        """A replica and a gateway do not hear each other for a while; the scheduler hears both."""
        stream = self.world.token_streams.get((f"w{number}", gateway))
        if stream is not None and f"w{number}" not in self.world.lost:
            stream.link.set_cut(True)
            self.world.clock.after(seconds, stream.link.set_cut, False)

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

    def lose_gateway(self, number: int, seconds: float) -> None:
        """It and the scheduler do not hear each other for so long that it is given up, though it lives and streams.
        Its old life is refused then, and it goes on as its next one."""
        world, name = self.world, f"g{number}"
        gateway, stream = world.gateways[name], world.front_streams.get(name)
        if stream is None or not gateway.alive or not world.shell.alive or stream.link.is_cut:
            return
        stream.link.set_cut(True)
        world.clock.after(world.shape.detect_s, self._lose_gateway, gateway)
        world.clock.after(world.shape.detect_s + seconds, stream.link.set_cut, False)

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
