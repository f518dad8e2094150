"""Pinned prefixes: a prompt is computed once and its full blocks are kept until a time (CachePrefix).

Pins are bounded, counted, and give way to running work: the oldest goes first when a replica has nothing else to give.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.deadlines import Deadlines
from cluster.centre.nouns import Replica, Request, Sequence
from cluster.centre.residents import pin, unpin
from cluster.hashing import HASH_BYTES


class Pins:
    """Which prefixes are kept (`Books.pinned`); where they lie is known to their replicas."""

    def __init__(self, books: Books, deadlines: Deadlines) -> None:
        self._books = books
        self._deadlines = deadlines

    def num_blocks(self, model: str) -> int:
        """Blocks that pins of this model keep."""
        return sum(len(other.names) // HASH_BYTES for other in self._books.pinned.values() if other.model == model)

    def hold(self, replica: Replica, sequence: Sequence) -> None:
        """The prefix has been computed: its blocks stay although the sequence goes."""
        request = sequence.request
        assert request.pin_until is not None
        if request.is_cacheable and request.names:
            pin(replica, request.request_id, list(sequence.table[: len(request.names) // HASH_BYTES]))
            self._books.pinned[request.request_id] = request
            self._deadlines.wake_at(request.pin_until, request)

    def release(self, request: Request) -> None:
        del self._books.pinned[request.request_id]
        for replica in self._books.replicas.values():
            unpin(replica, request.request_id)

    def lose(self, replica: Replica) -> None:
        for request_id in list(replica.pins):
            unpin(replica, request_id)
            del self._books.pinned[request_id]

    def give_up_one(self, replica: Replica) -> bool:
        """Memory for running work goes before pins: the oldest one gives way."""
        for request_id in replica.pins:
            self.release(self._books.pinned[request_id])
            self._books.counters["pins given up"] += 1
            return True
        return False
