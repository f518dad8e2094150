"""Connections of an HTTP server, uvicorn's with the bounds that it leaves to others: those of gateways and of the page.

A connection that has not sent a whole request head within `HEAD_S` is closed; so is one that takes nothing of what it
asked for. Where there is one too many, in all or of one machine, the oldest of those on which nothing is asked makes
room; where something is asked on each, the new one is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
STUCK_S = 60.0
"""A client to which something is unsent, and that takes nothing of it for so long, is cut off."""


def bound_connections(config: uvicorn.Config, most: int, most_of_one: int) -> None:
    """Has this server, whose configuration is loaded, hold so many, and so many of one machine."""
    config.http_protocol_class = partial(_Connection, _Connections(most, most_of_one))  # type: ignore[assignment]


class _Connections:
    """Those that are there, by machine, oldest first."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._all: dict[_Connection, None] = {}
        self._of: dict[str, dict[_Connection, None]] = {}

    def enter(self, new: _Connection) -> bool:
        """False: it is one too many."""
        of_one = self._of.setdefault(new.machine, {})
        self._all[new] = of_one[new] = None
        if len(of_one) > self._most_of_one:
            return self._make_room(of_one, new)
        return len(self._all) <= self._most or self._make_room(self._all, new)

    def leave(self, gone: _Connection) -> None:
        if gone in self._all:
            del self._all[gone], self._of[gone.machine][gone]
            if not self._of[gone.machine]:
                del self._of[gone.machine]

    def _make_room(self, those: Iterable[_Connection], new: _Connection) -> bool:
        idle = next((one for one in those if one.is_idle), new)
        self.leave(idle)
        if idle is not new:
            idle.transport.abort()
        return idle is not new


class _Connection(H11Protocol):
    def __init__(self, connections: _Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self.machine = ""
        self._too_late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing is asked, and all that was is answered and on its way."""
        is_answered = getattr(self.cycle, "response_complete", True)
        return is_answered and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever is unsent is timed: below a bound of its own it would hold its place for ever.
        transport.set_write_buffer_limits(high=0)
        self.machine = self.client[0] if self.client else ""
        if self._connections.enter(self):
            self._expect_head()
        else:
            transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def _watch(self) -> None:
        """Until all is taken; nothing is added meanwhile."""
        num_unsent = self.transport.get_write_buffer_size()
        self._stuck = asyncio.get_running_loop().call_later(STUCK_S, self._look, num_unsent)

    def _look(self, num_unsent: int) -> None:
        if self.transport.get_write_buffer_size() < num_unsent:
            self._watch()
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._flows()

    def _flows(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif self._too_late is None and self.cycle.response_complete:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        self._stop_waiting()
        self._flows()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._too_late = asyncio.get_running_loop().call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def _give_up(self) -> None:
        self._too_late = None
        self.transport.abort()
