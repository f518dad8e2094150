"""Connections that have not proved yet who they are: so many at a time, so many from one address, and never a queue.

Who comes when all places are taken gets the place of the oldest, of its own address first: a peer proves itself within
milliseconds, so only those who say nothing are ever the oldest. It closes nothing itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Stranger = TypeVar("Stranger", bound=Hashable)


class Strangers(Generic[Stranger]):
    """Who waits, oldest first, and from where."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._waiting: dict[Stranger, str] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def come(self, stranger: Stranger, address: str) -> Stranger | None:
        """Takes a place; returns who loses it, and is to be closed."""
        evicted: Stranger | None = None
        if self._counts.get(address, 0) >= self._most_of_one:
            evicted = next(one for one, where in self._waiting.items() if where == address)
        elif len(self._waiting) >= self._most:
            evicted = next(iter(self._waiting))
        if evicted is not None:
            self.gone(evicted)
        self._waiting[stranger] = address
        self._counts[address] = self._counts.get(address, 0) + 1
        return evicted

    def gone(self, stranger: Stranger) -> None:
        """It is known now, or closed. May be said twice."""
        address = self._waiting.pop(stranger, None)
        if address is None:
            return
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]
