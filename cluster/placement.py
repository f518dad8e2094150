"""Which replica a request goes to: one scored rule, and two plain ones to compare it with.

The score is the time that a replica would need to bring the request to its first token, in tokens to compute: what its
residents still have to prefill, what of this prompt is not cached there, and one token per resident and step for as
many steps as that takes. A replica whose pool is fuller loses a tie. Ties go to the first in the order of joining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.replica import Replica
from cluster.settings import PlacementName

# A prefill chunk of this many tokens takes a step, and each resident takes one token of it.
TOKENS_PER_STEP = 512


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that has room now: what is cached there, how many blocks the request needs on top."""

    replica: Replica
    hit: list[int]
    num_new: int


def score(candidate: Candidate, prompt_tokens: int) -> float:
    """Tokens to compute until the first token of this request; lower is better."""
    replica = candidate.replica
    to_compute = replica.prefill_waiting + prompt_tokens - len(candidate.hit) * replica.block_size
    num_steps = 1 + to_compute / TOKENS_PER_STEP
    fullness = 1 - replica.ledger.num_available / replica.ledger.num_blocks
    return to_compute + num_steps * len(replica.residents) + fullness


def choose(candidates: Sequence[Candidate], prompt_tokens: int, policy: PlacementName, turn: int) -> Candidate:
    """One of the candidates. `turn` counts placements, for round robin."""
    if policy == "round_robin":
        return candidates[turn % len(candidates)]
    if policy == "least_loaded":
        return min(candidates, key=lambda candidate: len(candidate.replica.residents))
    return min(candidates, key=lambda candidate: score(candidate, prompt_tokens))
