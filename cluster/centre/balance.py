"""Which running requests go to another replica, and to which: off one that drains, away from pressure, for balance.

The scheduler calls `drain` and `level` once in a turn and `moves_instead` before it preempts;
`cluster/centre/moves.py` does what is decided here. It never takes a request off without having room for it elsewhere.

Hysteresis: replicas are compared now and then only, and the fullest gives one request at a time while it is fuller than
the emptiest by `balance_gap`; the request must be small enough that the two do not change places, and stays where it
is for `balance_rest_s`. What flees from pressure needs room to spare at its target, so that it is not driven back.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from cluster.centre.move import Phase
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, State

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler


# Requests of a replica that drains for which a place is looked for in vain in one turn.
MAX_SEARCHES = 8
# And that begin to move in one turn.
MAX_BEGUN = 64


class Balance:
    """The choice of moves. It holds nothing but when replicas were last compared."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self._compared_at = 0.0
        self._num_drains = 0

    # -- one replica gives everything away

    def drain(self, replica: Replica) -> None:
        """Hands on what runs there as others have room; what found none for `drain_s`, or cannot move, is preempted."""
        scheduler = self._scheduler
        others = [
            other
            for other in scheduler.admission.replicas_of(replica.joined.model)
            if other is not replica and not other.is_draining
        ]
        is_late = scheduler.now - replica.drained_from >= self._settings.drain_s
        stays = [
            request
            for request in replica.requests.values()
            if request.state is State.RUNNING and request.request_id not in scheduler.moves.by_request
        ]
        # Those that find no place have looked at all replicas: after a few of them the others look in the next turn.
        first, num_left, num_begun = (self._num_drains % len(stays), MAX_SEARCHES, 0) if stays else (0, 0, 0)
        ranked = [(-_share_at_hand(other), number) for number, other in enumerate(others)]
        heapify(ranked)
        for request in stays[first:] + stays[:first]:
            target = self._take_roomiest(request, others, ranked)
            if target is not None:
                scheduler.moves.begin(request, others[target])
                heappush(ranked, (-_share_at_hand(others[target]), target))
                num_begun += 1
                if num_begun == MAX_BEGUN:
                    return
                continue
            if is_late or not others or not self._may_yet_move(request):
                scheduler.pressure.preempt(request, f"replica {replica.name} is draining", "drain")
            num_left -= 1
            if not num_left:
                self._num_drains += MAX_SEARCHES
                return

    def _take_roomiest(self, request: Request, others: list[Replica], ranked: list[tuple[float, int]]) -> int | None:
        """As `_roomiest`, among replicas that are ranked already: takes the one that it finds out of the ranking."""
        moves, passed = self._scheduler.moves, list[tuple[float, int]]()
        if not moves.can_move(request):
            return None

        def in_order() -> Iterator[Replica]:
            while ranked:
                passed.append(heappop(ranked))
                yield others[passed[-1][1]]

        found = next(moves.with_room(request, in_order()), None)
        taken = passed.pop()[1] if found is not None else None
        for entry in passed:
            heappush(ranked, entry)
        return taken

    def _may_yet_move(self, request: Request) -> bool:
        """Forks move once their prompt is written."""
        return self._scheduler.moves.can_move(request) or len(request.live) > 1

    def _roomiest(self, request: Request, replicas: list[Replica], margin: float) -> Replica | None:
        """Of those with room for it the one with the largest share of its pool at hand; ties go to the first."""
        moves = self._scheduler.moves
        if not moves.can_move(request):
            return None
        fits = moves.with_room(request, replicas, margin)
        return max(fits, key=_share_at_hand, default=None)

    # -- pressure

    def moves_instead(self, request: Request, otherwise_s: float, why: str, cause: str) -> bool:
        """True: it leaves for another replica, because that costs less than `otherwise_s`, the cheapest other way."""
        scheduler, replica = self._scheduler, request.replica
        assert replica is not None
        under_way = scheduler.moves.by_request.get(request.request_id)
        if under_way is not None:
            if under_way.phase is Phase.COPYING:
                scheduler.moves.stop(under_way)
        elif self._settings.preemption == "cheapest" and not replica.is_draining and not self._rests(request):
            others = scheduler.admission.replicas_of(replica.joined.model)
            target = self._roomiest(request, others, 2 * self._settings.pressure)
            if target is None or not self.seconds(request, target) < otherwise_s:
                return False
            scheduler.moves.begin(request, target, in_a_hurry=True)
        if request.state is not State.STOPPING:
            return False
        move = scheduler.moves.by_request[request.request_id]
        estimate_ms = self.seconds(request, move.target) * 1e3
        request.why_preempted = f"{why}; move to {move.target.name}, estimated {estimate_ms:.1f} ms"
        scheduler.counters["preempted move"] += 1
        scheduler.notes.preemptions["move", cause] += 1
        scheduler.notes.add(scheduler.now, "preempted", request.request_id, request.why_preempted)
        return True

    def seconds(self, request: Request, target: Replica) -> float:
        """What the steps of its replica lose to a move. Infinite where no rate is known."""
        source, swapper = request.replica, self._scheduler.swapper
        assert source is not None
        size_bytes = len(swapper.blocks_of(request, whole=False)) * source.joined.block_bytes
        return swapper.leaving_s(source, target.joined.node, size_bytes)

    def _rests(self, request: Request) -> bool:
        return self._scheduler.now - request.moved_at < self._settings.balance_rest_s

    # -- balance

    def level(self, now: float) -> None:
        """Compares the replicas of each model, if it is time for that, and moves one request of the fullest."""
        if now - self._compared_at < self._settings.balance_every_s:
            return
        self._compared_at = now
        for replicas in self._scheduler.admission.models():
            if len(replicas) > 1:
                self._level(replicas)

    def _level(self, replicas: list[Replica]) -> None:
        loads = [_load(replica) for replica in replicas]
        fullest = replicas[loads.index(max(loads))]
        emptiest = replicas[loads.index(min(loads))]
        gap = max(loads) - min(loads)
        if gap < self._settings.balance_gap or len(fullest.requests) < 2 or fullest.is_draining:
            return
        if any(move.source is fullest for move in self._scheduler.moves.by_request.values()):
            return
        for request in sorted(fullest.requests.values(), key=lambda request: -request.precedence):
            if not self._rests(request) and self._narrows(request, emptiest, gap):
                self._scheduler.moves.begin(request, emptiest)
                self._scheduler.counters["moves for balance"] += 1
                return

    def _narrows(self, request: Request, target: Replica, gap: float) -> bool:
        """Whether it could move there and take less than half of the gap along."""
        moves = self._scheduler.moves
        if not moves.can_move(request) or not moves.room_for(request, target):
            return False
        blocks = len(self._scheduler.swapper.blocks_of(request, whole=True)) / target.ledger.num_blocks
        places = sum(sequence.num_places for sequence in request.live) / target.joined.max_batch
        return max(blocks, places) <= gap / 2


def _share_at_hand(replica: Replica) -> float:
    return replica.ledger.num_available / replica.ledger.num_blocks


def _load(replica: Replica) -> float:
    """The share of its pool or of its batch that is taken, whichever is more."""
    ledger = replica.ledger
    return max(1 - ledger.num_available / ledger.num_blocks, replica.num_places / replica.joined.max_batch)
