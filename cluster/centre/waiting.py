"""Who waits: the queue of each model, those that are set aside, those parked behind a prefix, and who is refused.

What could never fit is refused with the figures; the queue is bounded. A request of a model that nobody has reported
yet to a new scheduler waits as well. Nothing starts here: `cluster/centre/admission.py` takes the heads.
"""

from __future__ import annotations

from collections import Counter

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.fairness import WaitingQueue
from cluster.centre.nouns import Replica, Request, Sequence, State

Refusal = tuple[str, str, float]


class Waiting:
    """All requests that are queued or parked."""

    def __init__(self, books: Books, boards: Boards) -> None:
        self._books = books
        self._settings = books.settings
        self._boards = boards
        self.queues: dict[str, WaitingQueue] = {}
        # Requests that fit no replica which is here, and one that may come back: others go on without them. And when
        # they are looked at again.
        self._aside: dict[int, Request] = {}
        self._look_at = float("inf")
        # Those that are parked, by model.
        self._num_parked: Counter[str] = Counter()

    # -- who is refused, and what is told of those that are not

    def refusal(self, request: Request) -> Refusal | None:
        """Why this request can never be served, or not now; None if it may wait."""
        if request.model in self._boards.closed:
            return "NOT_FOUND", f"model {request.model} is being unloaded; ask for another", 0.0
        board = self._boards.find(request.model)
        if board is not None and board.fits_here(request):
            request.measured = board.sizes.version
        elif not self._books.hearing.may_join(self._books.now):
            if board is None:
                return "NOT_FOUND", self.not_served(request.model), 0.0
            if detail := board.why_never(request):
                return "INVALID_ARGUMENT", detail, 0.0
        num_waiting = self.num_waiting(request.model)
        if num_waiting >= self._settings.max_queue:
            return "RESOURCE_EXHAUSTED", f"{num_waiting:,} requests wait, which is the bound of the queue", 1.0
        return None

    def not_served(self, model: str) -> str:
        known = ", ".join(sorted(self._boards.names())) or "none"
        return f"no model {model} is served here; there is {known}"

    def nobody_is_here(self, model: str) -> str:
        """Why what is asked of this model does not begin, for people."""
        more = " yet: the scheduler has just started" if self._books.hearing.may_join(self._books.now) else ""
        return f"no replica of {model} is here{more}"

    def accept(self, request: Request) -> str:
        """It waits from now on; returns what its client is told of that."""
        self.queue(request)
        return "" if self._boards.find(request.model) is not None else self.nobody_is_here(request.model)

    def take_unserved(self) -> list[Request]:
        """Once every replica had time to come back to this new scheduler: these wait for a model that none serves."""
        return [] if self._books.hearing.may_join(self._books.now) else self._unserved()

    def _unserved(self) -> list[Request]:
        """What no replica that was ever here could serve: it came, by its client or from a scheduler before this one,
        while one might come."""
        queues = [queue for model, queue in self.queues.items() if queue and self._boards.find(model) is None]
        return [request for queue in queues for request in queue]

    # -- the queue

    def num_waiting(self, model: str) -> int:
        queue = self.queues.get(model)
        num_waiting = self._num_parked.get(model, 0) + (len(queue) if queue is not None else 0)
        return num_waiting + (sum(one.model == model for one in self._aside.values()) if self._aside else 0)

    def all(self) -> list[Request]:
        return [*self._aside.values(), *(request for queue in self.queues.values() for request in queue)]

    def heads(self) -> list[Request]:
        """Who goes next, of each model."""
        return [head for queue in self.queues.values() if (head := queue.head()) is not None]

    def queue(self, request: Request) -> None:
        """It waits from now on; one that ran before goes ahead of new work."""
        request.state = State.QUEUED
        request.queued_at = self._books.now
        if request.attempt:
            self.charge_memory(request)
        if request.preemptions:
            for sequence in request.live:
                block_size = self._boards.block_size(request.model)
                sequence.safe_end = min(sequence.limit, sequence.num_written - 1 + block_size)
        self.queues.setdefault(request.model, WaitingQueue()).push(request, returns=request.attempt > 0)

    def charge_memory(self, request: Request) -> None:
        """It holds no device memory now: its tenant pays for what it has held since the last time."""
        held = request.block_seconds - request.charged_seconds
        request.tenant.charge(held * self._settings.tokens_per_block_second)
        request.charged_seconds = request.block_seconds

    def withdraw(self, request: Request) -> None:
        """It waits no more, in whichever way it did."""
        if request.state is State.QUEUED:
            if self._aside.pop(request.arrival, None) is None:
                self.queues[request.model].remove(request)
        elif request.state is State.PARKED:
            self._leave_parking(request)

    # -- aside: what fits nobody who is here

    @property
    def next_due(self) -> float | None:
        """When those that were set aside are looked at again, or those refused whose model nobody serves."""
        look_at = self._look_at if self._aside else None
        if not self._unserved():
            return look_at
        until = self._books.hearing.replicas_until
        return until if look_at is None else min(look_at, until)

    def is_aside(self, request: Request) -> bool:
        return request.arrival in self._aside

    def set_aside(self, request: Request, until: float) -> None:
        self.queues[request.model].remove(request)
        self._aside[request.arrival] = request
        self._look_at = min(self._look_at, until)

    def look_again(self, now: float) -> None:
        """A replica has come: what was set aside may fit there. They are looked at in this turn."""
        self._look_at = now

    def expire(self) -> None:
        """Those whose time has come go back into their queues."""
        if self._look_at <= self._books.now:
            aside, self._aside, self._look_at = self._aside, {}, float("inf")
            for request in aside.values():
                self.queues[request.model].push(request, returns=True)

    # -- parking behind a prefix

    def park(self, request: Request, owner: Sequence, until: int) -> None:
        """It waits until the owner has filled what both need."""
        request.state = State.PARKED
        request.parked_on = owner
        if owner.waiters is None:
            owner.waiters = {}
        owner.waiters[request.arrival] = until, request
        self._num_parked[request.model] += 1
        assert owner.request.replica is not None
        owner.request.replica.awaited[owner.seq] = owner
        what = "fetch" if owner.request.state is State.RESTORING else "prefix"
        self._books.counters[f"parked on a {what}"] += 1

    def _leave_parking(self, request: Request) -> None:
        owner = request.parked_on
        assert owner is not None and owner.waiters is not None
        del owner.waiters[request.arrival]
        self._num_parked[request.model] -= 1
        request.parked_on = None

    def unpark(self, request: Request) -> None:
        """What it waited for is filled, or never will be: it takes its old place in the queue."""
        request.parked_on = None
        self._num_parked[request.model] -= 1
        request.state = State.QUEUED
        self.queues[request.model].push(request, returns=True)

    def wake_waiters(self, replica: Replica) -> None:
        for sequence in list(replica.awaited.values()):
            waiters = sequence.waiters or {}
            ready = [request for until, request in waiters.values() if until <= sequence.position]
            for request in ready:
                del waiters[request.arrival]
                self.unpark(request)
            if not waiters:
                del replica.awaited[sequence.seq]
