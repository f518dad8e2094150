"""What every gRPC method of a gateway shares: bytes in, one status out, and never INTERNAL for what a client sent.

Methods are registered without grpc's own parsing, because that answers undecodable bytes with INTERNAL; and as streams,
because grpc reads the one message of any other call before it asks us whether the caller may make it. A method is an
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
from grpc.aio import EOF  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from cluster.errors import AccessDenied, QuireError, WorkFailed
from cluster.gateway.bodies import SMALL_BYTES, Bodies, checked
from cluster.gateway.errors import Metadata, trailer_of, without_frames
from cluster.serving.auth import Caller, Right, TokenBook
from cluster.serving.refused import refused

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
    def machine(self) -> str:
        """Where the client is, as far as one can see from here: its address without the port."""
        return self._context.peer().rpartition(":")[0]

    @property
    def traceparent(self) -> str:
        """The W3C trace context that the client sent; empty: none."""
        return _metadata(self._context, "traceparent") or ""

    @property
    def is_past_deadline(self) -> bool:
        left = self.time_left_s
        return left is not None and left <= 0

    async def read(self) -> bytes | None:
        """The next message as it came; None behind the last. What grpc hands over to iterate keeps the last one."""
        raw = await self._context.read()
        return None if raw is EOF else raw

    async def write(self, message: Message) -> None:
        await self._context.write(message.SerializeToString())


class Guard:
    """Who may make the calls of a service, and how large their messages may be. `book` None: anyone."""

    def __init__(
        self,
        book: TokenBook | None,
        right: Right,
        bodies: Bodies,
        max_bytes: Callable[[str], int] = lambda method: SMALL_BYTES,
    ) -> None:
        self.book = TokenBook() if book is None else book
        self.right = right
        self.max_bytes = max_bytes
        self._takes_strangers = book is None
        self._bodies = bodies

    async def read(self, call: Call, kind: type[Message], method: str) -> Message:
        """The one message of a call."""
        most = self.max_bytes(method)
        if self._takes_strangers:
            return checked(await self._bodies.of_stranger(call.read, call.machine), kind, most)
        return await self._bodies.of_tenant(call.read, kind, most, call.caller.tenant)

    async def following(self, call: Call, kind: type[Message], method: str) -> Message | None:
        """The next one of a call that has many; None behind the last. A tenant may be silent between them."""
        raw = await (self._bodies.of_stranger(call.read, call.machine) if self._takes_strangers else call.read())
        return None if raw is None else checked(raw, kind, self.max_bytes(method))


def register(server: grpc.aio.Server, service: ServiceDescriptor, methods: Mapping[str, Method], guard: Guard) -> None:
    """Adds a service to a server, each method behind its guard, parsing and error statuses."""
    missing = [method.name for method in service.methods if method.name not in methods]
    assert not missing, f"{service.full_name} has no {missing}"
    handlers = {method.name: _handler(method, methods[method.name], guard) for method in service.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def list_services(server: grpc.aio.Server, guard: Guard, *names: str) -> None:
    """Adds reflection, by which tools such as grpcurl learn what a door speaks. It says nothing of a tenant, so that
    anyone may ask."""
    listed = ReflectionServicer([*names, reflection.SERVICE_NAME])

    async def reflect(messages: AsyncIterator[Any], call: Call) -> None:
        async for response in listed.ServerReflectionInfo(messages, None):
            await call.write(response)

    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    register(server, service, {"ServerReflectionInfo": reflect}, guard)


def _handler(descriptor: MethodDescriptor, method: Method, guard: Guard) -> grpc.RpcMethodHandler[Any, Any]:
    kind, name = GetMessageClass(descriptor.input_type), descriptor.name

    # No frame here keeps a message: a prompt is gone once its method has read it.
    async def unary(raws: AsyncIterator[bytes], context: Context) -> bytes:
        async def run(call: Call) -> Message:
            answer: Message = await method(await guard.read(call, kind, name), call)
            return answer

        answer, end = await guarded(context, guard, run)
        if end is not None:
            await context.abort(*end)
        raw: bytes = answer.SerializeToString()
        return raw

    async def streamed(raws: AsyncIterator[bytes], context: Context) -> None:
        async def run(call: Call) -> None:
            await method(await guard.read(call, kind, name), call)

        await _streamed(context, guard, run)

    async def both_ways(raws: AsyncIterator[bytes], context: Context) -> None:
        async def messages(call: Call) -> AsyncIterator[Message]:
            while (message := await guard.following(call, kind, name)) is not None:
                yield message
                del message

        await _streamed(context, guard, lambda call: method(messages(call), call))

    if descriptor.client_streaming:
        return grpc.stream_stream_rpc_method_handler(both_ways)
    if descriptor.server_streaming:
        return grpc.stream_stream_rpc_method_handler(streamed)
    return grpc.stream_unary_rpc_method_handler(unary)


async def _streamed(context: Context, guard: Guard, run: Callable[[Call], Awaitable[Any]]) -> None:
    _, end = await guarded(context, guard, run)
    if end is not None:
        # As `abort` does, which keeps what it raises in a ring that waits for the collector.
        code, detail, trailer = end
        context.set_code(code)
        context.set_details(detail)
        context.set_trailing_metadata(trailer)


async def guarded(
    context: Context, guard: Guard, run: Callable[[Call], Awaitable[Any]]
) -> tuple[Any, tuple[grpc.StatusCode, str, Metadata] | None]:
    """Runs a method; what it returned, or with what status the call is to end."""
    try:
        return await run(Call(context, _admitted(context, guard))), None
    except QuireError as error:
        end = trailer_of(without_frames(error))
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("a call failed by a mistake of ours")
        end = trailer_of(WorkFailed("a mistake of the gateway; its log has the details"))
    return None, end


def _admitted(context: Context, guard: Guard) -> Caller:
    try:
        caller = guard.book.caller(_metadata(context, "authorization"))
        caller.require(guard.right)
    except AccessDenied as error:
        refused.note(f"a call for {guard.right}", context.peer().rpartition(":")[0], str(error))
        raise
    return caller


def _metadata(context: Context, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else None
    return None
