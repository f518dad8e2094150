"""What happens when a worker says that a sequence has stopped: it has ended, or it leaves for where it was stopped for.

The last word of each attempt. When all sequences of a request have stopped, the request is swapped out, moved, waits to
start again, or is finished.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.detours import Detours
from cluster.centre.endings import Endings
from cluster.centre.leases import Leases
from cluster.centre.leaving import Leaving
from cluster.centre.moves import Moves
from cluster.centre.nouns import Replica, Sequence, State
from cluster.centre.sealing import Sealing
from cluster.centre.swap import Swaps
from cluster.errors import ProtocolError
from cluster.messages import Reason, Stopped


class Stops:
    """Takes last words."""

    def __init__(
        self,
        books: Books,
        leases: Leases,
        endings: Endings,
        sealing: Sealing,
        leaving: Leaving,
        swaps: Swaps,
        moves: Moves,
        detours: Detours,
    ) -> None:
        self._books = books
        self._leases = leases
        self._endings = endings
        self._sealing = sealing
        self._leaving = leaving
        self._swaps = swaps
        self._moves = moves
        self.detours = detours

    def on_stopped(self, replica: Replica, stopped: Stopped) -> None:
        sequence = replica.residents.get(stopped.seq)
        if sequence is None:
            replica.num_stale += 1
            return
        request = sequence.request
        _check_stopped(sequence, stopped)
        if not request.width or stopped.reason is not Reason.DROPPED:
            # A beam group that was dropped starts again from its prompt: nothing of it has gone out.
            sequence.outputs.extend(stopped.ids)
        request.tenant.charge(len(stopped.ids))
        self._leases.fill(replica, sequence, stopped.position, stopped.hashes)
        if sequence.reason is Reason.NONE and stopped.reason is not Reason.DROPPED:
            sequence.reason = stopped.reason
        if request.is_adopted and sequence.is_ended:
            self._sealing.replay(request, sequence)
        elif sequence.is_ended:
            self.detours.go_on(replica, sequence)
        goes_on = request.host is not None or self._moves.is_stopping(request)
        if goes_on and not sequence.is_ended and not request.is_cancelled:
            sequence.has_stopped = True
            if stopped.search:
                sequence.group = (stopped.position, stopped.tables, stopped.search)
        else:
            self._leaving.detach(replica, sequence)
        if stopped.reason is Reason.FAILED:
            self._books.counters["failed"] += 1
            self._endings.break_off(request, "INTERNAL", stopped.detail, Reason.FAILED)
        on_replica = [other for other in request.sequences if other.seq]
        if on_replica and all(other.has_stopped for other in on_replica):
            if request.host is not None:
                self._swaps.write_out(request)
            elif self._moves.is_stopping(request):
                self._moves.finish(request)
            else:
                # Its move was given up between two of its sequences' last words.
                self._leaving.give_up(replica, request)
        elif not on_replica:
            self._moves.cancel(request)
            self._leaving.off_replica(replica, request)


def _check_stopped(sequence: Sequence, stopped: Stopped) -> None:
    request = sequence.request
    most = (request.width or 1) * request.max_tokens
    if stopped.reason is Reason.NONE or request.state is State.RESTORING:
        raise ProtocolError(f"{sequence} is told to have stopped ({stopped.reason.name}), but {request} had not begun")
    if not 0 <= stopped.position <= sequence.lease_end or len(sequence.outputs) + len(stopped.ids) > most:
        raise ProtocolError(f"{sequence} is told to have stopped at {stopped.position} with {len(stopped.ids)} more")
    if not stopped.tables:
        return
    alien = {block for table in stopped.tables for block in table}.difference(sequence.table)
    if alien or len(stopped.tables) > request.width:
        raise ProtocolError(f"{sequence}: {len(stopped.tables)} beams hold blocks {sorted(alien)}, never given to it")
