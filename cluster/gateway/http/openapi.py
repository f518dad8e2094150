"""The door's own description, as an OpenAPI document: paths, fields and answers, made from the tables that are obeyed.

`GET /openapi.json` gives it. Clients generate code from it, and tests ask what it allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from cluster.gateway.http import fields
from cluster.limits import MAX_PRIORITY

Schema: TypeAlias = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_TRUTH: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PARTS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": _TEXT},
        "additionalProperties": False,
    },
}
_CALL: Schema = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": _TEXT, "arguments": _TEXT},
        },
    },
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, _PARTS, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": _CALL},
        "tool_call_id": _TEXT,
        "name": _TEXT,
        "reasoning_content": _TEXT,
    },
}
_TOOL: Schema = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": r"^[A-Za-z0-9_.\-]{1,64}$"},
                "description": _TEXT,
                "parameters": _OBJECT,
                "strict": _TRUTH,
            },
        },
    },
}
_FORMAT: Schema = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
        "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": _OBJECT, "name": _TEXT}},
    },
}
_STRUCTURE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "json": {"type": ["object", "string"]},
        "regex": _TEXT,
        "grammar": _TEXT,
        "choice": {"type": "array", "items": _TEXT, "minItems": 1},
        "json_object": _TRUTH,
    },
}
_READ_ELSEWHERE: Mapping[str, Schema] = {
    "model": _TEXT,
    "stream": _TRUTH,
    "stream_options": {
        "type": "object",
        "additionalProperties": False,
        "properties": dict.fromkeys(("include_usage", "continuous_usage_stats", "include_obfuscation"), _TRUTH),
    },
    "max_tokens": {"type": "integer", "minimum": 1},
    "max_completion_tokens": {"type": "integer", "minimum": 1},
    "priority": {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
    "structured_outputs": _STRUCTURE,
    "response_format": _FORMAT,
    "request_id": _TEXT,
    "resume_grace_s": {"type": "number", "minimum": 0},
    "return_token_ids": _TRUTH,
    "timeout": {"type": "number", "exclusiveMinimum": 0},
    "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    "top_logprobs": {"type": "integer", "minimum": 0},
    "add_generation_prompt": _TRUTH,
    "tools": {"type": "array", "items": _TOOL},
    "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
    "parallel_tool_calls": _TRUTH,
    "chat_template_kwargs": _OBJECT,
    "reasoning_effort": _TEXT,
    "prompt": {"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}]},
}
_LOGPROBS: Mapping[str, Schema] = {"chat": _TRUTH, "completion": {"type": "integer", "minimum": 0}}
_NEEDS = {"chat": ["messages"], "completion": ["prompt"]}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    "400": "The request is wrong: `param` names the field.",
    "401": "The credentials are missing or wrong.",
    "403": "The caller may not do this.",
    "404": "There is no such model or request.",
    "408": "The time that the client gave has passed.",
    "409": "The id is taken, or the request was ended.",
    "431": "The head of the request is too large.",
    "429": "Too much is under way: `Retry-After` says when to come back.",
    "503": "Nothing can be asked at the moment.",
}


def document(version: str) -> dict[str, Any]:
    """The whole of it."""
    chats = _operation("A chat", _answer("chat.completion", "choices"), _body("chat"), True)
    completions = _operation("A completion", _answer("text_completion", "choices"), _body("completion"), True)
    named = {"name": "request_id", "in": "path", "required": True, "schema": _TEXT}
    last = {"name": "Last-Event-ID", "in": "header", "required": False, "schema": _TEXT}
    paths = {
        "/v1/chat/completions": {"post": chats},
        "/v1/completions": {"post": completions},
        "/v1/models": {"get": _operation("What is served", _answer("list", "data"))},
        "/v1/models/{name}": {
            "get": {
                **_operation("One model", _answer("model", "id")),
                "parameters": [{**named, "name": "name"}],
            }
        },
        "/v1/requests/{request_id}": {
            "delete": {**_operation("Ends a request", _answer("request", "cancelled")), "parameters": [named]}
        },
        "/v1/requests/{request_id}/stream": {
            "get": {**_operation("Goes on with a stream", None, None, True), "parameters": [named, last]}
        },
        "/tokenize": {"post": _operation("Token ids of a text", _whole("tokens", "count"), _tokenize())},
        "/detokenize": {"post": _operation("The text of token ids", _whole("prompt"), _detokenize())},
        "/health": {"get": _operation("Whether a model can be asked", _whole("status"))},
        "/openapi.json": {"get": _operation("This document", _whole("openapi", "paths"))},
    }
    about = {"title": "Quire", "version": version, "description": "OpenAI's API, with vLLM's further fields."}
    security = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": about,
        "paths": paths,
        "components": {"securitySchemes": security, "schemas": {"Error": _ERROR}},
    }


def _body(kind: str) -> dict[str, Any]:
    """One kind of body, from the tables by which it is read. Null is the same as absent."""
    known: dict[str, Schema] = {name: fields.SCHEMAS[read] for name, read in fields.SAMPLING.items()}
    for name in sorted(fields.READ_ELSEWHERE[kind]):
        known[name] = _LOGPROBS[kind] if name == "logprobs" else _READ_ELSEWHERE[name]
    for name, taken in fields.WITHOUT_EFFECT.items():
        known[name] = {} if taken is None else {"enum": list(taken)}
    nullable = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in known.items()}
    must = {name: known[name] for name in _NEEDS[kind]}
    return _mapping({**nullable, **must}, _NEEDS[kind])


def _tokenize() -> dict[str, Any]:
    known = {"model": _TEXT, "prompt": {"anyOf": [_TEXT, _IDS]}, "messages": _READ_ELSEWHERE["messages"]}
    return _mapping({**known, "add_generation_prompt": _TRUTH}, [])


def _detokenize() -> dict[str, Any]:
    return _mapping({"model": _TEXT, "tokens": _IDS}, ["tokens"])


def _mapping(known: Mapping[str, Schema], needs: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": known, "required": needs, "additionalProperties": False}


def _answer(kind: str, *names: str) -> dict[str, Any]:
    whole = _whole("object", *names)
    whole["properties"] = {"object": {"const": kind}}
    return whole


def _whole(*names: str) -> dict[str, Any]:
    return {"type": "object", "required": list(names)}


def _operation(
    summary: str, answer: dict[str, Any] | None, body: dict[str, Any] | None = None, streams: bool = False
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    content: dict[str, Any] = {} if answer is None else {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": _TEXT}
    responses: dict[str, Any] = {"200": {"description": "As asked.", "content": content}}
    responses |= {status: {"description": what, "content": error} for status, what in _ERRORS.items()}
    found: dict[str, Any] = {"summary": summary, "responses": responses, "security": [{}, {"token": []}]}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found
