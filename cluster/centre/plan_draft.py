"""The orders of a turn for one replica, while they are being gathered: what becomes a numbered Plan at its end.

Whoever decides something writes it here through `Replica.write`; the replica numbers and sends it. It decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.messages import Copy, Drop, Extends, Plan, Reroute, Revoke, Start, Transfer, ids

if TYPE_CHECKING:
    from cluster.centre.replica import Replica


class PlanDraft:
    """One list for each kind of order."""

    __slots__ = ("aborts", "clears", "copies", "drops", "extends", "reroutes", "revokes", "starts", "transfers")

    def __init__(self) -> None:
        self.extends = Extends()
        self.starts: list[Start] = []
        self.drops: list[Drop] = []
        self.revokes: list[Revoke] = []
        self.reroutes: list[Reroute] = []
        self.copies: list[Copy] = []
        self.transfers: list[Transfer] = []
        self.aborts: list[int] = []
        self.clears = ids()

    def __bool__(self) -> bool:
        return bool(
            self.extends.seqs or self.starts or self.drops or self.revokes or self.reroutes or self.copies
            or self.transfers or self.aborts or self.clears
        )  # fmt: skip

    def numbered(self, replica: Replica, epoch: int, number: int, ahead: int) -> Plan:
        """The plan for this replica; nothing may be written into the draft any more."""
        return Plan(
            replica=replica.name,
            incarnation=replica.incarnation,
            epoch=epoch,
            number=number,
            ahead=ahead,
            result=replica.last_result,
            extends=self.extends,
            starts=tuple(self.starts),
            drops=tuple(self.drops),
            revokes=tuple(self.revokes),
            reroutes=tuple(self.reroutes),
            copies=tuple(self.copies),
            transfers=tuple(self.transfers),
            aborts=tuple(self.aborts),
            clears=self.clears,
        )
