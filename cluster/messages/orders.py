"""The scheduler to the world: all that one turn can order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cluster.messages.events import Submit
from cluster.messages.plans import Plan
from cluster.messages.results import Tokens


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is ours from here on. `place` requests of its model wait before it; `reason`: why it waits itself,
    empty if it starts at once. Answers Submit, Adopt and Claim. `turn` rises with every change of the gateway that a
    request is told to: of two that think so the higher one is right. `claim` is the number of the Claim that it
    answers; 0: it answers something else."""

    gateway: str
    route: int
    request_id: str
    place: int
    reason: str
    turn: int = 0
    claim: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    gateway: str
    route: int
    request_id: str
    cached_tokens: int
    replica: str


@dataclass(frozen=True, slots=True)
class Refused:
    """`code` is a gRPC status name: INVALID_ARGUMENT, RESOURCE_EXHAUSTED, NOT_FOUND, DEADLINE_EXCEEDED, ..."""

    gateway: str
    route: int
    request_id: str
    code: str
    detail: str
    retry_after_s: float = 0.0
    field: str = ""  # of the client's request, where one is to blame


@dataclass(frozen=True, slots=True)
class Seal:
    """Take no more tokens of attempts up to and including `attempt`, and tell what you hold (Sealed).

    `digest`: of the weights with which its tokens were or will be drawn. Attempt 0 seals nothing, and only tells that.
    """

    gateway: str
    route: int
    request_id: str
    attempt: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class HandOver:
    """The client came back through another gateway: tell what you hold (Sealed) and forget the route."""

    gateway: str
    route: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Done:
    """All sequences of a request have ended; what it used."""

    gateway: str
    route: int
    request_id: str
    cached_tokens: int
    preemptions: int
    queue_seconds: float
    device_block_seconds: float
    host_block_seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """Answers Find: the request as it was asked, without a deadline: of that `rest_s` is left (0: it has none)."""

    gateway: str
    route: int
    submit: Submit
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Replay:
    """Tokens that a dead worker may not have delivered, from the scheduler's own record."""

    gateway: str
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class GiveUp:
    """To a host pool: nobody wants these transfers any more, whether they came there or not. It answers with
    HostPoolSettled for each once nothing can touch the pool for it; until then their blocks are in quarantine."""

    pool: str
    incarnation: int
    epoch: int
    transfers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TurnAway:
    """To a replica: it can't join as things are. It may ask again; nothing is counted on it until then."""

    replica: str
    incarnation: int
    detail: str


@dataclass(frozen=True, slots=True)
class Expel:
    """To whoever holds the stream of this replica: what it told cannot be so. Its incarnation counts as lost, its
    requests go on elsewhere, and its stream is to be closed: it may come back under a higher incarnation."""

    replica: str
    incarnation: int
    detail: str


Order: TypeAlias = (
    Plan | GiveUp | Expel | TurnAway | Accepted | Started | Refused | Seal | HandOver | Found | Replay | Done
)
