"""What could ever be served: how large the replicas of a model are, those included that are away and may come back.

Admission asks before it accepts and, as sizes can change, again when a request goes first. Only sizes count here, as if
every replica were empty; what is free now is `cluster/centre/placement.py`'s. It holds no request and refuses none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

from cluster.centre.needs import num_blocks
from cluster.centre.nouns import Request, Sequence
from cluster.settings import ReserveName


class Size(NamedTuple):
    """What one replica could hold: blocks of its pool, tokens of one sequence, places in its batch."""

    num_blocks: int
    num_tokens: int
    num_places: int

    def holds(self, other: Size) -> bool:
        return (
            other.num_blocks <= self.num_blocks
            and other.num_tokens <= self.num_tokens
            and other.num_places <= self.num_places
        )


def num_reserved(reserve: ReserveName, num_prompt: int, max_tokens: int, block_size: int, longest: int) -> int:
    """Blocks of the run that a request reserves, a power of two. `longest`: tokens that the model takes."""
    # The last sampled token is never written.
    end = num_prompt + max_tokens - 1
    if reserve == "longest":
        end = longest
    elif reserve == "power_of_two":
        end = min(longest, num_prompt + (1 << (max_tokens - 1).bit_length()))
    return 1 << (-(-end // block_size) - 1).bit_length()


def size_of(live: SequenceOf[Sequence], block_size: int, num_reserved: int = 0) -> Size:
    """The most that what lives of a request can ever take. The last sampled token is never written, but has a place."""
    request, limit = live[0].request, live[0].limit
    if len(live) == 1 and not request.width:
        return Size(num_reserved or -(-limit // block_size), limit + 1, 1)
    most = num_reserved or num_blocks(request, block_size, [sequence.limit for sequence in live])
    return Size(most, limit + 1, sum(sequence.num_places for sequence in live))


class PoolSizes:
    """The sizes of one model's replicas by name. `version` grows whenever what fits may be other than before."""

    def __init__(self) -> None:
        self.version = 1
        self._here: dict[str, Size] = {}
        self._kinds: Counter[Size] = Counter()
        # By name: the size of one that is lost, and until when it may come back.
        self._away: dict[str, tuple[Size, float]] = {}

    def come(self, name: str, size: Size) -> None:
        assert name not in self._here, f"replica {name} came twice"
        self._away.pop(name, None)
        self._here[name] = size
        self.version += size not in self._kinds
        self._kinds[size] += 1

    def go(self, name: str, until: float) -> None:
        """It may come back until then, as large as it was."""
        size = self._here.pop(name)
        self._kinds[size] -= 1
        if not self._kinds[size]:
            del self._kinds[size]
            self.version += 1
        self._away[name] = size, until

    def expire(self, now: float) -> bool:
        """Who has not come back in time is counted no more. True: somebody was."""
        late = [name for name, (_, until) in self._away.items() if until <= now]
        for name in late:
            del self._away[name]
        self.version += bool(late)
        return bool(late)

    @property
    def next_due(self) -> float | None:
        return min((until for _, until in self._away.values()), default=None)

    def are_here(self, size: Size) -> bool:
        """One that is here could hold this much, or nobody is here to measure by."""
        for kind in self._kinds:
            if kind.holds(size):
                return True
        return not self._kinds

    def refusal(self, request: Request, block_size: int, num_reserved: int = 0) -> str:
        """Why no replica, here or away, could ever hold this request alone, with the figures; empty if one could."""
        known = [*self._kinds, *(size for size, _ in self._away.values())]
        wanted = size_of(request.live, block_size, num_reserved)
        if not known or any(size.holds(wanted) for size in known):
            return ""
        kind, field = ("beams", "beam_width") if request.width else ("sequence(s)", "n")
        asked = f"a prompt of {len(request.prompt):,} tokens with max_tokens {request.max_tokens:,}"
        largest = max(size.num_blocks for size in known)
        longest = max(size.num_tokens for size in known)
        most = max(size.num_places for size in known)
        if wanted.num_blocks > largest:
            return (
                f"{asked} and {wanted.num_places} {kind} needs {wanted.num_blocks:,} blocks of {block_size} tokens; "
                f"the largest pool has {largest:,}; lower max_tokens or {field}, or raise kv_memory"
            )
        if wanted.num_tokens > longest:
            return (
                f"{asked} is longer than the {longest:,} tokens that the model takes; shorten the prompt or "
                "lower max_tokens"
            )
        if wanted.num_places > most:
            return f"{wanted.num_places} {kind} are more than the {most} that a replica runs at once; lower {field}"
        return (
            f"{asked} and {wanted.num_places} {kind} needs {wanted.num_blocks:,} blocks, {wanted.num_tokens:,} "
            f"positions and {wanted.num_places} places; no replica has all of these; lower max_tokens or {field}"
        )
