"""From an OpenAI body to the wire's own requests, which the one validator of all doors then judges.

Every field is honoured or refused by name (`fields.py`); null is the same as absent. Nothing here knows the gateway.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidRequest
from cluster.gateway.http import fields
from cluster.gateway.http.look import Look
from cluster.gateway.intake import PIECE_IDS
from cluster.speech.tools import read_tools
from cluster.wire import values
from cluster.wire.chat import fill_message, fill_tools
from protos.quire.v1 import inference_pb2 as pb

MAX_PROMPTS = 512
_STREAM_OPTIONS = ("include_usage", "continuous_usage_stats", "include_obfuscation")


@dataclass(frozen=True, slots=True)
class HttpAsked:
    """What one HTTP request asks for: a wire request for each prompt, and how the answer is to look."""

    requests: tuple[pb.GenerateRequest, ...]
    look: Look
    streams: bool
    timeout_s: float | None


def read(kind: str, body: Mapping[str, Any], request_id: str) -> HttpAsked:
    """Raises `InvalidRequest` with the field's name. `request_id` is what the answer will say, whatever the body's."""
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in fields.SAMPLING and name not in fields.READ_ELSEWHERE[kind]:
            fields.check_without_effect(name, value)
    first = pb.GenerateRequest(request_id=request_id)
    first.model = values.text("model", given.get("model", ""))
    for name, value in given.items():
        if name in fields.SAMPLING:
            fields.SAMPLING[name](first.sampling, name, value)
    if "priority" in given:
        first.priority = values.whole("priority", given["priority"])
    if "resume_grace_s" in given:
        first.resume_grace_s = values.number("resume_grace_s", given["resume_grace_s"])
    _read_lengths(kind, given, first)
    _read_structure(given, first)
    num_top = _read_logprobs(kind, given)
    if num_top is not None:
        first.sampling.logprobs = num_top
    streams = values.truth("stream", given.get("stream", False))
    requests = _with_prompts(kind, given, first)
    options = _stream_options(given, streams)
    look = Look(
        kind=kind,
        num_top=num_top,
        includes_usage=options.get("include_usage", not streams),
        counts_on=options.get("continuous_usage_stats", False),
        returns_ids=values.truth("return_token_ids", given.get("return_token_ids", False)),
        tools=read_tools(requests[0].prompt.chat).names if kind == "chat" else (),
        created=int(time.time()),
    )
    return HttpAsked(requests, look, streams, _timeout(given))


def read_id(body: Mapping[str, Any]) -> str:
    """Of the body alone; empty: it names none."""
    given = body.get("request_id")
    return "" if given is None else values.text("request_id", given)


def _read_lengths(kind: str, given: Mapping[str, Any], request: pb.GenerateRequest) -> None:
    name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    if name in given:
        request.sampling.max_tokens = values.whole(name, given[name], 1, 1 << 31)
    elif kind == "chat":
        # As long as the model likes, or can.
        request.sampling.unlimited_tokens = True


def _read_structure(given: Mapping[str, Any], request: pb.GenerateRequest) -> None:
    """OpenAI's `response_format`, or vLLM's `structured_outputs`."""
    form = values.mapping("response_format", given.get("response_format", {"type": "text"}))
    kind = form.get("type")
    _only("response_format", form, ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "json_object":
        request.json_schema = json.dumps({"type": "object"})
    elif kind == "json_schema":
        schema = values.mapping("response_format.json_schema", form.get("json_schema"))
        # Every schema is obeyed, `strict` or not.
        _only("response_format.json_schema", schema, ("name", "description", "schema", "strict"))
        request.json_schema = _schema("response_format.json_schema.schema", schema.get("schema"))
    elif kind != "text":
        raise InvalidRequest("response_format.type", f"is {str(kind)[:60]!r}", "give text, json_object or json_schema")
    if "structured_outputs" not in given:
        return
    where = "structured_outputs"
    if kind != "text":
        raise InvalidRequest(where, "is given beside response_format", "give one of the two")
    for name, value in values.mapping(where, given[where]).items():
        if value is None:
            continue
        if name == "json":
            request.json_schema = _schema(f"{where}.json", value)
        elif name in ("regex", "grammar"):
            setattr(request, name, values.text(f"{where}.{name}", value))
        elif name == "choice":
            listed = values.listed(f"{where}.choice", value)
            request.choice.extend([values.text(f"{where}.choice[{at}]", one) for at, one in enumerate(listed)])
        elif name == "json_object":
            if values.truth(f"{where}.json_object", value):
                request.json_schema = json.dumps({"type": "object"})
        else:
            raise InvalidRequest(f"{where}.{name}", "is not a field that is honoured here", "leave it out")
    if not (request.json_schema or request.regex or request.grammar or request.choice):
        raise InvalidRequest(where, "asks for nothing", "give json, regex, choice, grammar or json_object")


def _only(where: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name, value in given.items():
        if name not in names and value is not None:
            raise InvalidRequest(f"{where}.{name}", "is not a field that is honoured here", "leave it out")


def _schema(where: str, value: Any) -> str:
    if isinstance(value, str):
        return values.text(where, value)
    return json.dumps(values.mapping(where, value))


def _read_logprobs(kind: str, given: Mapping[str, Any]) -> int | None:
    """Chat has a switch and a number beside it, completions have the number alone."""
    if kind == "completion":
        return values.whole("logprobs", given["logprobs"], 0, 1000) if "logprobs" in given else None
    wants = values.truth("logprobs", given.get("logprobs", False))
    num_top = values.whole("top_logprobs", given.get("top_logprobs", 0), 0, 1000)
    if num_top and not wants:
        raise InvalidRequest("top_logprobs", f"is {num_top}, and logprobs is false", "set logprobs to true")
    return num_top if wants else None


def _stream_options(given: Mapping[str, Any], streams: bool) -> dict[str, bool]:
    if "stream_options" not in given:
        return {}
    if not streams:
        raise InvalidRequest("stream_options", "is set, and stream is false", "set stream to true")
    options = values.mapping("stream_options", given["stream_options"])
    _only("stream_options", options, _STREAM_OPTIONS)
    return {name: values.truth(f"stream_options.{name}", value) for name, value in options.items() if value is not None}


def _timeout(given: Mapping[str, Any]) -> float | None:
    if "timeout" not in given:
        return None
    seconds = values.number("timeout", given["timeout"])
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequest("timeout", f"is {seconds}", "give more than 0 seconds")
    return seconds


# -- prompts


def _with_prompts(kind: str, given: Mapping[str, Any], first: pb.GenerateRequest) -> tuple[pb.GenerateRequest, ...]:
    if kind == "chat":
        first.prompt.chat.CopyFrom(_chat(given))
        return (first,)
    prompts = _prompts(given)
    if len(prompts) == 1:
        first.prompt.CopyFrom(prompts[0])
        return (first,)
    requests = []
    for at, prompt in enumerate(prompts):
        request = pb.GenerateRequest()
        request.CopyFrom(first)
        request.request_id = f"{first.request_id}-{at}"
        request.prompt.CopyFrom(prompt)
        requests.append(request)
    return tuple(requests)


def _chat(given: Mapping[str, Any]) -> pb.Chat:
    if "messages" not in given:
        raise InvalidRequest("messages", "is missing", 'give a list of {"role": ..., "content": ...}')
    chat = pb.Chat()
    for at, message in enumerate(values.listed("messages", given["messages"])):
        fill_message(chat.messages.add(), f"messages[{at}]", message)
    if "add_generation_prompt" in given:
        chat.add_generation_prompt = values.truth("add_generation_prompt", given["add_generation_prompt"])
    fill_tools(chat, given.get("tools", []), given.get("tool_choice", ""))
    if "parallel_tool_calls" in given:
        chat.parallel_tool_calls = values.truth("parallel_tool_calls", given["parallel_tool_calls"])
    words = dict(values.mapping("chat_template_kwargs", given.get("chat_template_kwargs", {})))
    if "reasoning_effort" in given:
        words["reasoning_effort"] = values.text("reasoning_effort", given["reasoning_effort"])
    if words:
        chat.template_args = json.dumps(words)
    return chat


def _prompts(given: Mapping[str, Any]) -> list[pb.Prompt]:
    """One text, one list of token ids, or a list of either."""
    if "prompt" not in given:
        raise InvalidRequest("prompt", "is missing", "give a text or a list of token ids")
    prompt = given["prompt"]
    if isinstance(prompt, str):
        return [pb.Prompt(text=values.text("prompt", prompt))]
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest("prompt", "is empty or no prompt", "give a text, a list of token ids, or a list of these")
    if isinstance(prompt[0], int):
        return [_token_prompt("prompt", prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest("prompt", f"has {len(prompt):,} entries", f"give at most {MAX_PROMPTS}")
    return [
        _token_prompt(f"prompt[{at}]", one)
        if isinstance(one, list)
        else pb.Prompt(text=values.text(f"prompt[{at}]", one))
        for at, one in enumerate(prompt)
    ]


def _token_prompt(field: str, tokens: list[Any]) -> pb.Prompt:
    prompt = pb.Prompt()
    for at, token in enumerate(tokens):
        if type(token) is not int or not -(1 << 31) <= token < 1 << 31:
            raise InvalidRequest(f"{field}[{at}]", f"is {str(token)[:40]!r}", "give token ids")
    prompt.token_ids.SetInParent()
    for at in range(0, len(tokens), PIECE_IDS):
        prompt.token_ids.ids.extend(tokens[at : at + PIECE_IDS])
    return prompt
