"""What replicas and host pools tell when they join or meet a new scheduler, between dataclasses and protobuf.

Cold messages: each goes over once per connection at most. `cluster/wire/plans.py` has the rules. Nothing here imports
grpc.
"""

from __future__ import annotations

from cluster.messages import Departed, GiveUp, HostPoolJoined, HostPoolSettled, ReplicaJoined, ReplicaState, Resident
from cluster.wire.plans import (
    REASONS_TO_WIRE,
    fill_start,
    fill_transfer,
    ids_from,
    reason_from,
    start_from,
    transfer_from,
)
from protos.quire.v1 import control_pb2 as pb


def fill_replica_joined(message: pb.ReplicaJoined, joined: ReplicaJoined) -> None:
    for name in ReplicaJoined.__slots__:
        setattr(message, name, getattr(joined, name))


def replica_joined_from(message: pb.ReplicaJoined) -> ReplicaJoined:
    return ReplicaJoined(*(getattr(message, name) for name in ReplicaJoined.__slots__))


def fill_host_pool_joined(message: pb.HostPoolJoined, joined: HostPoolJoined) -> None:
    for name in HostPoolJoined.__slots__:
        setattr(message, name, getattr(joined, name))


def host_pool_joined_from(message: pb.HostPoolJoined) -> HostPoolJoined:
    return HostPoolJoined(*(getattr(message, name) for name in HostPoolJoined.__slots__))


def fill_host_pool_settled(message: pb.HostPoolSettled, settled: HostPoolSettled) -> None:
    for name in HostPoolSettled.__slots__:
        setattr(message, name, getattr(settled, name))


def host_pool_settled_from(message: pb.HostPoolSettled) -> HostPoolSettled:
    return HostPoolSettled(*(getattr(message, name) for name in HostPoolSettled.__slots__))


def fill_give_up(message: pb.GiveUp, order: GiveUp) -> None:
    message.pool, message.incarnation, message.epoch = order.pool, order.incarnation, order.epoch
    message.transfers.extend(order.transfers)


def give_up_from(message: pb.GiveUp) -> GiveUp:
    return GiveUp(message.pool, message.incarnation, message.epoch, tuple(message.transfers))


def fill_replica_state(message: pb.ReplicaState, state: ReplicaState) -> None:
    fill_replica_joined(message.joined, state.joined)
    for resident in state.residents:
        part = message.residents.add()
        part.seq = resident.seq
        part.index = resident.index
        fill_start(part.start, resident.start)
        part.tokens = resident.tokens.tobytes()
        part.position = resident.position
        part.table = resident.table.tobytes()
        part.lease_end = resident.lease_end
    for block, name in state.cached:
        message.cached.add(block=block, name=name)
    for transfer in state.transfers:
        fill_transfer(message.transfers.add(), transfer)
    for departed in state.departed:
        left = message.departed.add(seq=departed.seq, index=departed.index, reason=REASONS_TO_WIRE[departed.reason])
        fill_start(left.start, departed.start)


def replica_state_from(message: pb.ReplicaState) -> ReplicaState:
    return ReplicaState(
        replica_joined_from(message.joined),
        tuple([_resident_from(resident) for resident in message.residents]),
        tuple([(cached.block, cached.name) for cached in message.cached]),
        tuple([transfer_from(transfer) for transfer in message.transfers]),
        tuple(
            [Departed(one.seq, one.index, start_from(one.start), reason_from(one.reason)) for one in message.departed]
        ),
    )


def _resident_from(message: pb.Resident) -> Resident:
    return Resident(
        message.seq,
        message.index,
        start_from(message.start),
        ids_from(message.tokens),
        message.position,
        ids_from(message.table),
        message.lease_end,
    )
