"""A `Dialer` on a socket: the end that connects, over connections that come and go.

`keep_open` runs in the process's event loop: it finds the other end, connects, says hello and pulses. Whoever reads and
speaks does so straight from and to the socket, on a thread of its own (a step loop) or in the same event loop (by
`fileno`): no other thread has to wake up in between. No call waits for the other end: what the kernel doesn't take is
kept, within the machine's window, and goes out later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from cluster.errors import ProtocolError, QuireError
from cluster.links import handshake
from cluster.links.dialer import Dialer
from cluster.links.frames import FrameBuffer
from cluster.links.security import ClusterSecurity
from cluster.links.sockets import connect
from cluster.links.terms import PULSES, Close, Order, RefusedByPeer, Send

log = logging.getLogger(__name__)

RETRY_S, REFUSED_RETRY_S = 0.2, 5.0
"""Until the next try; after it was told why it can't be taken as things are."""
LOST_EXIT = 72
"""How a process ends that was declared lost while it was away."""
_SEND_BYTES = 64 << 10


def _nothing() -> bytes:
    return b""


class DialingEnd:
    """The dialer and its connection. One thread reads and waits; any may speak."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        # Taken for every call of the machine.
        self.lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._frames = FrameBuffer()
        self._backlog = bytearray()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._waits_to_send = False
        self.num_garbled = 0
        # Until the next try, once this connection is of no use any more.
        self.retry_s = RETRY_S
        # Why the last connection is of no use any more.
        self.why = ""
        # Called with the lock held once a connection is of no use any more; from any thread.
        self.broken: Callable[[], object] = _nothing

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def pulse_s(self) -> float:
        return self.dialer.silence_s / PULSES

    def fileno(self) -> int:
        """Can be read from, for an event loop, whenever `wait` would return at once."""
        return self._epoll.fileno()

    def open(self, connection: socket.socket, card: bytes) -> None:
        """From now on over this one, which does not block."""
        with self.lock:
            self._drop()
            self._connection, self._frames = connection, FrameBuffer()
            self._epoll.register(connection, select.EPOLLIN)
            self._write(self.dialer.open(card, time.monotonic()))
        self.wake()

    def close(self) -> None:
        with self.lock:
            self._drop()

    def cut(self, why: str) -> None:
        """This connection is of no use any more; `keep_open` makes another."""
        with self.lock:
            if self._connection is not None:
                self._break(why)

    # -- words

    def say(self, message: bytes) -> None:
        """Sent, or kept until it can be. Raises ProtocolError where it is too large for any link."""
        with self.lock:
            for frame in self.dialer.say(message):
                self._write(frame)

    def say_state(self, message: bytes) -> None:
        """The answer to `Met.wants_state`."""
        with self.lock:
            for frame in self.dialer.say_state(message):
                self._write(frame)

    def pulse(self, note: bytes = b"") -> None:
        with self.lock:
            for frame in self.dialer.pulse(note):
                self._write(frame)

    def read(self) -> list[Order]:
        """All that has come, without waiting: whom we met, what was heard, how we were refused."""
        with self.lock:
            connection, dialer = self._connection, self.dialer
            if connection is None:
                return []
            if self._backlog:
                self._write(b"")
            found: list[Order] = []
            try:
                while True:
                    room = self._frames.room()
                    came = connection.recv_into(room)
                    if not came:
                        self._break(f"{dialer.peer} closed the stream")
                        return found
                    dialer.touched(time.monotonic())
                    frames = self._frames.took(came)
                    if frames:
                        found += self._do(dialer.heard(frames))
                    # TLS may hold more than the kernel shows.
                    if self._connection is None or (came < len(room) and not isinstance(connection, ssl.SSLSocket)):
                        return found
            except handshake.NOTHING_YET:
                self._do(dialer.silence(time.monotonic()))
            except (OSError, ProtocolError) as error:
                self.num_garbled += isinstance(error, ProtocolError)
                self._break(str(error))
            return found

    def _do(self, orders: Sequence[Order]) -> list[Order]:
        """Returns what is for the owner."""
        found: list[Order] = []
        for order in orders:
            if isinstance(order, Send):
                self._write(order.frame)
            elif isinstance(order, Close):
                self.num_garbled += order.is_garbled
                self._break(order.detail)
            else:
                if isinstance(order, RefusedByPeer) and order.reason in ("protocol", "card", "away"):
                    self.retry_s = REFUSED_RETRY_S
                found.append(order)
        return found

    # -- the socket, with the lock held

    def wait(self, timeout_s: float) -> None:
        """Until something can be read, the connection has changed, somebody called `wake`, or the time is over."""
        for descriptor, _ in self._epoll.poll(timeout_s):
            if descriptor == self._wake:
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    continue

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _write(self, frame: bytes) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if not self._backlog:
                sent = connection.send(memoryview(frame)[:_SEND_BYTES])
                if sent == len(frame):
                    return
                self._backlog += memoryview(frame)[sent:]
            else:
                self._backlog += frame
                # TLS wants at least the very bytes again that it could not send.
                del self._backlog[: connection.send(bytes(self._backlog[:_SEND_BYTES]))]
        except handshake.NOTHING_YET:
            if not self._backlog:
                self._backlog += frame
        except OSError as error:
            self._break(str(error))
            return
        if self._waits_to_send != bool(self._backlog):
            self._waits_to_send = not self._waits_to_send
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._waits_to_send else 0)
            self._epoll.modify(connection, wanted)

    def _break(self, why: str) -> None:
        log.info("the stream to %s broke: %s", self.dialer.peer, why)
        self.why = why
        self._drop()
        self.broken()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._backlog.clear()
        self.dialer.broke()
        if connection is not None:
            self._waits_to_send = False
            self._epoll.unregister(connection)
            connection.close()
            # Whoever waits for it must not wait any longer.
            self.wake()


async def keep_open(
    end: DialingEnd,
    greeting: bytes,
    find: Callable[[], Awaitable[str]],
    security: ClusterSecurity,
    card: Callable[[], bytes] = _nothing,
    note: Callable[[], bytes] = _nothing,
) -> None:
    """Until cancelled. `find` gives the other end's address whenever it is asked; it may change. `card` goes with each
    hello, `note` with each pulse."""
    loop, broken = asyncio.get_running_loop(), asyncio.Event()
    end.broken = lambda: loop.call_soon_threadsafe(broken.set)
    said = ""
    try:
        while True:
            try:
                address = await find()
                connection = await asyncio.to_thread(connect, address, security, greeting)
                broken.clear()
                end.open(connection, card())
                said = ""
                while end.is_open:
                    try:
                        await asyncio.wait_for(broken.wait(), end.pulse_s)
                    except TimeoutError:
                        end.pulse(note())
            except (QuireError, OSError) as error:
                why = " ".join(str(error).split()) or type(error).__name__
                # Once for each reason, however often it is tried.
                log.log(
                    logging.DEBUG if why == said else logging.INFO, "%s cannot be reached: %s", end.dialer.peer, why
                )
                said = why
            retry_s, end.retry_s = end.retry_s, RETRY_S
            await asyncio.sleep(retry_s)
    finally:
        end.broken = _nothing
        end.close()


async def attend(
    end: DialingEnd,
    take: Callable[[Sequence[Order]], object],
    greeting: bytes,
    find: Callable[[], Awaitable[str]],
    security: ClusterSecurity,
    card: Callable[[], bytes] = _nothing,
) -> None:
    """`keep_open` for an end that the event loop reads too: `take` gets what has come, and nothing at times."""

    def read() -> None:
        end.wait(0.0)
        take(end.read())

    loop = asyncio.get_running_loop()
    keeping = loop.create_task(keep_open(end, greeting, find, security, card))
    loop.add_reader(end.fileno(), read)
    try:
        while not keeping.done():
            # However quiet it is: a silence has to be noticed.
            await asyncio.wait((keeping,), timeout=end.pulse_s)
            read()
        keeping.result()
    finally:
        loop.remove_reader(end.fileno())
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
