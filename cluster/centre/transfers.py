"""All transfers under way, by their numbers: who was ordered to do each, and what it is for.

A rule orders one with a purpose, which says what is to happen with it; the same rule gets the purpose back when the
transfer has ended or its replica is lost. Numbers are not used twice, whatever an earlier scheduler gave; what that one
had ordered is given up, and its blocks come free when it has ended. Measured rates stand here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cluster.centre.books import Books
from cluster.centre.nouns import HostPool, Replica, Request
from cluster.centre.rates import Rates, standing_s
from cluster.messages import EPOCH_BITS, Road, Transfer, Transferred, ids


class Purpose(Protocol):
    """What a transfer is for."""

    @property
    def replica(self) -> Replica:
        """Who was ordered to do it, and tells how it ended."""

    @property
    def held_up(self) -> Request | None:
        """The request that can't go on before it has ended, if there is one."""


@dataclass(slots=True, eq=False)
class Inherited:
    """A transfer of a scheduler before this one: these blocks of the replica move until it has ended."""

    replica: Replica
    blocks: list[int]
    held_up: None = None


E = TypeVar("E", bound=Purpose)


class Transfers:
    """By replica and number, in the order in which they were ordered."""

    def __init__(self, books: Books) -> None:
        self._settings = books.settings
        self._counters = books.counters
        self._under_way: dict[tuple[str, int], Purpose] = {}
        # The same of each replica, by number.
        self._of: dict[str, dict[int, Purpose]] = {}
        self._num_transfers = books.epoch << EPOCH_BITS
        self.rates = Rates(books.settings.network_bytes_per_s)

    def order(
        self,
        purpose: Purpose,
        road: Road,
        peer: Replica | HostPool,
        mine: Sequence[int],
        theirs: Sequence[int],
    ) -> int:
        """Writes it into the plan of the purpose's replica; returns its number, never given before, in no epoch."""
        self._num_transfers += 1
        number, replica, timeout_s = self._num_transfers, purpose.replica, self._settings.transfer_timeout_s
        transfer = Transfer(number, road, peer.name, peer.incarnation, ids(mine), ids(theirs), timeout_s)
        replica.write().transfers.append(transfer)
        self._begin(number, purpose)
        return number

    def _begin(self, number: int, purpose: Purpose) -> None:
        name = purpose.replica.name
        self._under_way[name, number] = self._of.setdefault(name, {})[number] = purpose

    def _remove(self, name: str, number: int) -> Purpose | None:
        purpose = self._under_way.pop((name, number), None)
        if purpose is not None:
            del self._of[name][number]
            if not self._of[name]:
                del self._of[name]
        return purpose

    def take_over(self, replica: Replica, transfer: Transfer) -> None:
        """One of a scheduler before this one: it is given up."""
        purpose = Inherited(replica, list(dict.fromkeys(transfer.mine)))
        self._begin(transfer.transfer, purpose)
        replica.write().aborts.append(transfer.transfer)

    def end(self, replica: Replica, number: int) -> Purpose | None:
        """It has ended. None: nobody waits for it any more."""
        purpose = self._remove(replica.name, number)
        if purpose is None:
            self._counters["stale transfers"] += 1
        return purpose

    def end_inherited(self, purpose: Inherited, told: Transferred) -> None:
        replica = purpose.replica
        replica.ledger.end_moving(purpose.blocks)
        if self._settings.clear_tenants:
            # Whose they were nobody knows any more.
            replica.write().clears.extend(block for block in purpose.blocks if replica.ledger.state(block) == "free")

    def abort(self, request: Request) -> None:
        """Nobody needs what this request waits for any more; the transfer still ends with Transferred."""
        assert request.replica is not None
        for number, purpose in self._of.get(request.replica.name, {}).items():
            if purpose.held_up is request:
                purpose.replica.write().aborts.append(number)

    def all(self, kind: type[E]) -> list[tuple[int, E]]:
        """Those of one kind, by number."""
        return [(number, purpose) for (_, number), purpose in self._under_way.items() if isinstance(purpose, kind)]

    def of(self, replica: Replica, kind: type[E]) -> list[tuple[int, E]]:
        """Those of one kind that this replica was ordered, by number."""
        under_way = self._of.get(replica.name, {}).items()
        return [(number, one) for number, one in under_way if isinstance(one, kind) and one.replica is replica]

    def lose(self, replica: Replica, kind: type[E]) -> list[tuple[int, E]]:
        """This replica is gone, and tells nothing any more: those of one kind that it was ordered."""
        lost = self.of(replica, kind)
        for number, _ in lost:
            self._remove(replica.name, number)
        return lost

    def __len__(self) -> int:
        return len(self._under_way)

    def __repr__(self) -> str:
        return ", ".join(
            f"{name} {number:#x} ({type(one).__name__})" for (name, number), one in self._under_way.items()
        )

    def __contains__(self, number: int) -> bool:
        return any(number == other for _, other in self._under_way)

    # -- what they cost

    def lost_s(self, replica: Replica, other: str, size_bytes: int) -> float:
        """What the steps of a replica lose to one transfer from or to another node. Infinite: not known."""
        share, num_beside = self._settings.swap_share, len(replica.residents)
        return self.rates.lost_s(replica.joined.node, other, size_bytes, share, num_beside)

    def leaving_s(self, replica: Replica, other: str, size_bytes: int) -> float:
        """The same of one that makes room: its blocks are free only when it has ended, and that is told with the next
        step; what is computed again leaves at once."""
        wait_s = self.rates.seconds(replica.joined.node, other, size_bytes) + replica.step_seconds
        standing = standing_s(wait_s, replica.step_seconds, replica.block_size)
        return self.lost_s(replica, other, size_bytes) + standing
