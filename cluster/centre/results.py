"""What replicas tell: results are taken in order, and each part goes to the rule that waits for it.

Transfers that have ended go back to who ordered them, sequences that advanced have their leases renewed, and what has
stopped leaves its replica. A result that no worker can have declares that incarnation lost.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.leases import Leases
from cluster.centre.nouns import Replica
from cluster.centre.pauses import Pauses
from cluster.centre.plans import Plans
from cluster.centre.recovery import Recovery
from cluster.centre.revokes import Revokes
from cluster.centre.roads import Roads
from cluster.centre.stops import Stops
from cluster.centre.waiting import Waiting
from cluster.errors import ProtocolError
from cluster.messages import Result


class Results:
    """Takes results apart."""

    def __init__(
        self,
        books: Books,
        waiting: Waiting,
        plans: Plans,
        leases: Leases,
        revokes: Revokes,
        roads: Roads,
        pauses: Pauses,
        stops: Stops,
        recovery: Recovery,
    ) -> None:
        self._books = books
        self._waiting = waiting
        self._plans = plans
        self._leases = leases
        self._revokes = revokes
        self._roads = roads
        self._pauses = pauses
        self._stops = stops
        self._recovery = recovery
        self._detours = stops.detours

    def on_result(self, result: Result) -> None:
        books = self._books
        replica = books.replicas.get(result.replica)
        life = result.epoch, result.incarnation
        # What comes in one turn with the end of its replica, or with the next life of it.
        if replica is None or life != (books.epoch, replica.incarnation):
            books.counters["stale results"] += 1
            return
        try:
            self._plans.take(replica, result)
            self._take(replica, result)
        except ProtocolError as error:
            books.counters["events refused"] += 1
            self._recovery.expel(replica, str(error))

    def _take(self, replica: Replica, result: Result) -> None:
        self._detours.note(replica, result)
        for told in result.transferred:
            self._roads.on_transferred(replica, told)
        self._pauses.on_result(replica, result, self._books.now)
        self._leases.advance(replica, result.advances)
        self._detours.follow(replica, result.advances.seqs)
        for group in result.groups:
            self._leases.advance_group(replica, group)
        for revoked in result.revoked:
            self._books.counters["blocks revoked"] += self._revokes.take_back(replica, revoked)
        for stopped in result.stopped:
            self._stops.on_stopped(replica, stopped)
        self._waiting.wake_waiters(replica)
