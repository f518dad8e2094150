"""Work that one request makes for a gateway: short work is done at once, long work by threads, few at a time.

The event loop serves every stream, so nothing that grows with what a client sent runs in it beyond a millisecond or so.
Long work waits for one of few threads; when too much of a tenant's waits, or it takes too long, its client is told.
Tenants take turns: whoever sends much waits behind everybody else's. Python runs one thread at a time, so what is
handed in here either lets go of that lock or is cut into pieces that do.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeAlias, TypeVar

from cluster.errors import DeadlineExceeded, QueueFull
from cluster.gateway.structures import GatewayStructures
from cluster.gateway.templates import Templates

P = ParamSpec("P")
T = TypeVar("T")
Task: TypeAlias = tuple[Future[Any], Callable[[], Any]]

INLINE_SIZE = 2_000
"""Characters, tokens or entries up to which work is done at once: that takes less time than handing it to a thread."""
NUM_THREADS = 2
MAX_WAITING = 64
MAX_WAITING_SIZE = 32 << 20
"""Of one tenant; of all together four times as much."""
LONG_S = 20.0


class _Share:
    """What of one tenant has begun: it waits, or a thread does it."""

    __slots__ = ("num", "size", "waiting")

    def __init__(self) -> None:
        self.num = self.size = 0
        self.waiting: deque[Task] = deque()

    def is_full(self, size: int, times: int = 1) -> bool:
        return self.num >= times * MAX_WAITING or (self.num > 0 and self.size + size > times * MAX_WAITING_SIZE)


class Work:
    """The long work of one gateway. Belongs to one event loop."""

    def __init__(self) -> None:
        self.templates = Templates()
        self.structures = GatewayStructures()
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._num_threads = self._num_running = 0
        self._all = _Share()
        # The tenant whose turn is next comes first.
        self._shares: dict[str, _Share] = {}

    async def run(self, tenant: str, size: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `do` returns or raises. Raises QueueFull and DeadlineExceeded besides."""
        if size <= INLINE_SIZE:
            return do(*args, **kwargs)
        share = self._shares.get(tenant) or _Share()
        for full, whose in ((share.is_full(size), "this tenant's"), (self._all.is_full(size, 4), "all tenants'")):
            if full:
                raise QueueFull(f"as many of {whose} long prompts as can wait here are being read", 1.0)
        self._shares[tenant] = share
        for one in (share, self._all):
            one.num += 1
            one.size += size
        done: Future[T] = Future()
        ended = asyncio.wrap_future(done)
        ended.add_done_callback(partial(self._ended, tenant, size))
        share.waiting.append((done, partial(do, *args, **kwargs)))
        self._go_on()
        try:
            async with asyncio.timeout(LONG_S):
                return await asyncio.shield(ended)
        except TimeoutError:
            raise DeadlineExceeded(f"to read it took more than {LONG_S:g} s; send less, or token ids") from None
        finally:
            # What a thread does goes on, whoever waits for it, and counts until it has ended.
            done.cancel()

    def _go_on(self) -> None:
        """Gives work to threads that have none: of each tenant one piece in turn."""
        while self._num_running < NUM_THREADS:
            tenant = next((name for name, share in self._shares.items() if share.waiting), None)
            if tenant is None:
                return
            share = self._shares[tenant] = self._shares.pop(tenant)
            task = share.waiting.popleft()
            if not task[0].set_running_or_notify_cancel():
                continue
            self._num_running += 1
            self._tasks.put(task)
            if self._num_threads < self._num_running:
                self._num_threads += 1
                # A thread can't be stopped; the process need not wait for it to end.
                threading.Thread(target=_work, args=(self._tasks,), name="long-work", daemon=True).start()

    def _ended(self, tenant: str, size: int, done: asyncio.Future[Any]) -> None:
        share = self._shares[tenant]
        for one in (share, self._all):
            one.num -= 1
            one.size -= size
        if not done.cancelled():
            self._num_running -= 1
            # Nobody may have waited for it.
            done.exception()
        if not share.num:
            del self._shares[tenant]
        self._go_on()

    async def close(self) -> None:
        await self.templates.close()
        await self.structures.close()
        for _ in range(self._num_threads):
            self._tasks.put(None)


def _work(tasks: SimpleQueue[Task | None]) -> None:
    while (task := tasks.get()) is not None:
        done, do = task
        try:
            done.set_result(do())
        except BaseException as error:
            done.set_exception(error)
        # No thread keeps what the last one was about.
        del task, done, do
