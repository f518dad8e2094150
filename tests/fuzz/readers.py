"""Every reader of what others send or write: what it does with bytes, and good ones to begin from.

What is read is good, or refused as a `QuireError`; a link closes its connection whatever was wrong with its words.
Nothing else comes of it, and nothing takes long or much memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError, Message

from cluster.errors import QuireError
from cluster.gateway.http import asks
from cluster.gateway.intake import read_generate
from cluster.links.frames import FrameBuffer, Hello, Refusal, Welcome, hello_from, pack, refusal_from, welcome_from
from cluster.links.terms import unreadable
from cluster.wire import control, gateways, tokens, values
from protos.quire.v1 import control_pb2, front_pb2
from protos.quire.v1 import inference_pb2 as pb
from tests.cluster.test_hostile_files import KINDS
from tests.links.drawn import drawn
from tests.speech.test_parsers import MAKERS, SAMPLES

Read: TypeAlias = Callable[[bytes], object]
Target: TypeAlias = Callable[[Path], tuple[Read, list[bytes]]]
"""What reads, and what it can read; the folder is for files."""


def _file(kind: str) -> Target:
    def made(folder: Path) -> tuple[Read, list[bytes]]:
        file = KINDS[kind](folder)
        return file.reads, [file.write(file.good)]

    return made


def _word(kind: type[Message], read: Read) -> Target:
    def reads(raw: bytes) -> None:
        try:
            read(raw)
        except Exception as error:
            unreadable(raw, error)

    return lambda _: (reads, [drawn(kind, Random(seed)).SerializeToString() for seed in range(200)])


def _frames(_: Path) -> tuple[Read, list[bytes]]:
    hello = Hello("r0", 1, "scheduler", 0, 1, False, False, 1, 1, b"card").pack(3)
    words = [hello, Welcome(1, 1, True, 5.0, b"card").pack(3), Refusal("lost", 2, "why").pack(), pack(4, 1, 2, b"x")]

    def reads(raw: bytes) -> None:
        buffer, at = FrameBuffer(), 0
        while at < len(raw):
            room = buffer.room()
            num = min(len(room), len(raw) - at, 700)
            room[:num] = raw[at : at + num]
            at += num
            for kind, _, _, body in buffer.took(num):
                first = {1: hello_from, 2: welcome_from, 3: refusal_from}.get(kind)
                if first is not None:
                    first(body)

    return reads, [*words, b"".join(words)]


def _generate(_: Path) -> tuple[Read, list[bytes]]:
    def reads(raw: bytes) -> None:
        try:
            request = pb.GenerateRequest.FromString(raw)
        except DecodeError:
            return
        read_generate(request, None)

    return reads, [drawn(pb.GenerateRequest, Random(seed)).SerializeToString() for seed in range(200)]


def _http(kind: str, good: Any) -> Target:
    def reads(raw: bytes) -> None:
        body = values.parsed("body", raw, len(raw))
        if isinstance(body, dict):
            asks.read(kind, body, "q")

    return lambda _: (reads, [json.dumps(good).encode()])


def _speech(form: str) -> Target:
    def reads(raw: bytes) -> None:
        parser, text = MAKERS[form](), raw.decode(errors="replace")
        for at in range(0, len(text), 7):
            parser.feed(text[at : at + 7])
        parser.end()

    return lambda _: (reads, [text.encode() for name, text, _ in SAMPLES if name == form] or [b"<think>x</think> y"])


_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_CHAT = {
    "model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "tools": [_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}}, "stream": True, "stop": ["x"], "n": 2, "seed": 1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "logprobs": True, "top_logprobs": 2, "logit_bias": {"3": 1.5}, "stream_options": {"include_usage": True},
}  # fmt: skip
_TEXT = {"model": "m", "prompt": ["a", "b"], "echo": False, "logprobs": 2, "guided_regex": "a+", "max_tokens": 3}

TARGETS: dict[str, Target] = {
    "frames": _frames,
    "worker-to-scheduler": _word(control_pb2.ToScheduler, control.read_up),
    "scheduler-to-worker": _word(control_pb2.FromScheduler, control.read_down),
    "gateway-to-scheduler": _word(front_pb2.FromGateway, lambda raw: gateways.read_up(raw, 1.0)),
    "scheduler-to-gateway": _word(front_pb2.ToGateway, gateways.read_down),
    "worker-to-gateway": _word(front_pb2.TokenBatch, tokens.read_batch),
    "generate": _generate,
    "http-chat": _http("chat", _CHAT),
    "http-completion": _http("completion", _TEXT),
    **{f"speech-{form.replace(' ', '-')}": _speech(form) for form in MAKERS},
    **{kind: _file(kind) for kind in KINDS},
}


def checked(read: Read) -> Read:
    """Raises what no reader may raise."""

    def reads(raw: bytes) -> None:
        with suppress(QuireError):
            read(raw)

    return reads
