"""Prefix fetch: full blocks that begin a prompt come from another pool where that is cheaper than computing them.

Admission asks when it starts a request whose prompt is cached further elsewhere than where it goes. The target reads
from the device pool of another replica, or from a host pool; the Start rides on that read. The source keeps its blocks
as moving until the read has ended. Who would fetch what is on its way to the same replica already waits for that. A
read that fails sends the request back to its queue, and neither it nor who waited for it fetches any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.computing import Fillers
from cluster.centre.endings import Endings
from cluster.centre.leaving import Leaving
from cluster.centre.nouns import HostPool, Replica, Request, Sequence
from cluster.centre.placement import Place
from cluster.centre.prefix import Hits
from cluster.centre.starts import Starts
from cluster.centre.transfers import Transfers
from cluster.hashing import HASH_BYTES
from cluster.messages import Road, Transferred


@dataclass(slots=True, eq=False)
class Fetch:
    """One read under way. `source` None: its pool was lost meanwhile."""

    replica: Replica
    sequence: Sequence
    source: Replica | HostPool | None
    theirs: list[int]
    names: bytes

    @property
    def held_up(self) -> Request:
        return self.sequence.request


class Fetches:
    """Which prefixes are fetched, and how that ends."""

    def __init__(
        self, books: Books, boards: Boards, transfers: Transfers, endings: Endings, leaving: Leaving, starts: Starts
    ) -> None:
        self._books = books
        self._settings = books.settings
        self._boards = boards
        self._transfers = transfers
        self._endings = endings
        self._leaving = leaving
        self._starts = starts
        # What is on its way, by the pool that it comes to.
        self._coming: dict[int, Fillers] = {}

    def would_begin(self, request: Request, place: Place, hits: Hits) -> bool:
        """Whether it would fetch what this place lacks. `hits`: cached blocks that begin it, by pool."""
        first, last = _lacking(request, place)
        return self._may_fetch(request, hits) and self._cheapest(place.replica, hits, first, last) is not None

    def coming(self, request: Request, place: Place) -> tuple[Sequence, int] | None:
        """Who fetches to there already what it would fetch next, and up to where it should wait for that."""
        pool, names = place.replica.ledger.pool, request.live[0].names
        first, last = _lacking(request, place)
        coming = self._coming.get(pool)
        owner = None if coming is None else coming.owner(names, first)
        if coming is None or owner is None:
            return None
        return owner, min(last, coming.reach(owner, names, first)) * place.replica.block_size

    def _may_fetch(self, request: Request, hits: Hits) -> bool:
        return self._settings.fetch_prefixes and request.may_fetch and bool(hits)

    def begin(self, request: Request, hits: Hits) -> int:
        """Its table stands: orders a read of what another pool has of it beyond. `hits`: cached blocks that begin it,
        by pool. Returns the transfer; 0: nothing is fetched."""
        if not self._may_fetch(request, hits):
            return 0
        replica, sequence = request.replica, request.live[0]
        assert replica is not None
        size = replica.block_size
        first, last = sequence.position // size, (sequence.length - 1) // size
        found = self._cheapest(replica, hits, first, last)
        if found is None:
            return 0
        source, theirs = found
        source.ledger.share(theirs)
        source.ledger.begin_moving(theirs)
        source.ledger.release(theirs)
        if isinstance(source, Replica):
            # Blocks that were at hand there are not, until they are read.
            self._boards.refresh(source)
        mine = sequence.table[first : first + len(theirs)]
        sequence.saved = (first + len(theirs)) * size
        names = sequence.names[first * HASH_BYTES : (first + len(theirs)) * HASH_BYTES]
        self._coming.setdefault(replica.ledger.pool, Fillers()).add(sequence, names)
        self._books.counters["fetches begun"] += 1
        return self._transfers.order(Fetch(replica, sequence, source, theirs, names), Road.READ, source, mine, theirs)

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
            source, count = self._books.owners.get(pool), min(depth, last) - first
            if source is None or source is replica or count <= 0:
                continue
            node = source.joined.node
            if (node, count) in seen or not self._can_read(replica, source):
                continue
            seen.add((node, count))
            fetch_s = self._transfers.lost_s(replica, node, count * block_bytes)
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

    def ended(self, fetch: Fetch, told: Transferred) -> None:
        replica, request = fetch.replica, fetch.held_up
        if fetch.source is not None and told.ok:
            nodes = replica.joined.node, fetch.source.joined.node
            self._transfers.rates.note(*nodes, told.size_bytes, told.seconds)
        self._let_go(fetch)
        self._came(fetch)
        self._books.counters[f"fetches {'done' if told.ok else 'failed'}"] += 1
        if told.ok:
            self._starts.restored(request)
            return
        if not request.is_cancelled:
            for _, waiter in (fetch.sequence.waiters or {}).values():
                waiter.may_fetch = False
        request.may_fetch = False
        self._leaving.give_up(replica, request)

    def _let_go(self, fetch: Fetch) -> None:
        source, fetch.source = fetch.source, None
        if source is not None:
            source.ledger.end_moving(fetch.theirs)
            if isinstance(source, Replica) and self._books.is_here(source):
                # Whoever waits for blocks there looks again in this turn.
                source.write()

    def _came(self, fetch: Fetch) -> None:
        """Or it will not come. Of two that fetch the same the second has nothing here once the first has come."""
        pool = fetch.replica.ledger.pool
        coming = self._coming.get(pool)
        if coming is not None:
            coming.remove(fetch.sequence, fetch.names)
            if not coming:
                del self._coming[pool]

    def lose(self, pool: Replica | HostPool) -> None:
        """This pool is gone: reads into it with it; reads from it succeed or fail by themselves."""
        if isinstance(pool, Replica):
            for _, fetch in self._transfers.lose(pool, Fetch):
                self._came(fetch)
                self._endings.when_deaf(fetch.held_up, partial(self._let_go, fetch))
        for _, fetch in self._transfers.all(Fetch):
            if fetch.source is pool:
                self._let_go(fetch)


def _lacking(request: Request, place: Place) -> tuple[int, int]:
    """The first block that it does not find there, and the one of its last token, which it computes."""
    last = (request.live[0].length - 1) // place.replica.block_size
    return min(len(place.hit), last), last
