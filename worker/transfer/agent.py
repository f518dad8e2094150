"""The transfers of one worker: takes the scheduler's orders and answers each exactly once, beside the step loop.

The worker hands over `Transfer` orders and aborts as they come in plans, and takes `Transferred` answers when it writes
its next result; neither waits for anything. What is done when, and what is answered, is decided in `cluster/register/`;
here are the threads that carry it out, and the peers that they have met.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping

from cluster.errors import QuireError
from cluster.links.security import ClusterSecurity
from cluster.messages import Transfer, Transferred
from cluster.register.asking import Asking, AskingSettings, Unheard
from cluster.register.errand import Errand, Unknown
from cluster.register.steps import AnswerScheduler, Meet, Outcome
from worker.transfer.carry import Carry
from worker.transfer.end import PoolEnd
from worker.transfer.memory import keep_freed_memory
from worker.transfer.peer import PeerPool

# Of the threads that copy: steps go first.
_NICENESS = 5
# How often a thread without work looks whether something has become due.
_LOOK_S = 0.25
_log = logging.getLogger(__name__)


class TransferAgent:
    """Moves blocks between the pool of `end` and the pools that `addresses` names (kept up to date by the owner)."""

    def __init__(
        self,
        end: PoolEnd,
        addresses: Mapping[str, str],
        security: ClusterSecurity,
        settings: AskingSettings | None = None,
        answered: Callable[[], object] = lambda: None,
    ) -> None:
        """`answered` is called on a thread of the agent whenever there is an answer to take."""
        keep_freed_memory()
        self._end = end
        self._answered = answered
        self._peers = Peers(end, addresses, security)
        self._asking = Asking(end.name, end.register, settings or AskingSettings())
        # Decisions of both machines go under one lock.
        self._wake = threading.Condition(end.lock)
        self._after: dict[Errand, Callable[[], None] | None] = {}
        self._threads: list[threading.Thread] = []
        self._closing = False

    # -- the worker's side; none of these waits

    def submit(self, order: Transfer, epoch: int, after: Callable[[], None] | None = None) -> None:
        """Begins a transfer. `after` is called on the agent's thread and returns once steps issued before this order
        can no longer write the blocks (on a GPU it waits for an event; on the CPU they are done)."""
        with self._wake:
            errand = self._asking.order(order, epoch, self._end.now())
            if errand is None:
                return
            self._after[errand] = after
            if len(self._threads) < self._asking.num_wanted:
                thread = threading.Thread(target=self._run, name=f"quire-transfer-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify()

    def abort(self, transfer: int) -> None:
        """The scheduler wants no more of this transfer; it is answered as every other."""
        with self._wake:
            self._asking.abort(transfer)
            self._wake.notify()

    def adopt_epoch(self, epoch: int) -> None:
        """A new scheduler: what older ones ordered and did not see committed is given up."""
        with self._wake:
            self._asking.adopt_epoch(epoch, self._end.now())
            self._wake.notify()

    def take_answers(self) -> list[Transferred]:
        """Answers since the last call, for the next result."""
        if self._asking.is_due:
            with self._wake:
                self._asking.sweep(self._end.now())
        answers = []
        while self._asking.answers:
            answers.append(self._asking.answers.popleft())
        return answers

    def under_way(self) -> tuple[int, ...]:
        """Transfers that have not been answered, for a scheduler that rebuilds."""
        with self._wake:
            return tuple(order.transfer for order in self._asking.under_way())

    def close(self) -> None:
        """Gives everything up, waits for the threads and lets go of the peers' memory."""
        with self._wake:
            self._closing = True
            for order in self._asking.under_way():
                self._asking.abort(order.transfer, "the worker is being closed")
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._peers.close()

    # -- the agent's threads

    def _run(self) -> None:
        # On a CPU copies and steps want the same cores.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            errand, word = self._next()
            if errand is not None:
                self._carry_out(errand)
            elif word is not None:
                self._tell(word)
            else:
                return

    def _next(self) -> tuple[Errand | None, Unheard | None]:
        """What to do now, once there is something; nothing: the agent is being closed."""
        with self._wake:
            while True:
                num_answers, now = len(self._asking.answers), self._end.now()
                errand = self._asking.begin(now)
                word = None if errand is not None or self._closing else self._asking.next_word(now)
                if len(self._asking.answers) > num_answers:
                    self._answered()
                if errand is not None or word is not None or self._closing:
                    return errand, word
                self._wake.wait(timeout=_LOOK_S if self._asking.is_due else None)

    def _carry_out(self, errand: Errand) -> None:
        with self._wake:
            after = self._after.pop(errand)
        carry = Carry(errand, self._end, self._peers, after)
        outcome: Outcome = None
        try:
            while (step := self._end.next_step(errand, outcome)) is not None:
                outcome = None
                if isinstance(step, AnswerScheduler):
                    self._answer(errand, step.transferred)
                    continue
                try:
                    outcome = carry.carry_out(step)
                except Exception as error:
                    if not isinstance(error, QuireError):
                        _log.exception("transfer %d failed", errand.order.transfer)
                    outcome = error
        finally:
            carry.close()

    def _answer(self, errand: Errand, transferred: Transferred) -> None:
        # A worker that serves no peers has nobody else to do it.
        self._end.expire()
        with self._wake:
            self._asking.answer(errand, transferred, self._end.now())
            self._wake.notify_all()
        self._answered()

    def _tell(self, word: Unheard) -> None:
        peer = self._peers.known(word.peer)
        heard = peer is not None and peer.abort(word.name, word.reason, self._asking.settings.settle_call_s)
        if peer is not None:
            peer.release()
        with self._wake:
            self._asking.told(word, heard, self._end.now())


class Peers:
    """The peers that were met, one each at its newest incarnation. An older one is closed by who uses it last."""

    def __init__(self, end: PoolEnd, addresses: Mapping[str, str], security: ClusterSecurity) -> None:
        self._end = end
        self._addresses = addresses
        self._security = security
        self._lock = threading.Lock()
        self._peers: dict[str, PeerPool] = {}

    def known(self, name: str) -> PeerPool | None:
        """The peer that was met last under this name, to be released; None: there was none."""
        with self._lock:
            peer = self._peers.get(name)
            return peer.retain() if peer is not None else None

    def meet(self, step: Meet) -> PeerPool:
        address = self._addresses.get(step.peer)
        if address is None:
            there_is = ", ".join(sorted(self._addresses)) or "no peer at all"
            raise Unknown(f"no address is known for {step.peer}; there is {there_is}")
        peer = self.known(step.peer)
        if peer is not None:
            if (peer.address, peer.incarnation) == (address, step.incarnation):
                return peer
            peer.release()
        peer = PeerPool(step.peer, address, self._end, self._security)
        try:
            peer.join(step.timeout_s)
        except BaseException:
            peer.release()
            raise
        with self._lock:
            replaced, self._peers[step.peer] = self._peers.get(step.peer), peer.retain()
        if replaced is not None:
            replaced.release()
        return peer

    def close(self) -> None:
        with self._lock:
            peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.release()
