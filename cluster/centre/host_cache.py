"""Prefix blocks that are about to fall out of a device pool are written behind into what is left of host memory.

A cached block is copied while it stays what it is: nothing is held for it, so that no step ever waits. If its space is
taken before the copy has committed, the copy is thrown away. Only where tenants are cleared it is held until then: what
one of them wrote into that space would be copied as well, and host memory is not cleared. In the host pool it is cached
as in any other: listed in the prefix index, and given up first when a swap needs the room. `cluster/centre/fetch.py`
brings it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.host_memory import HostMemory
from cluster.centre.nouns import HostPool, Replica
from cluster.centre.transfers import Transfers
from cluster.messages import Road, Transferred

# Blocks of one write, and among how many of those that fall out next they are looked for.
MAX_BLOCKS = 16
LOOK_AHEAD = 64
# A pool with a larger share of free blocks gives up nothing soon; a host pool keeps this share for swaps.
PLENTY = 0.25
KEPT_FREE = 0.1


@dataclass(slots=True, eq=False)
class WriteBehind:
    """One write under way: blocks of the replica by name, and the room in host memory, pair by pair."""

    replica: Replica
    host: HostPool
    names: dict[int, bytes]
    places: list[int]
    held_up: None = None


class HostCache:
    """Writes behind, one of a replica at a time."""

    def __init__(self, books: Books, boards: Boards, host_memory: HostMemory, transfers: Transfers) -> None:
        self._books = books
        self._settings = books.settings
        self._boards = boards
        self._host_memory = host_memory
        self._transfers = transfers
        self._next_at: dict[str, float] = {}

    def turn(self, replica: Replica) -> None:
        """At the end of a turn: copies what falls out next, unless there is anything better to do."""
        now = self._books.now
        if not self._books.pools or not self._settings.host_cache or now < self._next_at.get(replica.name, 0.0):
            return
        self._next_at[replica.name] = now + self._settings.host_cache_every_s
        ledger = replica.ledger
        is_busy = replica.wanting or replica.is_emptying or replica.is_draining
        # Of two at once the first would take what the second one watches for its own.
        is_writing = bool(self._transfers.of(replica, WriteBehind))
        if is_busy or is_writing or ledger.counts().free > PLENTY * ledger.num_blocks:
            return
        host = self._host_of(replica)
        if host is None:
            return
        chosen = self._choose(replica, host)
        room = host.ledger.num_available - int(KEPT_FREE * host.ledger.num_blocks)
        if not chosen or room < len(chosen):
            return
        places = host.ledger.allocate(len(chosen))
        assert places is not None
        ledger.watched.update(chosen)
        if self._settings.clear_tenants:
            ledger.share(list(chosen))
            self._boards.refresh(replica)
        self._transfers.order(WriteBehind(replica, host, chosen, places), Road.WRITE, host, list(chosen), places)

    def _host_of(self, replica: Replica) -> HostPool | None:
        """The host pool of its own node, if their blocks are alike."""
        for host in self._books.pools.values():
            if host.joined.node == replica.joined.node and host.joined.fingerprint == replica.joined.fingerprint:
                return host
        return None

    def _choose(self, replica: Replica, host: HostPool) -> dict[int, bytes]:
        """Of the blocks that fall out next those that the host pool lacks. None twice: where all that is cached is more
        than it holds, each copy would give up another for ever."""
        ledger, index, pool, chosen = replica.ledger, self._books.index, host.ledger.pool, dict[int, bytes]()
        for block in ledger.next_cached(LOOK_AHEAD):
            name = ledger.name(block)
            is_new = ledger.copied.get(block) != pool and index.block_in(name, pool) is None
            if is_new and len(chosen) < MAX_BLOCKS:
                chosen[block] = name
        return chosen

    def ended(self, write: WriteBehind, told: Transferred) -> None:
        host, replica = write.host, write.replica
        if not told.ok:
            self._quarantine(told.transfer, write)
        elif self._books.is_here(host):
            self._transfers.rates.note(replica.joined.node, host.joined.node, told.size_bytes, told.seconds)
            replica.ledger.copied.update(dict.fromkeys(replica.ledger.watched, host.ledger.pool))
            for (block, name), place in zip(write.names.items(), write.places, strict=True):
                if block in replica.ledger.watched:
                    host.ledger.set_names([place], [name])
                    self._books.counters["blocks written behind"] += 1
            host.ledger.release(write.places)
        replica.ledger.watched.clear()
        if self._settings.clear_tenants:
            replica.ledger.release(list(write.names))

    def _quarantine(self, number: int, write: WriteBehind) -> None:
        if self._books.is_here(write.host):
            write.host.ledger.begin_moving(write.places)
            write.host.ledger.release(write.places)
            self._host_memory.quarantine(write.host, number, write.places)

    def lose_replica(self, replica: Replica) -> None:
        """Its process may still write: what it was to write to is quarantined."""
        self._next_at.pop(replica.name, None)
        for number, write in self._transfers.lose(replica, WriteBehind):
            self._quarantine(number, write)

    def kept(self, replica: Replica) -> list[list[int]]:
        """Blocks of this replica that writes under way hold."""
        if not self._settings.clear_tenants:
            return []
        return [list(write.names) for _, write in self._transfers.of(replica, WriteBehind)]

    def held(self, host: HostPool) -> list[list[int]]:
        """Blocks of this host pool that writes under way hold."""
        return [write.places for _, write in self._transfers.all(WriteBehind) if write.host is host]
