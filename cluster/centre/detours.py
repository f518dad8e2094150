"""Tokens that do not reach their gateway from the replica that draws them: what it reports goes on from here.

A replica says which gateways take nothing from it. Those are told the output of its sequences with each report, once a
block, and their ends; what arrives by the straight road later they have already. Logprobs and beams only the replica
knows: they wait until the way is free again, or until the replica is lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.centre.books import Books
from cluster.centre.nouns import Replica, Request, Sequence, State
from cluster.centre.sealing import Sealing
from cluster.messages import Result


class Detours:
    """Called with each result: before it is taken apart, when its advances are noted, and for each end."""

    def __init__(self, books: Books, sealing: Sealing) -> None:
        self._books = books
        self._sealing = sealing

    def note(self, replica: Replica, result: Result) -> None:
        """Gateways that are newly not reached are told all that is known, of what has ended too."""
        if not result.unreached and not replica.unreached:
            return
        told = frozenset(result.unreached)
        if told == replica.unreached:
            return
        new, replica.unreached = told - replica.unreached, told
        for gateway in sorted(new):
            self._books.counters["gateways not reached"] += 1
            self._books.note(
                "not reached", gateway, f"it takes no tokens from {replica.name}: they go by the scheduler"
            )
        for request in [*replica.requests.values(), *self._books.unclosed.values()]:
            if request.gateway in new:
                for sequence in request.sequences:
                    if sequence.seq or sequence.last_pool == replica.ledger.pool:
                        self._tell(request, sequence)

    def follow(self, replica: Replica, seqs: Iterable[int]) -> None:
        """These sequences have advanced."""
        if replica.unreached:
            for seq in seqs:
                sequence = replica.residents.get(seq)
                if sequence is not None:
                    self.go_on(replica, sequence)

    def go_on(self, replica: Replica, sequence: Sequence) -> None:
        """It has advanced, or ended."""
        if sequence.request.gateway in replica.unreached:
            self._tell(sequence.request, sequence)

    def _tell(self, request: Request, sequence: Sequence) -> None:
        if request.sampling is None or request.width or request.is_cancelled or request.pin_until is not None:
            return
        if request.wants_logprobs:
            return
        if sequence.is_ended or (request.state is State.RUNNING and sequence.outputs):
            self._sealing.replay(request, sequence)
