"""Streams that survive a broken connection: one request on a Generate call, or many on one GenerateMany call.

When a connection breaks, the next gateway is asked for what has not come yet, by position; nothing is lost, doubled or
reordered. What the gateway itself refuses is raised at once. Needs the base install only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import TypeAlias

import grpc.aio

from cluster.client.connection import Connection
from cluster.client.errors import error_from_call, error_from_status
from cluster.client.request import Reception
from cluster.errors import AlreadyExists, DeadlineExceeded, NotFound, QueueFull, QuireError, Unavailable
from cluster.offline.outputs import StreamOutput
from protos.quire.v1 import inference_pb2 as pb

CONNECT_S = 5.0
"""How long a gateway that has never answered is tried."""

GATEWAY_GRACE_S = 10.0
"""How long a cluster keeps the requests of a gateway that died."""

Stream: TypeAlias = "grpc.aio.StreamStreamCall[pb.GenerateManyRequest, pb.GenerateManyResponse]"

MAX_TURNS = 12

STREAM_SLACK_S = 5.0
"""Deadlines of requests are their own; the stream that carries many lives a little longer."""

WINDOW = 1_024
"""Requests under way on one stream; the next is sent when one has ended."""


class Patience:
    """Decides after a failure whether to try again, when, and until when."""

    def __init__(self, connection: Connection, timeout_s: float | None, resume_grace_s: float) -> None:
        self._connection = connection
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._resume_s = max(resume_grace_s, GATEWAY_GRACE_S)
        self._broke_at: float | None = None
        self._num_tries = 0
        self._num_turns = 0

    @property
    def left_s(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def heard(self) -> None:
        self._broke_at = None
        self._num_tries = 0

    async def change_of_mind(self, error: QuireError) -> None:
        """Waits a moment before a refusal is answered by another question: a scheduler that has just started may say
        of one request that it does not know it, and that it exists."""
        self._num_turns += 1
        if self._num_turns > MAX_TURNS:
            raise error
        await asyncio.sleep(min(1.0, 0.02 * 2**self._num_turns))

    async def wait(self, error: QuireError, has_begun: bool) -> None:
        """Returns when it is time to try again; raises `error` when there is no point, or no time."""
        if not isinstance(error, Unavailable):
            raise error
        now = time.monotonic()
        if self._broke_at is None:
            self._broke_at = now
        if now - self._broke_at > (self._resume_s if has_begun else CONNECT_S):
            raise error
        # The first try comes at once: another gateway may be there already.
        delay_s = min(1.0, 0.05 * 2**self._num_tries) if self._num_tries else 0.0
        if error.retry_after_s is not None:
            delay_s = max(delay_s, error.retry_after_s)
        self._num_tries += 1
        if self._deadline is not None and now + delay_s >= self._deadline:
            raise DeadlineExceeded("the deadline passed while no gateway answered") from error
        self._connection.turn_to_next()
        await asyncio.sleep(delay_s)


def next_request(reception: Reception, asked: pb.GenerateRequest, error: QuireError) -> pb.GenerateRequest | None:
    """What to send at once after this refusal; None: nothing would help."""
    was_resuming = asked.HasField("resume")
    if isinstance(error, AlreadyExists) and not was_resuming and reception.num_sent > 1:
        # An earlier try got through after all.
        return reception.resumed()
    if isinstance(error, NotFound) and was_resuming and not reception.has_tokens:
        return reception.request
    return None


def lost(error: QuireError) -> QuireError:
    """A request that the cluster does not know any more though tokens of it have come."""
    return Unavailable(f"the request was given up while its connection was broken: {error}")


async def receive(connection: Connection, reception: Reception, timeout_s: float | None) -> AsyncIterator[StreamOutput]:
    """One request to its end. Raises `QuireError`."""
    patience = Patience(connection, timeout_s, reception.request.resume_grace_s)
    request = reception.request
    while True:
        reception.num_sent += 1
        call = connection.stub().Generate(request, timeout=patience.left_s, metadata=connection.metadata)
        try:
            async for response in call:
                patience.heard()
                output = reception.take(response)
                if output is not None:
                    yield output
            if reception.is_done:
                return
            error: QuireError = Unavailable("the gateway ended the stream before the answer was done")
        except grpc.aio.AioRpcError as failure:
            error = error_from_call(failure)
        finally:
            call.cancel()
        following = next_request(reception, request, error)
        if following is not None:
            await patience.change_of_mind(error)
        else:
            if isinstance(error, NotFound) and request.HasField("resume"):
                raise lost(error)
            has_begun = reception.is_accepted or reception.has_tokens
            await patience.wait(error, has_begun)
            following = reception.resumed() if has_begun else reception.request
        request = following


class Many:
    """Many requests on one stream. Iterating gives what is new, and each request's end or error once."""

    def __init__(self, connection: Connection, receptions: Iterable[Reception], timeout_s: float | None) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._receptions = {reception.number: reception for reception in receptions}
        self._waiting: deque[tuple[int, pb.GenerateRequest]] = deque(
            (number, reception.request) for number, reception in self._receptions.items()
        )
        self._asked: dict[int, pb.GenerateRequest] = {}
        self._news = asyncio.Event()
        grace_s = max((one.request.resume_grace_s for one in self._receptions.values()), default=0.0)
        self._patience = Patience(connection, timeout_s, grace_s)

    async def events(self) -> AsyncIterator[tuple[Reception, StreamOutput | QuireError | None]]:
        """(reception, new tokens), and once (reception, None) when it is done or (reception, error)."""
        while self._waiting or self._asked:
            left_s = self._patience.left_s
            timeout_s = None if left_s is None else max(0.0, left_s) + STREAM_SLACK_S
            call = self._connection.stub().GenerateMany(None, timeout=timeout_s, metadata=self._connection.metadata)
            sender = asyncio.create_task(self._send(call))
            error: QuireError = Unavailable("the gateway ended the stream before all answers were done")
            try:
                async for message in call:
                    self._patience.heard()
                    for response in message.responses:
                        for event in self._take(response):
                            yield event
                    if not self._waiting and not self._asked:
                        return
            except grpc.aio.AioRpcError as failure:
                error = error_from_call(failure)
            finally:
                sender.cancel()
                call.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            has_begun = any(self._receptions[number].is_accepted for number in self._asked)
            await self._patience.wait(error, has_begun)
            again = [(number, self._again(number)) for number in self._asked]
            self._asked.clear()
            self._waiting.extendleft(reversed(again))

    def _again(self, number: int) -> pb.GenerateRequest:
        reception = self._receptions[number]
        return reception.resumed() if reception.is_accepted or reception.has_tokens else reception.request

    async def _send(self, call: Stream) -> None:
        while True:
            while self._waiting and len(self._asked) < WINDOW:
                number, request = self._waiting.popleft()
                self._asked[number] = request
                self._receptions[number].num_sent += 1
                message = pb.GenerateManyRequest(tag=number, generate=request)
                if (left_s := self._patience.left_s) is not None:
                    message.timeout_s = left_s
                await call.write(message)
            self._news.clear()
            await self._news.wait()

    def _take(self, response: pb.GenerateResponse) -> Iterable[tuple[Reception, StreamOutput | QuireError | None]]:
        number = response.tag
        reception = self._receptions.get(number)
        if reception is None or number not in self._asked:
            return
        if response.WhichOneof("event") == "failed":
            yield from self._take_failure(reception, error_from_status(response.failed))
            return
        output = reception.take(response)
        if output is not None:
            yield reception, output
        if reception.is_done:
            del self._asked[number]
            self._news.set()
            yield reception, None

    def _take_failure(self, reception: Reception, error: QuireError) -> Iterable[tuple[Reception, QuireError]]:
        asked = self._asked.pop(reception.number)
        following = next_request(reception, asked, error)
        if following is not None:
            self._ask_later(reception, following, 0.1)
        elif isinstance(error, QueueFull):
            # Others of this stream fill the queue: it is asked again when there is room.
            self._ask_later(reception, asked, max(0.05, error.retry_after_s))
        elif isinstance(error, NotFound) and asked.HasField("resume"):
            yield reception, lost(error)
        else:
            yield reception, error
        self._news.set()

    def _ask_later(self, reception: Reception, request: pb.GenerateRequest, delay_s: float) -> None:
        self._asked[reception.number] = request
        asyncio.get_running_loop().call_later(delay_s, self._ask_again, reception, request)

    def _ask_again(self, reception: Reception, request: pb.GenerateRequest) -> None:
        if self._asked.get(reception.number) is request:
            del self._asked[reception.number]
            self._waiting.append((reception.number, request))
            self._news.set()
