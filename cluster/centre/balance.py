"""Which running requests go to another replica, and to which: away from pressure, and for balance.

The scheduler calls `level` once in a turn, and `cluster/centre/pressure.py` asks `moves_instead` before it preempts;
`cluster/centre/moves.py` does what is decided here. It never takes a request off without having room for it elsewhere.

Hysteresis: replicas are compared now and then only, and the fullest gives one request at a time while it is fuller than
the emptiest by `balance_gap`; the request must be small enough that the two do not change places, and stays where it
is for `balance_rest_s`. What flees from pressure needs room to spare at its target, so that it is not driven back.
"""

from __future__ import annotations

from functools import partial

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.movable import Movable
from cluster.centre.move import MovePhase, blocks_of
from cluster.centre.moves import Moves
from cluster.centre.nouns import Replica, Request, State
from cluster.centre.transfers import Transfers


class Balance:
    """The choice of moves. It holds nothing but when replicas were last compared."""

    def __init__(self, books: Books, boards: Boards, transfers: Transfers, movable: Movable, moves: Moves) -> None:
        self._books = books
        self._settings = books.settings
        self._boards = boards
        self._transfers = transfers
        self._movable = movable
        self._moves = moves
        self._compared_at = 0.0

    def _roomiest(self, request: Request, margin: float) -> Replica | None:
        """Of those with room for it the one with the largest share of its pool at hand."""
        board = self._boards.find(request.model)
        if board is None or not self._movable.can_move(request):
            return None
        need = self._movable.need(request)
        return board.roomiest(partial(self._movable.with_room, request, margin=margin), need, self._books.touched)

    # -- pressure

    def moves_instead(self, request: Request, otherwise_s: float, why: str, cause: str) -> bool:
        """True: it leaves for another replica, because that costs less than `otherwise_s`, the cheapest other way."""
        books, replica = self._books, request.replica
        assert replica is not None
        under_way = self._movable.by_request.get(request)
        if under_way is not None:
            if under_way.phase is MovePhase.COPYING:
                self._moves.stop(under_way)
        elif self._settings.preemption == "cheapest" and not replica.is_draining and not self._rests(request):
            target = self._roomiest(request, 2 * self._settings.pressure)
            if target is None or not self.seconds(request, target) < otherwise_s:
                return False
            self._moves.begin(request, target, in_a_hurry=True)
        if request.state is not State.STOPPING:
            return False
        move = self._movable.by_request[request]
        estimate_ms = self.seconds(request, move.target) * 1e3
        request.why_preempted = f"{why}; move to {move.target.name}, estimated {estimate_ms:.1f} ms"
        books.counters["preempted move"] += 1
        books.notes.preemptions["move", cause] += 1
        books.note("preempted", request.request_id, request.why_preempted)
        return True

    def seconds(self, request: Request, target: Replica) -> float:
        """What the steps of its replica lose to a move. Infinite where no rate is known."""
        source = request.replica
        assert source is not None
        size_bytes = len(blocks_of(request, whole=False)) * source.joined.block_bytes
        return self._transfers.leaving_s(source, target.joined.node, size_bytes)

    def _rests(self, request: Request) -> bool:
        return self._books.now - request.moved_at < self._settings.balance_rest_s

    # -- balance

    def level(self) -> None:
        """Compares the replicas of each model, if it is time for that, and moves one request of the fullest."""
        now = self._books.now
        if now - self._compared_at < self._settings.balance_every_s:
            return
        self._compared_at = now
        for replicas in self._boards.models():
            if len(replicas) > 1:
                self._level(replicas)

    def _level(self, replicas: list[Replica]) -> None:
        loads = [_load(replica) for replica in replicas]
        fullest = replicas[loads.index(max(loads))]
        emptiest = replicas[loads.index(min(loads))]
        gap = max(loads) - min(loads)
        if gap < self._settings.balance_gap or len(fullest.requests) < 2 or fullest.is_draining:
            return
        if any(move.source is fullest for move in self._movable.by_request.values()):
            return
        for request in sorted(fullest.requests.values(), key=lambda request: -request.precedence):
            if not self._rests(request) and self._narrows(request, emptiest, gap):
                self._moves.begin(request, emptiest)
                self._books.counters["moves for balance"] += 1
                return

    def _narrows(self, request: Request, target: Replica, gap: float) -> bool:
        """Whether it could move there and take less than half of the gap along."""
        if not self._movable.can_move(request) or not any(self._movable.with_room(request, [target])):
            return False
        blocks = len(blocks_of(request, whole=True)) / target.ledger.num_blocks
        places = sum(sequence.num_places for sequence in request.live) / target.joined.max_batch
        return max(blocks, places) <= gap / 2


def _load(replica: Replica) -> float:
    """The share of its pool or of its batch that is taken, whichever is more."""
    ledger = replica.ledger
    return max(1 - ledger.num_available / ledger.num_blocks, replica.num_places / replica.joined.max_batch)
