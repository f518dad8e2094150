"""Prefix blocks that are about to fall out of a device pool are written behind into what is left of host memory.

A cached block is copied while it stays what it is: nothing is held for it, so that no step ever waits. If its space is
taken before the copy has committed, the copy is thrown away. In the host pool it is cached as in any other: listed in
the prefix index, and given up first when a swap needs the room. `cluster/centre/fetch.py` brings it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.centre.replica import Replica
from cluster.messages import Road, Transferred

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler
    from cluster.centre.swap import HostPool

# Blocks of one write, and among how many of those that fall out next they are looked for.
MAX_BLOCKS = 16
LOOK_AHEAD = 64
# A pool with a larger share of free blocks gives up nothing soon; a host pool keeps this share for swaps.
PLENTY = 0.25
KEPT_FREE = 0.1


@dataclass(slots=True)
class Write:
    """One write under way: blocks of the replica by name, and the room in host memory, pair by pair."""

    replica: Replica
    host: HostPool
    names: dict[int, bytes]
    places: list[int]


class HostCache:
    """All writes behind under way, one of a replica at a time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self.under_way: dict[int, Write] = {}
        self._next_at: dict[str, float] = {}

    def turn(self, replica: Replica) -> None:
        """At the end of a turn: copies what falls out next, unless there is anything better to do."""
        scheduler, now = self._scheduler, self._scheduler.now
        if not scheduler.swapper.pools or not self._settings.host_cache or now < self._next_at.get(replica.name, 0.0):
            return
        self._next_at[replica.name] = now + self._settings.host_cache_every_s
        ledger = replica.ledger
        is_busy = replica.wanting or replica.num_stopping or replica.is_draining or ledger.watched
        if is_busy or ledger.counts().free > PLENTY * ledger.num_blocks:
            return
        host = self._host_of(replica)
        if host is None:
            return
        chosen = self._choose(replica, host)
        room = host.ledger.num_available - int(KEPT_FREE * host.ledger.num_blocks)
        if not chosen or room < len(chosen):
            return
        places = host.ledger.allocate(len(chosen), 0)
        assert places is not None
        ledger.watched.update(chosen)
        number = scheduler.swapper.order(replica, Road.WRITE, host, list(chosen), places)
        self.under_way[number] = Write(replica, host, chosen, places)

    def _host_of(self, replica: Replica) -> HostPool | None:
        """The host pool of its own node, if their blocks are alike."""
        for host in self._scheduler.swapper.pools.values():
            if host.joined.node == replica.joined.node and host.joined.fingerprint == replica.joined.fingerprint:
                return host
        return None

    def _choose(self, replica: Replica, host: HostPool) -> dict[int, bytes]:
        """Of the blocks that fall out next those that the host pool lacks."""
        ledger, index, chosen = replica.ledger, self._scheduler.index, dict[int, bytes]()
        for block in ledger.next_cached(LOOK_AHEAD):
            name = ledger.name(block)
            if len(chosen) < MAX_BLOCKS and index.block_in(name, host.ledger.pool) is None:
                chosen[block] = name
        return chosen

    def on_transferred(self, replica: Replica, transferred: Transferred) -> bool:
        """False: the transfer is no write of this kind."""
        write = self.under_way.get(transferred.transfer)
        if write is None or write.replica is not replica:
            return False
        del self.under_way[transferred.transfer]
        host, scheduler = write.host, self._scheduler
        if not transferred.ok:
            # The pool may not have heard yet that it ended, and would refuse the next writer.
            self._quarantine(transferred.transfer, write)
        elif scheduler.swapper.pools.get(host.name) is host:
            nodes = replica.joined.node, host.joined.node
            scheduler.swapper.rates.note(*nodes, transferred.size_bytes, transferred.seconds)
            for (block, name), place in zip(write.names.items(), write.places, strict=True):
                if block in replica.ledger.watched:
                    host.ledger.set_names([place], name)
                    scheduler.counters["blocks written behind"] += 1
            host.ledger.release(write.places, 0)
        replica.ledger.watched.clear()
        return True

    def _quarantine(self, number: int, write: Write) -> None:
        host = write.host
        if self._scheduler.swapper.pools.get(host.name) is host:
            host.ledger.begin_moving(write.places)
            host.ledger.release(write.places, 0)
            self._scheduler.swapper.end_in_quarantine(host, number, write.places)

    def lose_replica(self, replica: Replica) -> None:
        """Its process may still write: what it was to write to is quarantined."""
        self._next_at.pop(replica.name, None)
        for number, write in list(self.under_way.items()):
            if write.replica is replica:
                del self.under_way[number]
                self._quarantine(number, write)

    def held(self, host: HostPool) -> list[list[int]]:
        """Blocks of this host pool that writes under way hold."""
        return [write.places for write in self.under_way.values() if write.host is host]
