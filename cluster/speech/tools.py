"""What a conversation says of tools, checked: which there are, what may or must be called, and words for the template.

Doors read it from the wire's `Chat` once per request. Everything that a client can say wrong is an `InvalidRequest`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidRequest
from cluster.limits import MAX_TOOL_CHARS, MAX_TOOLS
from cluster.wire.values import MAX_PARTS, count_parts, parsed
from protos.quire.v1 import inference_pb2 as pb

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_FIELD = "prompt.chat"
_ANYTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: Mapping[str, Any]
    is_strict: bool
    whole: Mapping[str, Any]  # as templates have it


@dataclass(frozen=True, slots=True)
class Tools:
    """`choice`: "auto", "required", or a tool's name; with "none" there are no tools."""

    listed: tuple[Tool, ...] = ()
    choice: str = "auto"
    may_be_parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.listed)

    @property
    def allowed(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        named = tuple(tool for tool in self.listed if tool.name == self.choice)
        return named or self.listed

    @property
    def are_bound(self) -> bool:
        """Whether an answer is held to something: what must be called, no second call, or a schema."""
        is_free = self.choice == "auto" and self.may_be_parallel and not any(tool.is_strict for tool in self.listed)
        return bool(self.listed) and not is_free

    def schema_of(self, tool: Tool) -> Mapping[str, Any]:
        """What its arguments are held to."""
        return tool.parameters if tool.is_strict or self.choice != "auto" else {"type": "object"}


def read_tools(chat: pb.Chat) -> Tools:
    """Raises `InvalidRequest`."""
    if len(chat.tools) > MAX_TOOLS:
        raise InvalidRequest(f"{_FIELD}.tools", f"has {len(chat.tools):,} entries", f"give at most {MAX_TOOLS}")
    num_chars = sum(map(len, chat.tools))
    if num_chars > MAX_TOOL_CHARS:
        raise InvalidRequest(f"{_FIELD}.tools", f"has {num_chars:,} characters", f"give at most {MAX_TOOL_CHARS:,}")
    listed = tuple(_tool(f"{_FIELD}.tools[{at}]", text) for at, text in enumerate(chat.tools))
    names = [tool.name for tool in listed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"{_FIELD}.tools", f"has two tools called {twice}", "give each its own name")
    choice = chat.tool_choice or "auto"
    if choice not in ("auto", "none") and not (listed and choice in (*names, "required")):
        problem = f"is {choice[:80]!r}, and there is no such tool" if listed else "is set, and there are no tools"
        raise InvalidRequest(f"{_FIELD}.tool_choice", problem, "give auto, none, required or the name of a tool")
    may_be_parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    return Tools(() if choice == "none" else listed, choice, may_be_parallel)


def _tool(where: str, text: str) -> Tool:
    whole = object_of(where, text)
    function = whole.get("function")
    if whole.get("type") != "function" or not isinstance(function, dict):
        raise InvalidRequest(where, "is no function", 'give {"type": "function", "function": {"name": ...}}')
    name, parameters = function.get("name"), function.get("parameters") or dict(_ANYTHING)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in ("auto", "none", "required"):
        raise InvalidRequest(f"{where}.function.name", f"is {str(name)[:80]!r}", "give 1 to 64 letters and digits")
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}.function.parameters", f"is {str(parameters)[:60]!r}", "give a JSON schema")
    return Tool(name, parameters, function.get("strict") is True, whole)


def object_of(where: str, text: str) -> dict[str, Any]:
    """The JSON object of a text. Raises `InvalidRequest`."""
    found = parsed(where, text.encode())
    if not isinstance(found, dict):
        raise InvalidRequest(where, f"is {text[:60]!r}", "give a JSON object")
    return found


def messages_of(chat: pb.Chat) -> list[dict[str, Any]]:
    """The messages as chat templates have them. Raises `InvalidRequest`."""
    left = MAX_PARTS
    for at, message in enumerate(chat.messages):
        for call in message.tool_calls:
            left -= count_parts(f"{_FIELD}.messages[{at}].tool_calls", call.arguments.encode(), left)
    return [_message(f"{_FIELD}.messages[{at}]", message) for at, message in enumerate(chat.messages)]


def _message(where: str, message: pb.ChatMessage) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    for name in ("tool_call_id", "name", "reasoning_content"):
        if getattr(message, name):
            said[name] = getattr(message, name)
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": object_of(f"{where}.tool_calls[{at}].arguments", call.arguments or "{}"),
                },
            }
            for at, call in enumerate(message.tool_calls)
        ]
    return said
