"""A stream goes on at another gateway by its request's name alone: while the first one lives, and when it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cluster.gateway.http.server import HttpServer
from cluster.lifecycle import launch
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from tests.cluster.clusters import pid_of, wait_for_all
from tests.cluster.front_door import PROMPT, expected, text_model
from tests.cluster.test_resume import Two, two_gateways


@dataclass
class Got:
    """What a client has of a stream: the last event's id, and its chunks."""

    last: str = ""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    is_whole: bool = False

    def take(self, line: str) -> None:
        if line.startswith("id: "):
            self.last = line[4:]
        elif line == "data: [DONE]":
            self.is_whole = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            self.chunks.append(chunk)

    def text(self, index: int = 0) -> str:
        choices = [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == index]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def read(response: httpx2.Response, got: Got, most: int = 1_000_000) -> Got:
    """Until it has so many chunks more, or all."""
    until = len(got.chunks) + most
    async for line in response.aiter_lines():
        got.take(line)
        if len(got.chunks) >= until or got.is_whole:
            break
    return got


def over_http(story: Callable[[Two, list[httpx2.AsyncClient]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with two_gateways() as two:
            servers = [HttpServer(gateway, 0, must_be=True) for gateway in two.gateways]
            clients = []
            for server in servers:
                await server.start()
                clients.append(httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10))
            try:
                await story(two, clients)
            finally:
                for client, server in zip(clients, servers, strict=True):
                    await client.aclose()
                    await server.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


BODY = {"prompt": PROMPT, "seed": 1, "max_tokens": 60, "ignore_eos": True, "stream": True, "resume_grace_s": 5}


def test_a_stream_goes_on_at_another_gateway_by_its_name() -> None:
    """With all that its client asked of its look, and back again; the stream before it ends."""

    async def story(two: Two, clients: list[httpx2.AsyncClient]) -> None:
        body = {**BODY, "n": 2, "logprobs": 1, "return_token_ids": True, "stream_options": {"include_usage": True}}
        got, path = Got(), "/v1/requests/mine/stream"
        async with clients[0].stream("POST", "/v1/completions", json=body, headers={"X-Request-Id": "mine"}) as one:
            await read(one, got, 5)
            for at in (1, 0, 1):
                async with clients[at].stream("GET", path, headers={"Last-Event-ID": got.last}) as again:
                    assert again.status_code == 200 and again.headers["x-request-id"] == "mine"
                    await read(again, got, 5)
            async with clients[1].stream("GET", path, headers={"Last-Event-ID": got.last}) as last:
                await read(last, got)
        assert got.is_whole and got.chunks[-1]["usage"]["completion_tokens"] == 120
        for index in (0, 1):
            wanted = expected(PROMPT, 1, 60, index, ends=False)
            choices = [one for chunk in got.chunks for one in chunk["choices"] if one["index"] == index]
            assert [token for choice in choices for token in choice["token_ids"]] == wanted
            assert got.text(index) == text_model().decode(wanted, True)
            assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == 60
        assert {(chunk["id"], chunk["created"]) for chunk in got.chunks} == {("mine", got.chunks[0]["created"])}
        await two.settled()

    over_http(story)


def test_a_chat_is_shown_from_its_beginning_to_who_names_no_event() -> None:
    async def story(two: Two, clients: list[httpx2.AsyncClient]) -> None:
        body = {**BODY, "messages": [{"role": "user", "content": "wdaa wdab"}]}
        del body["prompt"]
        first = Got()
        async with clients[0].stream("POST", "/v1/chat/completions", json=body, headers={"X-Request-Id": "c"}) as one:
            await read(one, first, 9)
        async with clients[1].stream("GET", "/v1/requests/c/stream") as two_:
            second = await read(two_, Got())
        assert second.chunks[0]["choices"][0]["delta"]["role"] == "assistant" and second.is_whole
        assert second.text().startswith(first.text()) and len(second.text()) > len(first.text()) > 0
        assert second.chunks[0]["object"] == "chat.completion.chunk" == first.chunks[0]["object"]
        await two.settled()

    over_http(story)


def test_what_cannot_go_on_is_refused() -> None:
    async def story(two: Two, clients: list[httpx2.AsyncClient]) -> None:
        async with clients[0].stream("POST", "/v1/completions", json=BODY, headers={"X-Request-Id": "q"}) as one:
            await read(one, Got(), 2)
            for name, last, status, said in (
                ("other", "0", 404, "no request"),
                ("q", "x", 400, "Last-Event-ID"),
                ("q", "0.0", 400, "2 parts, and the request 1 sequences"),
                ("q", "61", 400, "60 tokens can have come"),
            ):
                refused = await clients[1].get(f"/v1/requests/{name}/stream", headers={"Last-Event-ID": last})
                assert refused.status_code == status and said in refused.text, refused.text
        assert not two.gateways[1].door.finds

    over_http(story)


# -- real processes


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    settings = ClusterSettings(
        workers=1,
        gateways=2,
        kv_blocks=1024,
        cpus_per_worker=0.5,
        port=0,
        http_port=18460,
        admin_port=0,
        metrics_port=0,
    )
    try:
        yield launch.up(settings, print)
    finally:
        left = launch.down(print)
        assert not left, left


@pytest.mark.timeout(200)
def test_a_gateway_is_killed_in_the_middle_of_streams(running: Running) -> None:
    """One client at each; whose gateway dies goes on at the other by the name of its request alone."""
    wait_for_all(running, 1, 1)
    first = int(running.settings["http_port"])
    urls = [f"http://127.0.0.1:{first + at}" for at in (0, 1)]
    body = {"messages": [{"role": "user", "content": "The river"}], "temperature": 0.8, "seed": 4, "n": 2}
    body |= {"max_tokens": 1200, "ignore_eos": True, "stream": True, "resume_grace_s": 60}
    whole = httpx2.post(f"{urls[0]}/v1/chat/completions", json={**body, "stream": False}, timeout=60).json()
    wanted = [choice["message"]["content"] for choice in whole["choices"]]
    got, have_begun = [Got(), Got()], [threading.Event(), threading.Event()]
    broken: list[int] = []
    victim = pid_of(running, "GatewayActor")

    def client(at: int) -> None:
        send = ("POST", f"{urls[at]}/v1/chat/completions", {"X-Request-Id": f"client-{at}"})
        try:
            with httpx2.stream(send[0], send[1], json=body, headers=send[2], timeout=60) as response:
                for line in response.iter_lines():
                    got[at].take(line)
                    if len(got[at].chunks) == 12:
                        have_begun[at].set()
        except httpx2.HTTPError:
            broken.append(at)
        if not got[at].is_whole:
            url, headers = f"{urls[1 - at]}/v1/requests/client-{at}/stream", {"Last-Event-ID": got[at].last}
            with httpx2.stream("GET", url, headers=headers, timeout=60) as response:
                for line in response.iter_lines():
                    got[at].take(line)

    threads = [threading.Thread(target=client, args=(at,)) for at in (0, 1)]
    for thread in threads:
        thread.start()
    assert all(begun.wait(60) for begun in have_begun)
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join(90)
    assert len(broken) == 1, "no stream was under way at the gateway that was killed"
    assert [[one.text(0), one.text(1)] for one in got] == [wanted, wanted] and all(one.is_whole for one in got)
