"""Who has what in host memory: room that is reserved, content that lies there, and what a late writer may still touch.

The rules that move blocks (`swap.py`, `host_cache.py`) reserve and release here. Nothing is ordered here but GiveUp,
with which a host pool is asked to settle a transfer.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.nouns import HostPool, Request
from cluster.messages import GiveUp, HostPoolSettled


class HostMemory:
    """The room of all host pools. Room is reserved before anything is dropped."""

    def __init__(self, books: Books) -> None:
        self._books = books
        # By pool and transfer: blocks that a writer could still touch, until the pool says that it cannot.
        self.quarantined: dict[tuple[str, int], list[int]] = {}

    def reserve(self, request: Request, host: HostPool, num_blocks: int) -> None:
        reserved = host.ledger.allocate(num_blocks)
        assert reserved is not None, f"{request} was to go to {host.name}, which has no room"
        request.host, request.reserved = host, reserved
        host.requests[request.request_id] = request

    def forget(self, request: Request) -> None:
        """Releases what the request has in host memory, room or content; it would be computed again."""
        host = request.host
        for sequence in request.sequences:
            sequence.saved = 0
            sequence.group = None
        if host is None:
            return
        cost = host.ledger.release(request.reserved)
        for sequence in request.sequences:
            cost += host.ledger.release(sequence.host_table)
            sequence.host_table = []
        request.host_block_seconds += cost - request.host_paid
        request.host_paid = 0.0
        request.reserved = []
        request.host = None
        del host.requests[request.request_id]

    def quarantine(self, host: HostPool, number: int, blocks: list[int]) -> None:
        """These moving blocks, which nobody holds, are for nobody until their pool has settled the transfer: the worker
        writes no more, but the pool may not have heard so yet, and would refuse the next writer."""
        host.ledger.end_moving(blocks, quarantine=True)
        if self._books.is_here(host):
            self.quarantined[host.name, number] = blocks
            self._books.tell(GiveUp(host.name, host.incarnation, self._books.epoch, (number,)))

    def on_settled(self, settled: HostPoolSettled) -> None:
        host = self._books.pools.get(settled.pool)
        if host is None or host.incarnation != settled.incarnation:
            return
        # It may be told twice, and of transfers that a scheduler before this one gave up.
        blocks = self.quarantined.pop((settled.pool, settled.transfer), None)
        if blocks is not None:
            host.ledger.end_quarantine(blocks)

    def lose(self, host: HostPool) -> None:
        """It is gone, and with it whatever could be touched there."""
        for key in [key for key in self.quarantined if key[0] == host.name]:
            del self.quarantined[key]

    def check(self) -> None:
        """What a late writer may touch is in quarantine, and nothing else is."""
        noted = dict.fromkeys(self._books.pools, 0)
        for (pool, number), blocks in self.quarantined.items():
            assert pool in noted, f"transfer {number:#x} may touch {len(blocks)} blocks of {pool}, which is gone"
            noted[pool] += len(blocks)
        for name, host in self._books.pools.items():
            found = host.ledger.counts().quarantined
            assert found == noted[name], f"{found} blocks of {name} are in quarantine, and {noted[name]} may be touched"
