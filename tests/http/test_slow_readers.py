"""Who takes nothing of an answer holds no place, however little is unsent; who takes some all the time gets all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from cluster.serving.http_connections import bound_connections

MOST = 4
READS = 1 << 18


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """So many bytes as the path says."""
    size = int(scope["path"][1:])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": b"x" * size})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[uvicorn.Server, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(answer, lifespan="off", log_config=None, access_log=False, ws="none", http="h11")
        config.load()
        bound_connections(config, MOST, MOST)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        yield server, listening.getsockname()[1]
        server.should_exit = True
        await task


async def ask(port: int, size: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(one, ("127.0.0.1", port))
    await loop.sock_sendall(one, b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
    return one


async def unsent(server: uvicorn.Server) -> list[int]:
    await asyncio.sleep(0.5)
    return [one.transport.get_write_buffer_size() for one in server.server_state.connections]


def test_what_is_unsent_is_timed_however_little_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 64 KiB nobody looked, and four such connections held a port of four for ever."""
    monkeypatch.setattr("cluster.serving.http_connections.STUCK_S", 1.5)

    async def story() -> None:
        async with serving() as (server, port):
            large = 8 << 20
            one = await ask(port, large)
            taken_by_kernel = large - (await unsent(server))[0]
            one.close()
            held = [await ask(port, taken_by_kernel + 30_000) for _ in range(MOST)]
            assert [0 < size < 1 << 16 for size in await unsent(server)].count(True) == MOST
            await asyncio.sleep(3.0)
            assert not server.server_state.connections
            for one in held:
                one.close()

    asyncio.run(story())


def test_who_takes_some_all_the_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time was that of the whole answer."""
    monkeypatch.setattr("cluster.serving.http_connections.STUCK_S", 0.5)

    async def story() -> None:
        async with serving() as (_, port):
            size, got = 24 << 20, 0
            one = await ask(port, size)
            while got < size:
                part = await asyncio.get_running_loop().sock_recv(one, READS)
                assert part, f"cut off after {got:,} bytes of {size:,}"
                got += len(part)
                await asyncio.sleep(3.0 * len(part) / size)
            one.close()

    asyncio.run(story())
