"""Replicas that drain give everything away: to others as these have room, and what finds none in time is preempted.

The scheduler calls `drain` once in a turn for each replica that drains and has something to give.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.movable import Movable
from cluster.centre.moves import Moves
from cluster.centre.nouns import Replica, Request, State
from cluster.centre.placement import share_at_hand
from cluster.centre.pressure import Pressure

# Requests of a replica that drains for which a place is looked for in vain in one turn.
MAX_SEARCHES = 8
# And that begin to move in one turn.
MAX_BEGUN = 64


class Drains:
    """Hands on what runs on replicas that are to be empty."""

    def __init__(self, books: Books, boards: Boards, movable: Movable, moves: Moves, pressure: Pressure) -> None:
        self._books = books
        self._boards = boards
        self._movable = movable
        self._moves = moves
        self._pressure = pressure
        self._num_searches = 0

    def drain(self, replica: Replica) -> None:
        """Hands on what runs there as others have room; what found none for `drain_s`, or cannot move, is preempted."""
        others = [
            other
            for other in self._boards.replicas_of(replica.joined.model)
            if other is not replica and not other.is_draining
        ]
        is_late = self._books.now - replica.drained_from >= self._books.settings.drain_s
        stays = [
            request
            for request in replica.requests.values()
            if request.state is State.RUNNING and request not in self._movable.by_request
        ]
        # Those that find no place have looked at all replicas: after a few of them the others look in the next turn.
        first, num_left, num_begun = (self._num_searches % len(stays), MAX_SEARCHES, 0) if stays else (0, 0, 0)
        ranked = [(-share_at_hand(other), number) for number, other in enumerate(others)]
        heapify(ranked)
        for request in stays[first:] + stays[:first]:
            target = self._take_roomiest(request, others, ranked)
            if target is not None:
                self._moves.begin(request, others[target])
                heappush(ranked, (-share_at_hand(others[target]), target))
                num_begun += 1
                if num_begun == MAX_BEGUN:
                    return
                continue
            if is_late or not others or not self._may_yet_move(request):
                self._pressure.preempt(request, f"replica {replica.name} is draining", "drain")
            num_left -= 1
            if not num_left:
                self._num_searches += MAX_SEARCHES
                return

    def _take_roomiest(self, request: Request, others: list[Replica], ranked: list[tuple[float, int]]) -> int | None:
        """Of those with room for it the one with the largest share of its pool at hand; it is taken out of the ranking.
        Ties go to the first."""
        passed = list[tuple[float, int]]()
        if not self._movable.can_move(request):
            return None

        def in_order() -> Iterator[Replica]:
            while ranked:
                passed.append(heappop(ranked))
                yield others[passed[-1][1]]

        found = next(self._movable.with_room(request, in_order()), None)
        taken = passed.pop()[1] if found is not None else None
        for entry in passed:
            heappush(ranked, entry)
        return taken

    def _may_yet_move(self, request: Request) -> bool:
        """Forks move once their prompt is written."""
        return self._movable.can_move(request) or len(request.live) > 1
