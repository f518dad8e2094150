"""Bodies of calls: read only once it is known who calls, few large ones at a time, in bounded time and size.

gRPC puts a whole message together before it hands it over, so what counts is how many are being read at once: each
tenant has its own share, and strangers (health, reflection) have a small one for each machine they come from. A message
whose head announces more than the server's bound is refused before its bytes come; the bound of a method, which may be
much smaller, is held against what came.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from cluster.errors import DeadlineExceeded, InvalidRequest, NeverFits, QueueFull
from cluster.gateway.intake import parse

Request = TypeVar("Request", bound=Message)
ReadRaw: TypeAlias = Callable[[], Awaitable[bytes | None]]
"""Gives the next message of a call as it came; None behind the last."""

SMALL_BYTES = 64 << 10
"""Of every message that carries no prompt."""
READING_BYTES = 256 << 20
"""Of one tenant, being read at once."""
STRANGERS = 4
"""Calls of one machine that shows no token, whose bodies are being read at once; of all such machines four times as
many."""
BYTES_PER_NUMBER = 8
"""A message may hold as many numbers in lists as its bound in bytes by this: ids as they come take less than one."""
BODY_S = 20.0
STRANGERS_BODY_S = 5.0


class Bodies:
    """What is being read at one server, by whom."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of any message, as the server was told."""
        self._most = max(STRANGERS, READING_BYTES // max_bytes)
        self._reading: dict[str, asyncio.Semaphore] = {}
        self._strangers: dict[str, int] = {}

    async def of_tenant(self, read: ReadRaw, kind: type[Request], max_bytes: int, tenant: str) -> Request:
        """The one message of a call."""
        async with _in_time(BODY_S), self.share(tenant):
            return checked(await read(), kind, max_bytes)

    def share(self, tenant: str) -> asyncio.Semaphore:
        """Of this tenant: held while a body of any size is read."""
        return self._reading.setdefault(tenant, asyncio.Semaphore(self._most))

    async def of_stranger(self, read: ReadRaw, kind: type[Request], max_bytes: int, machine: str) -> Request:
        """The one message of a call that needs no token."""
        strangers = self._strangers
        if strangers.get(machine, 0) >= STRANGERS or sum(strangers.values()) >= 4 * STRANGERS:
            raise QueueFull(f"{sum(strangers.values())} calls without a token are being read here", 1.0)
        strangers[machine] = strangers.get(machine, 0) + 1
        try:
            async with _in_time(STRANGERS_BODY_S):
                return checked(await read(), kind, max_bytes)
        finally:
            strangers[machine] -= 1
            if not strangers[machine]:
                del strangers[machine]


def checked(raw: bytes | None, kind: type[Request], max_bytes: int) -> Request:
    """The message in these bytes, if they are not too many. Raises `InvalidRequest`."""
    if raw is None:
        raise InvalidRequest("message", "is missing", "send one")
    if len(raw) > max_bytes:
        raise NeverFits("message", len(raw), max_bytes, "bytes", "send less")
    return parse(kind, raw, max_bytes // BYTES_PER_NUMBER)


@contextlib.asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"the message of this call had not come whole after {seconds:g} s") from None
