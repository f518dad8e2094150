"""The paths of the page, on loopback alone: the files, the events of each viewer, a request's tables, the playground.

The command `quire page` runs it until it is interrupted. Whoever asks for more than the files must have the key of the
address that was printed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cluster.errors import InvalidRequest, QuireError
from cluster.page import play
from cluster.page.news import News
from cluster.page.play import Gateways
from cluster.serving.admin_client import Admin
from cluster.serving.http_connections import bound_connections

MAX_CONNECTIONS = 48
MAX_VIEWERS = 8
MAX_PLAYING = 8
MAX_BODY_BYTES = 1 << 18
BODY_S = 10.0
_STATIC = Path(__file__).parent / "static"
_KINDS = {
    "page.html": "text/html",
    "page.css": "text/css",
    **dict.fromkeys(("page.js", "play.js", "flights.js"), "text/javascript"),
}
_SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Page:
    def __init__(self, admin: Admin, gateways: Gateways | None = None) -> None:
        self.key = secrets.token_urlsafe(18)
        self._gateways = gateways or Gateways()
        self._num_playing = 0
        self._admin = admin
        self._num_viewers = 0
        files = [Route(f"/{name}", self._file, methods=["GET"]) for name in _KINDS]
        self.app = Starlette(
            routes=[
                Route("/", self._file, methods=["GET"]),
                *files,
                Route("/events", self._events, methods=["GET"]),
                Route("/tables", self._tables, methods=["GET"]),
                Route("/play", self._play, methods=["POST"]),
            ]
        )

    async def _file(self, request: Request) -> Response:
        name = request.url.path.strip("/") or "page.html"
        return Response((_STATIC / name).read_bytes(), media_type=_KINDS[name], headers=_SAFE)

    def _refused(self, request: Request) -> Response | None:
        if hmac.compare_digest(request.query_params.get("key", "").encode(), self.key.encode()):
            return None
        return JSONResponse({"error": "open the address that `quire page` printed: it has the key"}, 403, headers=_SAFE)

    async def _events(self, request: Request) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        if self._num_viewers >= MAX_VIEWERS:
            return JSONResponse({"error": f"{MAX_VIEWERS} viewers are here, which is the bound"}, 429, headers=_SAFE)
        return StreamingResponse(self._told(), media_type="text/event-stream", headers=_SAFE)

    async def _told(self) -> AsyncIterator[str]:
        if self._num_viewers >= MAX_VIEWERS:
            return  # many came at once
        news = News(self._admin, can_play=bool(self._gateways.addresses))
        self._num_viewers += 1
        try:
            events = news.events()
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event or ": alive\n\n"
        finally:
            news.close()
            self._num_viewers -= 1

    async def _tables(self, request: Request) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        try:
            found = await asyncio.to_thread(News(self._admin).tables, request.query_params.get("request", ""))
        except QuireError as error:
            return JSONResponse({"error": str(error)}, 404, headers=_SAFE)
        return JSONResponse(found, headers=_SAFE)

    async def _play(self, request: Request) -> Response:
        """A question of the playground; the key stands in a head, so that no form of another page can send it."""
        if not hmac.compare_digest(request.headers.get("x-key", "").encode(), self.key.encode()):
            return JSONResponse({"error": "open the address that was printed: it has the key"}, 403, headers=_SAFE)
        if not self._gateways.addresses:
            return JSONResponse({"error": "this page knows no gateway; give it one with --gateway"}, 404, headers=_SAFE)
        if self._num_playing >= MAX_PLAYING:
            return JSONResponse({"error": f"{MAX_PLAYING} questions are under way here"}, 429, headers=_SAFE)
        try:
            if int(request.headers.get("content-length") or MAX_BODY_BYTES + 1) > MAX_BODY_BYTES:
                raise InvalidRequest("text", "is too long here", f"give less than {MAX_BODY_BYTES:,} bytes")
            async with asyncio.timeout(BODY_S):
                played = play.read(json.loads(await request.body()))
        except (QuireError, ValueError, RecursionError, TimeoutError, ClientDisconnect) as error:
            return JSONResponse({"error": str(error) or "the question did not come whole"}, 400, headers=_SAFE)
        return StreamingResponse(self._played(played), media_type="application/x-ndjson", headers=_SAFE)

    async def _played(self, played: play.Played) -> AsyncIterator[str]:
        self._num_playing += 1
        try:
            async with aclosing(play.answers(self._gateways, played)) as lines:
                async for line in lines:
                    yield line
        finally:
            self._num_playing -= 1


def server_of(page: Page) -> uvicorn.Server:
    config = uvicorn.Config(
        page.app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Viewers never end by themselves.
        timeout_graceful_shutdown=1,
    )
    config.load()
    # Whoever holds one needs no key.
    bound_connections(config, MAX_CONNECTIONS, MAX_CONNECTIONS)
    return uvicorn.Server(config)
