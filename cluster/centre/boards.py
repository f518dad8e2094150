"""The replicas of each model, on boards: who is here, how large they are, and which models take nothing new.

A board (`cluster/centre/placement.py`) has the figures of one model's replicas as arrays, and chooses among them. This
keeps one for each model, and tells the others what they ask of a model by name.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.nouns import Replica
from cluster.centre.placement import Board
from cluster.messages import ReplicaJoined


class Boards:
    """A board by model. `closed`: models that take nothing new, because they are being unloaded. `changes` counts how
    often it changed who is here and what is closed."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._settings = books.settings
        self._boards: dict[str, Board] = {}
        # Those of which a replica may come back.
        self._expecting: dict[str, Board] = {}
        self.closed: set[str] = set()
        self.changes = 0

    def find(self, model: str) -> Board | None:
        return self._boards.get(model)

    def of(self, model: str) -> Board:
        """Of a model whose replicas are here, or were."""
        return self._boards[model]

    def add(self, replica: Replica) -> None:
        self.changes += 1
        self._boards.setdefault(replica.joined.model, Board(self._settings)).add(replica)

    def why_not(self, joined: ReplicaJoined) -> str:
        """Why a replica can't join those of its model; empty if it can."""
        board = self._boards.get(joined.model)
        return "" if board is None else board.why_not(joined)

    def remove(self, replica: Replica) -> None:
        """It is lost: what fits there alone waits a while for it to come back."""
        self.changes += 1
        model, until = replica.joined.model, self._books.now + self._settings.replica_return_s
        board = self._expecting[model] = self._boards[model]
        board.remove(replica, until)

    def expire(self) -> None:
        """At the beginning of a turn: who has not come back in time is counted no more."""
        for model, board in list(self._expecting.items()):
            board.sizes.expire(self._books.now)
            if board.sizes.next_due is None:
                del self._expecting[model]

    def close(self, model: str) -> None:
        """It takes nothing new from now on."""
        self.changes += 1
        self.closed.add(model)

    def reopen(self, model: str) -> None:
        self.changes += 1
        self.closed.discard(model)

    def forget(self, model: str) -> None:
        """It was closed and its last replica is gone: it is as if it had never been here."""
        self.changes += 1
        self.closed.discard(model)
        self._boards.pop(model, None)
        self._expecting.pop(model, None)

    def replicas_of(self, model: str) -> list[Replica]:
        board = self._boards.get(model)
        return board.replicas if board is not None else []

    def refresh(self, replica: Replica) -> None:
        """What this replica has free changed."""
        self._boards[replica.joined.model].refresh(replica)

    def models(self) -> list[list[Replica]]:
        """The replicas of each model."""
        return [board.replicas for board in self._boards.values()]

    def block_size(self, model: str) -> int:
        """Slots of a block, the same on all replicas of a model; 1 while none has joined."""
        board = self._boards.get(model)
        return board.block_size if board is not None else 1

    def pin_limit(self, model: str) -> int:
        replicas = self.replicas_of(model)
        return min((int(replica.ledger.num_blocks * self._settings.max_pinned) for replica in replicas), default=0)

    def names(self) -> list[str]:
        return list(self._boards)
