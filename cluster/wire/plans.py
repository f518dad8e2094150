"""Plans and results between the dataclasses of `cluster/messages/` and protobuf, for scheduler and workers.

`fill_X(message, value)` writes into a fresh message (often a part of a larger one, which spares a copy), and
`X_from(message)` reads. What a peer sent wrong raises `ProtocolError`. Ids travel as bytes, see
protos/quire/v1/control.proto. Joins are in `cluster/wire/state.py`, the front's half in `cluster/wire/front.py`, tokens
in `cluster/wire/tokens.py`. Nothing here imports grpc.
"""

from __future__ import annotations

import sys
from array import array
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from cluster.errors import ProtocolError
from cluster.hashing import HASH_BYTES
from cluster.messages import (
    Advances,
    Beams,
    Copy,
    Drop,
    Extends,
    Fork,
    GroupTables,
    Ids,
    Plan,
    Reason,
    Reroute,
    Result,
    Revoke,
    Revoked,
    Road,
    Start,
    Stopped,
    Transfer,
    Transferred,
)
from cluster.wire.sampling import fill_resolved, resolved_from
from protos.quire.v1 import control_pb2 as pb

assert sys.byteorder == "little", "ids travel as little-endian bytes, and this machine is big-endian"
assert array("i").itemsize == 4, "token ids are four bytes on the wire"

Parsed = TypeVar("Parsed", bound=Message)

REASONS = tuple(Reason)
REASONS_TO_WIRE = (
    pb.STOP_REASON_UNSPECIFIED,
    pb.STOP_REASON_STOP,
    pb.STOP_REASON_LENGTH,
    pb.STOP_REASON_DROPPED,
    pb.STOP_REASON_FAILED,
)
assert [int(reason) for reason in REASONS] == list(REASONS_TO_WIRE), "the numbers of Reason and StopReason differ"
_ROADS = {int(road): road for road in Road}
_ROADS_TO_WIRE = {Road.WRITE: pb.ROAD_WRITE, Road.READ: pb.ROAD_READ}


def parsed(kind: type[Parsed], raw: bytes) -> Parsed:
    """The message in these bytes."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise ProtocolError(f"{len(raw)} bytes are no {kind.DESCRIPTOR.full_name}: {error}") from error


def ids_from(raw: bytes) -> Ids:
    values = array("i")
    try:
        values.frombytes(raw)
    except ValueError as error:
        raise ProtocolError(f"{len(raw)} bytes are no whole number of four-byte ids") from error
    return values


def longs_from(raw: bytes) -> array[int]:
    values = array("q")
    try:
        values.frombytes(raw)
    except ValueError as error:
        raise ProtocolError(f"{len(raw)} bytes are no whole number of eight-byte numbers") from error
    return values


def reason_from(number: int) -> Reason:
    if not 0 <= number < len(REASONS):
        raise ProtocolError(f"{number} is no reason to stop; this side knows 0 to {len(REASONS) - 1}")
    return REASONS[number]


# ---------------------------------------------------------------- plans


def encode_plan(plan: Plan) -> bytes:
    message = pb.Plan()
    fill_plan(message, plan)
    return message.SerializeToString()


def decode_plan(raw: bytes) -> Plan:
    return plan_from(parsed(pb.Plan, raw))


def fill_plan(message: pb.Plan, plan: Plan) -> None:
    message.replica = plan.replica
    message.incarnation = plan.incarnation
    message.epoch = plan.epoch
    message.number = plan.number
    message.ahead = plan.ahead
    message.result = plan.result
    extends = plan.extends
    if extends.seqs:
        part = message.extends
        part.seqs = extends.seqs.tobytes()
        part.lease_ends = extends.lease_ends.tobytes()
        part.firsts = extends.firsts.tobytes()
        part.counts = extends.counts.tobytes()
        part.blocks = extends.blocks.tobytes()
    for start in plan.starts:
        fill_start(message.starts.add(), start)
    if plan.drops:
        message.drops = array("q", [drop.seq for drop in plan.drops]).tobytes()
    for revoke in plan.revokes:
        message.revokes.add(seq=revoke.seq, lease_end=revoke.lease_end)
    for reroute in plan.reroutes:
        message.reroutes.add(seq=reroute.seq, gateway=reroute.gateway, route=reroute.route)
    for copy in plan.copies:
        message.copies.add(source=copy.source, target=copy.target, num_slots=copy.num_slots)
    for transfer in plan.transfers:
        fill_transfer(message.transfers.add(), transfer)
    if plan.aborts:
        message.aborts.extend(plan.aborts)
    if plan.clears:
        message.clears = plan.clears.tobytes()


def plan_from(message: pb.Plan) -> Plan:
    # Most parts of most plans are empty: to look costs a fifth of going through them.
    return Plan(
        message.replica,
        message.incarnation,
        message.epoch,
        message.number,
        message.ahead,
        message.result,
        _extends_from(message.extends) if message.HasField("extends") else Extends(),
        tuple([start_from(start) for start in message.starts]) if message.starts else (),
        tuple([Drop(seq) for seq in longs_from(message.drops)]) if message.drops else (),
        tuple([Revoke(one.seq, one.lease_end) for one in message.revokes]) if message.revokes else (),
        tuple([Reroute(one.seq, one.gateway, one.route) for one in message.reroutes]) if message.reroutes else (),
        ids_from(message.clears),
        tuple([Copy(one.source, one.target, one.num_slots) for one in message.copies]) if message.copies else (),
        tuple([transfer_from(transfer) for transfer in message.transfers]) if message.transfers else (),
        tuple(message.aborts) if message.aborts else (),
    )


def _extends_from(message: pb.Extends) -> Extends:
    extends = Extends(
        longs_from(message.seqs),
        ids_from(message.lease_ends),
        ids_from(message.firsts),
        ids_from(message.counts),
        ids_from(message.blocks),
    )
    num = len(extends.seqs)
    if not num == len(extends.lease_ends) == len(extends.firsts) == len(extends.counts):
        raise ProtocolError(f"extends of {num} sequences has columns of other lengths")
    if sum(extends.counts) != len(extends.blocks):
        raise ProtocolError(f"extends counts {sum(extends.counts)} blocks and brings {len(extends.blocks)}")
    return extends


def fill_transfer(message: pb.Transfer, transfer: Transfer) -> None:
    message.transfer = transfer.transfer
    message.road = _ROADS_TO_WIRE[transfer.road]
    message.peer = transfer.peer
    message.peer_incarnation = transfer.peer_incarnation
    message.mine = transfer.mine.tobytes()
    message.theirs = transfer.theirs.tobytes()
    message.timeout_s = transfer.timeout_s


def transfer_from(message: pb.Transfer) -> Transfer:
    road = _ROADS.get(message.road)
    if road is None:
        raise ProtocolError(f"transfer {message.transfer} has road {message.road}; this side knows 1 and 2")
    mine, theirs = ids_from(message.mine), ids_from(message.theirs)
    if len(mine) != len(theirs):
        raise ProtocolError(f"transfer {message.transfer} names {len(mine)} blocks here and {len(theirs)} there")
    return Transfer(message.transfer, road, message.peer, message.peer_incarnation, mine, theirs, message.timeout_s)


def fill_start(message: pb.Start, start: Start) -> None:
    message.seq = start.seq
    message.request_id = start.request_id
    message.index = start.index
    message.attempt = start.attempt
    message.gateway = start.gateway
    message.route = start.route
    message.tokens = start.tokens.tobytes()
    message.num_prompt = start.num_prompt
    message.position = start.position
    message.table = start.table.tobytes()
    message.lease_end = start.lease_end
    message.precedence = start.precedence
    fill_resolved(message.sampling, start.sampling)
    message.salt = start.salt
    message.chain = start.chain
    message.trace = start.trace
    message.after = start.after
    message.grace_s = start.grace_s
    for fork in start.forks:
        message.forks.add(
            seq=fork.seq,
            index=fork.index,
            table=fork.table.tobytes(),
            lease_end=fork.lease_end,
            outputs=fork.outputs.tobytes(),
        )
    if start.beams is not None:
        message.beams.width = start.beams.width
        message.beams.purse = start.beams.purse.tobytes()
        message.beams.tables.extend([table.tobytes() for table in start.beams.tables])
        message.beams.search = start.beams.search


def start_from(message: pb.Start) -> Start:
    beams = _beams_from(message.beams) if message.HasField("beams") else None
    return Start(
        seq=message.seq,
        request_id=message.request_id,
        index=message.index,
        attempt=message.attempt,
        gateway=message.gateway,
        route=message.route,
        tokens=ids_from(message.tokens),
        num_prompt=message.num_prompt,
        position=message.position,
        table=ids_from(message.table),
        lease_end=message.lease_end,
        precedence=message.precedence,
        sampling=resolved_from(message.sampling),
        salt=message.salt,
        chain=message.chain,
        forks=tuple([_fork_from(fork) for fork in message.forks]),
        beams=beams,
        trace=message.trace,
        after=message.after,
        grace_s=message.grace_s,
    )


def _beams_from(message: pb.Beams) -> Beams:
    tables = tuple([ids_from(table) for table in message.tables])
    return Beams(message.width, ids_from(message.purse), tables, message.search)


def _fork_from(message: pb.Fork) -> Fork:
    return Fork(message.seq, message.index, ids_from(message.table), message.lease_end, ids_from(message.outputs))


# ---------------------------------------------------------------- results


def encode_result(result: Result) -> bytes:
    message = pb.Result()
    fill_result(message, result)
    return message.SerializeToString()


def decode_result(raw: bytes) -> Result:
    return result_from(parsed(pb.Result, raw))


def fill_result(message: pb.Result, result: Result) -> None:
    message.replica = result.replica
    message.incarnation = result.incarnation
    message.epoch = result.epoch
    message.number = result.number
    message.plan = result.plan
    message.step = result.step
    advances = result.advances
    if advances.seqs:
        part = message.advances
        part.seqs = advances.seqs.tobytes()
        part.positions = advances.positions.tobytes()
        part.num_ids = advances.num_ids.tobytes()
        part.ids = advances.ids.tobytes()
        part.num_hashes = advances.num_hashes.tobytes()
        part.hashes = advances.hashes
    for stopped in result.stopped:
        message.stopped.add(
            seq=stopped.seq,
            reason=REASONS_TO_WIRE[stopped.reason],
            position=stopped.position,
            ids=stopped.ids.tobytes(),
            hashes=stopped.hashes,
            detail=stopped.detail,
            tables=[table.tobytes() for table in stopped.tables],
            search=stopped.search,
        )
    for revoked in result.revoked:
        message.revoked.add(seq=revoked.seq, lease_end=revoked.lease_end)
    for group in result.groups:
        message.groups.add(
            seq=group.seq,
            position=group.position,
            tables=[table.tobytes() for table in group.tables],
            purse=group.purse.tobytes(),
        )
    for moved in result.transferred:
        message.transferred.add(
            transfer=moved.transfer,
            ok=moved.ok,
            detail=moved.detail,
            size_bytes=moved.size_bytes,
            seconds=moved.seconds,
        )
    message.dry = result.dry
    message.prefill_waiting = result.prefill_waiting
    message.step_seconds = result.step_seconds
    message.prefill_tokens_per_s = result.prefill_tokens_per_s
    if result.unreached:
        message.unreached.extend(result.unreached)


def result_from(message: pb.Result) -> Result:
    return Result(
        message.replica,
        message.incarnation,
        message.epoch,
        message.number,
        message.plan,
        message.step,
        _advances_from(message.advances) if message.HasField("advances") else Advances(),
        tuple([_stopped_from(stopped) for stopped in message.stopped]) if message.stopped else (),
        tuple([Revoked(one.seq, one.lease_end) for one in message.revoked]) if message.revoked else (),
        tuple([_group_from(group) for group in message.groups]) if message.groups else (),
        tuple([_transferred_from(moved) for moved in message.transferred]) if message.transferred else (),
        message.dry,
        message.prefill_waiting,
        message.step_seconds,
        message.prefill_tokens_per_s,
        tuple(message.unreached) if message.unreached else (),
    )


def _advances_from(message: pb.Advances) -> Advances:
    advances = Advances(
        longs_from(message.seqs),
        ids_from(message.positions),
        ids_from(message.num_ids),
        ids_from(message.ids),
        ids_from(message.num_hashes),
        message.hashes,
    )
    num = len(advances.seqs)
    if not num == len(advances.positions) == len(advances.num_ids) == len(advances.num_hashes):
        raise ProtocolError(f"advances of {num} sequences has columns of other lengths")
    if sum(advances.num_ids) != len(advances.ids):
        raise ProtocolError(f"advances counts {sum(advances.num_ids)} tokens and brings {len(advances.ids)}")
    if sum(advances.num_hashes) * HASH_BYTES != len(advances.hashes):
        raise ProtocolError(f"advances counts {sum(advances.num_hashes)} names and brings {len(advances.hashes)} bytes")
    return advances


def _stopped_from(message: pb.Stopped) -> Stopped:
    return Stopped(
        message.seq,
        reason_from(message.reason),
        message.position,
        ids_from(message.ids),
        message.hashes,
        message.detail,
        tuple([ids_from(table) for table in message.tables]),
        message.search,
    )


def _group_from(message: pb.GroupTables) -> GroupTables:
    tables = tuple([ids_from(table) for table in message.tables])
    return GroupTables(message.seq, message.position, tables, ids_from(message.purse))


def _transferred_from(message: pb.Transferred) -> Transferred:
    return Transferred(message.transfer, message.ok, message.detail, message.size_bytes, message.seconds)
