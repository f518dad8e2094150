"""The world to the scheduler: all that one turn can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cluster.messages.plans import Start, Transfer
from cluster.messages.results import Result
from cluster.messages.values import Ids, Reason
from cluster.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Submit:
    """A validated request. `hashes` are those of the prompt's full blocks, HASH_BYTES each, by the gateway."""

    request_id: str
    gateway: str
    route: int
    model: str
    tenant: str
    prompt: Ids
    hashes: tuple[bytes, ...]
    sampling: SamplingParams  # resolved: every field has its value
    priority: int = 0  # lower goes first
    salt: bytes = b""
    deadline: float | None = None  # on the scheduler's clock
    trace: str = ""  # W3C traceparent of the gateway's span; empty: nobody traces
    digest: bytes = b""  # of the model that `hashes` were made for
    grace_s: float = 0.0  # so long its client may come back after its gateway has died
    look: str = ""  # how its door shows the answer: that door's own words, for another that goes on with it


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants the request any more. With a gateway: only if this route is still the one that it is told to.

    With a code, its client was told that it ended for this reason, and whoever resumes it is told the same.
    """

    request_id: str
    gateway: str = ""
    route: int = 0
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StopAt:
    """A gateway cut a sequence at a stop string: its first `num_outputs` tokens are all that it ever had."""

    request_id: str
    index: int
    num_outputs: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A gateway's answer to Seal and HandOver: all output tokens that it holds of each sequence, none if it does not
    know the route. Attempts up to this one are deaf there now; behind a HandOver (attempt 0) all are."""

    request_id: str
    gateway: str
    route: int
    attempt: int
    outputs: tuple[Ids, ...]
    finished: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The gateway has every token of the request: nothing of it need be kept any longer. Nobody wants what still runs
    of it under this route, because a new scheduler could not know that it was over."""

    request_id: str
    gateway: str
    route: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """A client resumes a request through a gateway that holds nothing of it: `submit` is the request as that gateway
    would have asked it. From here on tokens go there, whoever had them before."""

    submit: Submit


@dataclass(frozen=True, slots=True)
class Find:
    """A client names a request, and nothing else of it: the gateway needs it whole before it can adopt it. Answered
    by Found or Refused, to this route."""

    request_id: str
    gateway: str
    route: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A client came back to a gateway that holds its request under this route. Meanwhile it may have been elsewhere.
    `number` counts the claims of this route."""

    request_id: str
    gateway: str
    route: int
    number: int = 1


@dataclass(frozen=True, slots=True)
class ReplicaJoined:
    replica: str
    incarnation: int
    node: str
    model: str
    num_blocks: int
    block_size: int
    block_bytes: int
    fingerprint: str  # of the block layout; pools of different layouts never exchange blocks
    max_batch: int
    max_model_len: int
    prefill_tokens_per_s: float = 0.0  # measured at start; 0 = not known
    bytes_per_s: float = 0.0  # of copies out of its pool within its node, measured at start; 0 = it serves no peers
    digest: bytes = b""  # of the model: replicas of one name have one, and the names of their blocks depend on it


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    replica: str
    incarnation: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HostPoolJoined:
    pool: str
    incarnation: int
    node: str
    num_blocks: int
    block_bytes: int
    fingerprint: str
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HostPoolLost:
    pool: str
    incarnation: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HostPoolSettled:
    """Nothing of this transfer can touch the pool any more: its quarantined blocks are free."""

    pool: str
    incarnation: int
    transfer: int


@dataclass(frozen=True, slots=True)
class GatewayLost:
    gateway: str


@dataclass(frozen=True, slots=True)
class Resident:
    """An attempt that a replica holds: as it was started (a fork by its parent's Start), and how far it is."""

    seq: int
    index: int
    start: Start
    tokens: Ids
    position: int
    table: Ids
    lease_end: int


@dataclass(frozen=True, slots=True)
class Departed:
    """An attempt that has left a replica not long ago, by its own end or because it was dropped. `start` is as it was
    started, with all tokens that were known of it when it left, its last gateway, and no blocks."""

    seq: int
    index: int
    start: Start
    reason: Reason

    @property
    def has_ended(self) -> bool:
        """By itself: it has all its tokens."""
        return self.reason in (Reason.STOP, Reason.LENGTH)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica tells a new scheduler (a higher epoch) all that it holds.

    The state counts as a report: later Advances tell what came after it. `transfers` are those under way; they are
    aborted by the new scheduler, and their blocks stay unused until Transferred. Plans and results start again from 1.
    """

    joined: ReplicaJoined
    residents: tuple[Resident, ...]
    cached: tuple[tuple[int, bytes], ...]  # block, name
    transfers: tuple[Transfer, ...]
    # What left last: where its gateway died with the scheduler, nobody else knows what came of it.
    departed: tuple[Departed, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that a gateway has not closed: as it was submitted, its last attempt, what came of each sequence, and
    the turn in which its route is that gateway's (see Accepted)."""

    submit: Submit
    attempt: int
    outputs: tuple[Ids, ...]
    finished: tuple[Reason, ...]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class GatewayState:
    """A gateway tells a scheduler that is new, or had given it up, which requests are under way and what it has of
    them."""

    gateway: str
    requests: tuple[OpenRequest, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new work on this replica and move what runs there elsewhere (or take it back, on=False)."""

    replica: str
    on: bool = True


@dataclass(frozen=True, slots=True)
class CloseModel:
    """Take no new requests for this model; with its last replica it is forgotten (or take them again, on=False)."""

    model: str
    on: bool = True


@dataclass(frozen=True, slots=True)
class Pin:
    """Warm a prefix and keep it until `until` on the scheduler's clock (CachePrefix)."""

    request_id: str
    gateway: str
    route: int
    model: str
    tenant: str
    prompt: Ids
    hashes: tuple[bytes, ...]
    until: float
    salt: bytes = b""
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened but time."""


Event: TypeAlias = (
    Submit
    | Cancel
    | StopAt
    | Sealed
    | Closed
    | Adopt
    | Find
    | Claim
    | Pin
    | Result
    | ReplicaJoined
    | ReplicaLost
    | ReplicaState
    | HostPoolJoined
    | HostPoolLost
    | HostPoolSettled
    | GatewayState
    | GatewayLost
    | Drain
    | CloseModel
    | Tick
)
