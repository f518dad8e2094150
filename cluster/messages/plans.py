"""Scheduler to worker: what a plan orders. A sequence is described whole once, then only what changes.

As in `results.py`, what is made for every plan is not frozen, though nothing changes it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from cluster.messages.values import Ids, no_ids, no_seqs
from cluster.sampling import SamplingParams


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
    # How long its client wishes to have to come back: a scheduler that learns of it from here alone keeps it so long.
    grace_s: float = 0.0


@dataclass(slots=True)
class Extends:
    """New blocks and lease ends, one entry per sequence; `blocks` is flat, `counts[i]` of them from `firsts[i]` on."""

    seqs: array[int] = field(default_factory=no_seqs)
    lease_ends: Ids = field(default_factory=no_ids)
    firsts: Ids = field(default_factory=no_ids)  # logical number of the first new block: makes an extend idempotent
    counts: Ids = field(default_factory=no_ids)
    blocks: Ids = field(default_factory=no_ids)

    def add(self, seq: int, lease_end: int, first: int, blocks: Sequence[int]) -> None:
        self.seqs.append(seq)
        self.lease_ends.append(lease_end)
        self.firsts.append(first)
        self.counts.append(len(blocks))
        self.blocks.extend(blocks)

    def add_each(
        self, seqs: Sequence[int], lease_ends: Sequence[int], firsts: Sequence[int], blocks: Sequence[int]
    ) -> None:
        """A block for each of them."""
        self.seqs.extend(seqs)
        self.lease_ends.extend(lease_ends)
        self.firsts.extend(firsts)
        self.counts.extend([1] * len(blocks))
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


@dataclass(slots=True)
class Plan:
    """What the scheduler orders of one replica. Obeyed in the order: aborts, clears, copies, extends, starts, drops,
    revokes, reroutes, transfers: what a turn has started, its end may already take back. Numbers run from 1 without
    gaps within (epoch, incarnation); a plan seen before is ignored."""

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
    clears: Ids = field(default_factory=no_ids)  # blocks to overwrite: their tenant asked for it
    copies: tuple[Copy, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    aborts: tuple[int, ...] = ()  # transfers to give up
