"""Too much, too large, too slow, half: over real sockets the door refuses or closes in time, and serves others."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import json
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.errors import QueueFull
from cluster.gateway.door.unread import UnreadBounds
from cluster.gateway.http.server import HttpServer
from cluster.gateway.settings import GatewaySettings
from cluster.serving import connections
from cluster.serving.auth_certificates import make_certificates
from cluster.serving.public_port import PortTls
from cluster.settings import SchedulerSettings
from tests.cluster.front_door import PROMPT, Door, long_seed, slow
from tests.cluster.test_gateway import raised, request
from tests.http.scripted import PLAIN, Stage, on_stage
from tests.http.test_http import over_http, post, raw


class Line:
    """A connection that is kept, with one request after another on it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, sent: bytes) -> tuple[int, dict[str, str], float]:
        """Status, headers, and the seconds until the whole answer was here."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        began = time.perf_counter()
        self._writer.write(sent)
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 30)).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:]) if name}
        await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, time.perf_counter() - began

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def test_four_times_too_much_is_told_when_to_come_back_at_once() -> None:
    """A made-up worker that serves 2 at a time, a queue of 8, and four times as many requests as it can do."""

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        body = {"model": "m", "prompt": PROMPT, "seed": long_seed(PROMPT, 20), "max_tokens": 20}
        sent = post("/v1/completions", json.dumps(body).encode())
        lines = [Line(server.port) for _ in range(40)]
        rate = 2 / (20 * 0.02)
        found: list[tuple[int, dict[str, str], float]] = []
        idle = asyncio.Queue[Line]()
        for line in lines:
            idle.put_nowait(line)

        async def one() -> None:
            line = await idle.get()
            found.append(await line.ask(sent))
            idle.put_nowait(line)

        num, began, tasks = 120, time.perf_counter(), []
        for at in range(num):
            await asyncio.sleep(max(0.0, began + at / (4 * rate) - time.perf_counter()))
            tasks.append(asyncio.create_task(one()))
        await asyncio.gather(*tasks)
        refused = sorted(seconds for status, _, seconds in found if status == 429)
        assert {status for status, _, _ in found} == {200, 429}
        assert all(1 <= int(headers["retry-after"]) <= 60 for status, headers, _ in found if status == 429)
        served = len(found) - len(refused)
        p50, p99 = (refused[int(len(refused) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"{4 * rate:.0f} requests/s: {served} served, {len(refused)} told 429 in {p50:.1f} ms, p99 {p99:.1f} ms")
        assert num / 3 < len(refused) < num and served >= 8
        # Long before anybody who was let in is done, which takes 400 ms of the worker's own.
        soonest = min(seconds for status, _, seconds in found if status == 200)
        assert p50 < soonest * 1e3 / 2
        for line in lines:
            line.close()
        await door.settled()

    over_http(story, shapes=(slow(0.02, max_batch=2),), scheduler=SchedulerSettings(max_queue=8))


def test_what_is_over_is_freed_without_pythons_collector() -> None:
    """Errors and requests named each other, 84 objects for each that was refused, until a look of the collector, which
    holds every stream up, found them."""

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        async def over_openai(stream: bool) -> None:
            with contextlib.suppress(openai.RateLimitError):
                told = await client.completions.create(model="m", prompt=PROMPT, seed=7, max_tokens=3, stream=stream)
                if isinstance(told, openai.AsyncStream):
                    async for _ in told:
                        pass

        async def over_grpc() -> None:
            with contextlib.suppress(QueueFull):
                await raised(door.stub.Generate(request(seed=7, max_tokens=3)))

        def asks() -> list[Any]:
            return [*(over_openai(at % 2 == 0) for at in range(12)), *(over_grpc() for _ in range(6))]

        await asyncio.gather(*asks())
        await door.settled()
        gc.collect()
        gc.disable()
        try:
            await asyncio.gather(*asks())
            await door.settled()
            await asyncio.sleep(0.1)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = collections.Counter(type(found).__name__ for found in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        ours = ("Entry", "Reader", "HttpReader", "Answer", "Request", "Submit", "QueueFull", "AbortError", "Generation")
        assert not {name: left[name] for name in ours if left[name]}

    over_http(story, shapes=(slow(0.02, max_batch=1),), scheduler=SchedulerSettings(max_queue=1))


Story = Callable[[Door, HttpServer, openai.AsyncOpenAI], Awaitable[None]]


async def is_served(client: openai.AsyncOpenAI) -> None:
    done = await client.completions.create(model="m", prompt=PROMPT, seed=7, max_tokens=3)
    assert done.choices[0].text


async def closed(reader: asyncio.StreamReader, timeout_s: float) -> bytes:
    """All that came before the door closed, which it must within the time."""
    try:
        return await asyncio.wait_for(reader.read(), timeout_s)
    except ConnectionError:
        return b""


def test_heads_and_bodies_that_are_too_large_are_refused() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        for headers in ([f"X-Long: {'x' * 100_000}"], ["X-Many: " + "y" * 1_000] * 100):
            assert b" 431 " in await raw(server.port, post("/v1/completions", b"{}", *headers))
        path = b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert b" 431 " in await raw(server.port, path)
        # In parts: it is not waited for.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        ended, num_sent = asyncio.create_task(closed(reader, 5.0)), 0
        writer.write(b"GET / HTTP/1.1\r\n")
        while not ended.done():
            writer.write(b"X-Many: " + b"y" * 5_000 + b"\r\n")
            num_sent += 1
            await asyncio.sleep(0.002)
        await ended
        assert 10 < num_sent < 40
        writer.close()
        # Announced, and not announced.
        most = door.gateway.max_body_bytes
        answer = await raw(server.port, post("/v1/completions", b"{" + b" " * most))
        assert b"400 Bad Request" in answer and b'"param":"body"' in answer
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(most // 100_000 + 2):
            writer.write(b"%x\r\n%s\r\n" % (100_000, b" " * 100_000))
        assert b"400 Bad Request" in await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        writer.close()
        await is_served(client)

    over_http(story)


def test_half_a_request_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.gateway.http.app.BODY_S", 0.3)
    monkeypatch.setattr("cluster.serving.http_connections.HEAD_S", 0.5)
    monkeypatch.setattr("cluster.gateway.http.server.IDLE_S", 1.0)

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for half in (b"Content-Length: 99\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head + half)
            assert b"did not come whole" in await asyncio.wait_for(reader.readuntil(b"}}"), 3)
            # It drips on behind the answer.
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(_drip(writer), 3.0)
            writer.close()
        await is_served(client)

    over_http(story)


async def _drip(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.serving.http_connections.STUCK_S", 0.5)
    ended = asyncio.run(_unread(UnreadBounds()))
    assert ended == "cut off"


def test_what_nobody_reads_is_bounded() -> None:
    """The answer ends of the one who does not read."""
    assert asyncio.run(_unread(UnreadBounds(request=40_000))) == "unread"


async def _unread(bounds: UnreadBounds) -> str:
    """A stream that its client does not read, and how it came to an end."""
    stage = Stage(PLAIN, settings=GatewaySettings(port=0, unread=bounds))
    server = HttpServer(stage.gateway, 0, must_be=True)
    await server.start()
    assert server._server is not None
    for listening in server._server.servers[0].sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    try:
        async with asyncio.timeout(40):
            await stage.ready()
            stage.says = ["x" * 7000, "good"]
            stuck = socket.socket()
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stuck, ("127.0.0.1", server.port))
            body = {"prompt": "a", "n": 4, "max_tokens": 7100, "stream": True}
            await asyncio.get_running_loop().sock_sendall(stuck, post("/v1/completions", json.dumps(body).encode()))
            while not stage.gateway.door.entries:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            entry = next(iter(stage.gateway.door.entries.values()))
            while stage.gateway.door.num_open and entry.failure is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            done = await client.completions.create(model="m", prompt="b", max_tokens=50)
            assert done.choices[0].text == "good"
            if isinstance(entry.failure, Exception):
                assert "unread" in str(entry.failure)
                stuck.close()
                return "unread"
            # A worker that is quicker than the bound has made all of it: its client gets the beginning, and no end.
            reader, writer = await asyncio.open_connection(sock=stuck)
            shown = await closed(reader, 10.0)
            writer.close()
            assert b"data: " in shown and b"[DONE]" not in shown
            return "cut off"
    finally:
        await client.close()
        await server.stop()
        await stage.close()


def test_a_body_does_not_wait_until_its_head_is_acknowledged() -> None:
    """A client that is its own process acknowledges late, 40 ms behind the head."""

    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        await is_served(client)
        assert server._server is not None
        (kept,) = server._server.server_state.connections
        accepted = kept.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    over_http(story)


def test_whole_answers_that_are_too_large_are_refused() -> None:
    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        stage.says = ["x" * 3000, "x" * 300]
        with pytest.raises(openai.RateLimitError, match="ask with stream"):
            await client.completions.create(model="m", prompt="a", max_tokens=4000)
        while stage.gateway.num_open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await client.completions.create(model="m", prompt="a", max_tokens=4000)

    bounds = UnreadBounds(tenant=50_000)
    on_stage(PLAIN, story, settings=GatewaySettings(port=0, unread=bounds))


def test_of_connections_too_many_the_oldest_on_which_nothing_is_asked_makes_room() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for _ in range(8):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(get)
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"}"), 3)
            held.append((reader, writer))
        for reader, _ in held[:4]:
            assert await closed(reader, 3.0) == b""
        assert not any(reader.at_eof() or reader.exception() for reader, _ in held[4:])
        for _, writer in held:
            writer.close()

    over_http(story, settings=GatewaySettings(port=0, max_connections_per_machine=4))


def test_where_something_is_asked_on_each_connection_one_too_many_is_closed() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        # None of their bodies has come yet.
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        held: list[asyncio.StreamWriter] = []
        for _ in range(4):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head + b"Content-Length: 99\r\n\r\n")
            held.append(writer)
        await asyncio.sleep(0.1)
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            assert await closed(reader, 3.0) == b""
            writer.close()
        held.pop().close()
        await asyncio.sleep(0.1)
        assert b"200 OK" in await raw(server.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for writer in held:
            writer.close()

    over_http(story, settings=GatewaySettings(port=0, max_connections_per_machine=4))


def test_connections_that_agree_on_no_tls_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connections, "EVERY_S", 0.1)
    files = make_certificates(tmp_path, ["127.0.0.1"])
    tls = PortTls(files.server_certificate, files.server_key)

    async def story(stage: Stage, client: openai.AsyncOpenAI) -> None:
        port = int(client.base_url.port or 0)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        await asyncio.sleep(0.5)
        ended = [reader.at_eof() for reader, _ in silent]
        assert sum(ended) >= 32 and not all(ended), sum(ended)
        for _, writer in silent:
            writer.close()

    on_stage(PLAIN, story, settings=GatewaySettings(port=0, tls=tls, max_connections_per_machine=8))


def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def story(door: Door, server: HttpServer, client: openai.AsyncOpenAI) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        bodies = [{"model": "m", "prompt": PROMPT, "seed": 7, "max_tokens": at} for at in range(1, 21)]
        writer.write(b"".join(post("/v1/completions", json.dumps(body).encode()) for body in bodies))
        for body in bodies:
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).lower()
            size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            answer = json.loads(await reader.readexactly(size))
            assert answer["usage"]["completion_tokens"] <= body["max_tokens"]
        writer.close()
        await door.settled()

    over_http(story)
