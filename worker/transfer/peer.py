"""A peer pool as a worker sees it: its transfer service, the carriers it offers, and its memory if it can be mapped.

The agent makes one per peer and incarnation. Calls are said again until they are answered, as every call of the
service can be; `go_on` is asked in between and raises to give up. It moves no bytes: `worker/transfer/run.py` does.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from cluster.errors import TransferError
from cluster.links.handshake import HANDSHAKE_S
from cluster.links.security import ClusterSecurity
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.calls import Calls
from worker.transfer.end import PoolEnd
from worker.transfer.frames import prepare
from worker.transfer.handover import boot_id, take_over
from worker.transfer.memory import SharedMemory
from worker.transfer.socket import greet
from worker.transfer.states import Carrier, Lost, Refusal, Refused, Reservation, TransferName
from worker.transfer.wire import MAX_REASON_CHARS, layout_message, name_message, reservation_message

Response = TypeVar("Response", bound=Message)
GoOn = Callable[[], None]

# One try of a call, and how long a peer that says nothing is asked again: computing anew beats waiting for long.
CALL_S = 2.0
PATIENCE_S = 6.0
_PAUSE_S, _MAX_PAUSE_S = 0.02, 0.5


class PeerPool:
    """The pool `name` at `address`. `join` comes first."""

    def __init__(self, name: str, address: str, end: PoolEnd, security: ClusterSecurity) -> None:
        self.name = name
        self.address = address
        self.incarnation = 0
        self.calls = Calls(address, security)
        self._end = end
        self._security = security
        self._joined = pb.JoinResponse()
        self._mapping = threading.Lock()
        # By whether it may be written.
        self._memory: dict[bool, tuple[SharedMemory, int]] = {}
        self._unmappable = ""

    def join(self, go_on: GoOn) -> None:
        """Learns who is there; raises Refused if the two pools cannot exchange blocks."""
        end = self._end
        asked = pb.JoinRequest(caller=end.name, caller_incarnation=end.incarnation, layout=layout_message(end.layout))
        self._joined = self._call("Join", asked, pb.JoinResponse, go_on)
        self.incarnation = self._joined.pool_incarnation

    def carriers(self) -> list[Carrier]:
        """What the peer offers to this process, the best first."""
        here = bool(self._joined.handover) and self._joined.boot_id == boot_id() and not self._unmappable
        offered = [Carrier.SHARED_MEMORY] if here else []
        if self._joined.data_port:
            offered.append(Carrier.SOCKET)
        return [*offered, Carrier.STREAM]

    def map(self, *, write: bool) -> bool:
        """Maps the peer's memory if this process can; False: use another carrier."""
        return self.memory(write=write) is not None

    def memory(self, *, write: bool) -> tuple[SharedMemory, int] | None:
        """The peer's pool in this process and the session it was given under; None if it cannot be had."""
        write = write or self._end.pool.pins  # only memory that may be written can be pinned
        with self._mapping:
            if self._unmappable:
                return None
            held = self._memory.get(True) or self._memory.get(write)
            if held is None:
                hello = pb.HandoverRequest(
                    caller=self._end.name,
                    caller_incarnation=self._end.incarnation,
                    pool_incarnation=self.incarnation,
                    write=write,
                )
                try:
                    held = take_over(self._joined.handover, hello, self._security, CALL_S)
                except TransferError as error:
                    # Another network namespace, say. The other carriers still work.
                    self._unmappable = str(error)
                    return None
                self._memory[write] = held
                if self._end.pool.pins:
                    held[0].pin()
                held[0].populate()
            return held

    def connect(self, name: TransferName, token: bytes) -> tuple[socket.socket, bytes]:
        """A data socket for one transfer, and its marker; raises Lost."""
        host = self.address.rsplit(":", 1)[0].strip("[]")
        try:
            connection = socket.create_connection((host, self._joined.data_port), HANDSHAKE_S)
        except OSError as error:
            raise Lost(f"the data socket of {self.name} cannot be reached: {error}") from error
        try:
            context = self._security.client_context()
            if context is not None and self._security.tls is not None:
                connection = context.wrap_socket(connection, server_hostname=self._security.tls.name)
            prepare(connection)
            return connection, greet(connection, name_message(name), token)
        except OSError as error:
            connection.close()
            raise Lost(f"the data socket of {self.name} broke: {error}") from error
        except TransferError:
            connection.close()
            raise

    # -- calls

    def reserve(self, asked: Reservation, go_on: GoOn) -> pb.ReserveResponse:
        return self._call("Reserve", reservation_message(asked), pb.ReserveResponse, go_on)

    def commit(self, name: TransferName, go_on: GoOn, sums: pb.ChunkSums | None = None) -> pb.CommitResponse:
        request = pb.CommitRequest(name=name_message(name), sums=sums)
        return self._call("Commit", request, pb.CommitResponse, go_on)

    def abort(self, name: TransferName, reason: str, timeout_s: float) -> bool:
        """Says that nothing of this end writes any more; False if it was not heard."""
        request = pb.AbortRequest(name=name_message(name), reason=reason[:MAX_REASON_CHARS], stopped=True)
        try:
            self.calls.unary("Abort", request, pb.AbortResponse, timeout_s)
        except Refused:
            pass  # a pool of another incarnation has no memory that this transfer could reach
        except TransferError:
            return False
        return True

    def _call(self, method: str, request: Message, kind: type[Response], go_on: GoOn) -> Response:
        """Until it is answered or refused, or `go_on` raises. A peer that is busy is asked for as long as that."""
        pause_s = _PAUSE_S
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            go_on()
            try:
                return self.calls.unary(method, request, kind, CALL_S)
            except Refused as refused:
                if refused.refusal is not Refusal.BUSY:
                    raise
                give_up_at = time.monotonic() + PATIENCE_S
            except Lost as lost:
                if lost.final or time.monotonic() >= give_up_at:
                    raise
            _wait(pause_s, go_on)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def close(self) -> None:
        """No transfer uses it any more."""
        self.calls.close()
        for memory, _ in self._memory.values():
            memory.close()
        self._memory.clear()


def _wait(pause_s: float, go_on: GoOn) -> None:
    """Pauses in small steps, so that an abort does not have to wait."""
    end = time.monotonic() + pause_s
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
        go_on()
