"""Connections of one machine at a public port: past its share, those that came last are closed.

No server bounds connections by where they come from, from before TLS on, so that one machine could take every place and
every descriptor. A watcher looks at this process's own sockets about once a second and shuts down what is too much;
whatever runs on such a connection ends as if its client had gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Iterator

EVERY_S = 1.0
LOOKS_EVERY = 30


class ConnectionBound:
    """Of one port of this process."""

    def __init__(self, port: int, most: int) -> None:
        """`most`: connections of one machine."""
        self._port = port
        self._most = most
        # Both ends of the connections that were there at the last look.
        self._known: set[tuple[str, int]] = set()
        # Descriptors of this process that were something else at the last look, and how often there was no need of one.
        self._num_others = self._num_passed = 0
        self.num_closed = 0

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            # A process with few descriptors more than it had can't have too many connections.
            self._num_passed += 1
            if len(os.listdir("/proc/self/fd")) > self._num_others + self._most or self._num_passed >= LOOKS_EVERY:
                await asyncio.to_thread(self.look)

    def look(self) -> None:
        num_descriptors = len(os.listdir("/proc/self/fd"))
        there: set[tuple[str, int]] = set()
        counts: Counter[str] = Counter()
        late: list[tuple[str, int]] = []
        for connection, peer in self._connections():
            connection.close()
            there.add(peer)
            if peer in self._known:
                counts[peer[0]] += 1
            else:
                late.append(peer)
        self._known = there
        self._num_others, self._num_passed = max(0, num_descriptors - len(there)), 0
        too_many = set()
        for peer in late:
            counts[peer[0]] += 1
            if counts[peer[0]] > self._most:
                too_many.add(peer)
        for connection, peer in self._connections() if too_many else ():
            with connection:
                if peer in too_many:
                    connection.shutdown(socket.SHUT_RDWR)
                    self.num_closed += 1

    def _connections(self) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
        """Copies of this port's connections, for the caller to close, and where they come from."""
        for name in os.listdir("/proc/self/fd"):
            try:
                if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    continue
                copy = socket.socket(fileno=os.dup(int(name)))
            except OSError:
                continue  # closed meanwhile
            try:
                if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getsockname()[1] != self._port:
                    raise OSError
                host, port = copy.getpeername()[:2]
            except OSError:
                copy.close()
                continue
            yield copy, (host.removeprefix("::ffff:"), port)
