"""Calls of a pool's transfer service, for the end that calls: each proven by both ends, each error one of ours.

`worker/transfer/peer.py` says calls again until they are answered; here each is said once, or twice where the server
wants a proof first. Bytes and names in the messages are not looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from cluster.errors import NotAuthenticated, ProtocolError, TransferError
from cluster.links.security import ClusterSecurity
from cluster.register.states import CarrierLost
from cluster.wire.plans import parsed
from worker.transfer.chunk_messages import SERVICE, PackedBlocks, pack, unpack
from worker.transfer.secret_proof import Prover
from worker.transfer.wire import error_from

Response = TypeVar("Response", bound=Message)
# How long one wait for an answer lasts before `go_on` is asked again.
_TICK_S = 0.25


class Calls:
    """Of the service at `address`."""

    def __init__(self, address: str, security: ClusterSecurity) -> None:
        self.address = address
        self._channel = security.channel(address)
        self._prover = Prover(security.secret, address)

    def close(self) -> None:
        self._channel.close()

    def unary(self, method: str, request: Message, kind: type[Response], timeout_s: float) -> Response:
        """Its answer; raises Refused or Lost."""
        say = self._channel.unary_unary(_path(method), pack, None)
        for _ in range(2):
            agreed = self._prover.agreed
            try:
                raw, call = say.with_call(request, timeout=timeout_s, metadata=agreed.metadata(method))
            except grpc.RpcError as error:
                if self._challenged(error):
                    continue
                raise self._problem(error, agreed.answers(error, method)) from error
            if not agreed.answers(call, method):
                raise self._stranger()
            try:
                return parsed(kind, raw)
            except ProtocolError as error:
                raise CarrierLost(f"{self.address}: {error}", final=True) from error
        raise CarrierLost(f"{self.address} wants one proof after another")

    def write(self, chunks: Iterator[bytes], timeout_s: float, go_on: Callable[[], None]) -> None:
        """A call of Write with these messages, of which none goes out before the other end has proven itself. Ends the
        call if `go_on` raises. Raises Refused or Lost."""
        agreed, begun = self._prover.agreed, threading.Event()
        handed: list[Any] = []

        def messages() -> Iterator[bytes]:
            # On a thread of gRPC, which may be here before the call is in our hands.
            begun.wait()
            if agreed.answers(handed[0], "Write"):
                yield from chunks

        say = self._channel.stream_unary(_path("Write"), None, None)
        call: Any = say.future(messages(), timeout=timeout_s, metadata=agreed.metadata("Write"))
        handed.append(call)
        begun.set()
        try:
            while True:
                try:
                    call.result(timeout=_TICK_S)
                    break
                except grpc.FutureTimeoutError:
                    go_on()
        except grpc.RpcError as error:
            raise self._problem(error, agreed.answers(call, "Write")) from error
        finally:
            call.cancel()
        if not agreed.answers(call, "Write"):
            raise self._stranger()

    def read(self, request: Message, timeout_s: float) -> Iterator[PackedBlocks]:
        """The answers to a call of Read. Raises Refused or Lost."""
        agreed = self._prover.agreed
        say = self._channel.unary_stream(_path("Read"), pack, None)
        call: Any = say(request, timeout=timeout_s, metadata=agreed.metadata("Read"))
        try:
            proven = agreed.answers(call, "Read")
            for raw in call:
                if not proven:
                    raise self._stranger()
                yield unpack(raw)
        except grpc.RpcError as error:
            raise self._problem(error, proven) from error
        except ProtocolError as error:
            raise CarrierLost(f"{self.address}: {error}", final=True) from error
        finally:
            call.cancel()

    def _problem(self, error: grpc.RpcError, proven: bool) -> TransferError:
        """What a call that failed means. A refusal counts only from who is proven."""
        problem = error_from(error, self.address)
        try:
            if self._challenged(error):
                return CarrierLost(f"{self.address} is met on another connection, and asks for a proof of its own")
        except CarrierLost as stranger:
            return stranger
        return problem if proven or isinstance(problem, CarrierLost) else self._stranger()

    def _challenged(self, error: grpc.RpcError) -> bool:
        try:
            return self._prover.challenged(error)
        except NotAuthenticated as wrong:
            raise CarrierLost(f"{self.address}: {wrong}", final=True) from error

    def _stranger(self) -> CarrierLost:
        return CarrierLost(f"{self.address}: who answers there has not proven that it knows the secret", final=True)


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"
