"""The bound on progress: no request stands still while memory is free.

The judge asks after turns. What is looked for is kept by name until it is no longer so; if that takes longer than the
bound, the scheduler has forgotten somebody. It reads the scheduler's figures afresh, not the boards that it keeps.
"""

from __future__ import annotations

from cluster.centre.fits import size_of
from cluster.centre.needs import num_blocks
from cluster.centre.nouns import Replica, Request, Sequence, State
from cluster.centre.scheduler import Scheduler
from cluster.sim.client import Violation

BOUND_S = 1.0
"""Four times the longest that was seen in 6,000 histories of a scheduler that forgets nobody."""

LOOK_EVERY_S = 0.2

STOOD_STILL_S = 0.7
"""It has a turn four times a second even if nothing happens."""


class Standstills:
    """What stands still, and since when."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._looked_at = 0.0

    def look(self, scheduler: Scheduler, now: float) -> None:
        """Raises Violation for who has stood still for too long, though nothing was in the way."""
        if now - self._looked_at < LOOK_EVERY_S:
            return
        if now - self._looked_at > STOOD_STILL_S:
            # The scheduler itself stood still: what waited for that counts from now on.
            self._since = {}
        self._looked_at = now
        still = [] if scheduler.books.hearing.ends_at is not None else self._standing(scheduler)
        self._since = {why: self._since.get(why, now) for why in still}
        for why, since in self._since.items():
            if now - since > BOUND_S:
                raise Violation(f"nothing was done for {now - since:.1f} s: {why}")

    def _standing(self, scheduler: Scheduler) -> list[str]:
        found = []
        # Behind a head it is order, and not memory, that one waits for.
        for request in scheduler.waiting.heads():
            for replica in scheduler.boards.replicas_of(request.model):
                if self._has_room(scheduler, replica, request):
                    found.append(f"{request.request_id} waits, and {replica.name} has room for it")
                    break
        for replica in scheduler.replicas.values():
            for sequence in replica.residents.values():
                if sequence.request.state is State.RUNNING and self._is_without_leave(replica, sequence):
                    found.append(f"{sequence.request.request_id}[{sequence.index}] has no leave on {replica.name}")
        return found

    def _has_room(self, scheduler: Scheduler, replica: Replica, request: Request) -> bool:
        """The whole of it would fit now, beside what is kept back for those that run."""
        if replica.is_draining or replica.wanting or not request.live:
            return False
        size, settings = replica.block_size, scheduler.settings
        ends = [sequence.first_end(settings.ahead) for sequence in request.live]
        most = size_of(request.live, size)
        kept = int(replica.ledger.num_blocks * settings.admit_reserve)
        seats = sum(sequence.num_places for sequence in request.live)
        run = scheduler.boards.of(request.model).num_reserved(request)
        if run > (replica.ledger.longest_run if run else 0):
            return False
        return (
            replica.ledger.num_blocks >= most.num_blocks
            and replica.ledger.num_available - kept >= num_blocks(request, size, ends)
            and replica.joined.max_batch - replica.num_places >= seats
        )

    def _is_without_leave(self, replica: Replica, sequence: Sequence) -> bool:
        """It is known to stand at the end of its lease, has more to write, and there are blocks."""
        wanted = sequence.num_places
        return (
            sequence.position >= sequence.lease_end
            and sequence.lease_end < sequence.limit
            and replica.ledger.num_available >= wanted
            and not replica.is_emptying
        )
