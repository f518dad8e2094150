"""Bad connections for tests: messages are dropped, corrupted, truncated, doubled and reordered, each at a given rate.

`python -m tests.worker.transfer_faults` stands between a worker and a pool's data socket and sees frames; when its
input is closed it prints what it did, as JSON. `StreamFaults` stands between them on the gRPC port and sees messages.
"""

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import grpc

from worker.transfer.frames import HEADER_BYTES
from worker.transfer.socket import GREETING

FAULTS = ("drop", "corrupt", "truncate", "double", "reorder")
_LENGTH_AT = HEADER_BYTES - 12
_NONCE, _PROOF = 16, 32
_OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


class Spoiler:
    """Turns one message into those that go on in its place."""

    def __init__(self, rate: float, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._rate = rate
        self._draw = random.Random(seed)
        self._held: bytes | None = None

    def spoil(self, message: bytes) -> list[bytes]:
        draw, place = self._draw, self._draw.random() / self._rate
        fault = FAULTS[int(place)] if place < len(FAULTS) else "none"
        self.done[fault] += 1
        out = [message]
        if fault == "drop":
            out = []
        elif fault == "corrupt":
            spoiled = bytearray(message)
            spoiled[draw.randrange(len(spoiled))] ^= 1 << draw.randrange(8)
            out = [bytes(spoiled)]
        elif fault == "truncate":
            out = [message[: draw.randrange(len(message))]]
        elif fault == "double":
            out = [message, message]
        if fault == "reorder" and self._held is None:
            self._held = message
            return []
        if self._held is not None:
            out.append(self._held)
            self._held = None
        return out

    def rest(self) -> list[bytes]:
        held, self._held = self._held, None
        return [] if held is None else [held]


class FrameFaults:
    """Takes connections on `listen` and passes them on to `to`, spoiling frames in both directions."""

    def __init__(self, listen: int, to: int, rate: float, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.carrying = 0
        self._to = to
        self._rate = rate
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", listen), backlog=64)

    def run(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target, up in ((client, server, True), (server, client, False)):
                with self._lock:
                    self.carrying += 1
                threading.Thread(target=self._carry, args=(source, target, up), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with self._lock:
            spoiler = Spoiler(self._rate, self._draw.randrange(1 << 30))
        try:
            reader = source.makefile("rb", buffering=1 << 20)
            for word in self._handshake(reader, up):
                target.sendall(word)
            while len(header := reader.read(HEADER_BYTES)) == HEADER_BYTES:
                length = int.from_bytes(header[_LENGTH_AT : _LENGTH_AT + 4], "little")
                body = reader.read(length)
                for message in spoiler.spoil(header + body):
                    target.sendall(message)
        except OSError:
            pass
        finally:
            for connection in (source, target):
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            with self._lock:
                self.done.update(spoiler.done)
                self.carrying -= 1

    @staticmethod
    def _handshake(reader: BinaryIO, up: bool) -> Iterator[bytes]:
        """The words before the first frame, each as soon as it is whole."""
        if not up:
            yield reader.read(_NONCE + _PROOF)
            return
        head = reader.read(len(GREETING) + 2)
        yield head + reader.read(int.from_bytes(head[-2:], "little") + _NONCE)
        yield reader.read(_PROOF)


class StreamFaults:
    """A gRPC server at `port` that passes every call on to `address`, spoiling the messages of Write and Read."""

    def __init__(self, port: int, address: str, rate: float, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._rate = rate
        self._draw = random.Random(seed)
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._server = grpc.server(ThreadPoolExecutor(16), options=_OPTIONS)
        self._server.add_generic_rpc_handlers([_Handlers(self)])
        self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def unary(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            say = self._channel.unary_unary(method)
            answer, call = say.with_call(request, timeout=context.time_remaining(), metadata=_metadata(context))
            context.send_initial_metadata(call.initial_metadata())
            return answer  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            _pass_on(error, context)
            raise

    def write(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        say, metadata = self._channel.stream_unary(method), _metadata(context)
        call = say.future(self._spoiled(requests), timeout=context.time_remaining(), metadata=metadata)
        try:
            context.send_initial_metadata(call.initial_metadata())
            return call.result()  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            _pass_on(error, context)
            raise

    def read(self, method: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        call = self._channel.unary_stream(method)(
            request, timeout=context.time_remaining(), metadata=_metadata(context)
        )
        try:
            context.send_initial_metadata(call.initial_metadata())
            yield from self._spoiled(call)
        except grpc.RpcError as error:
            _pass_on(error, context)

    def _spoiled(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        spoiler = Spoiler(self._rate, self._draw.randrange(1 << 30))
        try:
            for message in messages:
                yield from spoiler.spoil(message)
            yield from spoiler.rest()
        finally:
            self.done.update(spoiler.done)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, faults: StreamFaults) -> None:
        self._faults = faults

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method, faults = details.method, self._faults
        if method.endswith("/Write"):
            return grpc.stream_unary_rpc_method_handler(lambda *call: faults.write(method, *call))
        if method.endswith("/Read"):
            return grpc.unary_stream_rpc_method_handler(lambda *call: faults.read(method, *call))
        return grpc.unary_unary_rpc_method_handler(lambda *call: faults.unary(method, *call))


def _metadata(context: grpc.ServicerContext) -> list[tuple[str, str]]:
    return [(key, value) for key, value in context.invocation_metadata() if key.startswith("quire-")]


def _pass_on(error: grpc.RpcError, context: grpc.ServicerContext) -> None:
    context.set_trailing_metadata(tuple(pair for pair in error.trailing_metadata() if pair[0].startswith("quire-")))
    context.abort(error.code(), error.details())


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--listen", "--to", "--seed"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    faults = FrameFaults(options.listen, options.to, options.rate, options.seed)
    threading.Thread(target=faults.run, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    # What is still in the air is counted when its connection ends.
    ends_at = time.monotonic() + 20
    while faults.carrying and time.monotonic() < ends_at:
        time.sleep(0.01)
    print(json.dumps(faults.done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
