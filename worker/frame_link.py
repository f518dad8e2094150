"""The end of an internal stream that connects: to the scheduler and to gateways, over connections that come and go.

Control streams and streams of tokens are frames of protobuf (`cluster/wire/frames.py`) on a socket of their own: an
abstract Unix socket where both ends are on one machine, TCP otherwise, with TLS where that is set up; both ends prove
that they know the cluster's secret (`cluster/links/handshake.py`). A gRPC stream takes three to ten times as long here.

`keep_open` runs in the process's event loop: it finds the other end, connects, says hello and pulses. Whoever reads and
writes frames does so straight from and to the socket: no other thread has to wake up in between. No call waits for the
other end: what the kernel doesn't take is kept, up to a bound, and goes out later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable

from cluster.errors import ProtocolError, QuireError
from cluster.links import handshake
from cluster.links.security import ClusterSecurity
from cluster.wire.frames import FrameBuffer

log = logging.getLogger(__name__)

CONTROL, TOKENS = b"QCT1", b"QTK1"
"""How the two kinds of streams begin."""
RETRY_S = 0.2
# Until it asks again who was told why it can't be taken.
REFUSED_RETRY_S = 5.0
# Until the scheduler has said how long it bears silence.
FIRST_SILENCE_S = 3.0
PULSES = 8
"""In the time after which a process that says nothing is taken for dead."""
MAX_BACKLOG_BYTES = 256 << 20
LOST_EXIT = 72
"""How a process ends that was declared lost while it was away."""
_SEND_BYTES = 64 << 10
# A machine that vanished without a word is found out within this, as long as something is on its way to it.
_UNANSWERED_MS = 10_000


def local_name(address: str) -> str:
    """The abstract Unix socket beside a TCP port: its name lives as long as its owner, and in one network namespace."""
    return f"\0quire-frames-{address}"


class FrameLink:
    """Frames to and from `peer`. One thread reads and waits; any may send."""

    def __init__(self, peer: str = "the scheduler", silence_s: float = FIRST_SILENCE_S) -> None:
        """`silence_s`: so long may the other end say nothing."""
        self.peer = peer
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._frames = FrameBuffer()
        self._backlog = bytearray()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._waits_to_send = False
        self._heard_at = 0.0
        self.silence_s = silence_s
        self.num_undecodable = 0
        # Until the next try, once this connection is of no use any more.
        self.retry_s = RETRY_S
        # Called with the lock held once a connection is of no use any more; from any thread.
        self.broken: Callable[[], object] = lambda: None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def fileno(self) -> int:
        """Can be read from, for an event loop, whenever `wait` would return at once."""
        return self._epoll.fileno()

    def open(self, connection: socket.socket, hello: bytes) -> None:
        """From now on over this one, which does not block. The first frame up is `hello`."""
        with self._lock:
            self._drop()
            self._connection, self._frames = connection, FrameBuffer()
            self._heard_at = time.monotonic()
            self._epoll.register(connection, select.EPOLLIN)
            self._write(hello)
        self.wake()

    def close(self) -> None:
        with self._lock:
            self._drop()

    def cut(self, why: str) -> None:
        """This connection is of no use any more; `keep_open` makes another."""
        with self._lock:
            if self._connection is not None:
                self._break(why)

    def send(self, frame: bytes) -> None:
        """Sent, or kept, or lost with the connection: whoever must know numbers its frames."""
        with self._lock:
            self._write(frame)

    def read(self) -> list[bytes]:
        """All messages that have come, without waiting."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return []
            if self._backlog:
                self._write(b"")
            found: list[bytes] = []
            try:
                while True:
                    room = self._frames.room()
                    came = connection.recv_into(room)
                    if not came:
                        self._break(f"{self.peer} closed the stream")
                        return found
                    self._heard_at = time.monotonic()
                    found += self._frames.took(came)
                    # TLS may hold more than the kernel shows.
                    if came < len(room) and not isinstance(connection, ssl.SSLSocket):
                        return found
            except handshake.NOTHING_YET:
                if time.monotonic() - self._heard_at > self.silence_s:
                    self._break(f"{self.peer} has said nothing for {self.silence_s:g} s")
            except (OSError, ProtocolError) as error:
                self.num_undecodable += isinstance(error, ProtocolError)
                self._break(str(error))
            return found

    def undecodable(self, error: ProtocolError) -> None:
        """A frame that was read means nothing: this connection is not to be trusted any further."""
        with self._lock:
            self.num_undecodable += 1
            self._break(str(error))

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
        if len(self._backlog) > MAX_BACKLOG_BYTES:
            self._break(f"{self.peer} has not taken {len(self._backlog):,} bytes")
        elif self._waits_to_send != bool(self._backlog):
            self._waits_to_send = not self._waits_to_send
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._waits_to_send else 0)
            self._epoll.modify(connection, wanted)

    def _break(self, why: str) -> None:
        log.info("the stream to %s broke: %s", self.peer, why)
        self._drop()
        self.broken()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._backlog.clear()
        if connection is not None:
            self._waits_to_send = False
            self._epoll.unregister(connection)
            connection.close()
            # Whoever waits for it must not wait any longer.
            self.wake()


async def keep_open(
    link: FrameLink,
    greeting: bytes,
    find: Callable[[], Awaitable[str]],
    security: ClusterSecurity,
    hello: Callable[[], bytes],
    pulse: Callable[[], bytes] | None = None,
) -> None:
    """Until cancelled. `find` gives the other end's address whenever it is asked; it may change. Without `pulse`
    nothing is said while there is nothing to say."""
    loop, broken = asyncio.get_running_loop(), asyncio.Event()
    link.broken = lambda: loop.call_soon_threadsafe(broken.set)
    said = ""
    try:
        while True:
            try:
                address = await find()
                connection = await asyncio.to_thread(connect, address, security, greeting)
                broken.clear()
                link.open(connection, hello())
                said = ""
                if pulse is None:
                    await broken.wait()
                while pulse is not None and link.is_open:
                    link.send(pulse())
                    try:
                        await asyncio.wait_for(broken.wait(), link.silence_s / PULSES)
                    except TimeoutError:
                        continue
            except (QuireError, OSError) as error:
                why = " ".join(str(error).split()) or type(error).__name__
                # Once for each reason, however often it is tried.
                log.log(logging.DEBUG if why == said else logging.INFO, "%s cannot be reached: %s", link.peer, why)
                said = why
            retry_s, link.retry_s = link.retry_s, RETRY_S
            await asyncio.sleep(retry_s)
    finally:
        link.broken = lambda: None
        link.close()


def connect(address: str, security: ClusterSecurity, greeting: bytes) -> socket.socket:
    """A socket to who is at `address`, on which both have proved who they are. Raises OSError or QuireError."""
    connection = _connect_here(address) or _connect_there(address, security)
    try:
        connection.settimeout(0.5)
        handshake.drive(connection, handshake.greet(greeting, b"", security.secret.encode()))
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_here(address: str) -> socket.socket | None:
    """The Unix socket of who is on this machine; None: there is none, or somebody else listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(handshake.HANDSHAKE_S)
    try:
        connection.connect(local_name(address))
        # Anybody can take a free name, and could pass our words on to who has the secret.
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user == os.geteuid():
            return connection
        log.warning("user %d listens on the name of our process at %s: going there by TCP", user, address)
    except OSError:
        pass
    connection.close()
    return None


def _connect_there(address: str, security: ClusterSecurity) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), handshake.HANDSHAKE_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
        context = security.client_context()
        if context is None or security.tls is None:
            return connection
        return context.wrap_socket(connection, server_hostname=security.tls.name)
    except BaseException:
        connection.close()
        raise
