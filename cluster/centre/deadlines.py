"""What is due at a time although nothing happens: deadlines of requests, ends of pins, graces of orphans, seals.

The scheduler asks `next` when it must be woken and takes what is `due` in every turn. An entry that means nothing any
more, because its request has gone or has another time by now, is passed over when it comes up; when half of them are
such, all are gone through, so that deadlines far away keep nothing of requests that have ended.
"""

from __future__ import annotations

import heapq

from cluster.centre.books import Books
from cluster.centre.nouns import Request, State

# So few entries are never gone through.
FEW = 64


class Deadlines:
    """A heap of (when, arrival, request): an arrival tells requests of one name apart."""

    def __init__(self, books: Books) -> None:
        self._books = books
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

    def _find(self, arrival: int, request_id: str) -> Request | None:
        """The request of an entry: what a pin keeps warm, or one that is under way or not closed."""
        pinned = self._books.pinned.get(request_id)
        if pinned is not None and pinned.arrival == arrival:
            return pinned
        request = self._books.find(request_id)
        return request if request is not None and request.arrival == arrival else None

    def _is_due(self, when: float, arrival: int, request_id: str) -> bool:
        """Whether the entry still means something."""
        request = self._find(arrival, request_id)
        if request is None:
            return False
        if self._books.pinned.get(request_id) is request:
            return request.pin_until == when
        ends = request.deadline if request.state is not State.ENDED else None
        return when in (ends, request.orphaned_until, request.seal_deadline)

    def due(self) -> Request | None:
        """The next one of which something may be due now; None: nothing is."""
        while self._heap and self._heap[0][0] <= self._books.now:
            _, arrival, request_id = heapq.heappop(self._heap)
            request = self._find(arrival, request_id)
            if request is not None:
                return request
        return None

    def check(self) -> None:
        """Nobody goes on behind a time that ends it."""
        now = self._books.now
        for request in self._books.requests.values():
            ends = () if request.is_cancelled else (request.deadline, request.orphaned_until)
            assert all(when is None or when > now for when in ends), f"{request} goes on at {now}, not to {ends}"
