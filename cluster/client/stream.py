"""Streams that survive a broken connection: one request on a Generate call, or many on one GenerateMany call.

When a connection breaks, the next gateway is asked for what has not come yet, by position; nothing is lost, doubled or
reordered. What the gateway itself refuses is raised at once. Needs the base install only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import TypeAlias

import grpc.aio

from cluster.client.connection import PARTING_S, Connection
from cluster.client.errors import error_from_status
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

CANCELS_AT_ONCE = 64


class Patience:
    """Decides after a failure whether to try again, when, and until when."""

    def __init__(self, connection: Connection, timeout_s: float | None) -> None:
        self._connection = connection
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
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

    async def wait(self, error: QuireError, begun: Sequence[Reception]) -> None:
        """Returns when it is time to try again; raises `error` when there is no point, or no time. What has `begun` is
        kept for a while by a cluster whose gateway died."""
        if not isinstance(error, Unavailable):
            raise error
        now = time.monotonic()
        if self._broke_at is None:
            self._broke_at = now
        if now - self._broke_at > max((resumable_s(one) for one in begun), default=CONNECT_S):
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


def resumable_s(reception: Reception) -> float:
    return max(reception.request.resume_grace_s, GATEWAY_GRACE_S)


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


async def give_up(connection: Connection, receptions: Sequence[Reception]) -> None:
    """Tells the gateway that nobody waits for these any more: a stream that only breaks off is kept for its grace."""
    stub = connection.stub()
    room = asyncio.Semaphore(CANCELS_AT_ONCE)

    async def cancel(reception: Reception) -> None:
        async with room:
            request = pb.CancelRequest(request_id=reception.request.request_id)
            with suppress(grpc.aio.AioRpcError):
                await stub.Cancel(request, timeout=PARTING_S, metadata=connection.metadata)

    await asyncio.gather(*map(cancel, receptions))


async def receive(
    connection: Connection, reception: Reception, timeout_s: float | None
) -> AsyncGenerator[StreamOutput, None]:
    """One request to its end. Raises `QuireError`. Whoever leaves before it ends the request."""
    try:
        async with aclosing(_to_its_end(connection, reception, timeout_s)) as outputs:
            async for output in outputs:
                yield output
    except (GeneratorExit, asyncio.CancelledError):
        if not reception.is_done:
            connection.say_last(give_up(connection, [reception]))
        raise


async def _to_its_end(
    connection: Connection, reception: Reception, timeout_s: float | None
) -> AsyncGenerator[StreamOutput, None]:
    patience = Patience(connection, timeout_s)
    request = reception.request
    while True:
        left_s = reception.send(time.monotonic(), patience.left_s)
        call = connection.stub().Generate(request, timeout=left_s, metadata=connection.metadata)
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
            error = connection.error(failure)
        finally:
            call.cancel()
        following = next_request(reception, request, error)
        if following is not None:
            await patience.change_of_mind(error)
        else:
            if isinstance(error, NotFound) and request.HasField("resume"):
                raise lost(error)
            await patience.wait(error, [reception] if reception.has_begun else [])
            following = reception.again()
        request = following


class Many:
    """Many requests on one stream, taken as there is room. Iterating gives what is new, and each request's end or
    error once."""

    def __init__(self, connection: Connection, receptions: Iterable[Reception], timeout_s: float | None) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._coming = iter(receptions)
        # Those that were taken and have not ended.
        self._receptions: dict[int, Reception] = {}
        self._waiting: deque[tuple[int, pb.GenerateRequest]] = deque()
        self._asked: dict[int, pb.GenerateRequest] = {}
        # Of requests that were refused for now: when they are asked again.
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()
        self._patience = Patience(connection, timeout_s)

    async def events(self) -> AsyncGenerator[tuple[Reception, StreamOutput | QuireError | None], None]:
        """(reception, new tokens), and once (reception, None) when it is done or (reception, error). Whoever leaves
        before the last ends those that are under way."""
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            sent = [one for one in self._receptions.values() if one.num_sent]
            if sent:
                self._connection.say_last(give_up(self._connection, sent))
            raise

    async def _events(self) -> AsyncGenerator[tuple[Reception, StreamOutput | QuireError | None], None]:
        while self._has_work():
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
                    if not self._has_work():
                        return
            except grpc.aio.AioRpcError as failure:
                error = self._connection.error(failure)
            finally:
                sender.cancel()
                call.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            under_way = [self._receptions[number] for number in self._asked]
            await self._patience.wait(error, [one for one in under_way if one.has_begun])
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            again = [(number, self._receptions[number].again()) for number in self._asked]
            self._asked.clear()
            self._waiting.extendleft(reversed(again))

    def _has_work(self) -> bool:
        """Whether something is under way or still to be asked; takes the next where there is room."""
        while len(self._receptions) < WINDOW and (reception := next(self._coming, None)) is not None:
            self._receptions[reception.number] = reception
            self._waiting.append((reception.number, reception.request))
            self._news.set()
        return bool(self._receptions)

    async def _send(self, call: Stream) -> None:
        while True:
            while self._waiting:
                number, request = self._waiting.popleft()
                self._asked[number] = request
                message = pb.GenerateManyRequest(tag=number, generate=request)
                left_s = self._receptions[number].send(time.monotonic(), self._patience.left_s)
                if left_s is not None:
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
            del self._asked[number], self._receptions[number]
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
        else:
            del self._receptions[reception.number]
            yield reception, lost(error) if isinstance(error, NotFound) and asked.HasField("resume") else error
        self._news.set()

    def _ask_later(self, reception: Reception, request: pb.GenerateRequest, delay_s: float) -> None:
        self._asked[reception.number] = request
        timer = asyncio.get_running_loop().call_later(delay_s, self._ask_again, reception.number)
        self._timers[reception.number] = timer

    def _ask_again(self, number: int) -> None:
        del self._timers[number]
        self._waiting.append((number, self._asked.pop(number)))
        self._news.set()
