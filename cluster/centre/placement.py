"""Which replica a request goes to: one scored rule, and two plain ones to compare it with.

The score is the time that a replica would need to bring the request to its first token, in tokens to compute: what its
residents still have to prefill, what of this prompt is not cached there, and one token per resident and step for as
many steps as that takes. A replica whose pool is fuller loses a tie; ties go to the one that joined first.

All replicas of a model stand on one board of arrays, so that a choice among a thousand is a few array operations. Only
replicas that hold a part of the prompt are looked at one by one, because only there the need differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cluster.centre.fits import PoolSizes, Size, num_reserved, size_of
from cluster.centre.needs import num_blocks
from cluster.centre.nouns import Replica, Request
from cluster.centre.prefix import Hits
from cluster.messages import ReplicaJoined
from cluster.settings import PlacementName, SchedulerSettings

# A prefill chunk of this many tokens takes a step, and each resident takes one token of it.
TOKENS_PER_STEP = 512

Floats: TypeAlias = "NDArray[np.float64]"


class Need(NamedTuple):
    """What a request needs before anything cached is counted."""

    num_tokens: int
    num_blocks: int
    num_places: int
    # The most that it can ever take: where that does not fit, it would be preempted without end.
    most: Size


class Place(NamedTuple):
    """A replica that has room now, and the cached blocks that begin the table there."""

    replica: Replica
    hit: list[int]


class Board:
    """The replicas of one model as arrays. `refresh` takes over a replica's figures; `choose` reads them all."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.replicas: list[Replica] = []
        self.sizes = PoolSizes()
        # Slots of a block and the digest of the model, the same on all replicas of a model; 1 while none has joined.
        # They are those of the first replica, and can change only while none is here.
        self.block_size = 1
        self.digest = b""
        self._settings = settings
        self._turn = 0
        self._row: dict[str, int] = {}
        self._row_of_pool = np.zeros(0, np.intp)
        self._free = np.zeros(0, np.int64)
        self._seats = np.zeros(0, np.int64)
        self._residents = np.zeros(0, np.float64)
        self._prefill = np.zeros(0, np.float64)
        self._at_hand = np.zeros(0, np.float64)
        # Of each: tokens of a sequence, blocks of its pool.
        self._longest, self._largest = np.zeros(0, np.int64), np.zeros(0, np.int64)
        # The least of both: what is no more than that fits everywhere, so nobody is too small for it.
        self._shortest = self._smallest = 0
        self._nobody = np.zeros(0, np.bool_)

    def why_not(self, joined: ReplicaJoined) -> str:
        """Why this replica can't stand beside those that are here; empty if it can. Blocks of one model have one size,
        and a request goes on elsewhere only where the same model is: else its tokens would be wrong."""
        if not self.replicas:
            return ""
        model, wayout = joined.model, "serve it under another name, or unload the model first"
        if joined.digest != self.digest:
            return (
                f"its weights, configuration or dtype are not those of {model} here: digest {joined.digest.hex()} and "
                f"{self.digest.hex()}; {wayout}"
            )
        if joined.block_size != self.block_size:
            return f"its blocks have {joined.block_size} tokens and those of {model} here {self.block_size}; {wayout}"
        return ""

    def add(self, replica: Replica) -> None:
        joined = replica.joined
        self.block_size, self.digest = replica.block_size, joined.digest
        self.sizes.come(replica.name, Size(joined.num_blocks, joined.max_model_len, joined.max_batch))
        self._resize([*self.replicas, replica])

    def remove(self, replica: Replica, may_return_until: float) -> None:
        self.sizes.go(replica.name, may_return_until)
        self._resize([other for other in self.replicas if other is not replica])

    def _resize(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self._row = {replica.name: row for row, replica in enumerate(replicas)}
        highest = max((replica.ledger.pool for replica in replicas), default=0)
        self._row_of_pool = np.full(highest + 1, -1, np.intp)
        self._row_of_pool[[replica.ledger.pool for replica in replicas]] = np.arange(len(replicas))
        count = len(replicas)
        self._longest = np.array([replica.joined.max_model_len for replica in replicas], np.int64)
        self._largest = np.array([replica.ledger.num_blocks for replica in replicas], np.int64)
        self._shortest = min(self._longest.tolist(), default=0)
        self._smallest = min(self._largest.tolist(), default=0)
        self._nobody = np.zeros(count, np.bool_)
        self._free, self._seats = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._residents, self._prefill = np.zeros(count), np.zeros(count)
        self._at_hand = np.zeros(count)
        for replica in replicas:
            self.refresh(replica)

    def refresh(self, replica: Replica) -> None:
        """A replica that takes nothing new (it drains, or its residents must grow first) has no free seats."""
        row, ledger = self._row[replica.name], replica.ledger
        num_available = ledger.num_available
        is_open = not replica.is_draining and not replica.wanting
        if self._settings.reserve == "none":
            self._free[row] = num_available - self._reserve(replica)
        else:
            self._free[row] = ledger.longest_run
        self._seats[row] = replica.joined.max_batch - replica.num_places if is_open else 0
        self._residents[row] = replica.num_places
        self._prefill[row] = replica.prefill_waiting
        self._at_hand[row] = num_available / ledger.num_blocks

    def _reserve(self, replica: Replica) -> int:
        """Blocks that stay free for those that run, so that they can grow; an empty replica needs none."""
        return int(replica.ledger.num_blocks * self._settings.admit_reserve) if replica.requests else 0

    def num_reserved(self, request: Request) -> int:
        """Blocks of the run that this request reserves; 0 where blocks are given as they are needed."""
        reserve = self._settings.reserve
        if reserve == "none" or not self._shortest:
            return 0
        return num_reserved(reserve, len(request.prompt), request.max_tokens, self.block_size, self._shortest)

    def need(self, request: Request) -> Need:
        """What it needs to start now."""
        live = request.live
        if len(live) == 1 and not request.width and self._settings.reserve == "none":
            (sequence,) = live
            end = sequence.first_end(self._settings.ahead)
            return Need(sequence.length, -(-end // self.block_size), 1, size_of(live, self.block_size))
        ends = [sequence.first_end(self._settings.ahead) for sequence in live]
        reserved = self.num_reserved(request)
        blocks = reserved or num_blocks(request, self.block_size, ends)
        most = size_of(live, self.block_size, reserved)
        return Need(live[0].length, blocks, most.num_places, most)

    def fits_here(self, request: Request) -> bool:
        """One that is here could hold it alone, or nobody is here to measure by."""
        if self._settings.reserve != "none" and (request.width or len(request.sequences) > 1):
            return False
        return self.sizes.are_here(size_of(request.live, self.block_size, self.num_reserved(request)))

    def why_never(self, request: Request) -> str:
        """Why no replica, here or away, could ever hold it; empty if one could."""
        if self._settings.reserve != "none" and (request.width or len(request.sequences) > 1):
            return f"reserve is {self._settings.reserve!r}, which holds one sequence a request; ask with n of 1"
        return self.sizes.refusal(request, self.block_size, self.num_reserved(request))

    def choose(self, need: Need, hits: Hits) -> Place | None:
        """The best replica with room for all of `need`; `hits`: who holds its beginning. None: nobody has room."""
        if not self.replicas:
            return None
        scores = self._scores(need.num_tokens)
        is_small = self._is_small(need)
        scores[(self._free < need.num_blocks) | (self._seats < need.num_places) | is_small] = np.inf
        if not hits:
            row = self._pick(scores, self._settings.placement)
            return Place(self.replicas[row], []) if scores[row] < np.inf else None
        plain, num_hit, is_unsure = scores, np.zeros(len(scores), np.int64), np.zeros(len(scores), np.bool_)
        scores = scores.copy()
        for depth, pools in hits.groups:
            rows = self._row_of_pool[pools[pools < len(self._row_of_pool)]]
            # Pools in host memory, and of other models, have no row.
            rows = rows[rows >= 0]
            num_shared = min(depth, (need.num_tokens - 1) // self.block_size)
            lacking = need.num_blocks - num_shared
            rows = rows[(self._free[rows] >= lacking) & (self._seats[rows] >= need.num_places) & ~is_small[rows]]
            num_hit[rows] = depth
            # Cached blocks that nobody holds are among those that are free: there may be less room than it seems.
            is_unsure[rows] = self._free[rows] - depth < lacking
            scores[rows] = self._scores(need.num_tokens - num_shared * self.block_size, rows)
        unsure = np.flatnonzero(is_unsure).tolist()
        if self._settings.placement == "scored":
            unsure = []  # only the best one is looked at, below
        for row in unsure:
            self._make_sure(row, need, hits, scores, plain, num_hit)
        while True:
            row = self._pick(scores, self._settings.placement)
            if scores[row] == np.inf:
                return None
            if not is_unsure[row] or self._make_sure(row, need, hits, scores, plain, num_hit):
                break
            is_unsure[row] = False
        replica = self.replicas[row]
        return Place(replica, hits.blocks(replica.ledger.pool) if num_hit[row] else [])

    def _is_small(self, need: Need) -> NDArray[np.bool_]:
        """Which replicas could not hold it alone, were they empty."""
        if need.most.num_tokens <= self._shortest and need.most.num_blocks <= self._smallest:
            return self._nobody
        return (self._longest < need.most.num_tokens) | (self._largest < need.most.num_blocks)

    def _make_sure(
        self, row: int, need: Need, hits: Hits, scores: Floats, plain: Floats, num_hit: NDArray[np.int64]
    ) -> bool:
        """Whether it has room beside the blocks that are cached there; if not, it is as one that has none cached."""
        ledger, depth = self.replicas[row].ledger, int(num_hit[row])
        idle = sum(1 for block in hits.blocks(ledger.pool) if not ledger.holders(block))
        num_shared = min(depth, (need.num_tokens - 1) // self.block_size)
        if self._free[row] - idle >= need.num_blocks - num_shared:
            return True
        scores[row], num_hit[row] = plain[row], 0
        return False

    def _scores(self, num_tokens: int, rows: slice | NDArray[np.intp] = slice(None)) -> Floats:
        to_compute = self._prefill[rows] + num_tokens
        return to_compute + (1 + to_compute / TOKENS_PER_STEP) * self._residents[rows] + (1 - self._at_hand[rows])

    def _pick(self, scores: NDArray[np.float64], policy: PlacementName) -> int:
        if policy == "scored":
            return int(np.argmin(scores))
        open_rows = np.flatnonzero(scores < np.inf)
        if not len(open_rows):
            return 0
        if policy == "least_loaded":
            return int(open_rows[np.argmin(self._residents[open_rows])])
        self._turn += 1
        return int(open_rows[self._turn % len(open_rows)])

    def roomiest(
        self, with_room: Callable[[Iterable[Replica]], Iterator[Replica]], need: Need, changed: Mapping[str, Replica]
    ) -> Replica | None:
        """Of those with room the one with the largest share of its pool at hand; ties go to the first. Nobody has it
        without what `need` says. `changed`: those whose figures here may be old."""
        may = (self._seats >= need.num_places) & ~self._is_small(need)
        if self._settings.reserve == "none":
            may &= self._free >= need.num_blocks
        rows = np.flatnonzero(may)
        rows = rows[np.argsort(-self._at_hand[rows], kind="stable")].tolist()
        known = (replica for row in rows if (replica := self.replicas[row]).name not in changed)
        found = [*with_room(replica for replica in changed.values() if replica.name in self._row)]
        best = next(with_room(known), None)
        if best is not None:
            found.append(best)
        return max(found, key=lambda replica: (share_at_hand(replica), -self._row[replica.name]), default=None)

    def why_none(self, need: Need) -> str:
        """Why the roomiest replica cannot take it now, with the figures."""
        if not self.replicas:
            return "no replica of its model is here"
        is_small = self._is_small(need)
        if ((self._free >= need.num_blocks) & (self._seats >= need.num_places) & ~is_small).any():
            return "requests that go before it wait for room"
        if is_small.all():
            return f"needs up to {need.most.num_blocks} blocks, more than any replica that is here has"
        is_open = (self._seats > 0) & ~is_small
        row = int(np.argmax(np.where(is_open, self._free, -1)))
        replica = self.replicas[row]
        if not is_open[row]:
            draining = sum(replica.is_draining for replica in self.replicas)
            return f"{len(self.replicas)} replicas: {draining} drain, the others are full or grow first"
        if self._seats[row] < need.num_places:
            return f"needs {need.num_places} places in the batch of {replica.name}, {self._seats[row]} are free"
        num_free = max(0, self._free[row])
        return f"needs {need.num_blocks} blocks on {replica.name}, {num_free} are free beside the reserve"


def share_at_hand(replica: Replica) -> float:
    return replica.ledger.num_available / replica.ledger.num_blocks
