"""The link between the scheduler and workers or host pools: its terms, and its messages between dataclasses and bytes.

Up go results, the state of a replica that a new scheduler asks for, and what a host pool has settled; down go plans,
what a pool gives up, and the directory: where each gateway takes tokens and each pool transfers. A hello's card says
who joins, a pulse's note the last step. What a peer sent wrong raises `ProtocolError`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import ProtocolError
from cluster.links.terms import Terms
from cluster.messages import (
    GiveUp,
    HostPoolJoined,
    HostPoolSettled,
    Plan,
    ReplicaJoined,
    ReplicaState,
    Result,
)
from cluster.wire.plans import fill_plan, fill_result, parsed, plan_from, result_from
from cluster.wire.state import (
    fill_give_up,
    fill_host_pool_joined,
    fill_host_pool_settled,
    fill_replica_joined,
    fill_replica_state,
    give_up_from,
    host_pool_joined_from,
    host_pool_settled_from,
    replica_joined_from,
    replica_state_from,
)
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb

SCHEDULER = "scheduler"
"""Its name on links."""
GREETING = b"QCT2"
BROKEN_SHARE = 0.25
"""Of the silence that is borne: a process that lives opens a broken stream again within a fraction of a second."""
_STEP = struct.Struct("<Q")


def terms(silence_s: float = 3.0) -> Terms:
    return Terms(OLDEST_PROTOCOL, NEWEST_PROTOCOL, silence_s=silence_s, broken_s=BROKEN_SHARE * silence_s)


# ---------------------------------------------------------------- the card of a hello, and the note of a pulse


@dataclass(frozen=True, slots=True)
class Joining:
    """Who says hello, and where its transfer service is (empty: nowhere)."""

    joined: ReplicaJoined | HostPoolJoined
    transfer_address: str


def joining_to(joined: ReplicaJoined | HostPoolJoined, transfer_address: str) -> bytes:
    message = pb.Joining(transfer_address=transfer_address)
    if isinstance(joined, ReplicaJoined):
        fill_replica_joined(message.replica, joined)
    else:
        fill_host_pool_joined(message.host_pool, joined)
    return message.SerializeToString()


def joining_from(name: str, life: int, raw: bytes) -> Joining:
    message = parsed(pb.Joining, raw)
    kind = message.WhichOneof("joined")
    if kind is None:
        raise ProtocolError("it does not say what it is: a replica or a host pool")
    joined = replica_joined_from(message.replica) if kind == "replica" else host_pool_joined_from(message.host_pool)
    known = joined.replica if isinstance(joined, ReplicaJoined) else joined.pool
    if (known, joined.incarnation) != (name, life):
        raise ProtocolError(f"{name} of incarnation {life} joins as {known} of {joined.incarnation}")
    if joined.num_blocks < 1 or joined.block_bytes < 1:
        raise ProtocolError(f"{joined.num_blocks:,} blocks of {joined.block_bytes:,} bytes; at least one is a pool")
    if isinstance(joined, ReplicaJoined) and min(joined.block_size, joined.max_batch, joined.max_model_len) < 1:
        sizes = f"{joined.block_size}, {joined.max_batch}, {joined.max_model_len}"
        raise ProtocolError(f"block size, batch and length of a replica are {sizes}; each is at least 1")
    return Joining(joined, message.transfer_address)


def step_to(step: int) -> bytes:
    return _STEP.pack(step)


def step_from(note: bytes) -> int:
    """0: nothing was said of steps."""
    return int(_STEP.unpack(note)[0]) if len(note) == _STEP.size else 0


# ---------------------------------------------------------------- down


def plan_to(plan: Plan) -> bytes:
    message = pb.FromScheduler()
    fill_plan(message.plan, plan)
    return message.SerializeToString()


def give_up_to(order: GiveUp) -> bytes:
    message = pb.FromScheduler()
    fill_give_up(message.give_up, order)
    return message.SerializeToString()


@dataclass(frozen=True, slots=True)
class Directory:
    """Addresses by name; an empty one is gone. Not `is_whole`: what has changed since the last."""

    addresses: Mapping[str, str]
    is_whole: bool

    def after(self, known: Mapping[str, str]) -> dict[str, str]:
        """The whole list, for who knew this one."""
        merged = {**({} if self.is_whole else known), **self.addresses}
        return {name: address for name, address in merged.items() if address}


def directory_to(addresses: Mapping[str, str], *, is_whole: bool) -> bytes:
    message = pb.FromScheduler()
    message.directory.SetInParent()
    message.directory.is_whole = is_whole
    for name, address in addresses.items():
        message.directory.entries.add(name=name, address=address)
    return message.SerializeToString()


def read_down(raw: bytes) -> Plan | GiveUp | Directory:
    message = parsed(pb.FromScheduler, raw)
    kind = message.WhichOneof("message")
    if kind == "plan":
        return plan_from(message.plan)
    if kind == "give_up":
        return give_up_from(message.give_up)
    if kind == "directory":
        told = message.directory
        return Directory({entry.name: entry.address for entry in told.entries}, told.is_whole)
    raise ProtocolError("a word of the scheduler of a kind that this side does not know")


# ---------------------------------------------------------------- up


def result_to(result: Result) -> bytes:
    message = pb.ToScheduler()
    fill_result(message.result, result)
    return message.SerializeToString()


def state_to(state: ReplicaState) -> bytes:
    message = pb.ToScheduler()
    fill_replica_state(message.state, state)
    return message.SerializeToString()


def settled_to(settled: HostPoolSettled) -> bytes:
    message = pb.ToScheduler()
    fill_host_pool_settled(message.settled, settled)
    return message.SerializeToString()


def read_up(raw: bytes) -> Result | ReplicaState | HostPoolSettled:
    message = parsed(pb.ToScheduler, raw)
    kind = message.WhichOneof("message")
    if kind == "result":
        return result_from(message.result)
    if kind == "state":
        return replica_state_from(message.state)
    if kind == "settled":
        return host_pool_settled_from(message.settled)
    raise ProtocolError("a word to the scheduler of a kind that this side does not know")
