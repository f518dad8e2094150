"""What is due at a time although nothing happens: deadlines of requests, ends of pins, graces of orphans, seals.

The scheduler asks `next` when it must be woken and calls `expire` in every turn. An entry that means nothing any more,
because its request has gone or has another time by now, is passed over when it comes up; when half of them are such,
all are gone through, so that deadlines far away keep nothing of requests that have ended.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from cluster.centre.sequences import Request, State
from cluster.messages import Reason

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler


# So few entries are never gone through.
FEW = 64


class Deadlines:
    """A heap of (when, arrival, request): an arrival tells requests of one name apart."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._heap: list[tuple[float, int, str]] = []
        self._most = FEW

    @property
    def next(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def wake_at(self, when: float, request: Request) -> None:
        if when == float("inf"):
            return
        heapq.heappush(self._heap, (when, request.arrival, request.request_id))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if self._is_due(*entry)]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + FEW

    def __len__(self) -> int:
        return len(self._heap)

    def _is_due(self, when: float, arrival: int, request_id: str) -> bool:
        """Whether the entry still means something."""
        pinned = self._scheduler.pins.held.get(request_id)
        if pinned is not None and pinned.arrival == arrival:
            return pinned.pin_until == when
        request = self._scheduler.requests.get(request_id) or self._scheduler.unclosed.get(request_id)
        if request is None or request.arrival != arrival:
            return False
        ends = request.deadline if request.state is not State.ENDED else None
        return when in (ends, request.orphaned_until, request.seal_deadline)

    def expire(self, now: float) -> None:
        scheduler = self._scheduler
        while self._heap and self._heap[0][0] <= now:
            _, arrival, request_id = heapq.heappop(self._heap)
            pinned = scheduler.pins.held.get(request_id)
            if pinned is not None and pinned.arrival == arrival:
                scheduler.pins.release(pinned)
                continue
            request = scheduler.requests.get(request_id) or scheduler.unclosed.get(request_id)
            if request is not None and request.arrival == arrival:
                self._expire_request(request, now)

    def _expire_request(self, request: Request, now: float) -> None:
        scheduler = self._scheduler
        if request.orphaned_until is not None and request.orphaned_until <= now:
            scheduler.unclosed.pop(request.request_id, None)
            if request.state is not State.ENDED:
                scheduler.counters["orphans given up"] += 1
                scheduler.abort(request, Reason.DROPPED)
        elif request.deadline is not None and request.deadline <= now and request.state is not State.ENDED:
            if not request.is_cancelled:
                detail = "the deadline of the request has passed"
                scheduler.break_off(request, "DEADLINE_EXCEEDED", detail, Reason.DROPPED)
        elif request.state is State.SEALING and request.seal_deadline <= now:
            scheduler.recovery.seal_is_late(request)
