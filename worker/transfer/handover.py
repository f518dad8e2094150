"""Hands a pool's memory to processes of the same machine, and proves when such a process is dead.

The server listens on an abstract Unix socket with a name that only authenticated peers are told. The kernel says which
user's process is at the other end, at either end; another user's gets nothing. Then both prove that they know the
cluster's secret, and the peer gets the pool's file descriptor and a session number. Its process is watched through a
pidfd until it is dead: that, and nothing a peer says about itself, is proof that no late write can come. One thread
does all of it and waits for no peer. Who may copy what is decided by the pool's register.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import ProtocolError, QuireError, TransferError
from cluster.links import handshake
from cluster.links.security import ClusterSecurity
from cluster.wire.plans import parsed
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.memory import SharedMemory
from worker.transfer.wire import MAX_NAME_CHARS

GREETING = b"QTH1"
MAX_SESSIONS = 256
# Of one process: it maps a pool to read and to write, and anew after a restart of its agent.
MAX_SESSIONS_OF_PROCESS = 32
# Peers that have yet to say what they want, together and of one process. One more takes the place of the oldest.
MAX_GREETINGS, MAX_GREETINGS_OF_PROCESS = 64, 4
_HELLO_S = 2.0
_NO_DESCRIPTOR_S = 0.1
_SO_PEERPIDFD = 77  # Linux 6.5; the pid alone could have been given to another process meanwhile
_MAX_HELLO_BYTES = 1024
_LENGTH = struct.Struct("<H")

log = logging.getLogger(__name__)


def boot_id() -> str:
    """Equal in two processes exactly if they run under the same kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


@dataclass(slots=True)
class _Session:
    number: int
    pid: int
    process: int  # a pidfd


@dataclass(slots=True)
class _Greeting:
    """A peer that has yet to say what it wants."""

    peer: socket.socket
    pid: int
    steps: handshake.Steps[pb.HandoverRequest]
    deadline: float
    num_wanted: int = 0
    came: bytearray = field(default_factory=bytearray)

    def go_on(self) -> pb.HandoverRequest | None:
        """Reads what has come, and answers; its request once all is said. Raises OSError, QuireError."""
        while True:
            if len(self.came) < self.num_wanted:
                try:
                    came = self.peer.recv(self.num_wanted - len(self.came))
                except BlockingIOError:
                    return None
                if not came:
                    raise ConnectionError("the peer has gone")
                self.came += came
                continue
            taken, self.came = bytes(self.came), bytearray()
            try:
                # What is sent fits into any socket's buffer.
                answer, self.num_wanted = self.steps.send(taken) if self.num_wanted else next(self.steps)
            except StopIteration as over:
                request: pb.HandoverRequest = over.value
                return request
            if answer:
                self.peer.sendall(answer)


def _welcome(secret: bytes) -> handshake.Steps[pb.HandoverRequest]:
    """What the server says and hears: the peer's proof, then what it wants."""
    yield from handshake.welcome(GREETING, lambda name: secret)
    size = _LENGTH.unpack((yield b"", _LENGTH.size))[0]
    if size > _MAX_HELLO_BYTES or not size:
        raise ProtocolError(f"a hello of {size:,} bytes")
    hello = parsed(pb.HandoverRequest, (yield b"", size))
    if len(hello.caller) > MAX_NAME_CHARS:
        raise ProtocolError(f"a caller's name of {len(hello.caller):,} characters")
    return hello


class Sessions(Protocol):
    """Who is told of each process that has the memory; called on the server's thread."""

    def session_began(self, session: int, caller: str, caller_incarnation: int, *, write: bool) -> None:
        """Before it gets it."""

    def session_died(self, session: int) -> None:
        """It is proven dead."""


class HandoverServer:
    """Gives `memory` to peers, and proves them dead."""

    def __init__(self, memory: SharedMemory, incarnation: int, security: ClusterSecurity, sessions: Sessions) -> None:
        self.name = f"quire-{secrets.token_hex(12)}"
        self._memory = memory
        self._incarnation = incarnation
        self._security = security
        self._told = sessions
        self._sessions: dict[int, _Session] = {}
        self._next = 1
        self._greetings: dict[int, _Greeting] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.bind(f"\0{self.name}")
        self._socket.listen(64)
        self._socket.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._by_process: dict[int, int] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="quire-handover", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._wake)
        for greeting in self._greetings.values():
            greeting.peer.close()
        for session in self._sessions.values():
            os.close(session.process)
        self._greetings.clear()
        self._sessions.clear()

    def _run(self) -> None:
        while not self._closing:
            for descriptor, _ in self._poll.poll(1000 * _HELLO_S if self._greetings else None):
                try:
                    self._look(descriptor)
                except Exception:
                    # Whatever it was: this thread proves peers dead.
                    log.exception("a peer of the handover of %s", self.name)
            now = time.monotonic()
            for descriptor, greeting in list(self._greetings.items()):
                if now >= greeting.deadline:
                    self._drop(descriptor)

    def _look(self, descriptor: int) -> None:
        if descriptor == self._socket.fileno():
            self._accept()
        elif descriptor in self._by_process:
            self._bury(descriptor)
        elif descriptor in self._greetings:
            greeting = self._greetings[descriptor]
            try:
                hello = greeting.go_on()
                if hello is not None:
                    self._hand_over(greeting, hello)
                    self._drop(descriptor)
            except (OSError, QuireError) as error:
                log.info("a peer of process %d gets no memory: %s", greeting.pid, error)
                self._drop(descriptor)

    def _bury(self, process: int) -> None:
        """The process of a session is dead."""
        number = self._by_process.pop(process)
        self._poll.unregister(process)
        del self._sessions[number]
        os.close(process)
        self._told.session_died(number)

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except BlockingIOError:
            return  # it has gone
        except OSError as error:
            # Out of descriptors, most likely: who waits is still there afterwards.
            log.warning("a peer of %s cannot be taken: %s", self.name, error)
            time.sleep(_NO_DESCRIPTOR_S)
            return
        pid, user = credentials_of(peer)
        if user != os.geteuid():
            log.warning("process %d of user %d wants the memory of %s", pid, user, self.name)
            peer.close()
            return
        of_it = [descriptor for descriptor, held in self._greetings.items() if held.pid == pid]
        if len(of_it) >= MAX_GREETINGS_OF_PROCESS:
            self._drop(of_it[0])
        elif len(self._greetings) >= MAX_GREETINGS:
            self._drop(next(iter(self._greetings)))
        peer.setblocking(False)
        steps = _welcome(self._security.secret.encode())
        self._greetings[peer.fileno()] = _Greeting(peer, pid, steps, time.monotonic() + _HELLO_S)
        self._poll.register(peer, select.POLLIN)

    def _drop(self, descriptor: int) -> None:
        greeting = self._greetings.pop(descriptor)
        self._poll.unregister(descriptor)
        greeting.peer.close()

    def _hand_over(self, greeting: _Greeting, hello: pb.HandoverRequest) -> None:
        peer = greeting.peer
        refused = self._refusal(hello, greeting.pid)
        if refused:
            _send(peer, pb.HandoverResponse(detail=refused))
            return
        process = _process_of(peer)
        number, self._next = self._next, self._next + 1
        self._told.session_began(number, hello.caller, hello.caller_incarnation, write=hello.write)
        self._sessions[number] = _Session(number, greeting.pid, process)
        self._by_process[process] = number
        self._poll.register(process, select.POLLIN)
        descriptor = self._memory.descriptor if hello.write else self._memory.read_only()
        try:
            _send(peer, pb.HandoverResponse(session=number, size_bytes=self._memory.size), descriptor)
        finally:
            if not hello.write:
                os.close(descriptor)

    def _refusal(self, hello: pb.HandoverRequest, pid: int) -> str:
        if hello.pool_incarnation != self._incarnation:
            return f"incarnation {self._incarnation} of the pool is here, {hello.pool_incarnation} was asked for"
        if len(self._sessions) >= MAX_SESSIONS:
            return f"this pool's memory was given away {MAX_SESSIONS} times, the most at a time"
        if Counter(session.pid for session in self._sessions.values())[pid] >= MAX_SESSIONS_OF_PROCESS:
            return f"process {pid} was given this pool's memory {MAX_SESSIONS_OF_PROCESS} times, the most at a time"
        return ""


def _send(peer: socket.socket, answer: pb.HandoverResponse, *descriptors: int) -> None:
    body = answer.SerializeToString()
    socket.send_fds(peer, [_LENGTH.pack(len(body)) + body], descriptors)


def credentials_of(peer: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket, as the kernel says."""
    pid, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


def _process_of(peer: socket.socket) -> int:
    """A pidfd of the process that connected; raises OSError where the kernel cannot say which it is."""
    try:
        return struct.unpack("i", peer.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]  # type: ignore[no-any-return]
    except OSError:
        pid, _ = credentials_of(peer)
        if pid <= 0:
            raise
        process = os.pidfd_open(pid)
        # It was this process that we opened if it is still there to hold its end of the connection.
        gone = select.poll()
        gone.register(peer, select.POLLHUP)
        if gone.poll(0):
            os.close(process)
            raise
        return process


def take_over(
    name: str, hello: pb.HandoverRequest, security: ClusterSecurity, timeout_s: float
) -> tuple[SharedMemory, int]:
    """Connects to a handover server and maps its memory; returns it with the session. Raises TransferError."""
    body = hello.SerializeToString()
    descriptors: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
        server.settimeout(timeout_s)
        try:
            server.connect(f"\0{name}")
            if credentials_of(server)[1] != os.geteuid():
                raise ProtocolError("another user's process listens there")
            handshake.drive(server, handshake.greet(GREETING, b"", security.secret.encode()))
            server.sendall(_LENGTH.pack(len(body)) + body)
            # The descriptor comes with the first bytes; the answer is one write of few bytes.
            message, descriptors, _, _ = socket.recv_fds(server, _LENGTH.size + _MAX_HELLO_BYTES, 1)
            answer = parsed(pb.HandoverResponse, message[_LENGTH.size :])
        except (OSError, QuireError) as error:
            _close(descriptors)
            raise TransferError(f"the pool's memory was not handed over: {error}") from error
    if not answer.session or len(descriptors) != 1:
        _close(descriptors)
        raise TransferError(f"the pool's memory was not handed over: {answer.detail or 'no answer'}")
    try:
        os.set_inheritable(descriptors[0], False)
        return SharedMemory(descriptors[0], answer.size_bytes, writable=hello.write), answer.session
    except OSError as error:
        raise TransferError(f"the pool's memory cannot be mapped: {error}") from error


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
