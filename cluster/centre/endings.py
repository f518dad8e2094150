"""How requests enter the books and leave them: entered, dropped, broken off, finished, forgotten.

Whoever ends a request for a reason comes here: it is taken from wherever it is, and its gateway is told. What its end
sets free for others, because its gateway takes nothing of a lost attempt any more, waits here as well.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.deadlines import Deadlines
from cluster.centre.host_memory import HostMemory
from cluster.centre.nouns import Request, Sequence, State
from cluster.centre.transfers import Transfers
from cluster.centre.waiting import Waiting
from cluster.messages import Accepted, Done, Drop, Pin, Reason, Refused, Submit


class Endings:
    """What is done with a request as a whole, wherever it is."""

    def __init__(
        self,
        books: Books,
        boards: Boards,
        waiting: Waiting,
        deadlines: Deadlines,
        host_memory: HostMemory,
        transfers: Transfers,
    ) -> None:
        self._books = books
        self._boards = boards
        self._waiting = waiting
        self._deadlines = deadlines
        self._host_memory = host_memory
        self._transfers = transfers
        # What is kept for attempts that a lost replica may still be running, by request.
        self._until_deaf: dict[str, list[Callable[[], None]]] = {}

    def enter(self, event: Submit | Pin) -> Request:
        books = self._books
        books.gateways.add(event.gateway)
        request = Request(event, books.next_arrival(), books.tenants.get(event.tenant), books.now)
        names_fit = len(event.hashes) == len(event.prompt) // self._boards.block_size(event.model)
        request.is_cacheable = books.settings.prefix_caching and names_fit and not request.tenant.is_cleared
        books.tenants.enter(request.tenant)
        books.requests[request.request_id] = request
        self._watch(request)
        # What a replica remembers of it is of an attempt before.
        books.departed.pop(request.request_id, None)
        return request

    def _watch(self, request: Request) -> None:
        if request.deadline is not None:
            self._deadlines.wake_at(request.deadline, request)

    # -- it leaves its replica, or ends before its time

    def drop(self, request: Request) -> None:
        """Takes a running request off its replica; its blocks are held until the worker has answered."""
        replica = request.replica
        assert replica is not None and request.state is State.RUNNING
        request.state = State.STOPPING
        for sequence in request.sequences:
            if sequence.seq:
                replica.wanting.pop(sequence.seq, None)
                replica.write().drops.append(Drop(sequence.seq))

    def stop(self, request: Request, sequence: Sequence, reason: Reason, num_outputs: int) -> None:
        """One that runs has all its tokens: its worker is told."""
        assert request.replica is not None and request.state is State.RUNNING
        sequence.reason, sequence.cut = reason, num_outputs
        request.replica.write().drops.append(Drop(sequence.seq))
        request.replica.wanting.pop(sequence.seq, None)

    def abort(self, request: Request, reason: Reason) -> None:
        """Nobody wants it any more: what runs is dropped, what waits goes at once."""
        request.is_cancelled = True
        if request.state is State.RUNNING:
            self.drop(request)
        elif request.state in (State.SWAPPING, State.RESTORING):
            self._transfers.abort(request)
        elif request.state in (State.QUEUED, State.PARKED, State.SEALING):
            self._waiting.withdraw(request)
            for sequence in request.live:
                sequence.reason = reason
            self.finish(request)

    def break_off(self, request: Request, code: str, detail: str, reason: Reason) -> None:
        """It ends before its time; who adopts it later is told the same."""
        request.refusal = (code, detail)
        self._books.note(f"ended {code}", request.request_id, detail)
        self._books.tell(Refused(request.gateway, request.route, request.request_id, code, detail))
        self.abort(request, reason)

    # -- it has ended

    def finish(self, request: Request) -> None:
        """All its sequences have ended and hold nothing."""
        books = self._books
        assert not any(sequence.seq for sequence in request.sequences)
        self._host_memory.forget(request)
        self.deaf(request)
        request.state = State.ENDED
        if books.requests.get(request.request_id) is not request:
            # What a replica still ran of a request that goes on elsewhere (see Rebuild): nobody waits for it.
            books.tenants.leave(request.tenant)
            return
        self.forget(request)
        given_up = request.orphaned_until is not None and request.orphaned_until <= books.now
        if request.pin_until is None and not given_up:
            books.unclosed[request.request_id] = request
        self._waiting.charge_memory(request)
        self._bill(request)
        books.counters["cancelled" if request.is_cancelled else "finished"] += 1
        self.tell_done(request)

    def _bill(self, request: Request) -> None:
        """Everything that it used is noted."""
        tenant = request.tenant
        tenant.num_requests += 1
        tenant.prompt_tokens += len(request.prompt)
        tenant.cached_tokens += request.cached_tokens
        tenant.output_tokens += sum(sequence.num_billed for sequence in request.sequences)
        tenant.block_seconds += request.block_seconds
        tenant.host_block_seconds += request.host_block_seconds

    def tell_done(self, request: Request) -> None:
        self._books.tell(
            Done(
                request.gateway,
                request.route,
                request.request_id,
                request.cached_tokens,
                request.preemptions,
                request.queue_seconds,
                request.block_seconds,
                request.host_block_seconds,
            )
        )

    def forget(self, request: Request) -> None:
        if self._books.requests.get(request.request_id) is request:
            del self._books.requests[request.request_id]
        self._books.tenants.leave(request.tenant)

    def revive(self, request: Request) -> None:
        """It had ended, but what came of it was lost with its worker: it is made again, and its gateway told so, which
        would wait for last tokens only so long."""
        del self._books.unclosed[request.request_id]
        self._books.requests[request.request_id] = request
        self._books.tenants.enter(request.tenant)
        self._waiting.queue(request)
        # It may have passed since, when nothing was left to be ended.
        self._watch(request)
        reason = "what its worker told last was lost with it"
        self._books.tell(Accepted(request.gateway, request.route, request.request_id, 0, reason, request.turn))

    # -- who may still take something of an attempt that is lost

    def when_deaf(self, request: Request, then: Callable[[], None]) -> None:
        """Its replica is lost, and may have stood still only: calls `then` once its gateway takes nothing from that
        attempt any more. What the attempt was to read stays as it is until then: it would begin with other content."""
        self._until_deaf.setdefault(request.request_id, []).append(then)

    def deaf(self, request: Request) -> None:
        for then in self._until_deaf.pop(request.request_id, ()):
            then()
