"""Serves one pool to its peers: the gRPC port, the data socket, the handover of its memory, and the deadlines.

A host pool process and every worker run one. Peers come in through `worker/transfer/service.py` and the two loops of
`worker/transfer/socket.py`; all of them go through the pool's `PoolEnd`. It starts its own threads and ends them in
`close`; none of them decides anything.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from cluster.errors import ConfigError, QuireError
from cluster.links.handshake import HANDSHAKE_S
from cluster.links.security import ClusterSecurity
from cluster.register.moving import Moving
from cluster.register.states import Carrier, CarrierLost, NotObeyed, TransferName, WhyRefused
from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.end import PoolEnd
from worker.transfer.frames import prepare
from worker.transfer.handover import HandoverServer
from worker.transfer.memory import keep_freed_memory
from worker.transfer.secret_proof import Challenger
from worker.transfer.service import TransferService
from worker.transfer.socket import Receiver, Sender, welcome
from worker.transfer.wire import name_from

# Data sockets together and of one caller, and those that have yet to prove what they are for: one more of these takes
# the place of the oldest.
MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CALLER = 128, 16
MAX_GREETINGS = 32
MAX_GRPC_CONNECTIONS = 512
_NUM_CALL_THREADS = 16
_MAX_CALLS, _MAX_CALLS_OF_CONNECTION = 256, 32
# The blocks of a transfer by number, the sums of its chunks, or a batch of chunks of 1 MiB each.
MAX_MESSAGE_BYTES = 8 << 20
_OPTIONS = {
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_metadata_size": 4096,
    "grpc.absolute_max_metadata_size": 4096,
    "grpc.max_allowed_incoming_connections": MAX_GRPC_CONNECTIONS,
    "grpc.max_concurrent_streams": _MAX_CALLS_OF_CONNECTION,
    # Of who connects and says nothing; of a connection without a call, which its owner opens again when it needs one.
    "grpc.server_handshake_timeout_ms": int(1000 * HANDSHAKE_S),
    "grpc.max_connection_idle_ms": 60_000,
}
_TICK_S = 0.1
_NO_DESCRIPTOR_S = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a pool can be reached. Ports of 0 are chosen by the system; `data_port` None: no data socket."""

    host: str = "127.0.0.1"
    port: int = 0
    data_port: int | None = 0
    # What peers are told, where a port mapping stands between; 0: the ports themselves.
    advertised_port: int = 0
    advertised_data_port: int = 0


class TransferServer:
    """Serves `end` from when it is made until `close`."""

    def __init__(
        self,
        end: PoolEnd,
        security: ClusterSecurity,
        listening: Listening | None = None,
    ) -> None:
        listening = listening or Listening()
        keep_freed_memory()
        self._end = end
        self._security = security
        self._context = security.server_context()
        self._closing = threading.Event()
        # By socket: the caller of its transfer; "" until it has proven which that is.
        self._connections: dict[socket.socket, str] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        shared = end.pool.shared
        self._handover = HandoverServer(shared, end.incarnation, security, end) if shared else None
        self._listener: socket.socket | None = None
        if listening.data_port is not None:
            self._listener = _listen(listening.host, listening.data_port)
        self.data_port = self._listener.getsockname()[1] if self._listener else 0
        self._server = grpc.server(
            ThreadPoolExecutor(_NUM_CALL_THREADS, "quire-transfer-call"),
            options=list({**dict(security.server_options()), **_OPTIONS}.items()),
            maximum_concurrent_rpcs=_MAX_CALLS,
        )
        told = listening.advertised_data_port or self.data_port
        host = f"[{listening.host}]" if ":" in listening.host else listening.host
        self.port = security.serve(self._server, f"{host}:{listening.port}")
        self.address = f"{host}:{listening.advertised_port or self.port}"
        service = TransferService(end, told, self._handover)
        self._server.add_generic_rpc_handlers([service.handlers(Challenger(security.secret, self.address))])
        self._server.start()
        self._start(self._run_ticks, "quire-transfer-tick")
        if self._listener:
            self._start(self._accept, "quire-transfer-accept")

    def close(self) -> None:
        """Ends every call and connection. Transfers that are under way fail at their other ends."""
        self._closing.set()
        stopped = self._server.stop(grace=None)
        if self._listener:
            self._listener.close()
        with self._lock:
            for connection in self._connections:
                _shut(connection)
        for thread in self._threads:
            thread.join()
        stopped.wait()
        if self._handover:
            self._handover.close()

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._threads = [held for held in self._threads if held.is_alive()]
            self._threads.append(thread)
        thread.start()

    def _run_ticks(self) -> None:
        while not self._closing.wait(_TICK_S):
            self._end.expire()

    # -- data socket

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                # Out of descriptors, most likely: who waits is still there afterwards.
                if not self._closing.wait(_NO_DESCRIPTOR_S):
                    log.warning("a data connection of %s cannot be taken: %s", self._end.name, error)
                continue
            with self._lock:
                unproven = [held for held, caller in self._connections.items() if not caller]
                if len(unproven) >= MAX_GREETINGS:
                    _shut(unproven[0])
                self._connections[connection] = ""
            self._start(lambda connection=connection: self._serve(connection), "quire-transfer-data")  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        """One connection, which carries one transfer. Its peer learns from the service how things stand."""
        try:
            connection.settimeout(HANDSHAKE_S)
            if self._context is not None:
                connection = self._secure(connection, self._context)
            prepare(connection)
            moving, name, marker = welcome(connection, self._find)
            self._admit(connection, name.key.caller)

            def go_on() -> None:
                if self._closing.is_set():
                    raise CarrierLost("the pool is being closed")
                if not moving.live:
                    raise NotObeyed(WhyRefused.LATE, f"{moving.key} has ended: {moving.reason}")

            role = Receiver if moving.reservation.write else Sender
            role(connection, marker, self._end, moving, name, go_on).run()
        except (QuireError, OSError):
            pass  # counted where it was refused; the caller asks the service what is missing
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()

    def _admit(self, connection: socket.socket, caller: str) -> None:
        """It has proven that it is here for a transfer of `caller`."""
        with self._lock:
            proven = [held for held in self._connections.values() if held]
            if len(proven) >= MAX_CONNECTIONS or proven.count(caller) >= MAX_CONNECTIONS_OF_CALLER:
                raise CarrierLost(f"{len(proven)} data connections are open, {proven.count(caller)} of {caller}")
            self._connections[connection] = caller

    def _secure(self, plain: socket.socket, context: ssl.SSLContext) -> socket.socket:
        secured = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections.pop(plain, None)
            self._connections[secured] = ""
        secured.do_handshake()
        return secured

    def _find(self, named: pb.TransferName) -> tuple[Moving, TransferName]:
        name = name_from(named)
        return self._end.live_by(name, None, Carrier.SOCKET), name


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(64)
        # `close` cannot interrupt accept on every kernel.
        listener.settimeout(0.5)
    except OSError as error:
        listener.close()
        raise ConfigError(f"the data socket cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
