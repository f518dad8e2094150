"""How a request leaves its replica when its worker has answered: tables are released, and it goes on from here.

It has ended, or it waits to start again; sealed first is what a new scheduler knows only in part, and whose logprobs
only this worker knows. Who waited for a
prefix that it was computing looks again.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.endings import Endings
from cluster.centre.host_memory import HostMemory
from cluster.centre.nouns import Replica, Request, Sequence
from cluster.centre.pins import Pins
from cluster.centre.residents import close, leave
from cluster.centre.sealing import Sealing
from cluster.centre.waiting import Waiting
from cluster.messages import Reason


class Leaving:
    """Takes sequences off replicas; which ones, others decide."""

    def __init__(
        self,
        books: Books,
        waiting: Waiting,
        host_memory: HostMemory,
        endings: Endings,
        sealing: Sealing,
        pins: Pins,
    ) -> None:
        self._books = books
        self._waiting = waiting
        self._host_memory = host_memory
        self._endings = endings
        self._sealing = sealing
        self._pins = pins

    def detach(self, replica: Replica, sequence: Sequence) -> None:
        """The attempt is over: blocks are released, and who waited for its prefix looks again."""
        request = sequence.request
        self._books.computing.end(sequence)
        waiters, sequence.waiters = sequence.waiters or {}, None
        if request.pin_until is not None and sequence.reason in (Reason.LENGTH, Reason.STOP):
            self._pins.hold(replica, sequence)
        if request.forked_from is sequence and not request.has_forks_waiting:
            request.forked_from = None
        leave(replica, sequence)
        for _, waiter in waiters.values():
            self._waiting.unpark(waiter)

    def detach_all(self, replica: Replica, request: Request) -> None:
        for sequence in request.sequences:
            if sequence.seq:
                self.detach(replica, sequence)

    def off_replica(self, replica: Replica, request: Request) -> None:
        """No sequence of the request is on the replica any more, and none is on its way from there: it has ended, or it
        waits to start again."""
        del replica.requests[request.request_id]
        request.replica = None
        if request.is_cancelled:
            for sequence in request.live:
                sequence.reason = Reason.DROPPED
        if not request.live:
            self._endings.finish(request)
        elif request.is_partial or _is_judged(request):
            self._sealing.seal(request)
        else:
            self._waiting.queue(request)

    def let_go(self, replica: Replica, request: Request) -> None:
        """Nothing of it stays here or in host memory."""
        self._host_memory.forget(request)
        self.detach_all(replica, request)

    def give_up(self, replica: Replica, request: Request) -> None:
        """What was to bring it elsewhere, or here, has failed: it is computed again."""
        self.let_go(replica, request)
        self.off_replica(replica, request)

    def lose(self, replica: Replica, kept: list[Request]) -> None:
        """Its memory is gone, but for what those `kept` have in host memory: all that ran there is sealed."""
        self._pins.lose(replica)
        for sequence in list(replica.residents.values()):
            self.detach(replica, sequence)
        close(replica)
        self._books.touched.pop(replica.name, None)
        for request in list(replica.requests.values()):
            request.replica = None
            if request not in kept:
                self._host_memory.forget(request)
            # Also what was only coming back from host memory: it may have been there, and gone on, unheard of.
            self._sealing.seal(request)


def _is_judged(request: Request) -> bool:
    """Whoever goes on with it tells its tokens again, without the logprobs that only who drew them knows, and may be
    heard sooner: so its gateway is asked first, and what that lacks is drawn again."""
    return request.wants_logprobs and any(sequence.outputs for sequence in request.live)
