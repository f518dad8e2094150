"""Events and notices between the dataclasses of `cluster/messages/` and protobuf, for gateways and the scheduler.

`cluster/wire/plans.py` (plans and results) has the rules. Clocks never travel: a deadline goes over as the seconds that
are left, and each side passes its own `now`. What a peer sent wrong raises `ProtocolError`. Nothing here imports grpc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from cluster.errors import ProtocolError
from cluster.hashing import HASH_BYTES
from cluster.messages import (
    Accepted,
    Adopt,
    Cancel,
    Claim,
    Closed,
    Done,
    Find,
    Found,
    GatewayState,
    HandOver,
    OpenRequest,
    Pin,
    Reason,
    Refused,
    Replay,
    Seal,
    Sealed,
    Started,
    StopAt,
    Submit,
)
from cluster.wire.plans import REASONS_TO_WIRE, ids_from, reason_from
from cluster.wire.sampling import fill_resolved, resolved_from
from cluster.wire.tokens import fill_tokens, tokens_from
from protos.quire.v1 import front_pb2 as pb

FrontEvent: TypeAlias = Submit | Cancel | StopAt | Sealed | Closed | Adopt | Find | Claim | Pin | GatewayState
Notice: TypeAlias = Accepted | Started | Refused | Seal | HandOver | Found | Replay | Done

# ---------------------------------------------------------------- events: gateway -> scheduler


def fill_event(message: pb.FrontEvent, event: FrontEvent, now: float) -> None:
    _FILL_EVENT[type(event)](message, event, now)


def event_from(message: pb.FrontEvent, now: float) -> FrontEvent:
    kind = message.WhichOneof("event")
    if kind is None:
        raise ProtocolError("an event of a kind that this side does not know")
    return _READ_EVENT[kind](getattr(message, kind), now)


def _fill_submit(message: pb.Submit, submit: Submit, now: float) -> None:
    message.request_id = submit.request_id
    message.gateway = submit.gateway
    message.route = submit.route
    message.model = submit.model
    message.tenant = submit.tenant
    message.prompt = submit.prompt.tobytes()
    message.hashes = b"".join(submit.hashes)
    fill_resolved(message.sampling, submit.sampling)
    message.priority = submit.priority
    message.salt = submit.salt
    if submit.deadline is not None:
        message.timeout_s = submit.deadline - now
    message.trace = submit.trace
    message.digest = submit.digest
    message.grace_s = submit.grace_s
    message.look = submit.look


def _submit_from(message: pb.Submit, now: float) -> Submit:
    return Submit(
        request_id=message.request_id,
        gateway=message.gateway,
        route=message.route,
        model=message.model,
        tenant=message.tenant,
        prompt=ids_from(message.prompt),
        hashes=_hashes_from(message.hashes),
        sampling=resolved_from(message.sampling),
        priority=message.priority,
        salt=message.salt,
        deadline=now + message.timeout_s if message.HasField("timeout_s") else None,
        trace=message.trace,
        digest=message.digest,
        grace_s=message.grace_s,
        look=message.look,
    )


def _hashes_from(raw: bytes) -> tuple[bytes, ...]:
    if len(raw) % HASH_BYTES:
        raise ProtocolError(f"{len(raw)} bytes are no whole number of block names of {HASH_BYTES} bytes")
    return tuple([raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)])


def _fill_pin(message: pb.Pin, pin: Pin, now: float) -> None:
    message.request_id = pin.request_id
    message.gateway = pin.gateway
    message.route = pin.route
    message.model = pin.model
    message.tenant = pin.tenant
    message.prompt = pin.prompt.tobytes()
    message.hashes = b"".join(pin.hashes)
    message.ttl_s = pin.until - now
    message.salt = pin.salt
    message.digest = pin.digest


def _pin_from(message: pb.Pin, now: float) -> Pin:
    return Pin(
        request_id=message.request_id,
        gateway=message.gateway,
        route=message.route,
        model=message.model,
        tenant=message.tenant,
        prompt=ids_from(message.prompt),
        hashes=_hashes_from(message.hashes),
        until=now + message.ttl_s,
        salt=message.salt,
        digest=message.digest,
    )


def _fill_stop_at(message: pb.FrontEvent, stop: StopAt, now: float) -> None:
    part = message.stop_at
    part.request_id = stop.request_id
    part.index = stop.index
    part.num_outputs = stop.num_outputs


def _fill_sealed(message: pb.FrontEvent, sealed: Sealed, now: float) -> None:
    part = message.sealed
    part.request_id = sealed.request_id
    part.gateway, part.route = sealed.gateway, sealed.route
    part.attempt = sealed.attempt
    part.outputs.extend([output.tobytes() for output in sealed.outputs])
    part.finished.extend([REASONS_TO_WIRE[reason] for reason in sealed.finished])


def _sealed_from(message: pb.SealedEvent, now: float) -> Sealed:
    outputs = tuple([ids_from(output) for output in message.outputs])
    reasons = _reasons_from(message.finished)
    return Sealed(message.request_id, message.gateway, message.route, message.attempt, outputs, reasons)


def _fill_cancel(message: pb.FrontEvent, cancel: Cancel, now: float) -> None:
    part = message.cancel
    part.request_id, part.gateway, part.route = cancel.request_id, cancel.gateway, cancel.route
    part.code, part.detail = cancel.code, cancel.detail


def _cancel_from(message: pb.CancelEvent, now: float) -> Cancel:
    return Cancel(message.request_id, message.gateway, message.route, message.code, message.detail)


def _fill_closed(message: pb.FrontEvent, closed: Closed, now: float) -> None:
    part = message.closed
    part.request_id, part.gateway, part.route = closed.request_id, closed.gateway, closed.route


def _fill_claim(message: pb.FrontEvent, claim: Claim, now: float) -> None:
    part = message.claim
    part.request_id, part.gateway, part.route = claim.request_id, claim.gateway, claim.route
    part.number = claim.number


def _fill_find(message: pb.FrontEvent, find: Find, now: float) -> None:
    part = message.find
    part.request_id, part.gateway, part.route = find.request_id, find.gateway, find.route


def _fill_gateway_state(message: pb.FrontEvent, state: GatewayState, now: float) -> None:
    message.state.gateway = state.gateway
    for request in state.requests:
        part = message.state.requests.add()
        _fill_submit(part.submit, request.submit, now)
        part.attempt = request.attempt
        part.outputs.extend([output.tobytes() for output in request.outputs])
        part.finished.extend([REASONS_TO_WIRE[reason] for reason in request.finished])
        part.turn = request.turn


def _gateway_state_from(message: pb.GatewayState, now: float) -> GatewayState:
    return GatewayState(message.gateway, tuple([_open_request_from(part, now) for part in message.requests]))


def _open_request_from(message: pb.OpenRequest, now: float) -> OpenRequest:
    outputs = tuple([ids_from(output) for output in message.outputs])
    submit, reasons = _submit_from(message.submit, now), _reasons_from(message.finished)
    return OpenRequest(submit, message.attempt, outputs, reasons, message.turn)


def _reasons_from(numbers: Iterable[int]) -> tuple[Reason, ...]:
    return tuple([reason_from(number) for number in numbers])


_FILL_EVENT: Mapping[type, Callable[[pb.FrontEvent, Any, float], None]] = {
    Submit: lambda message, event, now: _fill_submit(message.submit, event, now),
    Pin: lambda message, event, now: _fill_pin(message.pin, event, now),
    StopAt: _fill_stop_at,
    Sealed: _fill_sealed,
    Cancel: _fill_cancel,
    Closed: _fill_closed,
    Adopt: lambda message, event, now: _fill_submit(message.adopt.submit, event.submit, now),
    Find: _fill_find,
    Claim: _fill_claim,
    GatewayState: _fill_gateway_state,
}
_READ_EVENT: Mapping[str, Callable[[Any, float], FrontEvent]] = {
    "submit": _submit_from,
    "pin": _pin_from,
    "cancel": _cancel_from,
    "closed": lambda message, now: Closed(message.request_id, message.gateway, message.route),
    "stop_at": lambda message, now: StopAt(message.request_id, message.index, message.num_outputs),
    "sealed": _sealed_from,
    "adopt": lambda message, now: Adopt(_submit_from(message.submit, now)),
    "claim": lambda message, now: Claim(message.request_id, message.gateway, message.route, message.number),
    "find": lambda message, now: Find(message.request_id, message.gateway, message.route),
    "state": _gateway_state_from,
}

# ---------------------------------------------------------------- notices: scheduler -> gateway


def fill_notice(message: pb.Notice, notice: Notice) -> None:
    kind, cls = _NOTICE_KINDS[type(notice)]
    part = getattr(message, kind)
    if isinstance(notice, Replay):
        part.gateway = notice.gateway
        fill_tokens(part.tokens, (notice.tokens,))
        return
    if isinstance(notice, Found):
        part.gateway, part.route, part.rest_s = notice.gateway, notice.route, notice.rest_s
        _fill_submit(part.submit, notice.submit, 0.0)
        return
    for name in cls.__slots__:
        setattr(part, name, getattr(notice, name))


def notice_from(message: pb.Notice) -> Notice:
    kind = message.WhichOneof("notice")
    if kind is None:
        raise ProtocolError("a notice of a kind that this side does not know")
    part = getattr(message, kind)
    if kind == "replay":
        return Replay(part.gateway, *tokens_from(part.tokens))
    if kind == "found":
        return Found(part.gateway, part.route, _submit_from(part.submit, 0.0), part.rest_s)
    cls = _NOTICE_CLASSES[kind]
    notice: Notice = cls(*[getattr(part, name) for name in cls.__slots__])
    return notice


_NOTICE_KINDS: Mapping[type, tuple[str, Any]] = {
    Accepted: ("accepted", Accepted),
    Started: ("started", Started),
    Refused: ("refused", Refused),
    Seal: ("seal", Seal),
    HandOver: ("hand_over", HandOver),
    Found: ("found", Found),
    Replay: ("replay", Replay),
    Done: ("done", Done),
}
# The notices are twins field by field, so that they are read and written by the names of their fields.
_NOTICE_CLASSES: Mapping[str, Any] = dict(_NOTICE_KINDS.values())
