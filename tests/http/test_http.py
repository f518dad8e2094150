"""The HTTP door with OpenAI's own client: what it asks comes, what is wrong is refused by name, who leaves is ended."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.bench.engines import of_server
from cluster.gateway.http.answers import Writer
from cluster.gateway.http.look import Look
from cluster.gateway.http.server import HttpServer
from cluster.gateway.settings import GatewaySettings
from cluster.serving.auth import Caller, TokenBook, TokenEntry, digest_of
from cluster.settings import SchedulerSettings
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, long_seed, slow, text_model
from tests.http import scripted

Story = Callable[[Door, HttpServer, openai.AsyncOpenAI], Awaitable[None]]


def over_http(story: Story, *, key: str = "none", **door: Any) -> None:
    async def run(opened: Door) -> None:
        server = HttpServer(opened.gateway, 0, must_be=True)
        await server.start()
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0)
        try:
            await opened.until(lambda: opened.gateway.is_connected)
            await story(opened, server, client)
        finally:
            await client.close()
            await server.stop()

    at_the_door(run, **door)


OPTIONS: Any = {"include_usage": True, "continuous_usage_stats": True}


def text_of(tokens: list[int]) -> str:
    return text_model().decode(tokens, True)


async def raw(port: int, sent: bytes, timeout_s: float = 5.0) -> bytes:
    """All that comes back until the door closes or has said a whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout_s)
        size = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
        )
        return head + await asyncio.wait_for(reader.readexactly(size), timeout_s)
    finally:
        writer.close()


def post(path: str, body: bytes, *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers]
    if not any(header.lower().startswith("content-type") for header in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_a_completion_is_what_the_model_says() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        wanted = expected(PROMPT, 7, 30)
        done = await client.completions.create(model="m", prompt=PROMPT, seed=7, max_tokens=30)
        assert done.choices[0].text == text_of(wanted)
        assert done.choices[0].finish_reason == ("stop" if wanted[-1] == 0 else "length")
        assert done.usage is not None
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(PROMPT), len(wanted))
        streamed = ""
        usage = None
        stream = await client.completions.create(
            model="m", prompt=PROMPT, seed=7, max_tokens=30, stream=True, stream_options=OPTIONS
        )
        counted = 0
        async for chunk in stream:
            # Of each chunk so far, as load tools ask it; the last one has all.
            assert chunk.usage is not None and chunk.usage.prompt_tokens == len(PROMPT)
            assert chunk.usage.completion_tokens >= counted
            counted = chunk.usage.completion_tokens
            streamed += "".join(choice.text for choice in chunk.choices)
            usage = chunk.usage or usage
        assert streamed == text_of(wanted)
        assert usage is not None and usage.completion_tokens == len(wanted)
        await door.settled()

    over_http(story)


def test_the_benchmark_of_running_servers_reads_every_token_and_its_time() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        run = of_server.server({"server": f"http://127.0.0.1:{server.port}", "model": "m"})
        prompts, wanted = [PROMPT, PROMPT[:3], PROMPT[2:]], [1, 30, 12]
        outputs, times = await asyncio.to_thread(run, prompts, wanted)
        assert [len(tokens) for tokens in outputs] == [len(stamps) for stamps in times] == wanted
        assert all(stamps == sorted(stamps) and stamps[0] > 0 for stamps in times)
        assert outputs[1] == expected(PROMPT[:3], 0, 30, ends=False)
        with pytest.raises(RuntimeError, match="answers 400"):
            await asyncio.to_thread(run, [PROMPT], [0])
        await door.settled()

    over_http(story)


def test_several_prompts_and_several_sequences_have_their_places() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        prompts = [PROMPT, PROMPT[:3], PROMPT[2:]]
        done = await client.completions.create(model="m", prompt=prompts, n=2, seed=3, max_tokens=12)
        assert [choice.index for choice in done.choices] == list(range(6))
        for at, choice in enumerate(done.choices):
            assert choice.text == text_of(expected(prompts[at // 2], 3, 12, at % 2))
        await door.settled()

    over_http(story)


def test_chat_streams_role_text_and_end() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        messages: list[Any] = [{"role": "user", "content": "wdaa wdab"}]
        whole = await client.chat.completions.create(
            model="m", messages=messages, seed=5, max_completion_tokens=20, logprobs=True, top_logprobs=0
        )
        assert whole.choices[0].message.role == "assistant"
        stream = await client.chat.completions.create(
            model="m", messages=messages, seed=5, max_completion_tokens=20, stream=True, n=1
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        ends = [chunk.choices[0].finish_reason for chunk in chunks]
        assert ends[-1] in ("stop", "length") and not any(ends[:-1])
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        parts: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": "wdaa "}, {"type": "text", "text": "wdab"}]}
        ]
        again = await client.chat.completions.create(model="m", messages=parts, seed=5, max_tokens=20)
        assert again.choices[0].message.content == whole.choices[0].message.content

    over_http(story)


def test_tokens_that_are_parts_of_characters_are_told_as_their_bytes() -> None:
    """A client puts the bytes together; each part was told as the bytes of the mark that stands for what is broken."""
    model, text = scripted.text_model(scripted.HERMES), "a\u00e9\U0001f600"

    def told(kind: str) -> Any:
        writer = Writer(Look(kind, num_top=2), 1, 1, "r", "m", model.spell)
        response = pb.GenerateResponse()
        response.tokens.ids.extend(model.encode(text))
        for token in response.tokens.ids:
            top = [common_pb2.TopLogprob(token=other, logprob=-1.0) for other in (token, token + 1)]
            response.tokens.logprobs.add(token=token, logprob=-1.0, top=top)
        writer.take(response)
        return writer.whole()["choices"][0]["logprobs"]

    entries = told("chat")["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == text
    found = told("completion")
    assert found["tokens"] == ["a", *(f"bytes:\\x{byte}" for byte in ("c3", "a9", "f0", "9f", "98", "80"))]
    assert found["text_offset"] == [0, 1, 2, 2, 3, 3, 3]
    # Tokens that look the same were one.
    assert all(len(top) == 2 for top in found["top_logprobs"])


def test_vllms_fields_count() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        extra = {"ignore_eos": True, "top_k": 5, "priority": 1, "return_token_ids": True, "min_tokens": 2}
        done = await client.completions.create(model="m", prompt=PROMPT, seed=9, max_tokens=25, extra_body=extra)
        assert done.choices[0].model_extra is not None
        assert done.choices[0].model_extra["token_ids"] == expected(PROMPT, 9, 25, ends=False)
        stop = text_of(expected(PROMPT, 9, 25, ends=False)[3:5]).strip()
        cut = await client.completions.create(
            model="m", prompt=PROMPT, seed=9, max_tokens=25, stop=[stop], extra_body=extra
        )
        assert stop not in cut.choices[0].text and cut.choices[0].finish_reason == "stop"

    over_http(story)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x", "made_up": 1}, "made_up"),
    ({"prompt": "x", "temperature": "hot"}, "temperature"),
    ({"prompt": "x", "temperature": -1}, "temperature"),
    ({"prompt": "x", "top_p": 7}, "top_p"),
    ({"prompt": "x", "top_p": 10**400}, "top_p"),
    ({"prompt": "x", "structured_outputs": {"\ud800": 1}}, "structured_outputs.?"),
    ({"prompt": "x", "n": 0}, "n"),
    ({"prompt": "x", "n": True}, "n"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 2.5}, "max_tokens"),
    ({"prompt": "x", "seed": 1 << 70}, "seed"),
    ({"prompt": "x", "stop": 5}, "stop"),
    ({"prompt": "x", "stop": ["a", 5]}, "stop[1]"),
    ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
    ({"prompt": "x", "logit_bias": {"-": 1}}, "logit_bias"),
    ({"prompt": "x", "logit_bias": []}, "logit_bias"),
    ({"prompt": "x", "echo": True}, "echo"),
    ({"prompt": "x", "best_of": 4}, "best_of"),
    ({"prompt": "x", "suffix": "end"}, "suffix"),
    ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "x", "stream": True, "stream_options": {"other": True}}, "stream_options.other"),
    ({"prompt": "x", "stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"prompt": "x", "stream": 1}, "stream"),
    ({"prompt": "x", "response_format": {"type": "xml"}}, "response_format.type"),
    ({"prompt": "x", "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"prompt": "x", "response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    (
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {}, "of": 1}}},
        "response_format.json_schema.of",
    ),
    ({"prompt": "x", "structured_outputs": {"choice": []}}, "structured_outputs"),
    ({"prompt": "x", "structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"prompt": "x", "structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
    ({"prompt": "x", "structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ({"prompt": "x", "structured_outputs": {"made_up": "a"}}, "structured_outputs.made_up"),
    ({"prompt": "x", "timeout": 0}, "timeout"),
    ({"prompt": []}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": [[1, 2], ["a"]]}, "prompt[1][0]"),
    ({"prompt": [1, 1 << 40]}, "prompt[1]"),
    ({"prompt": [99_999]}, "prompt.token_ids"),
    ({"prompt": ["a"] * 513}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({}, "prompt"),
]


def test_what_is_not_honoured_is_refused_by_name() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        for body, param in WRONG:
            sent = post("/v1/completions", json.dumps({"model": "m", **body}).encode())
            answer = await raw(server.port, sent)
            assert answer.startswith(b"HTTP/1.1 400"), (body, answer)
            error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
            assert error["param"] == param and "\n" not in error["message"], (body, error)
        chat: list[tuple[dict[str, Any], str]] = [
            ({"messages": []}, "prompt.chat.messages"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
            ({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, "top_logprobs"),
            ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, "prompt.chat.tools[0]"),
            (
                {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "high"},
                "prompt.chat.template_args.reasoning_effort",
            ),
        ]
        for body, param in chat:
            answer = await raw(server.port, post("/v1/chat/completions", json.dumps({"model": "m", **body}).encode()))
            assert answer.startswith(b"HTTP/1.1 400"), (body, answer)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["param"] == param, (body, answer)
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            await client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="m", prompt=[5] * 5000)
        assert caught.value.code == "context_length_exceeded"
        await door.settled()

    over_http(story)


HOSTS = {
    **dict.fromkeys(("[::1]", "[::1]:8000", "LOCALHOST:1", "a.localhost", "127.9.9.9", ""), 200),
    **dict.fromkeys(("[::1].evil.example", "127.0.0.1.evil.example", "localhost:80:x", "::1", "[]", "8.8.8.8"), 403),
}


def test_old_and_unusual_ways_to_ask() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        body = json.dumps({"prompt": PROMPT, "seed": 7, "max_tokens": 3}).encode()
        wanted = text_of(expected(PROMPT, 7, 3))
        chunked = b"".join(
            b"%x\r\n%s\r\n" % (len(body[at : at + 9]), body[at : at + 9]) for at in range(0, len(body), 9)
        )
        length = f"Content-Length: {len(body)}".encode()
        for first, heads, sent in (
            (b"HTTP/1.1", b"Host: [::1]\r\nTransfer-Encoding: chunked", chunked + b"0\r\n\r\n"),
            (b"HTTP/1.1", b"Host: [::1]\r\nTransfer-Encoding: chunked", chunked + b"0\r\nX-Trailer: y\r\n\r\n"),
            (b"HTTP/1.0", length, body),
            (b"HTTP/1.0", b"Host: localhost\r\nConnection: keep-alive\r\n" + length, body),
        ):
            head = b"POST /v1/completions %s\r\nContent-Type: application/json\r\n%s\r\n\r\n" % (first, heads)
            answer = await raw(server.port, head + sent)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == wanted, heads
        for host, status in HOSTS.items():
            answer = await raw(server.port, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 %d " % status), host
        await door.settled()

    over_http(story)


def test_bodies_that_are_none_end_nothing() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        deep = b"[" * 200_000
        for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a": NaN}', deep, b'{"a":' + deep, b"1" * 5000):
            answer = await raw(server.port, post("/v1/completions", body))
            assert answer.startswith(b"HTTP/1.1 400"), (body[:20], answer)
        answer = await raw(server.port, post("/v1/completions", b"{}", "Content-Type: text/plain"))
        assert b"send application/json" in answer
        answer = await raw(server.port, post("/v1/completions", gzip.compress(b"{}"), "Content-Encoding: gzip"))
        assert answer.startswith(b"HTTP/1.1 400") and b'"param":"content-encoding"' in answer
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        large = f"{head}Content-Length: {1 << 40}\r\n\r\n"
        assert b"400 Bad Request" in await raw(server.port, large.encode())
        for path, status in (("/v1/nothing", b"404"), ("/v1/completions/", b"404"), ("/v1/models", b"405")):
            for host in ("127.0.0.1", "[::1", "[]:7", "%"):
                assert (await raw(server.port, post(path, b"{}", host=host))).startswith(b"HTTP/1.1 " + status), host
        # The head of a stream would take it from whoever reads it.
        asked = b"HEAD /v1/requests/x/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(asked)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 405")
        writer.close()
        # The page of somebody else, in a browser of this machine.
        assert (await raw(server.port, post("/v1/completions", b"{}", host="evil.example"))).startswith(b"HTTP/1.1 403")
        done = await client.completions.create(model="m", prompt=PROMPT, seed=7, max_tokens=3)
        assert done.choices[0].text

    over_http(story)


def test_a_client_that_leaves_ends_its_request() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        seed = long_seed(PROMPT, 200)
        stream = await client.completions.create(model="m", prompt=PROMPT, seed=seed, max_tokens=200, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await door.settled(3.0)
        asking = asyncio.create_task(client.completions.create(model="m", prompt=PROMPT, seed=seed, max_tokens=200))
        await door.until(lambda: door.gateway.num_open == 1)
        asking.cancel()
        await door.settled(3.0)
        # By its id.
        # The one that the header names, which the answer says, also where a body names another.
        stream = await client.completions.create(
            model="m",
            prompt=PROMPT,
            seed=seed,
            max_tokens=200,
            stream=True,
            extra_headers={"X-Request-Id": "mine/or yours"},
            extra_body={"request_id": "other"},
        )
        assert stream.response.headers["x-request-id"] == "mine/or yours"
        found = await client.delete("/requests/mine%2For%20yours", cast_to=object)
        assert found == {"id": "mine/or yours", "object": "request", "cancelled": True}
        ends = [choice.finish_reason async for chunk in stream for choice in chunk.choices]
        assert ends[-1] == "abort"
        await door.settled(3.0)

    over_http(story, shapes=(slow(),))


def test_a_broken_stream_goes_on_where_it_was() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        seed = long_seed(PROMPT, 60)
        body = {"model": "m", "prompt": PROMPT, "seed": seed, "max_tokens": 60, "stream": True, "resume_grace_s": 5}
        sent = post("/v1/completions", json.dumps(body).encode(), "X-Request-Id: broken")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        events: list[tuple[str, str]] = []

        async def read(reader: asyncio.StreamReader, most: int) -> bool:
            """Events as (id, text), until so many or the end."""
            last = ""
            while len(events) < most:
                line = (await asyncio.wait_for(reader.readline(), 5)).decode().strip()
                if line.startswith("id: "):
                    last = line[4:]
                elif line == "data: [DONE]":
                    return True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    events.extend((last, choice["text"]) for choice in chunk["choices"])
            return False

        assert not await read(reader, 5)
        writer.close()
        last = events[-1][0]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            post("/v1/completions", json.dumps(body).encode(), "X-Request-Id: broken", f"Last-Event-ID: {last}")
        )
        assert await read(reader, 10_000)
        writer.close()
        assert "".join(text for _, text in events) == text_of(expected(PROMPT, seed, 60))
        await door.settled(8.0)

    over_http(story, shapes=(slow(),))


def test_a_stream_with_nothing_to_say_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.gateway.http.generation.KEEP_ALIVE_S", 0.02)

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        body = {"model": "m", "prompt": PROMPT, "seed": 7, "max_tokens": 4, "stream": True}
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(post("/v1/completions", json.dumps(body).encode()))
        said = await asyncio.wait_for(reader.readuntil(b"data: [DONE]\n\n"), 10)
        writer.close()
        assert said.count(b": alive\n\n") >= 2
        texts = [
            json.loads(line[6:])["choices"][0]["text"] for line in said.split(b"\n") if line.startswith(b"data: {")
        ]
        assert "".join(texts) == text_of(expected(PROMPT, 7, 4))
        await door.settled()

    over_http(story, shapes=(slow(0.2),))


def test_a_full_queue_says_when_to_come_back() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        seed = long_seed(PROMPT, 100)
        asked = [
            asyncio.create_task(client.completions.create(model="m", prompt=PROMPT, seed=seed, max_tokens=100))
            for _ in range(40)
        ]
        done = await asyncio.gather(*asked, return_exceptions=True)
        refused = [one for one in done if isinstance(one, openai.RateLimitError)]
        assert refused and all(int(one.response.headers["retry-after"]) >= 1 for one in refused)
        assert len(refused) + sum(not isinstance(one, BaseException) for one in done) == 40

    over_http(story, shapes=(slow(0.002, max_batch=2),), scheduler=SchedulerSettings(max_queue=4))


def test_tokens_are_asked_for_before_anything_else() -> None:
    book = TokenBook([TokenEntry(digest_of("good"), Caller("a", frozenset(["inference"])))])

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        assert (await client.models.list()).data[0].id == "m"
        stranger = client.with_options(api_key="bad")
        with pytest.raises(openai.AuthenticationError):
            await stranger.completions.create(model="m", prompt="x")
        assert (await raw(server.port, post("/v1/completions", b"{"))).startswith(b"HTTP/1.1 401")

    over_http(story, key="good", settings=GatewaySettings(port=0, tokens=book))


def test_half_a_head_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.serving.http_connections.HEAD_S", 0.3)

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        for begun in (b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(), 3) == b""
            writer.close()
        # The second request of a connection that was good before.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"}"), 3)
        writer.write(b"GET /hea")
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()

    over_http(story)


def test_models_tokens_and_health(tmp_path: Path) -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        assert (await client.models.retrieve("m")).model_extra is not None
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")
        root = client.with_options(base_url=f"http://127.0.0.1:{server.port}")
        told: Any = await root.post("/tokenize", cast_to=object, body={"model": "m", "prompt": "wdaa wdab"})
        back: Any = await root.post("/detokenize", cast_to=object, body={"model": "m", "tokens": told["tokens"]})
        assert back["prompt"].strip() == "wdaa wdab" and told["count"] == len(told["tokens"])
        assert (await root.get("/health", cast_to=object)) == {"status": "ok"}

    over_http(story)


def test_a_port_that_is_taken_is_the_next_one_unless_it_was_asked_for() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        second = HttpServer(door.gateway, server.port, must_be=False)
        await second.start()
        assert second.port > server.port
        await second.stop()
        with pytest.raises(Exception, match="Give another --http-port"):
            await HttpServer(door.gateway, server.port, must_be=True).start()

    over_http(story)


def test_it_is_not_opened_to_others_without_tls_and_tokens() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        door.gateway.settings = replace(door.gateway.settings, host="0.0.0.0")
        with pytest.raises(Exception, match="TLS certificate and a token file"):
            await HttpServer(door.gateway, 0, must_be=True).start()

    over_http(story)
