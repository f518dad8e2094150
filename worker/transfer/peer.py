"""A peer pool as a worker sees it: its transfer service, the carriers it offers, and its memory if it can be mapped.

The agent makes one per peer and incarnation. Each call is said once; `cluster/register/errand.py` says when again. It
moves no bytes: `worker/transfer/carry.py` does.
"""

from __future__ import annotations

import socket
import threading

from cluster.errors import TransferError
from cluster.links.handshake import HANDSHAKE_S
from cluster.links.security import ClusterSecurity
from cluster.register.states import Carrier, CarrierLost, NotObeyed, Reservation, TransferName
from cluster.register.steps import Committed, Copied, Reserved
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.calls import Calls
from worker.transfer.chunks import sums_from, sums_message
from worker.transfer.end import PoolEnd
from worker.transfer.frames import prepare
from worker.transfer.handover import boot_id, take_over
from worker.transfer.memory import SharedMemory
from worker.transfer.socket import greet
from worker.transfer.wire import (
    MAX_REASON_CHARS,
    layout_message,
    name_message,
    ranges_from,
    reservation_message,
)

_HANDOVER_S = 2.0


class PeerPool:
    """The pool `name` at `address`. `join` comes first. Who made it holds it; the last to let go closes it."""

    def __init__(self, name: str, address: str, end: PoolEnd, security: ClusterSecurity) -> None:
        self.name = name
        self.address = address
        self.incarnation = 0
        self.calls = Calls(address, security)
        self._end = end
        self._security = security
        self._joined = pb.JoinResponse()
        self._lock = threading.Lock()
        self._num_holders = 1
        # By whether it may be written: the memory and the session that it was given under.
        self._memory: dict[bool, tuple[SharedMemory, int]] = {}
        self._unmappable = ""

    def retain(self) -> PeerPool:
        with self._lock:
            assert self._num_holders > 0, self.name
            self._num_holders += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._num_holders -= 1
            if self._num_holders:
                return
        self.calls.close()
        for memory, _ in self._memory.values():
            memory.close()
        self._memory.clear()

    def join(self, timeout_s: float) -> None:
        """Learns who is there; raises Refused if the two pools cannot exchange blocks, or Lost."""
        end = self._end
        asked = pb.JoinRequest(caller=end.name, caller_incarnation=end.incarnation, layout=layout_message(end.layout))
        self._joined = self.calls.unary("Join", asked, pb.JoinResponse, timeout_s)
        self.incarnation = self._joined.pool_incarnation

    def offers(self, wanted: tuple[Carrier, ...], *, write: bool) -> tuple[tuple[Carrier, ...], int]:
        """Those of the carriers that can be used, the best first, and this process's session of shared memory."""
        usable, session = {Carrier.STREAM: True, Carrier.SOCKET: self._joined.data_port > 0}, 0
        if Carrier.SHARED_MEMORY in wanted and self._joined.handover and self._joined.boot_id == boot_id():
            held = self.memory(write=write)
            if held is not None:
                usable[Carrier.SHARED_MEMORY], session = True, held[1]
        return tuple(carrier for carrier in wanted if usable.get(carrier)), session

    def memory(self, *, write: bool) -> tuple[SharedMemory, int] | None:
        """The peer's pool in this process and the session it was given under; None if it cannot be had."""
        write = write or self._end.pool.pins  # only memory that may be written can be pinned
        with self._lock:
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
                    held = take_over(self._joined.handover, hello, self._security, _HANDOVER_S)
                except TransferError as error:
                    # Another network namespace, say. The other carriers still work.
                    self._unmappable = str(error)
                    return None
                self._memory[write] = held
                if not self._end.pool.pins:
                    held[0].populate()
            return held

    def connect(self, name: TransferName, token: bytes) -> tuple[socket.socket, bytes]:
        """A data socket for one transfer, and its marker; raises Lost."""
        host = self.address.rsplit(":", 1)[0].strip("[]")
        try:
            connection = socket.create_connection((host, self._joined.data_port), HANDSHAKE_S)
        except OSError as error:
            raise CarrierLost(f"the data socket of {self.name} cannot be reached: {error}") from error
        try:
            context = self._security.client_context()
            if context is not None and self._security.tls is not None:
                connection = context.wrap_socket(connection, server_hostname=self._security.tls.name)
            prepare(connection)
            return connection, greet(connection, name_message(name), token)
        except OSError as error:
            connection.close()
            raise CarrierLost(f"the data socket of {self.name} broke: {error}") from error
        except TransferError:
            connection.close()
            raise

    # -- calls; each raises Refused or Lost

    def reserve(self, asked: Reservation, timeout_s: float) -> Reserved:
        answer = self.calls.unary("Reserve", reservation_message(asked), pb.ReserveResponse, timeout_s)
        return Reserved(answer.token, sums_from(answer.crc32c) if answer.crc32c else None)

    def commit(self, name: TransferName, copied: Copied, timeout_s: float) -> Committed:
        request = pb.CommitRequest(name=name_message(name))
        if copied.sums is not None:
            request.sums.first, request.sums.crc32c = copied.first, sums_message(copied.sums)
        answer = self.calls.unary("Commit", request, pb.CommitResponse, timeout_s)
        return Committed(ranges_from(answer.missing), answer.phase == pb.TRANSFER_PHASE_COMMITTED)

    def abort(self, name: TransferName, reason: str, timeout_s: float) -> bool:
        """Says that nothing of this end writes any more; False if it was not heard."""
        request = pb.AbortRequest(name=name_message(name), reason=reason[:MAX_REASON_CHARS], stopped=True)
        try:
            self.calls.unary("Abort", request, pb.AbortResponse, timeout_s)
        except NotObeyed:
            pass  # a pool of another incarnation has no memory that this transfer could reach
        except TransferError:
            return False
        return True
