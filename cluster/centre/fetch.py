"""Prefix fetch: full blocks that begin a prompt come from another pool where that is cheaper than computing them.

Admission asks when it starts a request whose prompt is cached further elsewhere than where it goes. The target reads
from the device pool of another replica, or from a host pool; the Start rides on that read. The source keeps its blocks
as moving until the read has ended. A read that fails sends the request back to its queue, and it fetches no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cluster.centre.prefix import Hits
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request
from cluster.messages import Road, Transferred

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler
    from cluster.centre.swap import HostPool


@dataclass(slots=True)
class Fetch:
    """One read under way. `source` None: its pool was lost meanwhile."""

    request: Request
    replica: Replica
    source: Replica | HostPool | None
    theirs: list[int]


class Fetches:
    """All fetches under way, and whose pool each number in the prefix index is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self.owners: dict[int, Replica | HostPool] = {}
        self.under_way: dict[int, Fetch] = {}

    def begin(self, request: Request, hits: Hits) -> int:
        """Its table stands: orders a read of what another pool has of it beyond. `hits`: cached blocks that begin it,
        by pool. Returns the transfer; 0: nothing is fetched."""
        replica, sequence = request.replica, request.live[0]
        assert replica is not None
        if not self._settings.fetch_prefixes or not request.may_fetch or not hits:
            return 0
        size = replica.block_size
        first, last = sequence.position // size, (sequence.length - 1) // size
        found = self._cheapest(replica, hits, first, last)
        if found is None:
            return 0
        source, theirs = found
        source.ledger.share(theirs, 0)
        source.ledger.begin_moving(theirs)
        source.ledger.release(theirs, 0)
        if isinstance(source, Replica):
            # Blocks that were at hand there are not, until they are read.
            self._scheduler.admission.refresh(source)
        mine = sequence.table[first : first + len(theirs)]
        number = self._scheduler.swapper.order(replica, Road.READ, source, mine, theirs)
        self.under_way[number] = Fetch(request, replica, source, theirs)
        sequence.saved = (first + len(theirs)) * size
        self._scheduler.counters["fetches begun"] += 1
        return number

    def _cheapest(
        self, replica: Replica, hits: Hits, first: int, last: int
    ) -> tuple[Replica | HostPool, list[int]] | None:
        """The pool from which a fetch saves most time, if from any, and its blocks from number `first` on."""
        rate, block_bytes = replica.prefill_tokens_per_s, replica.joined.block_bytes
        best: tuple[float, int, Replica | HostPool, int] | None = None
        if not rate or last <= first:
            return None
        # As long a run on the same node costs the same.
        seen: set[tuple[str, int]] = set()
        for pool, depth in hits:
            source, count = self.owners.get(pool), min(depth, last) - first
            if source is None or source is replica or count <= 0:
                continue
            node = source.joined.node
            if (node, count) in seen or not self._can_read(replica, source):
                continue
            seen.add((node, count))
            fetch_s = self._scheduler.swapper.lost_s(replica, node, count * block_bytes)
            saved_s = count * replica.block_size / rate - fetch_s
            if saved_s > (best[0] if best is not None else 0.0):
                best = saved_s, pool, source, count
        if best is None:
            return None
        _, pool, source, count = best
        return source, hits.blocks(pool)[first : first + count]

    def _can_read(self, replica: Replica, source: Replica | HostPool) -> bool:
        """Whether both pools are of one layout and can be reached."""
        if source.joined.fingerprint != replica.joined.fingerprint:
            return False
        return bool(replica.joined.bytes_per_s and source.joined.bytes_per_s)

    def on_transferred(self, replica: Replica, transferred: Transferred) -> bool:
        """False: the transfer is no fetch."""
        fetch = self.under_way.get(transferred.transfer)
        if fetch is None or fetch.replica is not replica:
            return False
        del self.under_way[transferred.transfer]
        scheduler, request = self._scheduler, fetch.request
        if fetch.source is not None and transferred.ok:
            nodes = replica.joined.node, fetch.source.joined.node
            scheduler.swapper.rates.note(*nodes, transferred.size_bytes, transferred.seconds)
        self._let_go(fetch)
        scheduler.counters[f"fetches {'done' if transferred.ok else 'failed'}"] += 1
        if transferred.ok:
            scheduler.admission.restored(request)
        else:
            request.may_fetch = False
            scheduler.swapper.give_up(request, replica)
        return True

    def _let_go(self, fetch: Fetch) -> None:
        source, fetch.source = fetch.source, None
        if source is not None:
            source.ledger.end_moving(fetch.theirs)
            if self._scheduler.replicas.get(source.name) is source:
                # Whoever waits for blocks there looks again in this turn.
                source.write()

    def abort(self, request: Request) -> None:
        """Nobody wants the request any more; the read still ends with Transferred."""
        for number, fetch in self.under_way.items():
            if fetch.request is request:
                fetch.replica.write().aborts.append(number)

    def lose(self, pool: Replica | HostPool) -> None:
        """This pool is gone: reads into it with it; reads from it succeed or fail by themselves."""
        self.owners.pop(pool.ledger.pool, None)
        for number, fetch in list(self.under_way.items()):
            if fetch.replica is pool:
                del self.under_way[number]
                self._scheduler.recovery.when_deaf(fetch.request, partial(self._let_go, fetch))
            elif fetch.source is pool:
                self._let_go(fetch)
