"""The orders of a turn for one replica, while they are being gathered: what becomes a numbered Plan at its end.

Whoever decides something writes it here through `Replica.write`; `cluster/centre/plans.py` numbers it. It decides
nothing.
"""

from __future__ import annotations

from cluster.messages import Copy, Drop, Extends, Reroute, Revoke, Start, Transfer, ids


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
