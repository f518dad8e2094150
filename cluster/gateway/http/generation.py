"""One generation over HTTP: as one body, or as a stream of events that can be taken up again.

A generation whose client goes away is left to the gateway at once. `app.py` makes one for each request that it accepts.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cluster.errors import InvalidRequest, QueueFull, QuireError
from cluster.gateway.door.unread import UnreadBounds
from cluster.gateway.errors import without_frames
from cluster.gateway.http.answers import Writer
from cluster.gateway.http.errors import body_of, headers_of, status_of
from cluster.gateway.http.look import Look
from cluster.gateway.http.reader import Asking, HttpReader
from cluster.gateway.models import TextModel
from cluster.messages import Ids
from protos.quire.v1 import inference_pb2 as pb

KEEP_ALIVE_S = 15.0
"""A stream that has nothing to say says a comment this often, so that what lies between keeps it open."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What answers say beside text, and where a stream of them broke."""

    model: TextModel
    tools: tuple[str, ...]
    told: tuple[int, ...]

    @classmethod
    def of(cls, look: Look, model: TextModel, told: tuple[int, ...] | None) -> Speech | None:
        """None: all that the answers say is text. Raises `InvalidRequest`."""
        if look.kind != "chat" or model.form.parser(look.tools, False) is None:
            return None
        if told and (look.num_top is not None or look.returns_ids):
            problem = "is given for an answer with reasoning or tools, and logprobs or token ids of it are asked for"
            raise InvalidRequest("Last-Event-ID", problem, "ask again without them")
        return cls(model, look.tools, told or ())

    def parse(self, writer: Writer, prompt: Ids) -> None:
        is_open = self.model.opens_thinking(prompt)
        writer.parse(lambda: self.model.form.parser(self.tools, is_open), self.told)


class HeldAnswers:
    """Bytes of the answers that are put together whole at one door. They are unread, and bounded as such."""

    def __init__(self, bounds: UnreadBounds) -> None:
        self._bounds = bounds
        self._by_tenant: Counter[str] = Counter()

    def change(self, tenant: str, before: int, after: int) -> int:
        """Returns `after`. Raises QueueFull where the answers of this tenant, or of all, would be too large."""
        of_it, total = self._by_tenant[tenant] + after - before, self._by_tenant.total() + after - before
        if after > before and of_it > self._bounds.tenant:
            raise QueueFull(f"{of_it:,} bytes of this tenant's answers are kept; ask with stream, or for less", 1.0)
        if after > before and total > self._bounds.total:
            raise QueueFull(f"{total:,} bytes of answers are kept here, which is the bound; ask with stream", 1.0)
        self._by_tenant[tenant] = of_it
        if not of_it:
            del self._by_tenant[tenant]
        return after


class Generation:
    """One generation over HTTP, as one body or as a stream of events."""

    def __init__(
        self, reader: HttpReader, writer: Writer, asked: Sequence[Asking], request_id: str, speech: Speech | None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._asked = asked
        self._speech = speech
        self._headers = {"x-request-id": request_id}

    async def _begin(self) -> None:
        await self._reader.begin(self._asked)
        self._writer.prompt_tokens = self._reader.prompt_tokens
        if self._speech is not None:
            self._speech.parse(self._writer, self._reader.prompt)

    async def whole(self, request: Request, held: HeldAnswers) -> Response:
        """The request ends with its client's connection."""
        gone = asyncio.create_task(_until_gone(request))
        work = asyncio.create_task(self._gather(held))
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
            # What the work has raised names this frame, and the work keeps it (see `without_frames`).
            del gone, work

    async def _gather(self, held: HeldAnswers) -> None:
        await self._begin()
        size = 0
        try:
            async for batch in self._reader.batches():
                for response in batch:
                    self._writer.take(response)
                size = held.change(self._reader.tenant, size, self._writer.num_bytes)
        finally:
            held.change(self._reader.tenant, size, 0)

    async def stream(self, positions: tuple[int, ...] | None) -> Response:
        """Headers go out once the request is accepted or refused: a refusal has its own status."""
        try:
            await self._begin()
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
        """All that can be said at once. `id:` of an event is how far each sequence was told with it and before it: that
        is enough to go on."""
        writer = self._writer
        told = list(positions or [0] * len(writer.choices))
        can_resume = len(self._asked) == 1
        said = [_event(chunk, told if can_resume else None) for chunk in (writer.begin() if positions is None else ())]
        try:
            batch: list[pb.GenerateResponse] | None = first
            while batch is not None:
                news = {}
                for response in batch:
                    choice = writer.take(response)
                    if choice is not None:
                        news[choice.index] = choice
                for choice in news.values():
                    chunk_or_none = writer.chunk(choice)
                    told[choice.index] = max(told[choice.index], choice.position)
                    if chunk_or_none is not None:
                        said.append(_event(chunk_or_none, told if can_resume else None))
                if said:
                    yield b"".join(said)
                    said = []
                batch = await anext(batches, None)
            said = [_event(chunk, told if can_resume else None) for chunk in writer.last()]
        except QuireError as error:
            said.append(_event(body_of(without_frames(error)), None))
        yield b"".join((*said, b"data: [DONE]\n\n"))


class EventStream(Response):
    """Writes events until they end or the client is gone. One that takes nothing for long the server cuts off."""

    def __init__(self, events: AsyncIterator[bytes], reader: HttpReader, headers: dict[str, str]) -> None:
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
        except OSError:
            pass  # it is gone: there is nobody to tell
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
            self._reader.leave(is_final=False)
            del gone, work

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        loop = asyncio.get_running_loop()
        wrote_at = loop.time()

        async def stay() -> None:
            nonlocal wrote_at
            while True:
                await asyncio.sleep(wrote_at + KEEP_ALIVE_S - loop.time())
                if loop.time() - wrote_at >= KEEP_ALIVE_S:
                    wrote_at = loop.time()
                    await send({"type": "http.response.body", "body": b": alive\n\n", "more_body": True})

        # A task beside the events, not a deadline for each of them: that would be a task for each.
        staying = loop.create_task(stay())
        try:
            async for said in self._events:
                wrote_at = loop.time()
                await send({"type": "http.response.body", "body": said, "more_body": True})
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# One for all: `json.dumps` with settings makes one at each call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _event(content: dict[str, Any], told: list[int] | None) -> bytes:
    data = _encode(content).encode()
    return data.join((b"data: ", b"\n\n")) if told is None else b"id: %s\ndata: %s\n\n" % (_id(told), data)


def _id(told: list[int]) -> bytes:
    return ".".join(map(str, told)).encode()


async def _until_gone(request: Request) -> None:
    await _gone(request.receive)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def failed(error: QuireError, headers: dict[str, str] | None = None) -> JSONResponse:
    body = body_of(without_frames(error))
    return JSONResponse(body, status_of(error), headers={**(headers or {}), **headers_of(error)})
