"""The client without async: `with Client("gateway:50051") as client`. The base install is enough for it.

The same methods as AsyncClient, which does all the work in an event loop on a thread of its own. Each method here only
waits for that one; streams are plain iterators. May be used from several threads at once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from cluster.client.asynchronous import AsyncClient, ModelCard
from cluster.client.connection import DEFAULT_ADDRESS, PARTING_S, Tls
from cluster.client.request import Options, Prompt
from cluster.errors import QuireError, Unavailable
from cluster.offline.outputs import RequestOutput, StreamOutput
from cluster.sampling import SamplingParams

T = TypeVar("T")

MAX_AHEAD = 1_024
"""Pieces of a stream that wait for a slow reader, before the connection itself is held up."""


class Client:
    """Speaks to one gateway, or to whichever of several answers; it learns of the others from any of them."""

    def __init__(
        self, address: str | Sequence[str] = DEFAULT_ADDRESS, *, token: str | None = None, tls: Tls | None = None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire-client", daemon=True)
        self._thread.start()
        # What is under way on the loop by our order, whoever waits for it.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._client = self._wait(_made(address, token, tls))
        self._is_closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is under way. Doing so again changes nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    # -- generating

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, options: Options | None = None, **settings: Any
    ) -> Generator[StreamOutput, None, None]:
        """Tokens of one prompt as they come. `settings` are fields of `SamplingParams` or `Options` by name."""
        return self._iterate(self._client.stream(prompt, params, options, **settings))

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, options: Options | None = None, **settings: Any
    ) -> RequestOutput:
        """All that comes of one prompt. Raises `QuireError`."""
        return self._wait(self._client.generate(prompt, params, options, **settings))

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> list[RequestOutput]:
        """All prompts on one stream; results in their order. The first error is raised when all have ended."""
        return self._wait(self._client.generate_many(prompts, params, options, **settings))

    def try_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> list[RequestOutput | QuireError]:
        """As `generate_many`, with the error in the place of each request that failed."""
        return self._wait(self._client.try_many(prompts, params, options, **settings))

    def stream_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> Generator[StreamOutput, None, None]:
        """Tokens of all prompts as they come, on one stream; `prompt_index` tells whose. The first error ends it."""
        return self._iterate(self._client.stream_many(prompts, params, options, **settings))

    def try_each(
        self, asked: Iterable[tuple[Prompt, SamplingParams, Options]]
    ) -> Generator[tuple[int, RequestOutput | QuireError], None, None]:
        """The number of each request and what came of it, as soon as it has ended, whichever is first. `asked` is read
        as there is room, on the client's own thread."""
        return self._iterate(self._client.try_each(asked))

    # -- all else

    def cancel(self, request_id: str, *, timeout_s: float = 10.0) -> bool:
        """Ends a request; False: nothing of that id is under way at this gateway."""
        return self._wait(self._client.cancel(request_id, timeout_s=timeout_s))

    def models(self, *, timeout_s: float = 10.0) -> list[ModelCard]:
        return self._wait(self._client.models(timeout_s=timeout_s))

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns when all models are ready. Raises `Unavailable`."""
        self._wait(self._client.wait_ready(timeout_s))

    def tokenize(self, prompt: Prompt, *, model: str = "", timeout_s: float = 30.0) -> list[int]:
        return self._wait(self._client.tokenize(prompt, model=model, timeout_s=timeout_s))

    def detokenize(self, ids: Sequence[int], *, model: str = "", timeout_s: float = 30.0) -> str:
        return self._wait(self._client.detokenize(ids, model=model, timeout_s=timeout_s))

    def cache_prefix(self, prompt: Prompt, ttl_s: float, *, model: str = "", timeout_s: float = 120.0) -> int:
        """Keeps the full blocks of a prompt for a while; returns how many of its tokens that are."""
        return self._wait(self._client.cache_prefix(prompt, ttl_s, model=model, timeout_s=timeout_s))

    # -- between the threads

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            coroutine.close()
            raise Unavailable("this client is closed; make another")
        waiting = asyncio.run_coroutine_threadsafe(self._noted(coroutine), self._loop)
        try:
            return waiting.result()
        except BaseException:
            # Ctrl-C ends the request as well.
            waiting.cancel()
            raise

    async def _noted(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await coroutine
        finally:
            self._tasks.discard(task)

    async def _end(self) -> None:
        under_way = self._tasks - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        # Streams that were left have their last word now.
        await self._client.close()
        # The loop ends with us, and so gRPC's own tasks have to be over: they are told that their calls have ended.
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest, timeout=PARTING_S)

    def _iterate(self, outputs: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        pieces: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        room = asyncio.Semaphore(MAX_AHEAD)

        async def pump() -> None:
            try:
                async with aclosing(outputs):
                    async for output in outputs:
                        await room.acquire()
                        pieces.put((output,))
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)
                raise

        pumping = asyncio.run_coroutine_threadsafe(self._noted(pump()), self._loop)
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                self._loop.call_soon_threadsafe(room.release)
                yield piece[0]
        finally:
            pumping.cancel()


async def _made(address: str | Sequence[str], token: str | None, tls: Tls | None) -> AsyncClient:
    return AsyncClient(address, token=token, tls=tls)
