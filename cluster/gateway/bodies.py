"""Bodies of calls: read only once it is known who calls, few large ones at a time, in bounded time and size.

gRPC puts a whole message together before it hands it over, so what counts is how many are being read at once: each
tenant has its own share, and strangers (health, reflection) have few places, for each machine and in all. Who comes
when all are taken gets that of the oldest: what is honest has come whole in a moment. A message whose head announces
more than the server's bound is refused before its bytes come; the bound of a method, which may be much smaller, is held
against what came.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from cluster.errors import DeadlineExceeded, InvalidRequest, NeverFits, QueueFull
from cluster.gateway.intake import parse
from cluster.links.strangers import Strangers

Request = TypeVar("Request", bound=Message)
ReadRaw: TypeAlias = Callable[[], Awaitable[bytes | None]]
"""Gives the next message of a call as it came; None behind the last."""

SMALL_BYTES = 64 << 10
"""Of every message that carries no prompt."""
READING_BYTES = 256 << 20
"""Of one tenant, being read at once."""
STRANGERS = 4
"""Messages of one machine that shows no token, that are being read or waited for at once; of all such machines four
times as many."""
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
        self._strangers: Strangers[asyncio.Timeout] = Strangers(4 * STRANGERS, STRANGERS)

    async def of_tenant(self, read: ReadRaw, kind: type[Request], max_bytes: int, tenant: str) -> Request:
        """The one message of a call."""
        async with _in_time(BODY_S), self.share(tenant):
            return checked(await read(), kind, max_bytes)

    def share(self, tenant: str) -> asyncio.Semaphore:
        """Of this tenant: held while a body of any size is read."""
        return self._reading.setdefault(tenant, asyncio.Semaphore(self._most))

    async def of_stranger(self, read: ReadRaw, machine: str) -> bytes | None:
        """What `read` gives to a call that needs no token. Raises DeadlineExceeded, and QueueFull for one whose place
        another has got."""
        place = asyncio.timeout(None)
        try:
            async with place, _in_time(STRANGERS_BODY_S):
                evicted = self._strangers.come(place, machine)
                if evicted is not None and not evicted.expired():
                    evicted.reschedule(asyncio.get_running_loop().time())
                return await read()
        except TimeoutError:
            raise QueueFull("many calls without a token are being read here, and this was the oldest", 1.0) from None
        finally:
            self._strangers.gone(place)


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
