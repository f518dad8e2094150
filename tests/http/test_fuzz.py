"""Whatever a client sends, the door answers with no 5xx and serves the next one: by its own description (schemathesis),
and by bytes that were good requests once. `--trust` sends 20,000 requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from typing import Any

import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from cluster.gateway.http.server import HttpServer
from tests.cluster.front_door import PROMPT, Door
from tests.http.test_floods import is_served
from tests.http.test_http import over_http, post

FORBIDDEN = range(500, 600)


def by_description(port: int, most: int, counts: Counter[int]) -> None:
    """As many requests for each operation, good ones and wrong ones."""
    url = f"http://127.0.0.1:{port}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in schemathesis.GenerationMode:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=most,
                    phases=[Phase.generate],
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    derandomize=settings().derandomize,
                    database=None,
                )
                def ask(case: Any) -> None:
                    response = case.call(base_url=url, session=session, timeout=20)
                    counts[response.status_code] += 1
                    case.validate_response(response, checks=[not_a_server_error, status_code_conformance])

                # A path that takes nothing cannot be asked wrongly.
                with contextlib.suppress(Unsatisfiable):
                    ask()


GOOD = [
    post("/v1/completions", json.dumps({"prompt": PROMPT, "max_tokens": 3, "seed": 7}).encode()),
    post("/v1/completions", json.dumps({"prompt": "wdaa", "max_tokens": 3, "stream": True, "n": 2}).encode()),
    post(
        "/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}).encode(),
    ),
    post("/tokenize", json.dumps({"prompt": "wdaa wdab"}).encode()),
    post("/detokenize", json.dumps({"tokens": [1, 2, 3]}).encode()),
    b"GET /v1/requests/x/stream HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1.2\r\n\r\n",
    b"DELETE /v1/requests/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/models/m HTTP/1.1\r\nHost: localhost\r\n\r\n",
]
PIECES = [
    *(b"\r\n\r\n", b"\0", b"\xff", b"{", b"}", b"[" * 300, b'"', b"null", b"-1", b"1e999", b"9" * 400, b"NaN"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        b"Last-Event-ID: 5\r\n",
        b"HTTP/9.9",
        b"%00%2e%2e/",
        b"\\ud800",
    ),
    *(b"true", b"[]", b"{}", b'{"a":' * 40, b"x" * 5_000),
]


def changed(draw: random.Random) -> bytes:
    """A good request with some of its bytes cut, doubled, changed, or replaced by what is known to hurt."""
    sent = bytearray(draw.choice(GOOD))
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(sent) + 1), draw.randint(0, 12)
        kind = draw.randrange(5)
        if kind == 0:
            del sent[at : at + length]
        elif kind == 1:
            sent[at:at] = sent[at : at + length * 4]
        elif kind == 2:
            sent[at : at + length] = draw.choice(PIECES)
        elif kind == 3:
            sent[at : at + 1] = bytes([draw.randrange(256)])
        elif len(sent) > 40:
            del sent[at:]
        sent = sent or bytearray(b"\0")
    return bytes(sent)


async def send(port: int, sent: bytes, counts: Counter[int]) -> None:
    """One connection each; it is left as soon as an answer has begun, or nothing came for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        head = await asyncio.wait_for(reader.read(64), 0.15)
        status = int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
        counts[status] += 1
        assert status not in FORBIDDEN, (sent, head)
    except (TimeoutError, ConnectionError):
        counts[0] += 1
    finally:
        writer.close()


async def by_bytes(port: int, num: int, draw: random.Random, counts: Counter[int]) -> None:
    async def some(each: int) -> None:
        for _ in range(each):
            await send(port, changed(draw), counts)

    await asyncio.gather(*[some(num // 16) for _ in range(16)])


def fuzz(seed: int, examples: int, num: int) -> None:
    counts: Counter[int] = Counter()
    raw_counts: Counter[int] = Counter()

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        await asyncio.to_thread(by_description, server.port, examples, counts)
        await is_served(client)
        await by_bytes(server.port, num, random.Random(seed), raw_counts)
        await is_served(client)
        await door.settled(20.0)
        assert not door.gateway.door.finds and not door.gateway.door.handed

    over_http(story, timeout_s=1_500.0)
    print(f"by the description {dict(sorted(counts.items()))}, by bytes {dict(sorted(raw_counts.items()))}")
    assert counts[200] and counts[400] and raw_counts[200] and raw_counts[400]


def test_nothing_that_a_client_sends_is_a_mistake_of_ours(seed: int) -> None:
    fuzz(seed, 6, 1_600)


@pytest.mark.trust
@pytest.mark.timeout(1_600)
def test_twenty_thousand_requests(seed: int) -> None:
    fuzz(seed, 100, 19_200)
