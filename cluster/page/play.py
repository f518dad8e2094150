"""The playground's other end: one question to a gateway as any client asks it, its answers as lines of JSON.

Each line tells what is new of one answer, or that all have ended, or why there are none. Who asks is whoever the token
says that was typed into the page; the operators' credential asks nothing here.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from cluster.client.asynchronous import AsyncClient
from cluster.client.connection import Tls
from cluster.client.request import Prompt
from cluster.errors import InvalidRequest, QuireError
from cluster.sampling import SamplingParams
from cluster.wire import values

MAX_ANSWERS = 8
MAX_TOKENS = 4096
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Gateways:
    """Where the playground asks. Without addresses there is none."""

    addresses: tuple[str, ...] = ()
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Played:
    """One question."""

    prompt: Prompt
    model: str
    token: str | None
    params: SamplingParams


def read(body: Any) -> Played:
    """Raises `InvalidRequest`."""
    given = values.mapping("body", body)
    text = values.text("text", given.get("text"))
    num = values.whole("n", given.get("n", 1), 1, MAX_ANSWERS)
    params = SamplingParams(
        n=num,
        max_tokens=values.whole("max_tokens", given.get("max_tokens", 200), 1, MAX_TOKENS),
        temperature=values.number("temperature", given.get("temperature", 0.8)),
    )
    if not text:
        raise InvalidRequest("text", "is empty", "write something")
    chats = values.truth("chat", given.get("chat", False))
    token = values.text("token", given.get("token", ""))
    prompt: Prompt = [{"role": "user", "content": text}] if chats else text
    return Played(prompt, values.text("model", given.get("model", "")), token or None, params)


async def answers(gateways: Gateways, played: Played) -> AsyncGenerator[str, None]:
    """Ends with a line that says how it ended. A reader that goes away ends the request."""
    began, num_tokens, first_s = time.monotonic(), 0, 0.0
    try:
        async with AsyncClient(gateways.addresses, token=played.token, tls=gateways.tls) as client:
            asked = client.stream(played.prompt, played.params, model=played.model, timeout_s=TIMEOUT_S)
            async for news in asked:
                first_s = first_s or time.monotonic() - began
                num_tokens += len(news.token_ids)
                yield _line({"index": news.index, "text": news.text, "ended": news.finish_reason})
        total_s = max(time.monotonic() - began, 1e-3)
        yield _line({"tokens": num_tokens, "first_s": round(first_s, 3), "rate": round(num_tokens / total_s, 1)})
    except QuireError as error:
        yield _line({"error": str(error)})


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
