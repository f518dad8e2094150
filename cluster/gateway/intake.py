"""From a client's message to a question that the scheduler can be asked: checked, tokenized, resolved.

The gateway's services call `read_generate` and its siblings once per request. Everything a client can say wrong is an
`InvalidRequest` here with the path of the field; the sampling settings themselves are judged by their one validator.
Whatever a client sends is counted before it is looked at one by one, and what is long is done by `Work`, so that
streams under way do not wait. Nothing here holds state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from cluster.errors import InvalidRequest, NeverFits, ProtocolError, Unsupported
from cluster.gateway.models import TextModel
from cluster.gateway.settings import MAX_PIN_S, MAX_REQUEST_ID_CHARS, MAX_RESUME_GRACE_S
from cluster.gateway.work import Work
from cluster.limits import MAX_CHAT_MESSAGES, MAX_PRIORITY, MAX_ROLE_CHARS
from cluster.messages import Ids, ids
from cluster.sampling import SamplingParams
from cluster.structure import StructuredOutputsParams
from cluster.wire.plans import parsed
from cluster.wire.records import why_too_many
from cluster.wire.sampling import sampling_from
from protos.quire.v1 import inference_pb2 as pb

Request = TypeVar("Request", bound=Message)

PIECE_IDS = 8_192
"""Token ids are looked at in pieces of so many: between two of them other threads run."""

MAX_UNCOUNTED_BYTES = 16 << 10
"""In a message up to this length there is not room for many parts."""

_UNSUPPORTED = ("lora", "images")


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is good in itself. `params` are the client's own, not resolved yet."""

    client_id: str
    model: str
    prompt: pb.Prompt
    params: SamplingParams
    priority: int
    grace_s: float
    positions: tuple[int, ...] | None
    timeout_s: float | None
    trace: str = ""
    # See Submit.
    look: str = ""


def parse(kind: type[Request], raw: bytes, max_numbers: int) -> Request:
    """The message that a client sent, with at most so many numbers in lists. Undecodable bytes are its mistake, not
    ours, and so is what would take long to parse."""
    if len(raw) > MAX_UNCOUNTED_BYTES:
        too_many = why_too_many(raw, kind, max_numbers)
        if too_many:
            raise InvalidRequest("message", too_many, "send less in one message")
    try:
        return parsed(kind, raw)
    except ProtocolError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequest("message", f"{len(raw):,} bytes are no {name}", "generate code from our .proto") from error


def read_generate(request: pb.GenerateRequest, timeout_s: float | None, trace: str = "") -> Question:
    """`trace`: the W3C traceparent that came with the call."""
    for name in _UNSUPPORTED:
        if getattr(request, name):
            raise Unsupported(name, "is asked for, and Quire does not do it", "leave it out")
    check_request_id(request.request_id)
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidRequest("priority", f"is {request.priority:,}", f"give -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}")
    grace_s = request.resume_grace_s
    if not 0.0 <= grace_s <= MAX_RESUME_GRACE_S:  # NaN fails this too.
        raise InvalidRequest("resume_grace_s", f"is {grace_s:g}", f"give 0 to {MAX_RESUME_GRACE_S:g} seconds")
    if timeout_s is not None and math.isnan(timeout_s):
        raise InvalidRequest("timeout_s", "is not a number", "give seconds")
    params = sampling_from(request.sampling, _structure(request))
    return Question(
        client_id=request.request_id,
        model=request.model,
        prompt=request.prompt,
        params=params,
        priority=request.priority,
        grace_s=grace_s,
        positions=_positions(request, params) if request.HasField("resume") else None,
        timeout_s=timeout_s,
        trace=trace,
    )


def _structure(request: pb.GenerateRequest) -> StructuredOutputsParams | None:
    """The structure that the answer is to have, if any."""
    if not (request.json_schema or request.regex or request.grammar or request.choice):
        return None
    return StructuredOutputsParams(
        json=request.json_schema or None,
        regex=request.regex or None,
        grammar=request.grammar or None,
        choice=request.choice or None,
    )


def check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID_CHARS:
        raise InvalidRequest("request_id", f"has {len(request_id)} characters", f"give at most {MAX_REQUEST_ID_CHARS}")
    if not request_id.isprintable():
        raise InvalidRequest("request_id", "holds characters that cannot be printed", "give letters and digits")


def _positions(request: pb.GenerateRequest, params: SamplingParams) -> tuple[int, ...]:
    if not request.request_id:
        raise InvalidRequest("request_id", "is empty, and resume is set", "give the id of the request to go on with")
    if len(request.resume.positions) != params.n:
        problem = f"has {len(request.resume.positions):,} entries, and the request {params.n} sequences"
        raise InvalidRequest("resume.positions", problem, "give one for each sequence")
    positions = tuple(request.resume.positions)
    if min(positions) < 0:
        raise InvalidRequest("resume.positions", f"holds {min(positions)}", "give how many tokens you have")
    return positions


async def read_prompt(prompt: pb.Prompt, model: TextModel, work: Work, tenant: str) -> Ids:
    """The token ids of a tenant's prompt. Raises `InvalidRequest`."""
    kind = prompt.WhichOneof("prompt")
    if kind == "token_ids":
        tokens = await _read_ids("prompt.token_ids", "prompt", prompt.token_ids.ids, model, work, tenant)
    elif kind == "text":
        text = prompt.text
        tokens = await work.run(tenant, len(text), model.encode, text)
    elif kind == "chat":
        tokens = await _read_chat(prompt.chat, model, work, tenant)
    else:
        raise InvalidRequest("prompt", "is empty", "give text, token_ids or chat")
    if not tokens:
        raise InvalidRequest(f"prompt.{kind}", "has no tokens", "give at least one")
    return tokens


async def _read_ids(field: str, what: str, given: Sequence[int], model: TextModel, work: Work, tenant: str) -> Ids:
    if len(given) > model.max_model_len:
        raise NeverFits(what, len(given), model.max_model_len, "tokens", "send fewer")
    return await work.run(tenant, len(given), _copy_ids, field, given, model)


def _copy_ids(field: str, given: Sequence[int], model: TextModel) -> Ids:
    tokens = ids()
    for at in range(0, len(given), PIECE_IDS):
        piece = given[at : at + PIECE_IDS]
        model.check_ids(field, piece)
        tokens.extend(piece)
    return tokens


async def read_text(given: Sequence[int], skips_special_tokens: bool, model: TextModel, work: Work, tenant: str) -> str:
    """The text of token ids, as many as the model could ever hold. Raises `InvalidRequest`."""
    tokens = await _read_ids("ids", "ids", given, model, work, tenant)
    return await work.run(tenant, len(tokens), model.decode, tokens, skips_special_tokens)


async def _read_chat(chat: pb.Chat, model: TextModel, work: Work, tenant: str) -> Ids:
    if not chat.messages:
        raise InvalidRequest("prompt.chat.messages", "is empty", "give at least one message")
    if len(chat.messages) > MAX_CHAT_MESSAGES:
        problem = f"has {len(chat.messages):,} messages"
        raise InvalidRequest("prompt.chat.messages", problem, f"give at most {MAX_CHAT_MESSAGES:,}")
    for at, message in enumerate(chat.messages):
        if not 0 < len(message.role) <= MAX_ROLE_CHARS:
            problem, remedy = f"has {len(message.role):,} characters", f"give 1 to {MAX_ROLE_CHARS}, such as user"
            raise InvalidRequest(f"prompt.chat.messages[{at}].role", problem, remedy)
    template, conversation = model.conversation(chat)
    text = await work.templates.render(tenant, template, conversation, model.max_chars)
    return await work.run(tenant, len(text), model.encode_rendered, text)


def check_length(tokens: Sequence[int], max_model_len: int) -> None:
    if len(tokens) >= max_model_len:
        raise NeverFits("prompt", len(tokens) + 1, max_model_len, "tokens", "shorten the prompt")


def read_ttl(ttl_s: float) -> float:
    if not 0.0 < ttl_s <= MAX_PIN_S:
        raise InvalidRequest("ttl_s", f"is {ttl_s:g}", f"give more than 0 and at most {MAX_PIN_S:,.0f} seconds")
    return ttl_s
