"""What happens where memory is short: blocks leased ahead come back first, then whole requests go, one at a time.

Who came back from a preemption is safe until it has written one block more: whatever is short, everybody gets on.

The scheduler calls `relieve` for each replica on which a sequence stands still for want of a block, and `preempt` is
also how a replica that drains gets rid of what cannot move. It chooses whom and says why; `cluster/centre/swap.py`,
`cluster/centre/balance.py` and `cluster/centre/moves.py` know the ways out and see them through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, State

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler


class Pressure:
    """The choice of who gives memory back. It holds nothing."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def relieve(self, replica: Replica) -> None:
        """Sequences cannot grow: blocks leased ahead come back; then requests go, the lowest precedence first."""
        scheduler = self._scheduler
        while True:
            starving = replica.serve_wanting()
            if starving is None or replica.num_stopping or replica.num_revoking:
                return
            num_revokes = replica.revoke_unused(len(replica.wanting))
            if num_revokes:
                scheduler.counters["leases revoked"] += num_revokes
                return
            if scheduler.moves.give_up_one(replica):
                continue
            running = [request for request in replica.requests.values() if request.state is State.RUNNING]
            # Who starves has come as far as it is safe (see `Sequence.first_end`), so there is always somebody.
            starve = {sequence.request.arrival for sequence in replica.wanting.values()}
            running = [one for one in running if one.arrival in starve or not one.is_safe]
            if len(running) == 1 and scheduler.pins.give_up_one(replica):
                continue
            victim = max(running, key=lambda request: request.precedence)
            self.preempt(victim, f"{starving.request.request_id} needs a block and none is free", "memory")

    def preempt(self, request: Request, why: str, cause: str) -> None:
        """Its replica is needed: it leaves by the cheapest way, all its sequences together.

        `why` is for people, `cause` one of a few words that preemptions are counted by.
        """
        scheduler, replica = self._scheduler, request.replica
        assert replica is not None
        request.preemptions += 1
        way = scheduler.swapper.way_out(request, replica)
        if scheduler.balance.moves_instead(request, way.seconds, why, cause):
            return
        kind = (
            "recompute"
            if way.host is None
            else "swap"
            if way.host.joined.node == replica.joined.node
            else "remote swap"
        )
        request.why_preempted = f"{why}; {kind}, estimated {way.seconds * 1e3:.1f} ms"
        if way.lacks:
            request.why_preempted += f"; {way.lacks}"
            scheduler.counters["out of host memory"] += 1
        scheduler.counters[f"preempted {kind}"] += 1
        scheduler.notes.preemptions[kind, cause] += 1
        scheduler.notes.add(scheduler.now, "preempted", request.request_id, request.why_preempted)
        if way.host is not None:
            scheduler.swapper.reserve(request, way.host)
        scheduler.drop(request)
