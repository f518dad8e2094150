"""What happens where memory is short: blocks leased ahead come back first, then whole requests go, one at a time.

Who came back from a preemption is safe until it has written one block more: whatever is short, everybody gets on.

The scheduler calls `relieve` for each replica on which a sequence stands still for want of a block, and `preempt` is
also how a replica that drains gets rid of what cannot move. It chooses whom and says why; `cluster/centre/swap.py`,
`cluster/centre/balance.py` and `cluster/centre/moves.py` know the ways out and see them through.
"""

from __future__ import annotations

from cluster.centre.balance import Balance
from cluster.centre.books import Books
from cluster.centre.endings import Endings
from cluster.centre.leases import Leases
from cluster.centre.moves import Moves
from cluster.centre.nouns import Replica, Request, State
from cluster.centre.pins import Pins
from cluster.centre.revokes import Revokes
from cluster.centre.swap import Swaps


class Pressure:
    """The choice of who gives memory back. It holds nothing."""

    def __init__(
        self,
        books: Books,
        leases: Leases,
        revokes: Revokes,
        endings: Endings,
        pins: Pins,
        swaps: Swaps,
        moves: Moves,
        balance: Balance,
    ) -> None:
        self._books = books
        self._leases = leases
        self._revokes = revokes
        self._endings = endings
        self._pins = pins
        self._swaps = swaps
        self._moves = moves
        self._balance = balance

    def relieve(self, replica: Replica) -> None:
        """Sequences cannot grow: blocks leased ahead come back; then requests go, the lowest precedence first."""
        while True:
            starving = self._leases.serve_wanting(replica)
            if starving is None or replica.is_emptying or replica.is_revoking:
                return
            num_revokes = self._revokes.revoke_unused(replica, len(replica.wanting))
            if num_revokes:
                self._books.counters["leases revoked"] += num_revokes
                return
            if self._moves.give_up_one(replica):
                continue
            running = [request for request in replica.requests.values() if request.state is State.RUNNING]
            # Who starves has come as far as it is safe (see `Sequence.first_end`), so there is always somebody.
            starve = {sequence.request.arrival for sequence in replica.wanting.values()}
            running = [one for one in running if one.arrival in starve or not one.is_safe]
            if len(running) == 1 and self._pins.give_up_one(replica):
                continue
            victim = max(running, key=lambda request: request.precedence)
            self.preempt(victim, f"{starving.request.request_id} needs a block and none is free", "memory")

    def preempt(self, request: Request, why: str, cause: str) -> None:
        """Its replica is needed: it leaves by the cheapest way, all its sequences together.

        `why` is for people, `cause` one of a few words that preemptions are counted by.
        """
        books, replica = self._books, request.replica
        assert replica is not None
        request.preemptions += 1
        way = self._swaps.way_out(request, replica)
        if self._balance.moves_instead(request, way.seconds, why, cause):
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
            books.counters["out of host memory"] += 1
        books.counters[f"preempted {kind}"] += 1
        books.notes.preemptions[kind, cause] += 1
        books.note("preempted", request.request_id, request.why_preempted)
        if way.host is not None:
            self._swaps.reserve(request, way.host)
        self._endings.drop(request)
