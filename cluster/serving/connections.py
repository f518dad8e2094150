"""Connections of one machine at a public port: past its share, those that came last are closed.

No server bounds connections by where they come from, from before TLS on, so that one machine could take every place and
every descriptor. A watcher looks at this process's own sockets about once a second and shuts down what is too much;
whatever runs on such a connection ends as if its client had gone.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

EVERY_S = 1.0
LOOKS_EVERY = 30
MAX_DESCRIPTORS = 1 << 16


def take_descriptors() -> None:
    """Has the system let this process open as many files as it may, up to `MAX_DESCRIPTORS`; it begins with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share_of_descriptors(most: int) -> int:
    """So many connections, or a quarter of what this process can open, if that is less."""
    return min(most, _num_descriptors() // 4)


def _num_descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


class ConnectionBound:
    """Of one port of this process."""

    def __init__(self, port: int, most: int) -> None:
        """`most`: connections of one machine."""
        self._port = port
        self._most = share_of_descriptors(most)
        # Both ends of the connections that were there at the last look.
        self._known: set[tuple[str, int]] = set()
        # Descriptors of this process that were something else at the last look, and how often there was no need of one.
        self._num_others = self._num_passed = 0
        self.num_closed = 0

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            self._num_passed += 1
            if self._may_be_too_many(len(_open_descriptors())) or self._num_passed >= LOOKS_EVERY:
                await asyncio.to_thread(self.look)

    def _may_be_too_many(self, num_open: int) -> bool:
        """A process with few descriptors more than it had can't have too many connections; but what was something else
        may have been closed since, so where nearly all are taken one looks."""
        return num_open > min(self._num_others, _num_descriptors() - 2 * self._most) + self._most

    def look(self) -> None:
        num_open = len(_open_descriptors())
        there: set[tuple[str, int]] = set()
        counts: Counter[str] = Counter()
        late: list[tuple[int, tuple[str, int]]] = []
        for descriptor, peer in self._connections(_open_descriptors()):
            there.add(peer)
            if peer in self._known:
                counts[peer[0]] += 1
            else:
                late.append((descriptor, peer))
        self._known = there
        self._num_others, self._num_passed = max(0, num_open - len(there)), 0
        for descriptor, peer in late:
            counts[peer[0]] += 1
            # It may have become another one since.
            if counts[peer[0]] > self._most and (descriptor, peer) in self._connections([descriptor]):
                _shut(descriptor)
                self.num_closed += 1

    def _connections(self, descriptors: Iterable[int]) -> Iterator[tuple[int, tuple[str, int]]]:
        """This port's connections among them, and where they come from. Nothing is opened for it: there may be no
        descriptor left."""
        for descriptor in descriptors:
            try:
                one = socket.socket(fileno=descriptor)
            except OSError:
                continue  # no socket, or closed meanwhile
            try:
                if one.family not in (socket.AF_INET, socket.AF_INET6) or one.getsockname()[1] != self._port:
                    continue
                host, port = one.getpeername()[:2]
            except OSError:
                continue
            finally:
                one.detach()
            yield descriptor, (host.removeprefix("::ffff:"), port)


def _shut(descriptor: int) -> None:
    try:
        one = socket.socket(fileno=descriptor)
    except OSError:
        return
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        one.detach()


def _open_descriptors() -> Sequence[int]:
    """Those of this process, as far as one can see. To see them takes one more: where there is none, all are taken."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return range(_num_descriptors())
