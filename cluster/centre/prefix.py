"""The prefix index: which pools of the cluster hold which full block of tokens, by name.

A name is the chained hash of all tokens up to the end of a block (`cluster/hashing.py`), so one look-up answers for a
whole prefix. The ledgers list a block when a retired step has filled it and unlist it before its space is used again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cluster.hashing import HASH_BYTES

BLOCK_BITS = 32
_BLOCK_MASK = (1 << BLOCK_BITS) - 1
# A name that more pools hold than this has its blocks by pool, and a mask of its pools.
FEW_PLACES = 4


class Hits:
    """Which pools hold how many blocks of a run of names from its first on. Pools come in groups: the run is as long in
    all of one. Their blocks are looked up when they are asked for."""

    __slots__ = ("_index", "_names", "groups")

    def __init__(self, index: PrefixIndex, names: bytes, runs: list[tuple[int, int]]) -> None:
        self._index = index
        self._names = names
        # Length of the run, and the pools in order of their numbers; shorter runs first.
        self.groups = [(depth, _bits(mask)) for depth, mask in runs]

    def __bool__(self) -> bool:
        return bool(self.groups)

    @property
    def longest(self) -> int:
        return self.groups[-1][0] if self.groups else 0

    def blocks(self, pool: int) -> list[int]:
        """Its blocks of the run, in order."""
        found: list[int] = []
        for at in range(0, len(self._names), HASH_BYTES):
            block = self._index.block_in(self._names[at : at + HASH_BYTES], pool)
            if block is None:
                break
            found.append(block)
        return found

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each pool, and how long the run is there."""
        for depth, pools in self.groups:
            for pool in pools.tolist():
                yield pool, depth


def _bits(mask: int) -> NDArray[np.intp]:
    """The numbers of the bits that are set."""
    if mask.bit_count() > 16:
        raw = np.frombuffer(mask.to_bytes((mask.bit_length() + 7) // 8, "little"), np.uint8)
        return np.flatnonzero(np.unpackbits(raw, bitorder="little"))
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return np.array(found, np.intp)


class PrefixIndex:
    """Names -> blocks. A place is `pool << 32 | block`: a name that one pool holds costs one int, a few a tuple."""

    def __init__(self) -> None:
        self._places: dict[bytes, int | tuple[int, ...] | dict[int, int]] = {}
        # Lists a place under a name that nobody has, and returns the places that the name has then.
        self.claim = self._places.setdefault
        self._nothing = Hits(self, b"", [])
        # Of names that many pools hold: a bit for each.
        self._masks: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def list_block(self, name: bytes, pool: int, block: int) -> bool:
        """False if the pool has a block of this name already."""
        place = pool << BLOCK_BITS | block
        known = self.claim(name, place)
        if known == place:
            return True
        if isinstance(known, dict):
            if pool in known:
                return False
            known[pool] = block
            self._masks[name] |= 1 << pool
            return True
        places = known if isinstance(known, tuple) else (known,)
        if any(other >> BLOCK_BITS == pool for other in places):
            return False
        places = (*places, place)
        if len(places) <= FEW_PLACES:
            self._places[name] = places
        else:
            self._places[name] = {other >> BLOCK_BITS: other & _BLOCK_MASK for other in places}
            self._masks[name] = _mask(places)
        return True

    def unlist_block(self, name: bytes, pool: int, block: int) -> None:
        place = pool << BLOCK_BITS | block
        known = self._places[name]
        if known == place:
            del self._places[name]
            return
        if isinstance(known, dict):
            assert known.get(pool) == block, f"block {block} of pool {pool} is not listed"
            del known[pool]
            self._masks[name] ^= 1 << pool
            if len(known) <= FEW_PLACES // 2:
                del self._masks[name]
                self._places[name] = tuple([other << BLOCK_BITS | at for other, at in known.items()])
            return
        assert isinstance(known, tuple) and place in known, f"block {block} of pool {pool} is not listed"
        rest = tuple(other for other in known if other != place)
        self._places[name] = rest[0] if len(rest) == 1 else rest

    @property
    def pools(self) -> set[int]:
        """Those that hold anything with a name."""
        return {pool for name in self._places for pool in _bits(self._mask_of(name)).tolist()}

    def block_in(self, name: bytes, pool: int) -> int | None:
        known = self._places.get(name)
        if known is None:
            return None
        if isinstance(known, dict):
            return known.get(pool)
        for place in known if isinstance(known, tuple) else (known,):
            if place >> BLOCK_BITS == pool:
                return place & _BLOCK_MASK
        return None

    def _mask_of(self, name: bytes) -> int:
        """A bit for each pool that has a block of this name."""
        known = self._places.get(name, ())
        if isinstance(known, int):
            return 1 << (known >> BLOCK_BITS)
        return self._masks[name] if isinstance(known, dict) else _mask(known)

    def match(self, names: bytes) -> Hits:
        """For each pool how long its run of `names` from the first on is. One walk, one look-up a name, whatever the
        number of pools."""
        if names[:HASH_BYTES] not in self._places:
            return self._nothing
        runs: list[tuple[int, int]] = []
        alive, depth = -1, 0
        for depth, at in enumerate(range(0, len(names), HASH_BYTES)):
            still = alive & self._mask_of(names[at : at + HASH_BYTES])
            if depth and still != alive:
                runs.append((depth, alive ^ still))
            alive = still
            if not alive:
                break
        else:
            if alive > 0:
                runs.append((depth + 1, alive))
        return Hits(self, names, runs)

    def check(self) -> None:
        """Names that many pools hold, and no others, have a mask, which says who holds them."""
        many = {name: known for name, known in self._places.items() if isinstance(known, dict)}
        assert many.keys() == self._masks.keys(), f"{len(self._masks)} masks of {len(many)} names"
        for name, known in many.items():
            assert self._masks[name] == sum(1 << pool for pool in known), f"{name.hex()} is held by pools {list(known)}"


def _mask(places: tuple[int, ...]) -> int:
    mask = 0
    for place in places:
        mask |= 1 << (place >> BLOCK_BITS)
    return mask
