"""What the scheduler's rules speak of: sequences, requests, replicas and host pools, which name each other.

Plain objects that the rules change. A sequence's table is the truth about where its tokens lie; the ledgers count its
appearances. Nothing here decides, allocates or sends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from cluster.centre.beginnings import Beginnings
from cluster.centre.ledger import Ledger
from cluster.centre.plan_draft import PlanDraft
from cluster.centre.tenants import Tenant
from cluster.hashing import HASH_BYTES
from cluster.messages import HostPoolJoined, Ids, Pin, Reason, ReplicaJoined, Submit, ids
from cluster.sampling import SamplingParams


class State(IntEnum):
    """Where a request stands. Its sequences go together: all are on one replica, or none is."""

    QUEUED = 0  # waits for blocks
    PARKED = 1  # waits for another request to fill a prefix that both need
    RUNNING = 2  # its sequences are on a replica
    STOPPING = 3  # dropped there; their blocks are still held until the worker has answered
    SWAPPING = 4  # its blocks are on the way to host memory
    RESTORING = 5  # its tables stand on a replica; their content is on the way there
    SEALING = 6  # its replica is lost; the gateway is asked what it has
    ENDED = 7


@dataclass(slots=True, eq=False, repr=False)
class Sequence:
    """One stream of tokens. `seq` names its attempt on a replica; 0 while it is on none."""

    request: Request
    index: int
    # The last sampled token is never written, so this is the end of what it can ever write.
    limit: int
    # Names of its full blocks, HASH_BYTES each: flat, so that the garbage collector has nothing to walk.
    names: bytes
    seq: int = 0
    outputs: Ids = field(default_factory=ids)
    table: Ids = field(default_factory=ids)
    position: int = 0
    lease_end: int = 0
    # Its gateway found a stop string: so many of its outputs count, whatever was sampled behind them.
    cut: int | None = None
    reason: Reason = Reason.NONE
    # The pool in which it was last: its last tokens may be on their way from there long after.
    last_pool: int = 0
    # A beam group: how many of its blocks no beam's table has or is about to need, as its worker last told.
    purse: int = 0
    # Its worker was told to give back what it leases ahead, and has not answered: its lease is not renewed.
    is_revoking: bool = False
    # It was preempted: it is not preempted again before it has written up to here, one block more than it had.
    safe_end: int = 0
    # What the blocks of the table had cost when they came into it (see `Ledger`).
    paid: float = 0.0
    # While it is swapped out: its blocks in host memory. And up to which position its blocks are good there, or where
    # they are on their way to.
    host_table: list[int] = field(default_factory=list)
    saved: int = 0
    # It was dropped to be swapped out or moved and its worker has answered; its blocks are still held.
    has_stopped: bool = False
    # How many of its names are listed as being computed by it (see `Computing.begin`).
    num_computing: int = 0
    # A beam group that stopped to go on elsewhere: how far it was, the tables of its beams (while it is in host memory,
    # in numbers of that), and its search.
    group: tuple[int, tuple[Ids, ...], bytes] | None = None
    # Requests that wait until this sequence has filled a prefix, by arrival, and up to which position. None: there were
    # none.
    waiters: dict[int, tuple[int, Request]] | None = None

    @property
    def length(self) -> int:
        """Tokens known, prompt and output."""
        return len(self.request.prompt) + len(self.outputs)

    @property
    def num_billed(self) -> int:
        return len(self.outputs) if self.cut is None else min(self.cut, len(self.outputs))

    @property
    def num_written(self) -> int:
        """How far it had come when it last stopped: what is known of it, or a group in the middle of its search."""
        return self.group[0] if self.group is not None else self.length

    def first_end(self, ahead: int) -> int:
        """How far the lease must reach with which it starts. Nobody asks for more before its safe end, so who starves
        can always be preempted. A group starts without a block ahead: its beams do not need one yet."""
        begins_group = self.request.width and self.group is None and not self.safe_end
        return min(self.limit, max(self.num_written, self.safe_end) + 1 + (0 if begins_group else ahead))

    @property
    def is_ended(self) -> bool:
        return self.reason != Reason.NONE

    @property
    def num_places(self) -> int:
        """Places in a worker's batch: one, or one for each beam of a group."""
        return self.request.width or 1

    def __repr__(self) -> str:
        return f"{self.request.request_id}[{self.index}] seq {self.seq:#x} at {self.position}/{self.lease_end}"


class Request:
    """What a client asked, and how it goes."""

    __slots__ = (
        "arrival", "attempt", "block_seconds", "cached_tokens", "charged_seconds", "deadline", "digest", "forked_from",
        "gateway", "grace_s", "heard", "host", "host_block_seconds", "host_paid", "is_adopted", "is_cacheable",
        "is_cancelled", "is_confirmed", "is_partial", "is_sealing", "look", "max_tokens", "may_fetch",
        "measured", "model", "moved_at", "names", "orphaned_until", "parked_on", "pin_until",
        "preemptions", "priority", "prompt", "queue_seconds", "queued_at", "refusal", "replica", "request_id",
        "reserved", "route", "salt", "sampling", "seal_deadline", "sequences", "state", "tenant", "trace", "turn",
        "why_preempted", "width", "witnesses",
    )  # fmt: skip

    def __init__(self, submit: Submit | Pin, arrival: int, tenant: Tenant, now: float) -> None:
        self.request_id = submit.request_id
        self.gateway = submit.gateway
        self.route = submit.route
        self.model = submit.model
        # Of the model that its names were made for, or that it ran on.
        self.digest = submit.digest
        self.tenant = tenant
        self.prompt = submit.prompt
        self.names = b"".join(submit.hashes)
        self.salt = submit.salt
        self.arrival = arrival
        self.state = State.QUEUED
        self.replica: Replica | None = None
        self.attempt = 0
        self.parked_on: Sequence | None = None
        # Whose prompt its forks share, until it has left with the prompt written. None: each goes on by itself.
        self.forked_from: Sequence | None = None
        self.is_cancelled = False
        # The version of its model's sizes by which a replica that is here could hold it (see `Sizes`).
        self.measured = 0
        # Its blocks are named and can be shared: prefix caching is on and its prompt came with names.
        self.is_cacheable = False
        self.queued_at = now
        self.queue_seconds = 0.0
        self.why_preempted = ""
        self.cached_tokens = 0
        self.preemptions = 0
        self.block_seconds = 0.0
        self.charged_seconds = 0.0
        # Where its blocks are in host memory, the room reserved there, and what that has cost.
        self.host: HostPool | None = None
        self.reserved: list[int] = []
        self.host_paid = 0.0
        self.host_block_seconds = 0.0
        self.seal_deadline = 0.0
        # Gateways and routes that have owned it and may know of tokens that nobody else does: their word is awaited.
        # What they told; and whether a seal goes on, which ends when all of them have.
        self.witnesses: list[tuple[str, int]] = []
        self.heard: list[tuple[Ids, Reason]] | None = None
        # Which of its owners the present gateway is (see `Adoption`).
        self.is_sealing, self.turn = False, 0
        # Its prefix may come from another pool; no more once that went wrong.
        self.may_fetch = True
        # When it last came to another replica alive.
        self.moved_at = -1e9
        # Its gateway died; its client has until then to come back through another one.
        self.orphaned_until: float | None = None
        # A reroute may have come too late for its worker, so what ends is told from here as well.
        self.is_adopted = False
        # False: only a replica has told a new scheduler of it, which does not know all that its client asked.
        self.is_confirmed = True
        # A new scheduler found only some of its sequences on a replica: what the others sent, its gateway alone knows.
        self.is_partial = False
        # Why it was broken off: the code and the detail of its Refused.
        self.refusal: tuple[str, str] | None = None
        # A pin has neither sampling nor priority. `width`: a beam search, whose beams are one sequence here. `grace_s`:
        # how long its client wishes to have to come back.
        self.pin_until: float | None = None
        self.sampling: SamplingParams | None = None
        self.deadline: float | None = None
        self.trace, self.look, self.priority, self.grace_s, self.max_tokens, self.width, count = "", "", 0, 0.0, 1, 0, 1
        if isinstance(submit, Pin):
            self.pin_until = submit.until
        else:
            sampling = self.sampling = submit.sampling
            self.trace, self.priority, self.deadline = submit.trace, submit.priority, submit.deadline
            self.grace_s, self.max_tokens, self.width = submit.grace_s, sampling.max_tokens or 1, sampling.width
            self.look = submit.look
            count = 1 if self.width else sampling.n
        limit = len(self.prompt) + self.max_tokens - 1
        self.sequences = [Sequence(self, index, limit, self.names) for index in range(count)]

    @property
    def wants_logprobs(self) -> bool:
        """Only the worker that draws a token, or judges one of the prompt, knows its logprobs."""
        asked = self.sampling
        return asked is not None and (asked.logprobs is not None or asked.prompt_logprobs is not None)

    def as_asked(self) -> Submit:
        """What its client asked, for a gateway that has not seen it; without a deadline."""
        assert self.sampling is not None
        names = tuple([self.names[at : at + HASH_BYTES] for at in range(0, len(self.names), HASH_BYTES)])
        return Submit(
            self.request_id, self.gateway, self.route, self.model, self.tenant.name, self.prompt, names, self.sampling,
            self.priority, self.salt, None, self.trace, self.digest, self.grace_s, self.look,
        )  # fmt: skip

    @property
    def precedence(self) -> int:
        """Lower goes first: priority, then arrival. A request that comes back keeps its place."""
        return self.priority << 40 | self.arrival

    @property
    def live(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if not sequence.reason]

    @property
    def is_safe(self) -> bool:
        """It came back from a preemption, and has not written a block more since, as far as its worker has told."""
        return any(sequence.position < sequence.safe_end for sequence in self.live)

    @property
    def has_forks_waiting(self) -> bool:
        """Its forks wait for the prompt, or left without it: what their tables name was not written."""
        return self.forked_from is not None and self.forked_from.position < len(self.prompt)

    def forget_names(self) -> None:
        """Its blocks have no names from now on: nothing is found for it, and nothing of it is found."""
        self.is_cacheable = False
        self.names = b""
        for sequence in self.sequences:
            sequence.names = b""

    def take_weights(self, digest: bytes) -> None:
        """It is computed with these, for which its gateway has made no names."""
        self.forget_names()
        self.digest = digest

    def __repr__(self) -> str:
        return f"request {self.request_id} ({self.state.name.lower()}, attempt {self.attempt})"


@dataclass(slots=True, eq=False)
class Replica:
    """The workers that hold one copy of a model, their pool of blocks, who lives there, and the plan being written."""

    joined: ReplicaJoined
    ledger: Ledger
    beginnings: Beginnings
    # Replicas that something happened to in this turn, this one among them as soon as anything is written.
    touched: dict[str, Replica]
    # How far ahead of need leases are renewed at the moment.
    ahead: int
    name: str = field(init=False)
    incarnation: int = field(init=False)
    block_size: int = field(init=False)
    residents: dict[int, Sequence] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    # Sequences whose lease could not be renewed.
    wanting: dict[int, Sequence] = field(default_factory=dict)
    # Places in the batch that residents take, and those that are on their way here; each beam of a group takes one.
    num_places: int = 0
    # Residents whose prefix others wait for.
    awaited: dict[int, Sequence] = field(default_factory=dict)
    # Blocks that pins hold, by the request that warmed them, oldest first.
    pins: dict[str, list[int]] = field(default_factory=dict)
    is_draining: bool = False
    drained_from: float = 0.0
    step_seconds: float = 0.0
    # Gateways that take no tokens from it at the moment.
    unreached: frozenset[str] = frozenset()
    prefill_waiting: int = 0
    prefill_tokens_per_s: float = field(init=False)
    num_dry: int = 0
    num_stale: int = 0
    # The last result that was taken, and the last plan that was sent.
    last_result: int = 0
    last_plan: int = 0
    draft: PlanDraft = field(default_factory=PlanDraft)
    # Sources of copies, each with the plan that orders the copy: held until the worker has obeyed it.
    copying: deque[tuple[int, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.name, self.incarnation = self.joined.replica, self.joined.incarnation
        self.block_size, self.prefill_tokens_per_s = self.joined.block_size, self.joined.prefill_tokens_per_s

    def write(self) -> PlanDraft:
        """The plan of this turn, to write orders into."""
        self.touched[self.name] = self
        return self.draft

    @property
    def next_plan(self) -> int:
        """The number of the plan that is being written."""
        return self.last_plan + 1

    @property
    def is_emptying(self) -> bool:
        """Requests are on their way out: their blocks come free when its worker has answered."""
        return any(request.state in (State.STOPPING, State.SWAPPING) for request in self.requests.values())

    @property
    def is_revoking(self) -> bool:
        """Sequences are to give back what they lease ahead, and have not answered."""
        return any(sequence.is_revoking for sequence in self.residents.values())


class HostPool:
    """One node's host memory as the scheduler sees it."""

    def __init__(self, joined: HostPoolJoined, ledger: Ledger) -> None:
        self.name = joined.pool
        self.incarnation = joined.incarnation
        self.joined = joined
        self.ledger = ledger
        # Requests whose blocks lie here or are on the way.
        self.requests: dict[str, Request] = {}
