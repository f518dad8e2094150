"""Work that one request makes for a gateway: short work is done at once, long work by threads, few at a time.

The event loop serves every stream, so nothing that grows with what a client sent runs in it beyond a millisecond or so.
Long work waits for one of few threads; when too much waits, or it takes too long, its client is told. Python runs one
thread at a time, so what is handed in here either lets go of that lock or is cut into pieces that do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from cluster.errors import DeadlineExceeded, QueueFull
from cluster.gateway.structures import Structures
from cluster.gateway.templates import Templates

P = ParamSpec("P")
T = TypeVar("T")

INLINE_SIZE = 2_000
"""Characters, tokens or entries up to which work is done at once: that takes less time than handing it to a thread."""
NUM_THREADS = 2
MAX_WAITING = 64
MAX_WAITING_SIZE = 32 << 20
LONG_S = 20.0


class Work:
    """The long work of one gateway. Belongs to one event loop."""

    def __init__(self) -> None:
        self.templates = Templates()
        self.structures = Structures()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_threads = 0
        self._num_begun = self._size_begun = 0

    async def run(self, size: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `do` returns or raises. Raises QueueFull and DeadlineExceeded besides."""
        if size <= INLINE_SIZE:
            return do(*args, **kwargs)
        if self._num_begun >= MAX_WAITING or (self._num_begun and self._size_begun + size > MAX_WAITING_SIZE):
            detail = f"{self._num_begun} long prompts of {self._size_begun:,} characters or ids are being read here"
            raise QueueFull(detail, 1.0)
        self._num_begun += 1
        self._size_begun += size
        done: Future[T] = Future()
        self._tasks.put(partial(_carry_out, done, partial(do, *args, **kwargs)))
        if self._num_threads < min(NUM_THREADS, self._num_begun):
            self._num_threads += 1
            # A thread can't be stopped; the process need not wait for it to end.
            threading.Thread(target=_work, args=(self._tasks,), name="long-work", daemon=True).start()
        ended = asyncio.wrap_future(done)
        ended.add_done_callback(partial(self._ended, size))
        try:
            # It goes on whoever waits for it, and counts until it has ended.
            async with asyncio.timeout(LONG_S):
                return await asyncio.shield(ended)
        except TimeoutError:
            raise DeadlineExceeded(f"to read it took more than {LONG_S:g} s; send less, or token ids") from None

    def _ended(self, size: int, done: asyncio.Future[Any]) -> None:
        self._num_begun -= 1
        self._size_begun -= size
        if not done.cancelled():
            # Nobody may have waited for it.
            done.exception()

    async def close(self) -> None:
        await self.templates.close()
        await self.structures.close()
        for _ in range(self._num_threads):
            self._tasks.put(None)


def _work(tasks: SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()


def _carry_out(done: Future[T], do: Callable[[], T]) -> None:
    try:
        done.set_result(do())
    except BaseException as error:
        done.set_exception(error)
