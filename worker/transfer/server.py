"""Serves one pool to its peers: the gRPC port, the data socket, the handover of its memory, and the deadlines.

A host pool process and every worker run one. Peers come in through `worker/transfer/service.py` and the two loops of
`worker/transfer/socket.py`; all of them go through the pool's `PoolEnd`. It starts its own threads and ends them in
`close`; none of them decides anything.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from cluster.errors import ConfigError, TransferError
from protos.quire.v1 import transfer_pb2 as pb
from protos.quire.v1.transfer_pb2_grpc import add_TransferServiceServicer_to_server
from worker.handshake import HANDSHAKE_S
from worker.security import ClusterSecurity
from worker.transfer.end import PoolEnd
from worker.transfer.frames import Lost, prepare
from worker.transfer.handover import HandoverServer
from worker.transfer.memory import keep_freed_memory
from worker.transfer.service import TransferService
from worker.transfer.socket import Receiver, Sender, welcome
from worker.transfer.states import Carrier, Moving, Refusal, Refused, TransferName
from worker.transfer.wire import name_from

MAX_CONNECTIONS = 128
_NUM_CALL_THREADS = 16
_MAX_CALLS = 256
_TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a pool can be reached. Ports of 0 are chosen by the system; `data_port` None: no data socket."""

    host: str = "127.0.0.1"
    port: int = 0
    data_port: int | None = 0
    # What peers are told, where a port mapping stands between; 0: the port itself.
    advertised_data_port: int = 0


class TransferServer:
    """Serves `end` from when it is made until `close`. `tick` is called a few times a second on a thread of its own."""

    def __init__(
        self,
        end: PoolEnd,
        security: ClusterSecurity,
        listening: Listening | None = None,
        tick: Callable[[], object] | None = None,
    ) -> None:
        listening = listening or Listening()
        keep_freed_memory()
        self._end = end
        self._security = security
        self._context = security.server_context()
        self._tick = tick
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        shared = end.pool.shared
        self._handover = HandoverServer(shared, end.incarnation, security, end.session_died) if shared else None
        self._listener: socket.socket | None = None
        if listening.data_port is not None:
            self._listener = _listen(listening.host, listening.data_port)
        self.data_port = self._listener.getsockname()[1] if self._listener else 0
        self._server = grpc.server(
            ThreadPoolExecutor(_NUM_CALL_THREADS, "quire-transfer-call"),
            interceptors=[security.interceptor()],
            options=security.server_options(),
            maximum_concurrent_rpcs=_MAX_CALLS,
        )
        told = listening.advertised_data_port or self.data_port
        service = TransferService(end, told, self._handover)
        self._server.add_generic_rpc_handlers([service.chunk_handlers()])
        add_TransferServiceServicer_to_server(service, self._server)
        host = f"[{listening.host}]" if ":" in listening.host else listening.host
        self.port = security.serve(self._server, f"{host}:{listening.port}")
        self.address = f"{host}:{self.port}"
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
            if self._tick is not None:
                self._tick()

    # -- data socket

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with self._lock:
                full = len(self._connections) >= MAX_CONNECTIONS
                if not full:
                    self._connections.add(connection)
            if full:
                connection.close()
            else:
                self._start(lambda connection=connection: self._serve(connection), "quire-transfer-data")  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        """One connection, which carries one transfer. Its peer learns from the service how things stand."""
        try:
            connection.settimeout(HANDSHAKE_S)
            if self._context is not None:
                connection = self._secure(connection, self._context)
            prepare(connection)
            moving, name, marker = welcome(connection, self._find)

            def go_on() -> None:
                if self._closing.is_set():
                    raise Lost("the pool is being closed")
                if not moving.live:
                    raise Refused(Refusal.LATE, f"{moving.key} has ended: {moving.reason}")

            role = Receiver if moving.reservation.write else Sender
            role(connection, marker, self._end, moving, name, go_on).run()
        except (TransferError, OSError):
            pass  # counted where it was refused; the caller asks the service what is missing
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _secure(self, plain: socket.socket, context: ssl.SSLContext) -> socket.socket:
        secured = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._connections.discard(plain)
            self._connections.add(secured)
        secured.do_handshake()
        return secured

    def _find(self, named: pb.TransferName) -> tuple[Moving, TransferName]:
        name = name_from(named)
        moving = self._end.live(name)
        if moving.reservation.carrier is not Carrier.SOCKET:
            raise self._end.refuse(Refusal.CONFLICT, f"{name.key} was not reserved for the data socket")
        return moving, name


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
