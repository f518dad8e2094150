"""The prefix index: which pools of the cluster hold which full block of tokens, by name.

A name is the chained hash of all tokens up to the end of a block (`cluster/hashing.py`), so one look-up answers for a
whole prefix. The ledgers list a block when a retired step has filled it and unlist it before its space is used again.
Beside it stands what is being computed right now: a request that finds its next block there waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.hashing import HASH_BYTES

if TYPE_CHECKING:
    from cluster.centre.sequences import Sequence as TokenSequence

_BLOCK_BITS = 32
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1


class PrefixIndex:
    """Names -> blocks. A place is `pool << 32 | block`; a name that one pool holds costs one int, more a tuple."""

    def __init__(self) -> None:
        self._places: dict[bytes, int | tuple[int, ...]] = {}
        self._computing: dict[bytes, TokenSequence] = {}

    def __len__(self) -> int:
        return len(self._places)

    def list_block(self, name: bytes, pool: int, block: int) -> bool:
        """False if the pool has a block of this name already."""
        place = pool << _BLOCK_BITS | block
        known = self._places.setdefault(name, place)
        if known == place:
            return True
        places = known if isinstance(known, tuple) else (known,)
        if any(other >> _BLOCK_BITS == pool for other in places):
            return False
        self._places[name] = (*places, place)
        return True

    def unlist_block(self, name: bytes, pool: int, block: int) -> None:
        place = pool << _BLOCK_BITS | block
        known = self._places[name]
        if known == place:
            del self._places[name]
            return
        assert isinstance(known, tuple) and place in known, f"block {block} of pool {pool} is not listed"
        rest = tuple(other for other in known if other != place)
        self._places[name] = rest[0] if len(rest) == 1 else rest

    @property
    def pools(self) -> set[int]:
        """Those that hold anything with a name."""
        places = (known if isinstance(known, tuple) else (known,) for known in self._places.values())
        return {place >> _BLOCK_BITS for several in places for place in several}

    def block_in(self, name: bytes, pool: int) -> int | None:
        known = self._places.get(name)
        if known is None:
            return None
        for place in known if isinstance(known, tuple) else (known,):
            if place >> _BLOCK_BITS == pool:
                return place & _BLOCK_MASK
        return None

    def match(self, names: bytes) -> dict[int, list[int]]:
        """For each pool the blocks of the longest run of `names` from the first on. One walk, one look-up a name."""
        found: dict[int, list[int]] = {}
        get = self._places.get
        for depth, at in enumerate(range(0, len(names), HASH_BYTES)):
            known = get(names[at : at + HASH_BYTES])
            if known is None:
                break
            went_on = False
            for place in known if isinstance(known, tuple) else (known,):
                pool = place >> _BLOCK_BITS
                if depth == 0:
                    found[pool] = [place & _BLOCK_MASK]
                    went_on = True
                elif pool in found and len(found[pool]) == depth:
                    found[pool].append(place & _BLOCK_MASK)
                    went_on = True
            if not went_on:
                break
        return found

    # -- what is being computed

    def begin_computing(self, owner: TokenSequence, first: int) -> None:
        """`owner` will fill its blocks from number `first` on, as far as their names are known; the first owner of a
        name stays it."""
        names, computing = owner.names, self._computing
        owner.num_computing = len(names) // HASH_BYTES
        for at in range(first * HASH_BYTES, len(names), HASH_BYTES):
            computing.setdefault(names[at : at + HASH_BYTES], owner)

    def end_computing(self, owner: TokenSequence) -> None:
        names, computing = owner.names, self._computing
        for at in range(0, owner.num_computing * HASH_BYTES, HASH_BYTES):
            name = names[at : at + HASH_BYTES]
            if computing.get(name) is owner:
                del computing[name]
        owner.num_computing = 0

    def computing(self, name: bytes) -> TokenSequence | None:
        return self._computing.get(name)

    @property
    def num_computing(self) -> int:
        return len(self._computing)
