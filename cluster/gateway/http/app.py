"""The paths of the HTTP door: who may ask, what is asked, and how the answer is written.

Every request passes `_guarded`: host and credentials before the body, the body bounded in size, time and depth, each
error in OpenAI's shape. Generations are `generation.py`'s; the server around it is `server.py`, and opens the port.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster import __version__
from cluster.errors import Aborted, AccessDenied, InvalidRequest, NotFound, QuireError
from cluster.gateway.bodies import SMALL_BYTES, Bodies
from cluster.gateway.gateway import Gateway
from cluster.gateway.http import asks
from cluster.gateway.http.answers import Writer
from cluster.gateway.http.errors import body_of
from cluster.gateway.http.generation import Generation, HeldAnswers, Speech, failed
from cluster.gateway.http.look import Look
from cluster.gateway.http.openapi import document
from cluster.gateway.http.reader import Again, HttpReader
from cluster.gateway.intake import read_generate
from cluster.gateway.models import TextModel
from cluster.gateway.settings import MAX_REQUEST_ID_CHARS
from cluster.gateway.work import INLINE_SIZE
from cluster.serving.auth import Caller
from cluster.serving.refused import refused
from cluster.wire import values

BODY_S = 20.0
"""A body that has not come whole by then is not waited for."""
MAX_HEAD_BYTES = 64 << 10
_HOST = re.compile(r"(\[(?P<v6>[^\]]+)\]|(?P<name>[^:]*))(:[0-9]*)?")

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[["HttpDoor", Request, Caller], Awaitable[Response]]


class HttpDoor:
    """The application. `is_public`: it can be reached from other machines, so every name of it may be used."""

    def __init__(self, gateway: Gateway, *, is_public: bool = False) -> None:
        self.gateway = gateway
        self._is_public = is_public
        self._document: bytes | None = None
        self._held = HeldAnswers(gateway.settings.unread)
        self._bodies = Bodies(gateway.settings.max_message_bytes)
        self._paths = Starlette(
            routes=[
                self._route("/v1/chat/completions", "POST", HttpDoor.chat),
                self._route("/v1/completions", "POST", HttpDoor.completions),
                self._route("/v1/models", "GET", HttpDoor.models),
                self._route("/v1/models/{name:path}", "GET", HttpDoor.model),
                self._route("/v1/requests/{request_id:path}", "DELETE", HttpDoor.cancel),
                self._route("/v1/requests/{request_id:path}/stream", "GET", HttpDoor.go_on),
                self._route("/tokenize", "POST", HttpDoor.tokenize),
                self._route("/detokenize", "POST", HttpDoor.detokenize),
                self._route("/openapi.json", "GET", HttpDoor.describe),
                Route("/health", self.health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _other},
        )
        # A slash too many would be answered with a way to whatever host the client named, for its token and body.
        self._paths.router.redirect_slashes = False

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application. A head that came whole is bounded here; one that comes in parts, in `server.py`."""
        size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) for name, value in scope.get("headers", ()))
        if size > MAX_HEAD_BYTES:
            error = InvalidRequest("head", f"has {size:,} bytes", f"send at most {MAX_HEAD_BYTES:,}")
            await JSONResponse(body_of(error), 431)(scope, receive, send)
        else:
            await self._paths(scope, receive, send)

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            return await self._guarded(handler, request)

        return Route(path, endpoint, methods=[method])

    async def _guarded(self, handler: Handler, request: Request) -> Response:
        try:
            self._check_host(request)
            return await handler(self, request, self._caller(request))
        except QuireError as error:
            return failed(error)
        except ClientDisconnect:
            return failed(Aborted("the client went away"))

    def _caller(self, request: Request) -> Caller:
        try:
            caller = self.gateway.settings.tokens.caller(request.headers.get("authorization"))
            caller.require("inference")
        except AccessDenied as error:
            refused.note("a call over HTTP", request.client.host if request.client else "", str(error))
            raise
        return caller

    def _check_host(self, request: Request) -> None:
        """A page of somebody else's in a browser of this machine must not speak for its user."""
        if self._is_public or self.gateway.settings.tokens:
            return
        host = request.headers.get("host", "")
        named = _HOST.fullmatch(host.lower())
        name = (named["v6"] or named["name"]) if named else "?"
        try:
            is_local = ipaddress.ip_address(name).is_loopback
        except ValueError:
            is_local = name in ("localhost", "") or name.endswith(".localhost")
        if not is_local:
            raise AccessDenied(f"this door is for this machine alone, and was called {host[:80]!r}; use 127.0.0.1")

    async def health(self, request: Request) -> Response:
        ready = self._ready()
        return JSONResponse({"status": "ok" if ready else "not ready"}, 200 if ready else 503)

    def _ready(self) -> bool:
        served = self.gateway.catalogue.served.values()
        return self.gateway.is_connected and not self.gateway.is_stopping and any(one.is_ready for one in served)

    async def describe(self, request: Request, caller: Caller) -> Response:
        if self._document is None:
            self._document = json.dumps(document(__version__)).encode()
        return Response(self._document, media_type="application/json")

    # -- bodies

    async def _read_body(self, request: Request, tenant: str) -> tuple[dict[str, Any], int]:
        """The JSON object of a body, bounded before it is read, and how many bytes that was. Raises `QuireError`."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise InvalidRequest("content-type", f"is {kind[:80]!r}", "send application/json")
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise InvalidRequest("content-encoding", f"is {coding[:80]!r}", "send the body as it is")
        max_bytes, announced = self.gateway.max_body_bytes, request.headers.get("content-length", "")
        # A length that is told beside chunks says nothing of them.
        is_told = announced.isascii() and announced.isdigit() and "transfer-encoding" not in request.headers
        size = int(announced) if is_told else max_bytes
        if size > max_bytes:
            raise InvalidRequest("body", f"has {size:,} bytes", f"send at most {max_bytes:,}")
        if size > SMALL_BYTES:
            async with self._bodies.share(tenant):
                raw = await _whole(request, max_bytes)
        else:
            raw = await _whole(request, max_bytes)
        # Of numbers there can be as many as there is room for: token ids.
        body = await self._run(tenant, len(raw), values.parsed, "body", raw, len(raw))
        if not isinstance(body, dict):
            raise InvalidRequest("body", "is no JSON object", "send an object with the fields of the API")
        return body, len(raw)

    async def _run(self, tenant: str, size: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work on a body of so many bytes, of which a small one is not worth a thread."""
        return await self.gateway.catalogue.work.run(tenant, size * INLINE_SIZE // SMALL_BYTES, do, *args, **kwargs)

    # -- generating

    async def chat(self, request: Request, caller: Caller) -> Response:
        return await self._generate("chat", request, caller)

    async def completions(self, request: Request, caller: Caller) -> Response:
        return await self._generate("completion", request, caller)

    async def _generate(self, kind: str, request: Request, caller: Caller) -> Response:
        named = request.headers.get("x-request-id", "")
        _check_id(named)
        body, size = await self._read_body(request, caller.tenant)
        request_id = named or asks.read_id(body) or f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{_new_id()}"
        _check_id(request_id)
        asked = await self._run(caller.tenant, size, asks.read, kind, body, request_id)
        if "last-event-id" in request.headers and not (asked.streams and len(asked.requests) == 1):
            raise InvalidRequest("Last-Event-ID", "is given without a stream of one prompt", "leave it out")
        positions = _positions(request)
        served, model = self.gateway.catalogue.find(asked.requests[0].model)
        look = asked.look
        speech = Speech.of(look, model, positions)
        questions = []
        for one in asked.requests:
            if speech is not None:
                one.sampling.skip_special_tokens = one.sampling.skip_special_tokens and not model.form.shows_special
            if positions is not None:
                one.resume.positions.extend(positions if speech is None else [0] * len(positions))
            question = read_generate(one, asked.timeout_s, request.headers.get("traceparent", ""))
            questions.append(replace(question, look=look.to_text()))
        per_prompt = max(1, asked.requests[0].sampling.n)
        writer = Writer(look, per_prompt, len(questions), request_id, served.name, _speller(model))
        generation = Generation(HttpReader(self.gateway, caller.tenant), writer, questions, request_id, speech)
        if asked.streams:
            return await generation.stream(positions)
        return await generation.whole(request, self._held)

    async def go_on(self, request: Request, caller: Caller) -> Response:
        """The stream of a request that is under way, or was a moment ago, at whichever gateway it began."""
        if request.method != "GET":
            # Starlette takes HEAD for GET: it would take the stream from whoever reads it, and say nothing.
            raise HTTPException(405, headers={"allow": "GET"})
        request_id = request.path_params["request_id"]
        _check_id(request_id)
        positions = _positions(request)
        submit = await self.gateway.find(caller.tenant, request_id)
        num_sequences = submit.sampling.n
        if positions is not None and len(positions) != num_sequences:
            problem = f"has {len(positions):,} parts, and the request {num_sequences} sequences"
            raise InvalidRequest("Last-Event-ID", problem, "send the id of the last event that came")
        look = Look.of_text(submit.look)
        _, model = self.gateway.catalogue.find(submit.model)
        speech = Speech.of(look, model, positions)
        writer = Writer(look, num_sequences, 1, request_id, submit.model, _speller(model))
        told = (0,) * num_sequences if positions is None or speech is not None else positions
        reader = HttpReader(self.gateway, caller.tenant)
        return await Generation(reader, writer, [Again(submit, told)], request_id, speech).stream(positions)

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
        body, size = await self._read_body(request, caller.tenant)
        _only(body, "model", "prompt", "messages", "add_generation_prompt")
        kind, model_name = "chat" if "messages" in body else "completion", values.text("model", body.get("model") or "")
        asked = await self._run(caller.tenant, size, asks.read, kind, body, "tokenize")
        prompt = asked.requests[0].prompt
        tokens, longest = await self.gateway.tokenize(caller.tenant, model_name, prompt)
        return JSONResponse({"tokens": list(tokens), "count": len(tokens), "max_model_len": longest})

    async def detokenize(self, request: Request, caller: Caller) -> Response:
        body, _ = await self._read_body(request, caller.tenant)
        _only(body, "model", "tokens")
        model_name = values.text("model", body.get("model") or "")
        given = values.listed("tokens", body.get("tokens"))
        tokens = [values.whole(f"tokens[{at}]", token) for at, token in enumerate(given)]
        return JSONResponse({"prompt": await self.gateway.detokenize(caller.tenant, model_name, tokens, True)})


# -- what all paths share


async def _whole(request: Request, max_bytes: int) -> bytes:
    """A body, bounded while it comes. Raises `InvalidRequest`."""
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
    return b"".join(parts)


async def _other(request: Request, error: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(error, HTTPException)
    # Not the URL: it is made with the host that the client named, which may be none.
    message = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
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


def _positions(request: Request) -> tuple[int, ...] | None:
    """Of `Last-Event-ID`: the client goes on with a stream that broke."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    parts = given.split(".")
    if len(parts) > 4096 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InvalidRequest("Last-Event-ID", f"is {given[:60]!r}", "send the id of the last event that came")
    return tuple(int(part) for part in parts)


def _speller(model: TextModel) -> Callable[[int], bytes]:
    known: dict[int, bytes] = {}

    def spell(token: int) -> bytes:
        if token not in known:
            known[token] = model.spell(token)
        return known[token]

    return spell
