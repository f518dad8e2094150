"""Hands a pool's memory to processes of the same machine, and proves when such a process is dead.

The server listens on an abstract unix socket with a name that only authenticated peers are told; the kernel says which
process is at the other end. A peer that shows the secret gets the pool's file descriptor and a session number. The
process is watched through a pidfd until it is dead: that, and nothing a peer says about itself, is proof that no late
write can come. Who may copy what is decided by the pool's register.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import TransferError
from protos.quire.v1 import transfer_pb2 as pb
from worker.security import ClusterSecurity
from worker.transfer.memory import SharedMemory

MAX_SESSIONS = 256
_HELLO_S = 2.0
_SO_PEERPIDFD = 77  # Linux 6.5; the pid alone could have been given to another process meanwhile
_MAX_MESSAGE = 4096


def boot_id() -> str:
    """Equal in two processes exactly if they run under the same kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


@dataclass(slots=True)
class _Session:
    number: int
    caller: str
    caller_incarnation: int
    write: bool
    process: int  # a pidfd


class HandoverServer:
    """Gives `memory` to peers. `died(session)` is called on its thread once a peer's process is dead."""

    def __init__(
        self, memory: SharedMemory, incarnation: int, security: ClusterSecurity, died: Callable[[int], object]
    ) -> None:
        self.name = f"quire-{secrets.token_hex(12)}"
        self._memory = memory
        self._incarnation = incarnation
        self._security = security
        self._died = died
        self._sessions: dict[int, _Session] = {}
        self._next = 1
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.bind(f"\0{self.name}")
        self._socket.listen(16)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="quire-handover", daemon=True)
        self._thread.start()

    def allows(self, session: int, caller: str, caller_incarnation: int, write: bool) -> bool:
        """Whether this session was given to this caller, with leave to write if that is asked, and it lives."""
        with self._lock:
            held = self._sessions.get(session)
        if held is None or (held.caller, held.caller_incarnation) != (caller, caller_incarnation):
            return False
        return held.write or not write

    def close(self) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._wake)
        for session in self._sessions.values():
            os.close(session.process)
        self._sessions.clear()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        by_process: dict[int, int] = {}
        while not self._closing:
            for descriptor, _ in poll.poll():
                if descriptor == self._socket.fileno():
                    session = self._accept()
                    if session is not None:
                        by_process[session.process] = session.number
                        poll.register(session.process, select.POLLIN)
                elif descriptor in by_process:
                    number = by_process.pop(descriptor)
                    poll.unregister(descriptor)
                    with self._lock:
                        del self._sessions[number]
                    os.close(descriptor)
                    self._died(number)

    def _accept(self) -> _Session | None:
        """Takes one peer. A peer that is slow or wrong only costs itself: the hello has a short deadline."""
        peer, _ = self._socket.accept()
        with peer:
            peer.settimeout(_HELLO_S)
            try:
                hello = pb.HandoverRequest.FromString(peer.recv(_MAX_MESSAGE))
                refused = self._refusal(hello)
                if refused:
                    peer.send(pb.HandoverResponse(detail=refused).SerializeToString())
                    return None
                process = _process_of(peer)
            except (OSError, ValueError):
                return None
            with self._lock:
                session = _Session(self._next, hello.caller, hello.caller_incarnation, hello.write, process)
                self._next += 1
                self._sessions[session.number] = session
            answer = pb.HandoverResponse(session=session.number, size_bytes=self._memory.size)
            descriptor = self._memory.descriptor if hello.write else self._memory.read_only()
            try:
                socket.send_fds(peer, [answer.SerializeToString()], [descriptor])
            except OSError:
                pass  # it has gone; its pidfd will say so
            finally:
                if not hello.write:
                    os.close(descriptor)
            return session

    def _refusal(self, hello: pb.HandoverRequest) -> str:
        if not self._security.accepts(hello.secret):
            return "the secret of this cluster's pools is another one"
        if hello.pool_incarnation != self._incarnation:
            return f"incarnation {self._incarnation} of the pool is here, {hello.pool_incarnation} was asked for"
        if len(self._sessions) >= MAX_SESSIONS:
            return f"{MAX_SESSIONS} processes have this pool's memory, the most at a time"
        return ""


def _process_of(peer: socket.socket) -> int:
    """A pidfd of the process that connected; raises OSError where the kernel cannot say which it is."""
    try:
        return struct.unpack("i", peer.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]  # type: ignore[no-any-return]
    except OSError:
        pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
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


def take_over(name: str, hello: pb.HandoverRequest, timeout_s: float) -> tuple[SharedMemory, int]:
    """Connects to a handover server and maps its memory; returns it with the session. Raises TransferError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as server:
        server.settimeout(timeout_s)
        try:
            server.connect(f"\0{name}")
            server.send(hello.SerializeToString())
            message, descriptors, _, _ = socket.recv_fds(server, _MAX_MESSAGE, 1)
        except OSError as error:
            raise TransferError(f"the pool's memory was not handed over: {error}") from error
    answer = pb.HandoverResponse.FromString(message)
    if not answer.session or len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise TransferError(f"the pool's memory was not handed over: {answer.detail or 'no answer'}")
    try:
        os.set_inheritable(descriptors[0], False)
        return SharedMemory(descriptors[0], answer.size_bytes, writable=hello.write), answer.session
    except OSError as error:
        raise TransferError(f"the pool's memory cannot be mapped: {error}") from error
