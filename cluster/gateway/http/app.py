"""The paths of the HTTP door: who may ask, what is asked, and how the answer is written.

Every request passes `_guarded`: host and credentials before the body, the body bounded in size, time and depth, each
error in OpenAI's shape. A generation whose client goes away is left to the gateway at once. The server around it is
`server.py`; nothing here opens a port.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster.errors import Aborted, AccessDenied, InvalidRequest, NotFound, QuireError
from cluster.gateway.gateway import Gateway
from cluster.gateway.http import asks, fields
from cluster.gateway.http.answers import Writer
from cluster.gateway.http.errors import body_of, headers_of, status_of
from cluster.gateway.http.reader import Reader
from cluster.gateway.intake import Question, read_generate, read_prompt, read_text
from cluster.gateway.models import TextModel
from cluster.gateway.settings import MAX_REQUEST_ID_CHARS
from cluster.serving.auth import Caller
from protos.quire.v1 import inference_pb2 as pb

BODY_S = 20.0
"""A body that has not come whole by then is not waited for."""
STUCK_S = 60.0
"""A client that takes nothing for so long is cut off."""
KEEP_ALIVE_S = 15.0
"""A stream that has nothing to say says a comment this often, so that what lies between keeps it open."""
MAX_DEPTH = 32

Handler = Callable[["HttpDoor", Request, Caller], Awaitable[Response]]


class HttpDoor:
    """The application. `is_public`: it can be reached from other machines, so every name of it may be used."""

    def __init__(self, gateway: Gateway, *, is_public: bool = False) -> None:
        self.gateway = gateway
        self._is_public = is_public
        self.app = Starlette(
            routes=[
                self._route("/v1/chat/completions", "POST", HttpDoor.chat),
                self._route("/v1/completions", "POST", HttpDoor.completions),
                self._route("/v1/models", "GET", HttpDoor.models),
                self._route("/v1/models/{name:path}", "GET", HttpDoor.model),
                self._route("/v1/requests/{request_id}", "DELETE", HttpDoor.cancel),
                self._route("/tokenize", "POST", HttpDoor.tokenize),
                self._route("/detokenize", "POST", HttpDoor.detokenize),
                Route("/health", self.health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _other},
        )

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            return await self._guarded(handler, request)

        return Route(path, endpoint, methods=[method])

    async def _guarded(self, handler: Handler, request: Request) -> Response:
        try:
            self._check_host(request)
            caller = self.gateway.settings.tokens.caller(request.headers.get("authorization"))
            caller.require("inference")
            return await handler(self, request, caller)
        except QuireError as error:
            return failed(error)
        except ClientDisconnect:
            return failed(Aborted("the client went away"))

    def _check_host(self, request: Request) -> None:
        """A page of somebody else's in a browser of this machine must not speak for its user."""
        if self._is_public or self.gateway.settings.tokens:
            return
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        name = host.strip("[]")
        try:
            is_local = ipaddress.ip_address(name).is_loopback
        except ValueError:
            is_local = name in ("localhost", "") or name.endswith(".localhost")
        if not is_local:
            raise AccessDenied(f"this door is for this machine alone, and was called {name[:80]!r}; use 127.0.0.1")

    async def health(self, request: Request) -> Response:
        ready = self._ready()
        return JSONResponse({"status": "ok" if ready else "not ready"}, 200 if ready else 503)

    def _ready(self) -> bool:
        served = self.gateway.catalogue.served.values()
        return self.gateway.is_connected and not self.gateway.is_stopping and any(one.is_ready for one in served)

    # -- generating

    async def chat(self, request: Request, caller: Caller) -> Response:
        return await self._generate("chat", request, caller)

    async def completions(self, request: Request, caller: Caller) -> Response:
        return await self._generate("completion", request, caller)

    async def _generate(self, kind: str, request: Request, caller: Caller) -> Response:
        request_id = request.headers.get("x-request-id") or f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{_new_id()}"
        _check_id(request_id)
        body = await read_body(request, self.gateway.max_body_bytes)
        asked = asks.read(kind, body, request_id)
        positions = _positions(request, asked)
        served, model = self.gateway.catalogue.find(asked.requests[0].model)
        questions = []
        for one in asked.requests:
            if positions is not None:
                one.resume.positions.extend(positions)
            trace = request.headers.get("traceparent", "")
            questions.append(read_generate(one, asked.timeout_s, trace))
        writer = Writer(asked, request_id, served.name, int(time.time()), _speller(model))
        reader = Reader(self.gateway, caller.tenant)
        generation = Generation(reader, writer, questions, request_id)
        if asked.streams:
            return await generation.stream(positions)
        return await generation.whole(request)

    async def cancel(self, request: Request, caller: Caller) -> Response:
        request_id = request.path_params["request_id"]
        _check_id(request_id)
        found = self.gateway.cancel(caller.tenant, request_id)
        return JSONResponse({"id": request_id, "object": "request", "cancelled": found})

    # -- models and tokens

    def _card(self, name: str) -> dict[str, Any] | None:
        served, model = self.gateway.catalogue.served.get(name), self.gateway.catalogue.models.get(name)
        if served is None or model is None:
            return None
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "quire",
            "max_model_len": served.max_model_len or model.max_model_len,
            "ready": served.is_ready and self.gateway.is_connected,
        }

    async def models(self, request: Request, caller: Caller) -> Response:
        cards = [self._card(name) for name in self.gateway.catalogue.served]
        return JSONResponse({"object": "list", "data": [card for card in cards if card is not None]})

    async def model(self, request: Request, caller: Caller) -> Response:
        name = request.path_params["name"]
        card = self._card(name)
        if card is None:
            raise NotFound(f"no model {name[:200]} is served here; GET /v1/models lists those that are")
        return JSONResponse(card)

    async def tokenize(self, request: Request, caller: Caller) -> Response:
        """vLLM's: `prompt`, or `messages` as in a chat."""
        body = await read_body(request, self.gateway.max_body_bytes)
        _only(body, "model", "prompt", "messages", "add_generation_prompt")
        catalogue = self.gateway.catalogue
        served, model = catalogue.find(fields.text("model", body.get("model") or ""))
        kind = "chat" if "messages" in body else "completion"
        prompt = asks.read(kind, body, "tokenize").requests[0].prompt
        tokens = list(await read_prompt(prompt, model, catalogue.work))
        longest = served.max_model_len or model.max_model_len
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": longest})

    async def detokenize(self, request: Request, caller: Caller) -> Response:
        body = await read_body(request, self.gateway.max_body_bytes)
        _only(body, "model", "tokens")
        catalogue = self.gateway.catalogue
        _, model = catalogue.find(fields.text("model", body.get("model") or ""))
        given = fields.listed("tokens", body.get("tokens"))
        tokens = [fields.whole(f"tokens[{at}]", token) for at, token in enumerate(given)]
        return JSONResponse({"prompt": await read_text(tokens, True, model, catalogue.work)})


class Generation:
    """One generation over HTTP, as one body or as a stream of events."""

    def __init__(self, reader: Reader, writer: Writer, questions: list[Question], request_id: str) -> None:
        self._reader = reader
        self._writer = writer
        self._questions = questions
        self._headers = {"x-request-id": request_id}

    async def whole(self, request: Request) -> Response:
        """The request ends with its client's connection."""
        gone = asyncio.create_task(_until_gone(request))
        work = asyncio.create_task(self._gather())
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            work.result()
            return JSONResponse(self._writer.whole(), headers=self._headers)
        except QuireError as error:
            return failed(error, self._headers)
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
            self._reader.leave(is_final=False)

    async def _gather(self) -> None:
        await self._reader.begin(self._questions)
        async for batch in self._reader.batches():
            for response in batch:
                self._writer.take(response)

    async def stream(self, positions: tuple[int, ...] | None) -> Response:
        """Headers go out once the request is accepted or refused: a refusal has its own status."""
        try:
            await self._reader.begin(self._questions)
            batches = aiter(self._reader.batches())
            first: list[pb.GenerateResponse] = await anext(batches, [])
        except BaseException as error:
            self._reader.leave(is_final=False)
            if isinstance(error, QuireError):
                return failed(error, self._headers)
            raise
        return EventStream(self._events(first, batches, positions), self._reader, self._headers)

    async def _events(
        self,
        first: list[pb.GenerateResponse],
        batches: AsyncIterator[list[pb.GenerateResponse]],
        positions: tuple[int, ...] | None,
    ) -> AsyncIterator[bytes]:
        """`id:` of an event is how many tokens of each sequence came with it and before it: that is enough to go on."""
        writer = self._writer
        told = list(positions or [0] * len(writer.choices))
        can_resume = len(self._questions) == 1
        for chunk in writer.begin() if positions is None else ():
            yield _event(chunk, told if can_resume else None)
        try:
            batch: list[pb.GenerateResponse] | None = first
            while batch is not None:
                news = {}
                for response in batch:
                    choice = writer.take(response)
                    if choice is not None:
                        news[choice.index] = choice
                        if response.HasField("tokens"):
                            told[choice.index] = response.tokens.position + len(response.tokens.ids)
                for choice in news.values():
                    chunk_or_none = writer.chunk(choice)
                    if chunk_or_none is not None:
                        yield _event(chunk_or_none, told if can_resume else None)
                batch = await anext(batches, None)
            for chunk in writer.last():
                yield _event(chunk, told if can_resume else None)
        except QuireError as error:
            yield _event(body_of(error), None)
        yield b"data: [DONE]\n\n"


class EventStream(Response):
    """Writes events until they end or the client is gone. One that takes nothing for long is cut off."""

    def __init__(self, events: AsyncIterator[bytes], reader: Reader, headers: dict[str, str]) -> None:
        super().__init__(media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_gone(receive))
        work = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        except (TimeoutError, OSError):
            pass  # it takes nothing, or is gone: there is nobody to tell
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
            self._reader.leave(is_final=False)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        events = aiter(self._events)
        following = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=KEEP_ALIVE_S)
                event = following.result() if done else b": alive\n\n"
                async with asyncio.timeout(STUCK_S):
                    await send({"type": "http.response.body", "body": event or b"", "more_body": event is not None})
                if event is None:
                    return
                if done:
                    following = asyncio.ensure_future(anext(events, None))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


# -- what all paths share


async def read_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a body, bounded before it is read. Raises `InvalidRequest`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest("content-type", f"is {kind[:80]!r}", "send application/json")
    announced = request.headers.get("content-length", "0")
    if announced.isascii() and announced.isdigit() and int(announced) > max_bytes:
        raise InvalidRequest("body", f"has {int(announced):,} bytes", f"send at most {max_bytes:,}")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise InvalidRequest("body", f"has more than {max_bytes:,} bytes", "send less")
                parts.append(part)
    except TimeoutError as error:
        raise InvalidRequest("body", f"did not come whole within {BODY_S:g} s", "send it at once") from error
    raw = b"".join(parts)
    body = await asyncio.to_thread(_parsed, raw) if size > 1 << 16 else _parsed(raw)
    if not isinstance(body, dict):
        raise InvalidRequest("body", "is no JSON object", "send an object with the fields of the API")
    return body


def _parsed(raw: bytes) -> Any:
    depth = deepest = 0
    # Brackets inside of strings count too: a body that has so many of those in a row is none that we need.
    for byte in raw.translate(None, delete=bytes(set(range(256)) - set(b"[]{}"))):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH * 8:
        raise InvalidRequest("body", f"is nested {deepest:,} deep", f"nest at most {MAX_DEPTH} objects")
    try:
        return json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", f"is no JSON: {str(error)[:200]}", "send an object") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def failed(error: QuireError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body_of(error), status_of(error), headers={**(headers or {}), **headers_of(error)})


async def _other(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, error.status_code, headers=error.headers)


def _only(body: dict[str, Any], *names: str) -> None:
    for name in body:
        if name not in names:
            raise InvalidRequest(name, "is not a field that is honoured here", "leave it out")


def _new_id() -> str:
    return secrets.token_hex(12)


def _check_id(request_id: str) -> None:
    if not request_id.isprintable() or not request_id.isascii() or len(request_id) > MAX_REQUEST_ID_CHARS - 8:
        raise InvalidRequest("X-Request-Id", "is too long or cannot be printed", "give at most 120 letters and digits")


def _positions(request: Request, asked: asks.Asked) -> tuple[int, ...] | None:
    """Of `Last-Event-ID`: the client goes on with a stream that broke."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    parts = given.split(".")
    if not asked.streams or len(asked.requests) != 1:
        raise InvalidRequest("Last-Event-ID", "is given without a stream of one prompt", "leave it out")
    if len(parts) > 4096 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InvalidRequest("Last-Event-ID", f"is {given[:60]!r}", "send the id of the last event that came")
    return tuple(int(part) for part in parts)


def _event(content: dict[str, Any], told: list[int] | None) -> bytes:
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return data.join((b"data: ", b"\n\n")) if told is None else b"id: %s\ndata: %s\n\n" % (_id(told), data)


def _id(told: list[int]) -> bytes:
    return ".".join(map(str, told)).encode()


def _speller(model: TextModel) -> Callable[[int], str]:
    known: dict[int, str] = {}

    def spell(token: int) -> str:
        if model.tokenizer is None:
            return ""
        if token not in known:
            known[token] = model.decode([token], False)
        return known[token]

    return spell


async def _until_gone(request: Request) -> None:
    await _gone(request.receive)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
