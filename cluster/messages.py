"""The words that scheduler, workers, gateways and host pools say to each other, as plain frozen dataclasses.

The scheduler takes events and gives orders; a worker takes plans and gives results and tokens. Everything
here is a value: ints, bytes, tuples and flat int arrays, so that it can be written to a journal, sent as
protobuf (`protos/quire/v1/control.proto` is the twin, `cluster/wire/plans.py` converts) and replayed. This file
decides nothing and imports nothing heavy.

Words used by every message:
  seq       one attempt of one sequence, unique for ever. A sequence that is preempted, moved or
            restarted gets a new seq, so stale messages never match.
  position  how many token positions of a sequence have their keys and values written.
  length    how many tokens of a sequence are known (prompt and output); a decoding sequence has
            length == position + 1: the last sampled token is written by the next step.
  lease_end the first position that a sequence may not write yet.
  route     a gateway's own number for a request; tokens are addressed by it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from cluster.sampling import SamplingParams

Ids: TypeAlias = "array[int]"
"""Token ids or block ids: array('i'), one C int each; bytes on the wire."""

EPOCH_BITS = 40
"""A seq is `epoch << EPOCH_BITS | number`: a scheduler that takes over never gives a number that was given before."""


def ids(values: Iterable[int] = ()) -> Ids:
    return array("i", values)


def _no_ids() -> Ids:
    return array("i")


def _no_seqs() -> array[int]:
    return array("q")


class Reason(IntEnum):
    """Why a sequence ended on a worker."""

    NONE = 0
    STOP = 1  # an end token or a stop id
    LENGTH = 2  # max_tokens reached
    DROPPED = 3  # the scheduler said so; it goes on elsewhere, or nobody wants it any more
    FAILED = 4  # the worker could not compute it; `detail` says why


# ---------------------------------------------------------------- scheduler -> worker


@dataclass(frozen=True, slots=True)
class Fork:
    """A further sequence of a request whose prompt the parent of the same Start computes.

    Its table shares the parent's full prompt blocks. When the parent's prompt is written, the worker copies the
    part-filled prompt block (if there is one) from the parent's table into this table, and goes on by itself: with
    `outputs` empty it samples from the parent's prompt logits, else it computes the outputs first.
    """

    seq: int
    index: int
    table: Ids
    lease_end: int
    outputs: Ids


@dataclass(frozen=True, slots=True)
class Beams:
    """A beam group: the worker permutes `width` tables and copies tails inside the purse, and reports whole tables.

    A group that goes on in the middle of its search brings the tables of its beams, and the search as the worker told
    it that stopped it (see Stopped); the table of the Start has every block of them once.
    """

    width: int
    purse: Ids
    tables: tuple[Ids, ...] = ()
    search: bytes = b""


@dataclass(frozen=True, slots=True)
class Start:
    """One sequence, described whole. Everything that is known of it, so that a worker needs no history."""

    seq: int
    request_id: str
    index: int
    attempt: int
    gateway: str
    route: int
    tokens: Ids
    num_prompt: int
    position: int  # keys and values up to here are already in the table's blocks
    table: Ids
    lease_end: int
    precedence: int  # lower goes first
    sampling: SamplingParams
    salt: bytes
    chain: bytes  # hash of the last full block of the prompt (b"" if it has none): generated blocks are chained to it
    forks: tuple[Fork, ...] = ()
    beams: Beams | None = None
    trace: str = ""  # W3C traceparent of the gateway's span; empty: nobody traces
    # A transfer of the same plan that brings its blocks (0: none). The worker begins it by itself once that has
    # committed, and forgets it if the transfer fails.
    after: int = 0


@dataclass(frozen=True, slots=True)
class Extends:
    """New blocks and lease ends, one entry per sequence; `blocks` is flat, `counts[i]` of them from `firsts[i]` on."""

    seqs: array[int] = field(default_factory=_no_seqs)
    lease_ends: Ids = field(default_factory=_no_ids)
    firsts: Ids = field(default_factory=_no_ids)  # logical number of the first new block: makes an extend idempotent
    counts: Ids = field(default_factory=_no_ids)
    blocks: Ids = field(default_factory=_no_ids)

    def add(self, seq: int, lease_end: int, first: int, blocks: Sequence[int]) -> None:
        self.seqs.append(seq)
        self.lease_ends.append(lease_end)
        self.firsts.append(first)
        self.counts.append(len(blocks))
        self.blocks.extend(blocks)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `num_slots` slots of a block into another of the same pool, before anything else of the same plan."""

    source: int
    target: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take leave back from `lease_end` on. The worker answers with the end that holds from then (Revoked): a step that
    was launched is not undone. It forgets the blocks behind that end, and reports in the same result how far it is,
    because it may stand at the new end and the scheduler renews no lease between the order and the answer."""

    seq: int
    lease_end: int


@dataclass(frozen=True, slots=True)
class Drop:
    """End this attempt. The worker answers with Stopped once no step can touch its blocks any more."""

    seq: int


@dataclass(frozen=True, slots=True)
class Reroute:
    """Send this sequence's tokens to another gateway from now on, its whole known output first."""

    seq: int
    gateway: str
    route: int


class Road(IntEnum):
    WRITE = 1  # from the worker's pool to the peer's
    READ = 2  # from the peer's pool to the worker's


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move blocks between this worker's pool and a peer pool; answered by Transferred, once, whatever happens."""

    transfer: int
    road: Road
    peer: str  # name of the peer pool; its address is known to the transfer service
    peer_incarnation: int
    mine: Ids
    theirs: Ids
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What the scheduler orders of one replica. Obeyed in the order: aborts, drops, revokes, reroutes, clears, copies,
    extends, starts, transfers. Numbers run from 1 without gaps within (epoch, incarnation); a plan
    seen before is ignored."""

    replica: str
    incarnation: int
    epoch: int
    number: int
    ahead: int  # a sequence reports when lease_end - position <= ahead
    result: int  # the last result that the scheduler has taken: the worker may forget up to it
    extends: Extends = field(default_factory=Extends)
    starts: tuple[Start, ...] = ()
    drops: tuple[Drop, ...] = ()
    revokes: tuple[Revoke, ...] = ()
    reroutes: tuple[Reroute, ...] = ()
    clears: Ids = field(default_factory=_no_ids)  # blocks to overwrite: their tenant asked for it
    copies: tuple[Copy, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    aborts: tuple[int, ...] = ()  # transfers to give up


# ---------------------------------------------------------------- worker -> scheduler


@dataclass(frozen=True, slots=True)
class Advances:
    """Sequences that filled blocks or come near the end of their lease, one entry each.

    `ids` are the tokens that became known since this sequence's last report (the sampled ones; the prompt is known),
    `hashes` those of newly filled blocks beyond the prompt's full blocks, HASH_BYTES each. Both are flat.
    """

    seqs: array[int] = field(default_factory=_no_seqs)
    positions: Ids = field(default_factory=_no_ids)
    num_ids: Ids = field(default_factory=_no_ids)
    ids: Ids = field(default_factory=_no_ids)
    num_hashes: Ids = field(default_factory=_no_ids)
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


@dataclass(frozen=True, slots=True)
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


# ---------------------------------------------------------------- worker -> gateway


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token: its own, then the best others."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
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


# ---------------------------------------------------------------- events: the world -> scheduler


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
    outputs: tuple[Ids, ...] = ()  # a gateway submits anew what it has already sent (scheduler rebuilt, resume)
    trace: str = ""  # W3C traceparent of the gateway's span; empty: nobody traces


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class StopAt:
    """A gateway cut a sequence at a stop string: its first `num_outputs` tokens are all that it ever had."""

    request_id: str
    index: int
    num_outputs: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A gateway's answer to Seal: all output tokens that it holds of each sequence; older attempts are deaf now."""

    request_id: str
    attempt: int
    outputs: tuple[Ids, ...]
    finished: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The gateway has every token of the request: nothing of it need be kept any longer."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """A client resumes a request through this gateway, also after its first gateway died."""

    request_id: str
    tenant: str
    gateway: str
    route: int


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
class ReplicaState:
    """A replica tells a new scheduler (a higher epoch) all that it holds.

    The state counts as a report: later Advances tell what came after it. `transfers` are those under way; they are
    aborted by the new scheduler, and their blocks stay unused until Transferred. Plans and results start again from 1.
    """

    joined: ReplicaJoined
    residents: tuple[Resident, ...]
    cached: tuple[tuple[int, bytes], ...]  # block, name
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that a gateway has not closed: as it was submitted, its last attempt, what came of each sequence."""

    submit: Submit
    attempt: int
    outputs: tuple[Ids, ...]
    finished: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class GatewayState:
    """A gateway tells a new scheduler which requests are under way and what it has of them."""

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


# ---------------------------------------------------------------- orders: scheduler -> the world


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is ours from here on. `place` requests of its model wait before it; `reason`: why it waits itself,
    empty if it starts at once."""

    gateway: str
    route: int
    request_id: str
    place: int
    reason: str


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


@dataclass(frozen=True, slots=True)
class Seal:
    """Take no more tokens of attempts up to and including `attempt`, and tell what you hold (Sealed)."""

    gateway: str
    route: int
    request_id: str
    attempt: int


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


Order: TypeAlias = Plan | GiveUp | Accepted | Started | Refused | Seal | Replay | Done
