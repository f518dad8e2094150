"""What is being written right now, by name: a request that finds its next block here waits for it.

Beside the prefix index, which knows what is written. Admission notes each sequence that it starts, and whoever takes it
off its replica ends that; what is fetched is noted by pool (`fetch.py`).
"""

from __future__ import annotations

from cluster.centre.nouns import Sequence
from cluster.hashing import HASH_BYTES


class Fillers:
    """Names -> the sequence that will fill a block of that name. The first owner of a name stays it."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Sequence] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, owner: Sequence, names: bytes) -> None:
        for at in range(0, len(names), HASH_BYTES):
            self._owners.setdefault(names[at : at + HASH_BYTES], owner)

    def remove(self, owner: Sequence, names: bytes) -> None:
        owners = self._owners
        for at in range(0, len(names), HASH_BYTES):
            name = names[at : at + HASH_BYTES]
            if owners.get(name) is owner:
                del owners[name]

    def owner(self, names: bytes, block: int) -> Sequence | None:
        """Who will fill the block of this number, of those that have these names."""
        return self._owners.get(names[block * HASH_BYTES : (block + 1) * HASH_BYTES])

    def reach(self, owner: Sequence, names: bytes, block: int) -> int:
        """The first behind this block that it will not fill."""
        while self.owner(names, block) is owner:
            block += 1
        return block


class Computing(Fillers):
    """Those that compute."""

    def begin(self, owner: Sequence, first: int) -> None:
        """`owner` will fill its blocks from number `first` on, as far as their names are known."""
        owner.num_computing = len(owner.names) // HASH_BYTES
        self.add(owner, owner.names[first * HASH_BYTES :])

    def end(self, owner: Sequence) -> None:
        self.remove(owner, owner.names[: owner.num_computing * HASH_BYTES])
        owner.num_computing = 0
