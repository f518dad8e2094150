"""The transfers of one worker: takes the scheduler's orders and answers each exactly once, beside the step loop.

The worker hands over `Transfer` orders and aborts as they come in plans, and takes `Transferred` answers when it writes
its next result; neither waits for anything. Orders run on the agent's own threads, a few per peer at a time. An answer
is given once nothing of this process can touch the peer's blocks any more; where the peer did not hear that, it is told
again until it has (`worker/transfer/settle.py`). It decides nothing about which block goes where.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cluster.errors import QuireError, TransferError
from cluster.links.security import ClusterSecurity
from cluster.messages import Road, Transfer, Transferred
from worker.transfer.end import PoolEnd
from worker.transfer.memory import keep_freed_memory
from worker.transfer.peer import PeerPool
from worker.transfer.run import Part, PartRun
from worker.transfer.settle import Settler
from worker.transfer.states import Blocks, Carrier, TransferKey

_SMOOTHING = 0.2
_DIRECTORY_S = 1.0
# Of the threads that copy: steps go first.
_NICENESS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Bounds of one worker's transfers."""

    max_per_peer: int = 2
    max_threads: int = 8
    # Bytes of one reservation where they go over a connection or through a GPU's staging memory.
    part_bytes: int = 64 << 20
    # How long a peer is told that a transfer was given up.
    settle_s: float = 600.0
    # Carriers that may be used; the best of them that a peer offers is.
    carriers: tuple[Carrier, ...] = (Carrier.SHARED_MEMORY, Carrier.SOCKET, Carrier.STREAM)


@dataclass(slots=True)
class _Order:
    """One order under way. `problem` is why it is to be given up."""

    order: Transfer
    epoch: int
    deadline: float
    after: Callable[[], None] | None
    problem: str = ""

    def go_on(self) -> None:
        if self.problem:
            raise TransferError(self.problem)
        if time.monotonic() >= self.deadline:
            raise TransferError(f"not done within {self.order.timeout_s:.1f} s")

    def time_left(self) -> float:
        return self.deadline - time.monotonic()


class TransferAgent:
    """Moves blocks between the pool of `end` and the pools that `addresses` names (kept up to date by the owner)."""

    def __init__(
        self,
        end: PoolEnd,
        addresses: Mapping[str, str],
        security: ClusterSecurity,
        settings: AgentSettings | None = None,
        answered: Callable[[], object] = lambda: None,
    ) -> None:
        """`answered` is called on a thread of the agent whenever there is an answer to take."""
        keep_freed_memory()
        self._end = end
        self._answered = answered
        self._addresses = addresses
        self._security = security
        self._settings = settings or AgentSettings()
        self._wake = threading.Condition()
        self._waiting: deque[_Order] = deque()
        self._running: list[_Order] = []
        self._answers: deque[Transferred] = deque()
        # Orders seen, so that one that comes again is not run again.
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._peers: dict[str, PeerPool] = {}
        self._uses: Counter[PeerPool] = Counter()
        self._settler = Settler(self._settings.settle_s, self._let_go)
        self._threads: list[threading.Thread] = []
        self._epoch = 0
        self._closing = False
        # By peer, moving averages.
        self._rates: dict[str, float] = {}
        self.num_ended: Counter[str] = Counter()

    # -- the worker's side; none of these waits

    def submit(self, order: Transfer, epoch: int, after: Callable[[], None] | None = None) -> None:
        """Begins a transfer. `after` is called on the agent's thread and returns once steps issued before this order
        can no longer write the blocks (on a GPU it waits for an event; on the CPU they are done)."""
        deadline = time.monotonic() + order.timeout_s
        with self._wake:
            if (epoch, order.transfer) in self._seen:
                return
            self._seen[epoch, order.transfer] = None
            if len(self._seen) > 65_536:
                self._seen.popitem(last=False)
            job = _Order(order, epoch, deadline, after)
            if epoch < self._epoch:
                job.problem = f"epoch {self._epoch} began"
            self._waiting.append(job)
            if len(self._threads) < min(self._settings.max_threads, len(self._waiting) + len(self._running)):
                thread = threading.Thread(target=self._run, name=f"quire-transfer-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify()

    def abort(self, transfer: int) -> None:
        """The scheduler wants no more of this transfer; it is answered as every other."""
        with self._wake:
            for job in (*self._waiting, *self._running):
                if job.order.transfer == transfer:
                    job.problem = job.problem or "aborted by the scheduler"

    def adopt_epoch(self, epoch: int) -> None:
        """A new scheduler: what older ones ordered and did not see committed is given up."""
        with self._wake:
            self._epoch = max(self._epoch, epoch)
            for job in (*self._waiting, *self._running):
                if job.epoch < epoch:
                    job.problem = job.problem or f"epoch {epoch} began"
        self._end.adopt_epoch(epoch)

    def take_answers(self) -> list[Transferred]:
        """Answers since the last call, for the next result."""
        answers = []
        while self._answers:
            answers.append(self._answers.popleft())
        return answers

    def under_way(self) -> tuple[int, ...]:
        """Transfers that have not been answered, for a scheduler that rebuilds."""
        with self._wake:
            return tuple(job.order.transfer for job in (*self._running, *self._waiting))

    def rates(self) -> dict[str, float]:
        """Bytes per second to and from each peer, moving averages of transfers that committed."""
        with self._wake:
            return dict(self._rates)

    def close(self) -> None:
        """Gives everything up, waits for the threads and lets go of the peers' memory."""
        with self._wake:
            self._closing = True
            for job in (*self._waiting, *self._running):
                job.problem = job.problem or "the worker is being closed"
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._settler.close()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    # -- the agent's threads

    def _run(self) -> None:
        # On a CPU copies and steps want the same cores.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            with self._wake:
                while (job := self._next()) is None:
                    if self._closing and not self._waiting:
                        return
                    # One that waits for its peer may reach its deadline meanwhile.
                    self._wake.wait(timeout=0.25 if self._waiting else None)
            self._answer(job)

    def _next(self) -> _Order | None:
        """The first waiting order whose peer has room, or that is to be given up; it runs from now on."""
        busy = Counter(job.order.peer for job in self._running)
        for job in self._waiting:
            if job.problem or job.time_left() <= 0 or busy[job.order.peer] < self._settings.max_per_peer:
                self._waiting.remove(job)
                self._running.append(job)
                return job
        return None

    def _answer(self, job: _Order) -> None:
        order, began = job.order, time.monotonic()
        verb, way = ("write", "to") if order.road is Road.WRITE else ("read", "from")
        size = len(order.mine) * self._end.layout.block_bytes
        ok = False
        runs: list[PartRun] = []
        try:
            detail = self._carry_out(job, runs)
            ok = True
        except QuireError as error:
            detail = f"{verb} of {len(order.mine)} blocks {way} {order.peer}: {error}"
        except Exception as error:
            # A mistake of ours must not leave the scheduler without its answer.
            _log.exception("transfer %d failed", order.transfer)
            detail = f"{verb} of {len(order.mine)} blocks {way} {order.peer}: {type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        # A worker that serves no peers has nobody else to do it.
        self._end.expire()
        with self._wake:
            self._running.remove(job)
            self._answers.append(Transferred(order.transfer, ok, detail, size if ok else 0, seconds))
            self.num_ended[f"{verb} {'done' if ok else 'failed'}"] += 1
            if ok and seconds > 0:
                known = self._rates.get(order.peer, size / seconds)
                self._rates[order.peer] = known + _SMOOTHING * (size / seconds - known)
            self._wake.notify_all()
        self._answered()
        for run in runs:
            if ok:
                run.let_go()
            self._let_go(run.peer)

    def _carry_out(self, job: _Order, runs: list[PartRun]) -> str:
        """Runs the order, part by part, each of which stays in `runs` with a use of its peer; returns by what carrier.
        Raises QuireError."""
        order = job.order
        if len(order.mine) != len(order.theirs) or not len(order.mine):
            raise TransferError(f"{len(order.mine)} blocks here against {len(order.theirs)} there")
        job.go_on()
        if job.after is not None:
            job.after()
        peer = self._peer(job)
        try:
            carrier = self._carrier(peer, order.road is Road.WRITE)
            for number, (mine, theirs) in enumerate(self._parts(order, carrier)):
                key = TransferKey(job.epoch, order.transfer, number, self._end.name)
                part = Part(key, order.road is Road.WRITE, mine, theirs, len(order.mine))
                run = PartRun(part, self._end, peer, carrier, job.go_on, job.time_left)
                with self._wake:
                    self._uses[peer] += 1
                runs.append(run)
                carrier = self._run_part(run)
            return f"by {carrier.name.lower().replace('_', ' ')}"
        finally:
            self._let_go(peer)

    def _carrier(self, peer: PeerPool, write: bool) -> Carrier:
        allowed = [carrier for carrier in peer.carriers() if carrier in self._settings.carriers]
        if allowed and allowed[0] is Carrier.SHARED_MEMORY and not peer.map(write=write):
            del allowed[0]
        if not allowed:
            raise TransferError(f"{peer.name} offers none of the carriers that may be used here")
        return allowed[0]

    def _run_part(self, run: PartRun) -> Carrier:
        try:
            run.run()
        except BaseException as error:
            reason = str(error) or type(error).__name__
            # Said before the answer is given: the scheduler may use the blocks again from then on.
            if not run.peer.abort(run.there, reason, timeout_s=1.0):
                with self._wake:
                    self._uses[run.peer] += 1
                self._settler.add(run.peer, run.there, reason)
            raise
        return run.carrier

    def _parts(self, order: Transfer, carrier: Carrier) -> list[tuple[Blocks, Blocks]]:
        mine, theirs = np.array(order.mine, np.int32), np.array(order.theirs, np.int32)
        if carrier is Carrier.SHARED_MEMORY:
            return [(mine, theirs)]
        step = max(1, self._settings.part_bytes // self._end.layout.block_bytes)
        return [(mine[i : i + step], theirs[i : i + step]) for i in range(0, len(mine), step)]

    # -- peers

    def _peer(self, job: _Order) -> PeerPool:
        """The peer of an order at the incarnation that it names, joined; `_let_go` must follow."""
        name, wanted = job.order.peer, job.order.peer_incarnation
        address = self._address(job)
        with self._wake:
            peer = self._peers.get(name)
            if peer is None or peer.address != address or peer.incarnation != wanted:
                peer = None
            else:
                self._uses[peer] += 1
        if peer is None:
            peer = self._join(job, PeerPool(name, address, self._end, self._security))
        if peer.incarnation != wanted:
            self._let_go(peer)
            raise TransferError(f"incarnation {peer.incarnation} of {name} is there, the order is for {wanted}")
        return peer

    def _address(self, job: _Order) -> str:
        """Where the peer of an order is. The directory may be a moment behind the order."""
        name, give_up_at = job.order.peer, time.monotonic() + _DIRECTORY_S
        while (address := self._addresses.get(name)) is None:
            job.go_on()
            if time.monotonic() >= give_up_at:
                known = ", ".join(sorted(self._addresses)) or "no peer at all"
                raise TransferError(f"no address is known for {name}; there is {known}")
            time.sleep(0.02)
        return address

    def _join(self, job: _Order, peer: PeerPool) -> PeerPool:
        try:
            peer.join(job.go_on)
        except BaseException:
            peer.close()
            raise
        surplus: PeerPool | None
        with self._wake:
            surplus = self._peers.get(peer.name)
            if surplus is not None and (surplus.address, surplus.incarnation) == (peer.address, peer.incarnation):
                surplus, peer = peer, surplus  # another thread was faster
            self._peers[peer.name] = peer
            self._uses[peer] += 1
            unused = surplus is not None and self._uses[surplus] == 0
        if surplus is not None and unused:
            surplus.close()
        return peer

    def _let_go(self, peer: PeerPool) -> None:
        """Closes a peer that was replaced once its last transfer has ended."""
        with self._wake:
            self._uses[peer] -= 1
            unused = self._uses[peer] == 0
            if unused:
                del self._uses[peer]
            unused = unused and self._peers.get(peer.name) is not peer
        if unused:
            peer.close()
