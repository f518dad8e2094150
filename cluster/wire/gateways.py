"""The link between gateways and the scheduler: its terms, and its messages between dataclasses and bytes.

A gateway calls. Up go events, its state in parts, its figures when it is asked, and that it leaves; down go notices,
what is served, and the wish for figures. The card of a hello says where it takes tokens, that of a welcome brings the
key that blocks are named with. What a peer sent wrong raises `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cluster.errors import ProtocolError
from cluster.links.terms import Terms
from cluster.messages import GatewayState
from cluster.watching.metrics import Family, Sample
from cluster.wire.control import BROKEN_SHARE
from cluster.wire.front import FrontEvent, Notice, event_from, fill_event, fill_notice, notice_from
from cluster.wire.plans import parsed
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import front_pb2 as pb

GREETING = b"QGW1"
SILENCE_S = 3.0
MAX_WAITING_BYTES = 64 << 20
"""Of events that wait for a scheduler that is away, before new work is refused."""
STATE_PART_BYTES = 4 << 20
LIVES = 1 << 20
"""A gateway that was given up and lives goes on with its next life; its next start is beyond all of these."""


def terms(silence_s: float = SILENCE_S) -> Terms:
    return Terms(OLDEST_PROTOCOL, NEWEST_PROTOCOL, silence_s=silence_s, broken_s=BROKEN_SHARE * silence_s)


def first_life(incarnation: int) -> int:
    """Of this start of a gateway."""
    return incarnation * LIVES


# ---------------------------------------------------------------- cards


def card_to(token_address: str) -> bytes:
    return pb.GatewayCard(token_address=token_address).SerializeToString()


def card_from(name: str, life: int, raw: bytes) -> str:
    """Where it takes tokens; empty: nowhere."""
    return parsed(pb.GatewayCard, raw).token_address


# ---------------------------------------------------------------- up


@dataclass(frozen=True, slots=True)
class StatePart:
    """Some of the requests that are under way at a gateway."""

    state: GatewayState
    is_last: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """The answer to the wish of this number."""

    number: int
    families: list[Family]


@dataclass(frozen=True, slots=True)
class Leaves:
    """It is about to be ended by order: its end is no failure."""


Up: TypeAlias = FrontEvent | StatePart | Figures | Leaves


def event_to(event: FrontEvent, now: float) -> bytes:
    message = pb.FromGateway()
    fill_event(message.event, event, now)
    return message.SerializeToString()


def state_parts(state: GatewayState, now: float) -> Iterator[bytes]:
    """Its messages, of about `STATE_PART_BYTES` each; one request more is never cut."""
    message = pb.FromGateway()
    size = 0
    for request in state.requests:
        if size > STATE_PART_BYTES:
            message.state_goes_on = True
            yield message.SerializeToString()
            message, size = pb.FromGateway(), 0
        fill_event(message.event, GatewayState(state.gateway, (request,)), now)
        size += message.event.state.requests[-1].ByteSize()
    if not state.requests:
        fill_event(message.event, state, now)
    yield message.SerializeToString()


def figures_to(number: int, families: Sequence[Family]) -> bytes:
    message = pb.FromGateway()
    message.figures.number = number
    for family in families:
        part = message.figures.families.add(name=family.name, kind=family.kind, help=family.help)
        for sample in family.samples:
            labels = [text for pair in sample.labels for text in pair]
            part.samples.add(suffix=sample.suffix, labels=labels, value=sample.value)
    return message.SerializeToString()


def leaves_to() -> bytes:
    return pb.FromGateway(leaves=True).SerializeToString()


def read_up(raw: bytes, now: float) -> Up:
    message = parsed(pb.FromGateway, raw)
    kind = message.WhichOneof("message")
    if kind == "figures":
        return Figures(message.figures.number, [_family_from(part) for part in message.figures.families])
    if kind == "leaves":
        return Leaves()
    if kind != "event":
        raise ProtocolError("a word of a gateway of a kind that this side does not know")
    event = event_from(message.event, now)
    return StatePart(event, not message.state_goes_on) if isinstance(event, GatewayState) else event


def _family_from(message: pb.MetricFamily) -> Family:
    family = Family(message.name, message.kind, message.help)  # type: ignore[arg-type]
    for sample in message.samples:
        flat = list(sample.labels)
        labels = tuple(zip(flat[::2], flat[1::2], strict=True))
        family.samples.append(Sample(sample.suffix, labels, sample.value))
    return family


# ---------------------------------------------------------------- down


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the scheduler sees it. `is_ready`: one of its workers has finished a step lately."""

    name: str
    is_ready: bool
    detail: str = ""
    num_replicas: int = 0
    block_size: int = 16
    max_model_len: int = 0
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The whole list, whenever something in it has changed."""

    models: tuple[ServedModel, ...]


@dataclass(frozen=True, slots=True)
class WantsFigures:
    number: int


Down: TypeAlias = Notice | ServedModels | WantsFigures


def notice_to(notice: Notice) -> bytes:
    message = pb.ToGateway()
    fill_notice(message.notice, notice)
    return message.SerializeToString()


def models_to(models: tuple[ServedModel, ...]) -> bytes:
    message = pb.ToGateway()
    message.models.SetInParent()
    for model in models:
        message.models.models.add(
            name=model.name,
            ready=model.is_ready,
            detail=model.detail,
            num_replicas=model.num_replicas,
            block_size=model.block_size,
            max_model_len=model.max_model_len,
            digest=model.digest,
        )
    return message.SerializeToString()


def wish_to(number: int) -> bytes:
    return pb.ToGateway(figures=number).SerializeToString()


def read_down(raw: bytes) -> Down:
    message = parsed(pb.ToGateway, raw)
    kind = message.WhichOneof("message")
    if kind == "notice":
        return notice_from(message.notice)
    if kind == "models":
        return ServedModels(tuple([_model_from(model) for model in message.models.models]))
    if kind == "figures":
        return WantsFigures(message.figures)
    raise ProtocolError("a word to a gateway of a kind that this side does not know")


def _model_from(message: pb.ServedModel) -> ServedModel:
    if message.block_size < 1 or message.max_model_len < 0:
        sizes = f"blocks of {message.block_size} and a length of {message.max_model_len}"
        raise ProtocolError(f"model {message.name[:80]!r} is served with {sizes}; a block has at least 1 position")
    return ServedModel(
        name=message.name,
        is_ready=message.ready,
        detail=message.detail,
        num_replicas=message.num_replicas,
        block_size=message.block_size,
        max_model_len=message.max_model_len,
        digest=message.digest,
    )
