"""What every request holds, added up turn by turn, against what it is billed for when it holds nothing any more.

A block that h tables, pins, copies and moves share costs each of them 1/h of its time. The scheduler keeps that without
work per second; here it is the plain sum.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.centre.ledger import Ledger
from cluster.centre.nouns import Request
from cluster.centre.scheduler import Scheduler
from cluster.sim.client import Violation

MOST_OFF_S = 1e-6
"""Of block-seconds: no more than rounding."""


class _Held:
    """Of one request: block-seconds so far in device and in host memory, and how fast they grow now."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.device = self.host = 0.0
        self.device_rate = self.host_rate = 0.0

    def grow(self, seconds: float) -> None:
        self.device += self.device_rate * seconds
        self.host += self.host_rate * seconds
        self.device_rate = self.host_rate = 0.0


class Bills:
    """Those of one scheduler."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._now = 0.0

    def look(self, scheduler: Scheduler) -> None:
        """After every turn; nothing changes hands between two of them. Raises Violation for who is billed otherwise."""
        seconds, self._now = scheduler.now - self._now, scheduler.now
        for held in self._held.values():
            held.grow(seconds)
        for replica in scheduler.replicas.values():
            for sequence in replica.residents.values():
                self._of(sequence.request).device_rate += _share(replica.ledger, sequence.table)
        for request in scheduler.requests.values():
            if request.host is not None:
                # Also where that pool is gone, until it is known what was still written there.
                for table in (request.reserved, *(sequence.host_table for sequence in request.sequences)):
                    self._of(request).host_rate += _share(request.host.ledger, table)
        for key, held in list(self._held.items()):
            if not held.device_rate:
                _compare("device", held.request, held.request.block_seconds, held.device)
            if not held.host_rate:
                _compare("host", held.request, held.request.host_block_seconds, held.host)
            if not scheduler.books.find(held.request.request_id) and not (held.device_rate or held.host_rate):
                del self._held[key]

    def _of(self, request: Request) -> _Held:
        return self._held.setdefault(id(request), _Held(request))


def _share(ledger: Ledger, table: Iterable[int]) -> float:
    return sum(1 / ledger.holders(block) for block in table)


def _compare(where: str, request: Request, billed: float, held: float) -> None:
    if abs(billed - held) > MOST_OFF_S:
        raise Violation(f"{request} is billed {billed:.6f} block-seconds of {where} memory, and held {held:.6f}")
