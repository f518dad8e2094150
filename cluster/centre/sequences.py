"""Requests and their sequences, as the scheduler knows them: tables, positions, outputs, names.

Plain objects that the scheduler and its replicas change. A sequence's table is the truth about where its tokens lie;
the ledgers count its appearances. Nothing here decides or allocates.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from cluster.messages import Ids, Pin, Reason, Submit, ids

if TYPE_CHECKING:
    from cluster.centre.fairness import Tenant
    from cluster.centre.replica import Replica
    from cluster.centre.swap import HostPool


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


class Sequence:
    """One stream of tokens. `seq` names its attempt on a replica; 0 while it is on none."""

    __slots__ = (
        "cut",
        "ended_on",
        "group",
        "has_stopped",
        "host_table",
        "index",
        "is_revoking",
        "lease_end",
        "limit",
        "names",
        "num_computing",
        "outputs",
        "paid",
        "position",
        "purse",
        "reason",
        "request",
        "safe_end",
        "saved",
        "seq",
        "table",
        "waiters",
    )

    def __init__(self, request: Request, index: int, outputs: Ids) -> None:
        self.request = request
        self.index = index
        self.seq = 0
        self.outputs = outputs
        self.table = ids()
        self.position = 0
        self.lease_end = 0
        # The last sampled token is never written, so this is the end of what it can ever write.
        self.limit = len(request.prompt) + request.max_tokens - 1
        # Its gateway found a stop string: so many of its outputs count, whatever was sampled behind them.
        self.cut: int | None = None
        # Names of its full blocks, HASH_BYTES each: flat, so that the garbage collector has nothing to walk.
        self.names = request.names
        self.reason = Reason.NONE
        # The replica whose worker ended it: its last tokens may be on their way from there long after.
        self.ended_on: Replica | None = None
        # A beam group: how many of its blocks no beam's table has or is about to need, as its worker last told.
        self.purse = 0
        # Its worker was told to give back what it leases ahead, and has not answered: its lease is not renewed.
        self.is_revoking = False
        # It was preempted: it is not preempted again before it has written up to here, one block more than it had.
        self.safe_end = 0
        # What the blocks of the table had cost when they came into it (see `Ledger`).
        self.paid = 0.0
        # While it is swapped out: its blocks in host memory. And up to which position its blocks are good there, or
        # where they are on their way to.
        self.host_table: list[int] = []
        self.saved = 0
        # It was dropped to be swapped out or moved and its worker has answered; its blocks are still held.
        self.has_stopped = False
        # How many of its names are listed as being computed by it (see `PrefixIndex.begin_computing`).
        self.num_computing = 0
        # A beam group that stopped to go on elsewhere: how far it was, the tables of its beams (while it is in host
        # memory, in numbers of that), and its search.
        self.group: tuple[int, tuple[Ids, ...], bytes] | None = None
        # Requests that wait until this sequence has filled a prefix, and up to which position.
        self.waiters: list[tuple[int, Request]] | tuple[()] = ()

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

    def translate(self, position: int, block_size: int) -> tuple[int, int]:
        """Logical to physical: the block and the slot that hold this token position."""
        assert 0 <= position < len(self.table) * block_size, f"position {position} is behind the table of {self}"
        return self.table[position // block_size], position % block_size

    def __repr__(self) -> str:
        return f"{self.request.request_id}[{self.index}] seq {self.seq:#x} at {self.position}/{self.lease_end}"


class Request:
    """What a client asked, and how it goes."""

    __slots__ = (
        "arrival",
        "attempt",
        "block_seconds",
        "cached_tokens",
        "charged_seconds",
        "deadline",
        "digest",
        "forked_from",
        "gateway",
        "grace_s",
        "heard",
        "host",
        "host_block_seconds",
        "host_paid",
        "is_adopted",
        "is_cacheable",
        "is_cancelled",
        "is_inherited",
        "is_partial",
        "is_sealing",
        "last_replica",
        "max_tokens",
        "may_fetch",
        "measured",
        "model",
        "moved_at",
        "names",
        "orphaned_until",
        "parked_on",
        "pin_until",
        "preemptions",
        "priority",
        "prompt",
        "queue_seconds",
        "queued_at",
        "refusal",
        "replica",
        "request_id",
        "reserved",
        "route",
        "salt",
        "sampling",
        "seal_deadline",
        "sequences",
        "state",
        "tenant",
        "trace",
        "turn",
        "why_preempted",
        "width",
        "witnesses",
    )

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
        self.trace = "" if isinstance(submit, Pin) else submit.trace
        self.arrival = arrival
        self.state = State.QUEUED
        self.replica: Replica | None = None
        self.last_replica: Replica | None = None
        self.attempt = 0
        self.parked_on: Sequence | None = None
        # Whose prompt its forks share, until it has left with the prompt written. None: each goes on by itself.
        self.forked_from: Sequence | None = None
        self.is_cancelled = False
        # The version of its model's sizes by which a replica that is here could hold it (see `Sizes`).
        self.measured = 0
        # A scheduler before this one had accepted it: some replica could hold it then.
        self.is_inherited = False
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
        self.pin_until: float | None = None
        # Its gateway died; its client has until then to come back through another one, and this long by its own wish.
        self.grace_s = 0.0 if isinstance(submit, Pin) else submit.grace_s
        self.orphaned_until: float | None = None
        # A reroute may have come too late for its worker, so what ends is told from here as well.
        self.is_adopted = False
        # A new scheduler found only some of its sequences on a replica: what the others sent, its gateway alone knows.
        self.is_partial = False
        # Why it was broken off: the code and the detail of its Refused.
        self.refusal: tuple[str, str] | None = None
        # Beam search: its beams are one sequence for the scheduler, whose table is all the blocks of the group.
        self.width = 0
        if isinstance(submit, Pin):
            self.pin_until = submit.until
            self.sampling = None
            self.priority = 0
            self.deadline = None
            self.max_tokens = 1
            count = 1
        else:
            self.sampling = submit.sampling
            self.priority = submit.priority
            self.deadline = submit.deadline
            self.max_tokens = submit.sampling.max_tokens or 1
            self.width = submit.sampling.width
            count = 1 if self.width else submit.sampling.n or 1
        self.sequences = [Sequence(self, index, ids()) for index in range(count)]

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

    def num_blocks(self, block_size: int, lengths: list[int]) -> int:
        """Blocks that its sequences need together at these lengths, the full prompt blocks shared."""
        if len(lengths) == 1:
            return self.num_group_blocks(block_size, lengths[0]) if self.width else -(-lengths[0] // block_size)
        shared = len(self.prompt) // block_size
        return shared + sum(max(0, -(-length // block_size) - shared) for length in lengths)

    def num_group_blocks(self, block_size: int, end: int) -> int:
        """Blocks with which every beam can write up to `end` whatever the others do: full prompt blocks shared."""
        shared = len(self.prompt) // block_size
        return shared + self.width * (-(-end // block_size) - shared)

    def num_purse(self, block_size: int, position: int, num_tables: int, end: int) -> int:
        """Blocks that its beams need from a position on up to `end` beside those that they hold. A beam that is still
        missing, because its parent has no second heir yet, will take a copy of a part-filled block."""
        missing = self.width - num_tables if position % block_size else 0
        return missing + self.width * (-(-end // block_size) - -(-position // block_size))

    def __repr__(self) -> str:
        return f"request {self.request_id} ({self.state.name.lower()}, attempt {self.attempt})"
