"""What is being computed right now, by name: a request that finds its next block here waits for it.

Beside the prefix index, which knows what is written. Admission notes each sequence that it starts, and whoever takes it
off its replica ends that.
"""

from __future__ import annotations

from cluster.centre.nouns import Sequence
from cluster.hashing import HASH_BYTES


class Computing:
    """Names -> the sequence that will fill a block of that name. The first owner of a name stays it."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Sequence] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def begin(self, owner: Sequence, first: int) -> None:
        """`owner` will fill its blocks from number `first` on, as far as their names are known."""
        names, owners = owner.names, self._owners
        owner.num_computing = len(names) // HASH_BYTES
        for at in range(first * HASH_BYTES, len(names), HASH_BYTES):
            owners.setdefault(names[at : at + HASH_BYTES], owner)

    def end(self, owner: Sequence) -> None:
        names, owners = owner.names, self._owners
        for at in range(0, owner.num_computing * HASH_BYTES, HASH_BYTES):
            name = names[at : at + HASH_BYTES]
            if owners.get(name) is owner:
                del owners[name]
        owner.num_computing = 0

    def owner(self, name: bytes) -> Sequence | None:
        return self._owners.get(name)
