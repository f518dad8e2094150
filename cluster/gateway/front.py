"""The seam between a gateway and the scheduler: events up, notices down, whatever carries them.

A gateway holds one `SchedulerLink`. In production it is `FrontLink` (`cluster/gateway/front_link.py`); where
scheduler and gateway share a process it is `LocalLink`. The other end is in `cluster/serving/front_server.py`. Nothing
here imports grpc.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from cluster.errors import Unavailable
from cluster.wire.front import FrontEvent, Notice
from cluster.wire.gateways import ServedModels

MAX_EVENTS = 20_000
"""Events that may wait while the scheduler is away before new work is refused. A request has a handful in its life."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The scheduler is there.

    `wants_state`: it is a new one, or had given this gateway up, and is to be told what is under way (GatewayState).
    What was sent before and not taken is lost then.
    """

    epoch: int
    wants_state: bool
    hash_key: bytes


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The scheduler is away; what is sent meanwhile waits."""

    detail: str


Order: TypeAlias = Notice | ServedModels | Connected | Disconnected


class SchedulerLink(Protocol):
    """A gateway's way to the scheduler."""

    def check_open(self) -> None:
        """Asked before new work is (Submit, Adopt, Find, Pin). Raises `Unavailable` when too much waits for a scheduler
        that is away."""
        ...

    def send(self, event: FrontEvent) -> None:
        """Hands an event over, in order. It is always taken."""
        ...

    def orders(self) -> AsyncIterator[Sequence[Order]]:
        """What the scheduler says, in order, as it comes; ends when the link is closed. Read by one task."""
        ...


class LocalLink:
    """Scheduler and gateway in one process: `deliver` takes events, `push` brings notices."""

    def __init__(self, deliver: Callable[[FrontEvent], None], hash_key: bytes = b"") -> None:
        self._deliver = deliver
        self._arrived: asyncio.Queue[Order | None] = asyncio.Queue(MAX_EVENTS)
        self._arrived.put_nowait(Connected(1, wants_state=False, hash_key=hash_key))

    def check_open(self) -> None:
        pass

    def send(self, event: FrontEvent) -> None:
        self._deliver(event)

    def push(self, order: Order) -> None:
        try:
            self._arrived.put_nowait(order)
        except asyncio.QueueFull as error:
            raise Unavailable(f"the gateway has not read {MAX_EVENTS:,} notices") from error

    def close(self) -> None:
        self._arrived.put_nowait(None)

    async def orders(self) -> AsyncIterator[Sequence[Order]]:
        while True:
            order = await self._arrived.get()
            batch = []
            while order is not None:
                batch.append(order)
                if self._arrived.empty():
                    break
                order = self._arrived.get_nowait()
            if batch:
                yield batch
            if order is None:
                return
