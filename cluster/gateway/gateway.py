"""The gateway: the shell around the door, which remembers what every client was sent.

One per process, in one event loop. Services (`cluster/gateway/service.py`) call `ask`, `resume`, `pin` and `leave`;
workers' tokens come through `feed`, the scheduler's orders through the link that `run` reads. It reads prompts, makes
text, keeps time, and does what the door orders (`cluster/gateway/door/README.md`). It knows nothing of gRPC, and no
callback leads back to a service: a stream waits at its Outlet.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from cluster.errors import ProtocolError, QueueFull, QuireError, Unavailable
from cluster.gateway.answer import Answer, Cursor, Outlet
from cluster.gateway.catalogue import Catalogue, LoadText, cluster_id
from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import Reader
from cluster.gateway.door.kept import DoorSettings
from cluster.gateway.front import Connected, Disconnected, Order, SchedulerLink
from cluster.gateway.intake import Question, read_text
from cluster.gateway.models import TextModel
from cluster.gateway.pace import Pace
from cluster.gateway.settings import GatewaySettings
from cluster.gateway.texts import Texts
from cluster.gateway.watch import Watch
from cluster.messages import Found, Ids, Replay, Submit, Tokens
from cluster.tenants import TenantLimits
from cluster.watching.tracing import Span, Tracer
from cluster.wire.gateways import ServedModels
from protos.quire.v1 import inference_pb2 as pb

T = TypeVar("T")

log = logging.getLogger(__name__)


class Gateway:
    """Requests under way at one front door."""

    def __init__(
        self,
        settings: GatewaySettings,
        link: SchedulerLink,
        models: Mapping[str, TextModel],
        tracer: Tracer | None = None,
        load: LoadText | None = None,
    ) -> None:
        """`load` reads the tokenizer of a model that is loaded while the cluster serves."""
        self.settings = settings
        self.catalogue = Catalogue(models, load, default=settings.default_model)
        self.pace = Pace(settings.max_messages_per_s)
        self.door = Door(_door_settings(settings))
        self.is_connected = False
        self.is_stopping = False
        # Set whenever what the health service says may have changed.
        self.readiness_changed = asyncio.Event()
        self.watch = Watch(settings.name, tracer)
        self._link = link
        self._answers: dict[int, Answer] = {}
        # Who waits for a prefix to be warm, or for a request to be found, by route.
        self._pins: dict[int, asyncio.Future[None]] = {}
        self._finds: dict[int, asyncio.Future[Found]] = {}
        # Set when a stream has let go of its answer.
        self._left = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = float("inf")

    @property
    def num_open(self) -> int:
        """Requests that have not ended, or whose end was not told yet."""
        return self.door.num_open

    @property
    def num_stale(self) -> int:
        """Tokens that came too late, from old attempts, or for nobody."""
        return self.door.num_stale

    @property
    def max_body_bytes(self) -> int:
        """The largest message that can carry a prompt for any model that is served now."""
        return min(self.settings.max_message_bytes, self.catalogue.max_body_bytes)

    async def run(self) -> None:
        """Obeys the scheduler until the link ends. One task of the process runs this."""
        async for orders in self._link.orders():
            for order in orders:
                self.take(order)

    # -- questions

    async def ask(self, tenant: str, question: Question, outlet: Outlet, tag: int = 0) -> Answer:
        """Hands a new request to the scheduler; its answer comes through the outlet. Raises `QuireError`."""
        self._check_open()
        limits = self.settings.tokens.limits(tenant)
        limits.check(question.priority, question.prompt.ByteSize())
        self.door.quotas.check(tenant, limits, time.monotonic())
        client_id = question.client_id or secrets.token_hex(8)
        submit = await self.catalogue.submit(tenant, client_id, question)
        self._check_open()
        self._link.check_open()
        submit, span = self.watch.begin(submit, question)
        try:
            return self._show(self.door.ask(submit, question.grace_s, time.monotonic(), tag, limits), outlet, span)
        except QuireError as error:
            if span is not None:
                span.end(str(error))
            raise

    async def begin(self, tenant: str, question: Question, outlet: Outlet, tag: int = 0) -> Answer:
        """A new request, or one that its client comes back to. What is refused is counted. Raises `QuireError`."""
        ask = self.ask if question.positions is None else self.resume
        try:
            return await ask(tenant, question, outlet, tag)
        except QuireError as error:
            known = question.model if question.model in self.catalogue.served else ""
            self.watch.refused(error, question.client_id, known)
            raise

    def begin_stream(self, tenant: str) -> None:
        """Raises QueueFull where this tenant has too many streams for many requests."""
        limits = self.settings.tokens.limits(tenant)
        try:
            self.door.quotas.begin_stream(tenant, limits, self.settings.max_streams_per_tenant)
        except QueueFull as error:
            self.watch.refused(error)
            raise

    async def resume(self, tenant: str, question: Question, outlet: Outlet, tag: int = 0) -> Answer:
        """Goes on with a request at the client's positions, whichever gateway it began at. Raises `QuireError`."""
        assert question.positions is not None
        self._check_back(tenant).check_bytes(question.prompt.ByteSize())
        entry = self.door.by_id.get(cluster_id(tenant, question.client_id))
        asked: Submit
        if entry is None:
            asked = await self.catalogue.submit(tenant, question.client_id, question)
        else:
            asked = await self.catalogue.asked_again(question, entry.submit)
        return self.go_on(asked, question.positions, question.grace_s, outlet, tag)

    def go_on(self, asked: Submit, positions: Sequence[int], grace_s: float, outlet: Outlet, tag: int = 0) -> Answer:
        """Goes on with a request as it was asked. Raises `QuireError`."""
        most_open = self._most_open(self.settings.tokens.limits(asked.tenant))
        if asked.request_id not in self.door.by_id:
            self._link.check_open()
        reader = self.door.resume(asked, positions, grace_s, time.monotonic(), tag, most_open)
        return self._show(reader, outlet, None)

    async def find(self, tenant: str, client_id: str) -> Submit:
        """The request of this name, wherever it began, as its client asked it. Raises `QuireError`."""
        limits = self._check_back(tenant)
        request_id = cluster_id(tenant, client_id)
        entry = self.door.by_id.get(request_id)
        if entry is not None and not entry.is_asking:
            return entry.submit
        self._link.check_open()
        route = self.door.find(request_id, self._most_open(limits))
        waiting: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._finds[route] = waiting
        patience_s = self.settings.accept_timeout_s
        try:
            self._obey()
            async with asyncio.timeout(patience_s):
                found = await waiting
        except TimeoutError:
            raise Unavailable(f"the scheduler did not say within {patience_s:g} s what was asked", 1.0) from None
        finally:
            del self._finds[route]
            self.door.leave_find(route)
            self._obey()
        deadline = time.monotonic() + found.rest_s if found.rest_s else None
        self.catalogue.find(found.submit.model)
        return replace(found.submit, deadline=deadline)

    def _show(self, reader: Reader, outlet: Outlet, span: Span | None) -> Answer:
        """The answer at this outlet from now on."""
        entry = reader.entry
        answer = self._answers.get(entry.route)
        if answer is None:
            submit = entry.submit
            model, figures = self.catalogue.models[submit.model], self.watch.metrics.of(submit.model)
            texts = Texts(submit.sampling.n, model.cutters(submit.sampling))
            why_full = model.why_full(len(submit.prompt), submit.sampling, self.catalogue.longest(submit.model))
            answer = Answer(entry, texts, model.vocab_size, time.monotonic(), figures, span, why_full)
            self._answers[entry.route] = answer
        old = answer.outlet
        answer.outlet, answer.cursor = outlet, Cursor(self.door, answer, reader)
        if old is not None:
            # The client is back before the death of its old connection was noticed; the old stream ends.
            old.wake(answer)
        self._obey()
        return answer

    def _check_open(self) -> None:
        if self.is_stopping:
            raise Unavailable("this gateway is shutting down; ask another one")
        self.door.check_open()

    def _check_back(self, tenant: str) -> TenantLimits:
        """Before anything is done for a client that comes back for a request. Raises `QuireError`."""
        self._check_open()
        limits = self.settings.tokens.limits(tenant)
        most = self._most_open(limits) or self.settings.max_open
        self.door.quotas.come_back(tenant, limits, most, time.monotonic())
        return limits

    def _most_open(self, limits: TenantLimits) -> int:
        """Requests of one tenant: one gateway may be left with what all have taken. 0: no bound."""
        return limits.open_requests * max(1, len(self.settings.doors))

    # -- words and prefixes

    async def tokenize(self, tenant: str, model_name: str, prompt: pb.Prompt) -> tuple[Ids, int]:
        """A prompt's token ids, and the length that its model ends at. Raises `QuireError`."""
        self._check_read(tenant, prompt.ByteSize())
        return await self.catalogue.tokenize(tenant, model_name, prompt)

    async def detokenize(self, tenant: str, model_name: str, tokens: Sequence[int], skips_special_tokens: bool) -> str:
        """The text of token ids. Raises `QuireError`."""
        self._check_read(tenant, len(tokens))
        _, model = self.catalogue.find(model_name)
        return await read_text(tokens, skips_special_tokens, model, self.catalogue.work, tenant)

    def _check_read(self, tenant: str, num_bytes: int) -> None:
        limits = self.settings.tokens.limits(tenant)
        limits.check_bytes(num_bytes)
        self.door.quotas.read(tenant, limits, time.monotonic())

    async def pin(self, tenant: str, model_name: str, prompt: pb.Prompt, ttl_s: float) -> tuple[int, int]:
        """Warms a prefix and keeps it for `ttl_s`; returns its tokens and those that are kept. Raises `QuireError`."""
        self._check_open()
        limits = self.settings.tokens.limits(tenant)
        limits.check_bytes(prompt.ByteSize())
        pin, num_kept = await self.catalogue.pin(tenant, model_name, prompt, ttl_s)
        self._link.check_open()
        route = self.door.pin(pin, time.monotonic(), limits)
        warm = self._pins[route] = asyncio.get_running_loop().create_future()
        try:
            self._obey()
            await warm
        finally:
            del self._pins[route]
            self.door.leave_pin(route)
            self._obey()
        return len(pin.prompt), num_kept

    # -- tokens

    def feed(self, batch: Sequence[Tokens]) -> None:
        """Takes tokens from a worker. Called once per message, which holds those of many sequences."""
        now = time.monotonic()
        door, answers = self.door, self._answers
        for tokens in batch:
            new = door.fresh(tokens, now)
            if new is None:
                continue
            answer = answers[tokens.route]
            try:
                cut = answer.add(tokens.index, new) if new else None
            except ProtocolError as error:
                # Whoever else is in this batch has done nothing.
                door.misfit(answer.entry, error, now)
                continue
            num_new = door.take_tokens(tokens, new, cut, now)
            if num_new:
                self.watch.tokens(answer, num_new, now)
        self._obey()

    # -- orders

    def take(self, order: Order) -> None:
        if isinstance(order, ServedModels):
            self.catalogue.take_served(order)
            self.readiness_changed.set()
        elif isinstance(order, Connected):
            self.is_connected = True
            self.catalogue.meet(order.epoch, order.hash_key)
            self.door.meet(time.monotonic(), wants_state=order.wants_state)
            self.readiness_changed.set()
        elif isinstance(order, Disconnected):
            # Once for each time that it goes, however often it is tried.
            log.log(logging.WARNING if self.is_connected else logging.DEBUG, "the scheduler is away: %s", order.detail)
            self.is_connected = False
            self.readiness_changed.set()
        else:
            if isinstance(order, Replay):
                self.feed((order.tokens,))
            self.door.take(order, time.monotonic())
        self._obey()

    def _obey(self) -> None:
        """Does what the door orders."""
        orders = self.door.take_orders()
        for event in orders.events:
            self._link.send(event)
        for entry in orders.news.values():
            answer = self._answers.get(entry.route)
            if answer is not None:
                self._tell(answer)
        for route, failure in orders.pins:
            _answer(self._pins.get(route), failure)
        for route, found in orders.found:
            _answer(self._finds.get(route), found)
        self._set_alarm()

    def _tell(self, answer: Answer) -> None:
        entry = answer.entry
        if entry.started is not None and not answer.is_started:
            self.watch.started(answer, entry.started)
        if entry.failure is not None:
            answer.texts.drop(entry.log)
        if entry.failure is not None or entry.ended is not None:
            self.watch.ended(answer)
        if entry.is_gone:
            del self._answers[entry.route]
        if answer.outlet is not None:
            answer.outlet.wake(answer)

    def _set_alarm(self) -> None:
        """The loop calls at the door's next deadline, or a little before."""
        due = self.door.next_deadline
        if due is not None and due < self._rings_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._rings_at = due
            delay_s = max(0.0, due - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._alarm, self._rings_at = None, float("inf")
        self.door.tick(time.monotonic(), is_met=self.is_connected)
        self._obey()

    # -- endings

    def cancel(self, tenant: str, client_id: str) -> bool:
        """Ends a request of this tenant; False: none of that id is under way here."""
        found = self.door.cancel(cluster_id(tenant, client_id), time.monotonic())
        self._obey()
        return found

    def abort(self, answer: Answer) -> None:
        """What has come stands; nothing more will. A stream that is there gets the rest of its answer."""
        self.door.abort(answer.entry, time.monotonic())
        self._obey()

    def leave(self, answer: Answer, cursor: Cursor, *, is_final: bool) -> None:
        """A stream that showed this answer has ended. `is_final`: nobody will come back for it."""
        if answer.cursor is cursor:
            answer.outlet = answer.cursor = None
            self._left.set()
        self.door.leave(cursor.reader, time.monotonic(), is_final=is_final)
        self._obey()

    async def drain(self, timeout_s: float) -> bool:
        """Takes nothing new and lets what is under way end; True if all did in time."""
        self.is_stopping = True
        self.readiness_changed.set()
        until = time.monotonic() + timeout_s
        while self.num_open and time.monotonic() < until:
            self._left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), until - time.monotonic())
        return not self.num_open


def _answer(waiting: asyncio.Future[T] | None, answer: T | QuireError) -> None:
    if waiting is None or waiting.done():
        return
    if isinstance(answer, QuireError):
        waiting.set_exception(answer)
    else:
        waiting.set_result(answer)


def _door_settings(settings: GatewaySettings) -> DoorSettings:
    return DoorSettings(
        settings.name, settings.incarnation, settings.max_open, settings.accept_timeout_s, settings.unread
    )
