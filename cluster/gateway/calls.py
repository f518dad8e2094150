"""What every gRPC method of a gateway shares: bytes in, one status out, and never INTERNAL for what a client sent.

Methods are registered without grpc's own parsing, because that answers undecodable bytes with INTERNAL. A method is an
`async def (message, call)`; a `Call` knows the caller, the time left, and how to end. Nothing here knows a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from cluster.errors import QuireError, WorkFailed
from cluster.gateway.errors import trailer_of
from cluster.gateway.intake import parse
from cluster.serving.auth import Caller, Right, TokenBook

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Method: TypeAlias = Callable[..., Awaitable[Any]]


class Call:
    """One call of a client that may make it."""

    __slots__ = ("_context", "caller")

    def __init__(self, context: Context, caller: Caller) -> None:
        self._context = context
        self.caller = caller

    @property
    def time_left_s(self) -> float | None:
        """Until the client's own deadline; None: it set none."""
        left: float | None = self._context.time_remaining()
        # Without a deadline grpc counts down from hundreds of years.
        return None if left is None or left > 1e9 else left

    @property
    def traceparent(self) -> str:
        """The W3C trace context that the client sent; empty: none."""
        return _metadata(self._context, "traceparent") or ""

    @property
    def is_past_deadline(self) -> bool:
        left = self.time_left_s
        return left is not None and left <= 0

    async def write(self, message: Message) -> None:
        await self._context.write(message.SerializeToString())


def register(
    server: grpc.aio.Server, service: ServiceDescriptor, methods: Mapping[str, Method], book: TokenBook, right: Right
) -> None:
    """Adds a service to a server, each method behind parsing, the caller's right and error statuses."""
    missing = [method.name for method in service.methods if method.name not in methods]
    assert not missing, f"{service.full_name} has no {missing}"
    handlers = {method.name: _handler(method, methods[method.name], book, right) for method in service.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def list_services(server: grpc.aio.Server, *names: str) -> None:
    """Adds reflection, by which tools such as grpcurl learn what a door speaks. It says nothing of a tenant, so that
    anyone may ask."""
    listed = ReflectionServicer([*names, reflection.SERVICE_NAME])

    async def reflect(messages: AsyncIterator[Any], call: Call) -> None:
        async for response in listed.ServerReflectionInfo(messages, None):
            await call.write(response)

    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    register(server, service, {"ServerReflectionInfo": reflect}, TokenBook(), "inference")


def _handler(
    descriptor: MethodDescriptor, method: Method, book: TokenBook, right: Right
) -> grpc.RpcMethodHandler[Any, Any]:
    kind = GetMessageClass(descriptor.input_type)

    async def unary(raw: bytes, context: Context) -> bytes:
        async def run(call: Call) -> Message:
            answer: Message = await method(parse(kind, raw), call)
            return answer

        answer: Message = await guarded(context, book, right, run)
        return answer.SerializeToString()

    async def streamed(raw: bytes, context: Context) -> None:
        await guarded(context, book, right, lambda call: method(parse(kind, raw), call))

    async def both_ways(raws: AsyncIterator[bytes], context: Context) -> None:
        async def messages() -> AsyncIterator[Message]:
            async for raw in raws:
                yield parse(kind, raw)

        await guarded(context, book, right, lambda call: method(messages(), call))

    if descriptor.client_streaming:
        return grpc.stream_stream_rpc_method_handler(both_ways)
    if descriptor.server_streaming:
        return grpc.unary_stream_rpc_method_handler(streamed)
    return grpc.unary_unary_rpc_method_handler(unary)


async def guarded(context: Context, book: TokenBook, right: Right, run: Callable[[Call], Awaitable[Any]]) -> Any:
    """Runs a method; what it raises becomes the status of the call."""
    try:
        caller = book.caller(_metadata(context, "authorization"))
        caller.require(right)
        return await run(Call(context, caller))
    except QuireError as error:
        failure = error
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("a call failed by a mistake of ours")
        failure = WorkFailed("a mistake of the gateway; its log has the details")
    code, details, trailer = trailer_of(failure)
    return await context.abort(code, details, trailer)


def _metadata(context: Context, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else None
    return None
