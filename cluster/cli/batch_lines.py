"""One line of a batch: what it asks, in our own form or in OpenAI's, and the line that answers it.

Every field of a line counts, or the line is refused by the field's name. What is asked has a fingerprint, which its
answer carries: by that, and not by its place in the file, a batch that is started again knows what is answered.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cluster.client.request import Options, Prompt, generate_message
from cluster.errors import InvalidRequest
from cluster.offline.outputs import Logprob, RequestOutput
from cluster.sampling import SamplingParams

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SETTINGS = tuple(one.name for one in fields(SamplingParams) if one.name != "eos_token_ids")
PROMPTS = ("prompt", "prompt_token_ids", "messages")
OWN = (*PROMPTS, "id", "model", "priority", "timeout_s")
ENVELOPE = ("custom_id", "method", "url", "body")
# Of OpenAI's bodies, under our names. Log-probabilities have another form there than ours, and are not in its answers.
RENAMED = {"max_completion_tokens": "max_tokens"}
NOT_IN_BODIES = ("logprobs", "prompt_logprobs", "detokenize")
BEGINS = '{"asked": "'
"""How every line of answers begins."""


@dataclass(frozen=True, slots=True)
class LineAsked:
    """What one line asks. `url`: of OpenAI's form; empty: of ours."""

    prompt: Prompt
    params: SamplingParams
    options: Options
    label: Any
    url: str
    fingerprint: str


def read_line(text: str, params: SamplingParams, model: str) -> LineAsked:
    """`params` and `model` hold where the line says nothing else. Raises `InvalidRequest`."""
    try:
        line = json.loads(text)
    except RecursionError as error:
        raise InvalidRequest("line", "is nested too deeply", "give one flat object") from error
    except ValueError as error:
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        raise InvalidRequest("line", f"is no JSON: {why}", "give one object on each") from error
    if isinstance(line, str):
        line = {"prompt": line}
    if not isinstance(line, dict):
        raise InvalidRequest("line", f"is {_kind(line)}", "give a text, or an object with a prompt")
    url, label = "", line.get("id")
    if "body" in line or "custom_id" in line:
        url, label, line = _opened(line)
    _check_names(line, url)
    prompt = _prompt(line)
    params = replace(params, **{name: _setting(name, line[name]) for name in SETTINGS if name in line})
    if url and params.detokenize is False:
        raise InvalidRequest("detokenize", "is off", "answers of this form are texts")
    options = Options(
        model=_text(line, "model") or model,
        priority=_number(line, "priority", int) or 0,
        timeout_s=_number(line, "timeout_s", (int, float)),
    )
    # Whatever the wire cannot carry is found now, and not when half of the batch is answered.
    generate_message(prompt, params, options)
    return LineAsked(prompt, params, options, label, url, _fingerprint(prompt, params, options, label, url))


def answer(asked: LineAsked, number: int, result: RequestOutput) -> str:
    """The line that answers line `number`, without its end."""
    if asked.url:
        body = _chat_body(asked, result) if asked.url == CHAT else _completion_body(asked, result)
        response = {"status_code": 200, "request_id": result.request_id, "body": body}
        parts = {"id": f"batch_req_{result.request_id}", "custom_id": asked.label, "response": response, "error": None}
    else:
        parts = {"line": number} | ({} if asked.label is None else {"id": asked.label})
        parts["texts"] = [output.text for output in result.outputs]
        parts["finish_reasons"] = [output.finish_reason for output in result.outputs]
        if not asked.params.detokenize:
            parts["token_ids"] = [output.token_ids for output in result.outputs]
        if asked.params.logprobs is not None:
            parts["logprobs"] = [[_candidates(one) for one in output.logprobs or ()] for output in result.outputs]
        if asked.params.prompt_logprobs is not None:
            listed = result.prompt_logprobs or ()
            parts["prompt_logprobs"] = [None if one is None else _candidates(one) for one in listed]
    return json.dumps({"asked": asked.fingerprint} | parts)


def answered(line: str) -> str | None:
    """The fingerprint that a line of answers carries; None: it is none of ours."""
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = read.get("asked") if isinstance(read, dict) else None
    return found if isinstance(found, str) else None


def _opened(line: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """The url, label and body of a line in OpenAI's form, the body with our names."""
    for name in line:
        if name not in ENVELOPE:
            raise InvalidRequest(str(name), "is no field of a batch line", f"there are {', '.join(ENVELOPE)}")
    label, body, url = line.get("custom_id"), line.get("body"), line.get("url", CHAT)
    if not isinstance(label, str) or not label:
        raise InvalidRequest("custom_id", f"is {label!r}", "give a text, by which you know the answer")
    if not isinstance(body, dict):
        raise InvalidRequest("body", f"is {_kind(body)}", "give an object with what is asked")
    if line.get("method", "POST") != "POST":
        raise InvalidRequest("method", f"is {line['method']!r}", "give POST")
    if url not in (CHAT, COMPLETIONS):
        raise InvalidRequest("url", f"is {url!r}", f"give {CHAT} or {COMPLETIONS}")
    if ("messages" in body) is not (url == CHAT):
        raise InvalidRequest("body", f"is none of {url}", "chat has messages, a completion has a prompt")
    for name, only in (("stream", False), ("echo", False), ("best_of", 1)):
        if body.get(name, only) != only:
            raise InvalidRequest(name, f"is {body[name]!r}", "leave it out: a batch has whole answers")
    for name in NOT_IN_BODIES:
        if name in body:
            raise InvalidRequest(name, "is not in answers of this form", "ask by a line with prompt or messages")
    kept = {name: value for name, value in body.items() if name not in ("stream", "echo", "best_of")}
    return url, label, {RENAMED.get(name, name): value for name, value in kept.items()}


def _check_names(line: Mapping[str, Any], url: str) -> None:
    for name in line:
        if (name not in OWN and name not in SETTINGS) or (url and name in ("id", "prompt_token_ids")):
            raise InvalidRequest(str(name), "is no setting", f"there are {', '.join((*OWN, *SETTINGS))}")
    if sum(name in line for name in PROMPTS) != 1:
        there = ", ".join(name for name in PROMPTS if name in line)
        raise InvalidRequest("line", f"has {there or 'no prompt'}", f"give one of {', '.join(PROMPTS)}")


def _prompt(line: Mapping[str, Any]) -> Prompt:
    if "messages" in line:
        messages = line["messages"]
        if not isinstance(messages, list) or not messages:
            raise InvalidRequest("messages", f"is {_kind(messages)}", "give a list of role and content")
        return [_message(one) for one in messages]
    name = "prompt" if "prompt" in line else "prompt_token_ids"
    value = line[name]
    is_ids = isinstance(value, list) and value and all(type(one) is int for one in value)
    if not is_ids and not (name == "prompt" and isinstance(value, str)):
        raise InvalidRequest(name, f"is {_kind(value)}", "give one text, or one list of token ids")
    prompt: Prompt = value
    return prompt


def _message(one: Any) -> dict[str, str]:
    if not isinstance(one, dict) or not isinstance(one.get("role"), str):
        raise InvalidRequest("messages", f"hold {_kind(one)} without a role", "give role and content")
    for name in one:
        if name not in ("role", "content"):
            raise InvalidRequest(f"messages.{name}", "is not known to chat templates here", "leave it out")
    content = one.get("content")
    if isinstance(content, list):
        # OpenAI's parts: texts only.
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise InvalidRequest("messages.content", "has parts that are no text", "give texts only")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise InvalidRequest("messages.content", f"is {_kind(content)}", "give a text")
    return {"role": one["role"], "content": content}


def _setting(name: str, value: Any) -> Any:
    """As `SamplingParams` takes it: the keys of JSON's objects are texts."""
    if name in ("logit_bias", "forced_tokens") and isinstance(value, dict):
        try:
            return {int(key): one for key, one in value.items()}
        except ValueError as error:
            raise InvalidRequest(name, "has keys that are no token ids", "give token id: value") from error
    return value


def _text(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name, "")
    if not isinstance(value, str):
        raise InvalidRequest(name, f"is {_kind(value)}", "give a text")
    return value


def _number(line: Mapping[str, Any], name: str, kinds: Any) -> Any:
    value = line.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
        raise InvalidRequest(name, f"is {value!r}", "give a number")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _fingerprint(prompt: Prompt, params: SamplingParams, options: Options, label: Any, url: str) -> str:
    parts = json.dumps([prompt, asdict(params), options.model, label, url], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def _candidates(one: Mapping[int, Logprob]) -> dict[int, dict[str, Any]]:
    return {token: {"logprob": each.logprob, "rank": each.rank} for token, each in one.items()}


def _body(asked: LineAsked, result: RequestOutput, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    num_prompt, num_new = result.metrics.prompt_tokens, sum(len(one.token_ids) for one in result.outputs)
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}
    return {
        "id": result.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": result.model,
        "choices": choices,
        "usage": usage,
    }


def _chat_body(asked: LineAsked, result: RequestOutput) -> dict[str, Any]:
    choices = [
        {
            "index": one.index,
            "message": {"role": "assistant", "content": one.text},
            "finish_reason": one.finish_reason,
            "logprobs": None,
        }
        for one in result.outputs
    ]
    return _body(asked, result, "chat.completion", choices)


def _completion_body(asked: LineAsked, result: RequestOutput) -> dict[str, Any]:
    choices = [
        {"index": one.index, "text": one.text, "finish_reason": one.finish_reason, "logprobs": None}
        for one in result.outputs
    ]
    return _body(asked, result, "text_completion", choices)
