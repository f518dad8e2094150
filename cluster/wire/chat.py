"""From a conversation in OpenAI's shape to the wire's Chat: messages, the calls in them, and tools.

The HTTP door, the client and the embedded engine read conversations with it. What is wrong is an `InvalidRequest` by
the name of the field; what a model makes of it is judged by the gateway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import InvalidRequest
from cluster.wire.values import listed, mapping, shown, text
from protos.quire.v1 import inference_pb2 as pb

_WORDS = ("tool_call_id", "name", "reasoning_content")


def chat_of(
    messages: Sequence[Mapping[str, Any]], field: str, tools: Sequence[Mapping[str, Any]] = (), tool_choice: Any = ""
) -> pb.Chat:
    chat = pb.Chat()
    for at, message in enumerate(messages):
        fill_message(chat.messages.add(), f"{field}[{at}]", message)
    fill_tools(chat, list(tools), tool_choice)
    return chat


def fill_message(message: pb.ChatMessage, where: str, given: Any) -> None:
    """Null is the same as absent."""
    said = {name: value for name, value in mapping(where, given).items() if value is not None}
    for name in said:
        if name not in ("role", "content", "tool_calls", "refusal", "annotations", "audio", *_WORDS):
            raise InvalidRequest(f"{where}.{name}", "is not a field that is honoured here", "leave it out")
    if "role" not in said:
        raise InvalidRequest(f"{where}.role", "is missing", 'give "user", "system", "assistant" or "tool"')
    for name in ("refusal", "annotations", "audio"):
        # Clients send back what they got; only what says nothing is taken.
        if said.get(name):
            raise InvalidRequest(
                f"{where}.{name}", f"is {shown(said[name])}, which is not honoured here", "leave it out"
            )
    message.role = text(f"{where}.role", said["role"])
    if "content" in said:
        message.content = _content(f"{where}.content", said["content"])
    elif not said.get("tool_calls"):
        raise InvalidRequest(f"{where}.content", "is missing", "give a string")
    for name in _WORDS:
        if name in said:
            setattr(message, name, text(f"{where}.{name}", said[name]))
    for at, call in enumerate(listed(f"{where}.tool_calls", said.get("tool_calls", []))):
        _fill_call(message.tool_calls.add(), f"{where}.tool_calls[{at}]", call)


def _content(where: str, content: Any) -> str:
    """A string, or a list of parts that are all text."""
    if isinstance(content, str):
        return text(where, content)
    parts = []
    for at, part in enumerate(listed(where, content)):
        kind = mapping(f"{where}[{at}]", part).get("type")
        if kind != "text":
            raise InvalidRequest(f"{where}[{at}].type", f"is {shown(kind)}", 'only "text" is honoured here')
        parts.append(text(f"{where}[{at}].text", part.get("text")))
    return "".join(parts)


def _fill_call(call: pb.ToolCall, where: str, given: Any) -> None:
    said = mapping(where, given)
    if said.get("type", "function") != "function":
        raise InvalidRequest(f"{where}.type", f"is {shown(said['type'])}", 'only "function" is honoured here')
    function = mapping(f"{where}.function", said.get("function"))
    call.id = text(f"{where}.id", said.get("id") or "")
    call.name = text(f"{where}.function.name", function.get("name"))
    arguments = function.get("arguments") or "{}"
    where = f"{where}.function.arguments"
    call.arguments = json.dumps(arguments) if isinstance(arguments, dict) else text(where, arguments)


def fill_tools(chat: pb.Chat, tools: Any, choice: Any) -> None:
    """`choice`: a word, or {"type": "function", "function": {"name": ...}}."""
    chat.tools.extend([json.dumps(mapping(f"tools[{at}]", tool)) for at, tool in enumerate(listed("tools", tools))])
    if isinstance(choice, str):
        chat.tool_choice = text("tool_choice", choice)
        return
    named = mapping("tool_choice", choice)
    if named.get("type") != "function":
        raise InvalidRequest("tool_choice.type", f"is {shown(named.get('type'))}", 'only "function" is honoured here')
    chat.tool_choice = text(
        "tool_choice.function.name", mapping("tool_choice.function", named.get("function")).get("name")
    )
