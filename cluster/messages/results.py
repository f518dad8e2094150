"""Worker to scheduler: what came of plans. Worker to gateway: tokens.

Nothing changes a message once it is made. Those that are made for every step or plan are not frozen all the same: to
make a frozen one takes three to ten times as long.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from cluster.messages.values import Ids, Reason, no_ids, no_seqs


@dataclass(slots=True)
class Advances:
    """Sequences that filled blocks or come near the end of their lease, one entry each.

    `ids` are the tokens that became known since this sequence's last report (the sampled ones; the prompt is known),
    `hashes` those of newly filled blocks beyond the prompt's full blocks, HASH_BYTES each. Both are flat.
    """

    seqs: array[int] = field(default_factory=no_seqs)
    positions: Ids = field(default_factory=no_ids)
    num_ids: Ids = field(default_factory=no_ids)
    ids: Ids = field(default_factory=no_ids)
    num_hashes: Ids = field(default_factory=no_ids)
    hashes: bytes = b""


@dataclass(frozen=True, slots=True)
class Stopped:
    """An attempt has ended and no step can touch its blocks any more. `ids` as in Advances.

    `position` is below the known length: a step whose token was not taken is not counted either. A beam group that was
    dropped behind its prompt tells the tables of its beams and its search, which means nothing to the scheduler.
    """

    seq: int
    reason: Reason
    position: int
    ids: Ids
    hashes: bytes = b""
    detail: str = ""
    tables: tuple[Ids, ...] = ()
    search: bytes = b""


@dataclass(frozen=True, slots=True)
class Revoked:
    """No step writes at `lease_end` or behind it. A sequence that ended before the order came answers by Stopped."""

    seq: int
    lease_end: int


@dataclass(frozen=True, slots=True)
class GroupTables:
    """The tables of a beam group at a block boundary, and what is left in its purse."""

    seq: int
    position: int
    tables: tuple[Ids, ...]
    purse: Ids


@dataclass(frozen=True, slots=True)
class Transferred:
    transfer: int
    ok: bool
    detail: str
    size_bytes: int
    seconds: float


@dataclass(slots=True)
class Result:
    """What a replica tells back. Numbers run from 1 without gaps within (epoch, incarnation)."""

    replica: str
    incarnation: int
    epoch: int
    number: int
    plan: int  # the last plan obeyed
    step: int  # the last retired step
    advances: Advances = field(default_factory=Advances)
    stopped: tuple[Stopped, ...] = ()
    revoked: tuple[Revoked, ...] = ()
    groups: tuple[GroupTables, ...] = ()
    transferred: tuple[Transferred, ...] = ()
    dry: int = 0  # steps in which a sequence stood still for want of a lease, since the last result
    prefill_waiting: int = 0  # prompt tokens of residents not computed yet
    step_seconds: float = 0.0  # moving average of a step
    prefill_tokens_per_s: float = 0.0  # moving average of steps that are mostly prefill; 0 = not known yet
    unreached: tuple[str, ...] = ()  # gateways that take no tokens from here at the moment, all of them


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token: its own, then the best others."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Tokens:
    """Tokens of one sequence. `position` counts output tokens: the first sampled token is 0.

    A new attempt repeats the whole known output first; a gateway drops what it has by position, and drops tokens of
    attempts older than the request's seal.
    """

    route: int
    index: int
    attempt: int
    position: int
    ids: Ids
    reason: Reason = Reason.NONE
    logprobs: tuple[Logprobs, ...] = ()
    detail: str = ""
    prompt_logprobs: tuple[Logprobs | None, ...] = ()
    score: float = 0.0  # beams: the final score of this hypothesis
