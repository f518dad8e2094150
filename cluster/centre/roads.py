"""The roads that blocks take: to host memory and back, to another replica, with a fetched prefix, into the host cache.

Each road is a rule of its own. Here a transfer that has ended goes back to the one that ordered it, and all of them
hear when one of their ends is lost, in the order in which they must.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster.centre.fetch import Fetch, Fetches
from cluster.centre.host_cache import HostCache, WriteBehind
from cluster.centre.move import Move
from cluster.centre.moves import Moves
from cluster.centre.nouns import HostPool, Replica, Request
from cluster.centre.swap import Swap, Swaps
from cluster.centre.transfers import Inherited, Transfers
from cluster.messages import Transferred


class Roads:
    """All four of them."""

    def __init__(
        self, transfers: Transfers, swaps: Swaps, fetches: Fetches, moves: Moves, host_cache: HostCache
    ) -> None:
        self._transfers = transfers
        self._swaps = swaps
        self._fetches = fetches
        self._moves = moves
        self._host_cache = host_cache
        self._ended: Mapping[type, Callable[[Any, Transferred], None]] = {
            Swap: swaps.ended,
            Fetch: fetches.ended,
            Move: moves.ended,
            WriteBehind: host_cache.ended,
            Inherited: transfers.end_inherited,
        }

    def on_transferred(self, replica: Replica, told: Transferred) -> None:
        errand = self._transfers.end(replica, told.transfer)
        if errand is not None:
            self._ended[type(errand)](errand, told)

    def lose_replica(self, replica: Replica) -> list[Request]:
        """Before its residents are taken away. Returns those that were coming back from host memory: their content
        there is still whole."""
        self._moves.lose_replica(replica)
        self._fetches.lose(replica)
        self._host_cache.lose_replica(replica)
        self._transfers.lose(replica, Inherited)
        return self._swaps.lose_replica(replica)

    def lose_pool(self, host: HostPool) -> None:
        self._fetches.lose(host)
        host.ledger.close()
        self._swaps.lose_pool(host)
