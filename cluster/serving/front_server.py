"""The scheduler's end of the gateways' streams: events in, notices out, and who is ready.

A stream that breaks is resumed within `silence_s`; a gateway that stays silent for longer is told to the scheduler as
lost, and begins anew when it comes back. Runs in the scheduler's process and loop. Nothing here decides; events go to
the host, notices come from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cluster.errors import ProtocolError
from cluster.gateway.front import ServedModel
from cluster.messages import GatewayLost
from cluster.serving.host import SchedulerHost
from cluster.wire.front import Notice, event_from, fill_notice
from protos import NEWEST_PROTOCOL
from protos.quire.v1 import front_pb2 as pb

log = logging.getLogger(__name__)

MAX_UNTAKEN = 100_000
"""Notices that a gateway may owe an answer to; one that owes more is lost."""

MAX_BATCH = 512

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass
class Session:
    """One incarnation of a gateway, over all its streams."""

    gateway: str
    incarnation: int
    token_address: str
    figures_address: str
    heard_at: float
    # Notices that it has not taken yet, oldest first, by number; `sent` of them went out on the stream that is open.
    untaken: deque[tuple[int, pb.Notice]] = field(default_factory=deque)
    number: int = 0
    sent: int = 0
    taken: int = 0
    models: pb.ServedModels | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    # Each connection has the next number; an older one ends when it sees that.
    connection: int = 0
    is_open: bool = False


class FrontServer:
    """All gateways of the cluster. `served` says what is served now; `announce` tells workers where tokens go."""

    def __init__(
        self,
        host: SchedulerHost,
        served: Callable[[], tuple[ServedModel, ...]],
        announce: Callable[[str, str], None] = lambda gateway, address: None,
        *,
        hash_key: bytes = b"",
        silence_s: float = 3.0,
    ) -> None:
        self._host = host
        self._served = served
        self._announce = announce
        self._hash_key = hash_key
        self._silence_s = silence_s
        self.sessions: dict[str, Session] = {}
        self._lost: dict[str, int] = {}
        self._models: tuple[ServedModel, ...] = ()

    # -- streams

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello")
        assert first is not None
        hello = first.hello
        if not hello.oldest_protocol <= NEWEST_PROTOCOL <= hello.newest_protocol:
            spoken = f"{hello.oldest_protocol} to {hello.newest_protocol}"
            detail = f"the scheduler speaks protocol {NEWEST_PROTOCOL}, the gateway {spoken}; install the same Quire"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, detail)
        known = self.sessions.get(hello.gateway)
        if known is not None and known.incarnation > hello.incarnation:
            detail = f"gateway {hello.gateway} runs as incarnation {known.incarnation}; this is {hello.incarnation}"
            await context.abort(grpc.StatusCode.ABORTED, detail)
        session, welcome = self._meet(hello, first.taken)
        session.connection += 1
        connection = session.connection
        session.is_open = True
        reader = asyncio.create_task(self._read(session, request_iterator))
        reader.add_done_callback(lambda task: session.news.set())
        try:
            yield pb.AttachResponse(welcome=welcome, taken=session.taken)
            while connection == session.connection and not reader.done():
                response = self._next(session)
                if response is not None:
                    yield response
                else:
                    await session.news.wait()
            if reader.done() and not reader.cancelled() and isinstance(error := reader.exception(), ProtocolError):
                log.error("gateway %s: %s", session.gateway, error)
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        finally:
            reader.cancel()
            if connection == session.connection:
                session.is_open = False

    def _meet(self, hello: pb.GatewayHello, taken: int) -> tuple[Session, pb.FrontWelcome]:
        """The session of this hello. A new incarnation begins one; a known one goes on."""
        host, name = self._host, hello.gateway
        epoch = host.scheduler.epoch
        session = self.sessions.get(name)
        was_lost = wants_state = False
        if session is None or session.incarnation != hello.incarnation:
            if session is not None:
                self.lose(session, "it started anew")
            was_lost = self._lost.get(name) == hello.incarnation
            wants_state = not was_lost and hello.epoch not in (0, epoch)
            session = Session(name, hello.incarnation, hello.token_address, hello.figures_address, host.now)
            self.sessions[name] = session
            log.info("gateway %s is there, incarnation %d", name, hello.incarnation)
        elif hello.epoch != epoch:
            # It has not heard our welcome: for it, this scheduler is new.
            connection = session.connection
            session = Session(name, hello.incarnation, hello.token_address, hello.figures_address, host.now)
            session.connection = connection
            self.sessions[name] = session
            wants_state = hello.epoch != 0
        else:
            while session.untaken and session.untaken[0][0] <= taken:
                session.untaken.popleft()
        session.heard_at = host.now
        session.sent = 0
        session.models = _models_message(self._models)
        session.news.set()
        host.gateway_links[name] = lambda notice: self._notify(session, notice)
        self._announce(name, hello.token_address)
        welcome = pb.FrontWelcome(
            epoch=epoch,
            wants_state=wants_state,
            was_lost=was_lost,
            protocol=NEWEST_PROTOCOL,
            hash_key=self._hash_key,
            silence_s=self._silence_s,
        )
        return session, welcome

    def _notify(self, session: Session, notice: Notice) -> None:
        message = pb.Notice()
        fill_notice(message, notice)
        session.number += 1
        session.untaken.append((session.number, message))
        session.news.set()

    def _next(self, session: Session) -> pb.AttachResponse | None:
        """What this stream has not been told; None: nothing."""
        if not session.news.is_set():
            return None
        response = pb.AttachResponse(taken=session.taken)
        if session.models is not None:
            response.models.CopyFrom(session.models)
            session.models = None
        unsent = [
            session.untaken[at] for at in range(session.sent, min(session.sent + MAX_BATCH, len(session.untaken)))
        ]
        if unsent:
            response.number = unsent[-1][0]
            response.notices.extend([message for _, message in unsent])
            session.sent += len(unsent)
        if session.sent == len(session.untaken):
            session.news.clear()
        return response

    async def _read(self, session: Session, requests: AsyncIterator[pb.AttachRequest]) -> None:
        try:
            async for request in requests:
                session.heard_at = self._host.now
                self._take(session, request)
        except grpc.RpcError as error:
            log.info("the stream of gateway %s broke: %s", session.gateway, error)

    def _take(self, session: Session, request: pb.AttachRequest) -> None:
        while session.untaken and session.untaken[0][0] <= request.taken:
            session.untaken.popleft()
            session.sent = max(0, session.sent - 1)
        if not request.events or self.sessions.get(session.gateway) is not session:
            return
        first = request.number - len(request.events) + 1
        if first > session.taken + 1:
            raise ProtocolError(f"events jump from {session.taken} to {first}")
        now = self._host.now
        for number, event in enumerate(request.events, first):
            if number > session.taken:
                self._host.post(event_from(event, now))
        session.taken = max(session.taken, request.number)
        # The gateway may forget them.
        session.news.set()

    def figures_addresses(self) -> dict[str, str]:
        """Where each gateway tells its figures."""
        return {name: session.figures_address for name, session in self.sessions.items()}

    # -- silence and readiness

    async def watch(self) -> None:
        """Finds out who is gone, tells the quiet ones that we live, and everybody what is served."""
        while True:
            await asyncio.sleep(self._silence_s / 8)
            models = self._served()
            has_changed, self._models = models != self._models, models
            now = self._host.now
            for session in list(self.sessions.values()):
                if now - session.heard_at > self._silence_s:
                    self.lose(session, f"nothing was heard of it for {now - session.heard_at:.1f} s")
                    continue
                if len(session.untaken) > MAX_UNTAKEN:
                    self.lose(session, f"it has not taken {len(session.untaken):,} notices")
                    continue
                if has_changed:
                    session.models = _models_message(models)
                session.news.set()

    def lose(self, session: Session, detail: str) -> None:
        if self.sessions.get(session.gateway) is not session:
            return
        log.warning("gateway %s is lost: %s", session.gateway, detail)
        del self.sessions[session.gateway]
        self._lost[session.gateway] = session.incarnation
        self._host.gateway_links.pop(session.gateway, None)
        self._announce(session.gateway, "")
        session.connection += 1
        session.news.set()
        self._host.post(GatewayLost(session.gateway))


def _models_message(models: tuple[ServedModel, ...]) -> pb.ServedModels:
    message = pb.ServedModels()
    for model in models:
        message.models.add(
            name=model.name,
            ready=model.is_ready,
            detail=model.detail,
            num_replicas=model.num_replicas,
            block_size=model.block_size,
            max_model_len=model.max_model_len,
            digest=model.digest,
        )
    return message
