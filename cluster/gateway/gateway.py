"""The gateway: takes questions for the scheduler, puts workers' tokens in order, and keeps the truth of what was sent.

One per process, in one event loop. Services (`cluster/gateway/service.py`) call `ask`, `resume`, `pin` and `leave`;
workers' tokens come through `feed`, the scheduler's orders through the link that `run` reads. It knows nothing of gRPC,
and no callback leads back to a service: a stream waits at its Outlet. It never decides who runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.errors import (
    Aborted,
    AlreadyExists,
    ProtocolError,
    QueueFull,
    QuireError,
    Unavailable,
    WorkFailed,
)
from cluster.gateway.answer import Answer, Cursor, Outlet
from cluster.gateway.catalogue import Catalogue, LoadText, cluster_id
from cluster.gateway.errors import error_of
from cluster.gateway.front import Connected, Disconnected, Order, SchedulerLink, ServedModels
from cluster.gateway.intake import Question, check_positions
from cluster.gateway.log import RequestLog
from cluster.gateway.models import TextModel
from cluster.gateway.pins import Pins
from cluster.gateway.settings import GatewaySettings
from cluster.gateway.state import Closing, state_events
from cluster.gateway.watch import Watch
from cluster.messages import (
    Accepted,
    Adopt,
    Cancel,
    Closed,
    Done,
    HandOver,
    Reason,
    Refused,
    Replay,
    Seal,
    Sealed,
    Started,
    StopAt,
    Submit,
    Tokens,
)
from cluster.watching.tracing import Tracer
from cluster.wire.front import FrontEvent
from protos.quire.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)

LAST_TOKENS_S = 10.0
"""The scheduler's Done and a worker's last tokens come by different roads; tokens that are later than this are lost."""

LINGER_S = 2.0

_UNKNOWN = ("NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT")
"""Refusals behind which the scheduler says no more: it does not know the request, or another one under its name."""


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
        # Routes of an earlier start of this gateway must mean nothing to this one.
        self.catalogue = Catalogue(settings.name, (settings.incarnation & 0x7FFF_FFFF) << 32, models, load)
        self.is_connected = False
        self.is_stopping = False
        # Set whenever what the health service says may have changed.
        self.readiness_changed = asyncio.Event()
        # Tokens that came too late, from old attempts, or for nobody.
        self.num_stale = 0
        self._link = link
        self._answers: dict[int, Answer] = {}
        self._by_id: dict[str, Answer] = {}
        self.watch = Watch(settings.name, tracer)
        self._pins = Pins(link)
        self._closing = Closing(link)
        # Set when a stream has let go of its answer.
        self._left = asyncio.Event()
        self._take: dict[type, Callable[[Any], None]] = {
            Accepted: self._on_accepted,
            Started: self._on_started,
            Refused: self._on_refused,
            Seal: self._on_seal,
            HandOver: self._on_hand_over,
            Replay: self._on_replay,
            Done: self._on_done,
            ServedModels: self._on_models,
            Connected: self._on_connected,
            Disconnected: self._on_disconnected,
        }

    @property
    def num_open(self) -> int:
        """Requests that have not ended, or whose end was not told yet."""
        return sum(1 for answer in self._answers.values() if answer.ended is None or answer.outlet is not None)

    @property
    def max_body_bytes(self) -> int:
        """The largest message that can carry a prompt for any model that is served now."""
        return min(self.settings.max_message_bytes, self.catalogue.max_body_bytes)

    async def run(self) -> None:
        """Obeys the scheduler until the link ends. One task of the process runs this."""
        async for orders in self._link.orders():
            for order in orders:
                self.take(order)

    def take(self, order: Order) -> None:
        self._take[type(order)](order)

    # -- questions

    async def ask(self, tenant: str, question: Question, outlet: Outlet, tag: int = 0) -> Answer:
        """Hands a new request to the scheduler; its answer comes through the outlet. Raises `QuireError`."""
        self._check_open()
        client_id = question.client_id or secrets.token_hex(8)
        submit = await self.catalogue.submit(tenant, client_id, question)
        self._check_open()
        known = self._by_id.get(submit.request_id)
        if known is not None:
            if known.ended is None or known.outlet is not None:
                raise AlreadyExists("request_id", f"{client_id} is under way", "give another id, or resume")
            self._close(known)
        submit, span = self.watch.begin(submit, question)
        answer = self._enter(submit, client_id, question.grace_s)
        answer.span = span
        answer.outlet, answer.cursor = outlet, Cursor(answer, tag)
        self._send_new(answer, submit)
        return answer

    async def resume(self, tenant: str, question: Question, outlet: Outlet, tag: int = 0) -> Answer:
        """Goes on with a request at the client's positions, whichever gateway it began at. Raises `QuireError`."""
        self._check_open()
        assert question.positions is not None
        answer = self._by_id.get(cluster_id(tenant, question.client_id))
        if answer is None:
            answer = await self._adopt(tenant, question)
        else:
            await self.catalogue.check_resume(question, answer.submit)
            if self._answers.get(answer.route) is not answer:
                raise Unavailable("the request has just left this gateway", 0.1)
            if not answer.is_adopted:
                # What another gateway sent may still be on its way here.
                check_positions(question.positions, [len(sequence.ids) for sequence in answer.log.sequences])
            if answer.accepted is not None and answer.ended is None:
                # The client may have been at another gateway meanwhile.
                answer.num_claims += 1
                self._link.send(answer.claim())
        old = answer.outlet
        answer.outlet, answer.cursor = outlet, Cursor(answer, tag, question.positions)
        if old is not None:
            # The client is back before the death of its old connection was noticed; the old stream ends.
            old.wake(answer)
        if answer.accepted is not None:
            answer.stop_timer()
        outlet.wake(answer)
        return answer

    async def _adopt(self, tenant: str, question: Question) -> Answer:
        submit = await self.catalogue.submit(tenant, question.client_id, question)
        # Another resume may have come first while the prompt was read.
        answer = self._by_id.get(submit.request_id)
        if answer is not None:
            await self.catalogue.check_resume(question, answer.submit)
        else:
            assert question.positions is not None
            check_positions(question.positions, [submit.sampling.max_tokens or 1] * len(question.positions))
            answer = self._enter(submit, question.client_id, question.grace_s)
            answer.is_adopted = True
            self._send_new(answer, Adopt(submit))
        return answer

    def _enter(self, submit: Submit, client_id: str, grace_s: float) -> Answer:
        sampling = submit.sampling
        cutters = self.catalogue.models[submit.model].cutters(sampling)
        answer_log = RequestLog(sampling.n, cutters, sampling.logprobs is not None)
        figures = self.watch.metrics.of(submit.model)
        answer = Answer(submit, client_id, answer_log, grace_s, time.monotonic(), figures)
        self._answers[answer.route] = self._by_id[submit.request_id] = answer
        self._set_timer(answer, self.settings.accept_timeout_s, self._give_up_waiting)
        return answer

    def _send_new(self, answer: Answer, event: Submit | Adopt) -> None:
        try:
            self._link.send(event)
        except QuireError:
            self._forget(answer)
            raise

    def _check_open(self) -> None:
        if self.is_stopping:
            raise Unavailable("this gateway is shutting down; ask another one")
        if len(self._answers) >= self.settings.max_open:
            raise QueueFull(f"{self.settings.max_open:,} requests are under way here, which is the bound", 1.0)

    async def pin(self, tenant: str, model_name: str, prompt: pb.Prompt, ttl_s: float) -> tuple[int, int]:
        """Warms a prefix and keeps it for `ttl_s`; returns its tokens and those that are kept. Raises `QuireError`."""
        self._check_open()
        pin, num_kept = await self.catalogue.pin(tenant, model_name, prompt, ttl_s)
        await self._pins.ask(pin)
        return len(pin.prompt), num_kept

    # -- tokens

    def feed(self, batch: Sequence[Tokens]) -> None:
        """Takes tokens from a worker. Called once per message, which holds those of many sequences."""
        now = time.monotonic()
        for tokens in batch:
            answer = self._answers.get(tokens.route)
            if answer is None:
                self.num_stale += 1
                continue
            try:
                stopped = answer.log.take(tokens)
            except ProtocolError as error:
                log.error("request %s: %s", answer.request_id, error)
                self._drop(answer, WorkFailed(f"tokens of request {answer.client_id} did not fit together: {error}"))
                continue
            if answer.log.num_new:
                self.watch.tokens(answer, answer.log.num_new, now)
            if stopped is not None:
                self._link.send(StopAt(answer.request_id, stopped.index, len(stopped.ids)))
            if tokens.reason is not Reason.NONE or stopped is not None:
                self._settle(answer)
            outlet = answer.outlet
            if outlet is not None:
                outlet.wake(answer)
            elif answer.log.num_tokens - answer.detached_at > self.settings.max_detached_tokens:
                bound = self.settings.max_detached_tokens
                self._drop(answer, Aborted(f"nobody came back for more than {bound:,} tokens"))

    # -- orders

    def _on_accepted(self, accepted: Accepted) -> None:
        answer = self._answers.get(accepted.route)
        if answer is not None:
            answer.turn = accepted.turn
            answer.num_claims = max(0, answer.num_claims - 1)
            if answer.accepted is None:
                answer.stop_timer()
                answer.accepted = accepted
                answer.wake()

    def _on_started(self, started: Started) -> None:
        answer = self._answers.get(started.route)
        # A request that was preempted starts again; its client was told once.
        if answer is not None and answer.started is None:
            answer.started = started
            self.watch.started(answer, started)
            answer.wake()

    def _on_refused(self, refused: Refused) -> None:
        if self._pins.take(refused):
            return
        answer = self._answers.get(refused.route)
        if answer is None or answer.is_over or answer.is_cancelled:
            return
        self._fail(answer, error_of(refused, answer.client_id))
        if answer.accepted is None or refused.code in _UNKNOWN:
            # Nothing more is said of it.
            self._forget(answer)

    def _on_seal(self, seal: Seal) -> None:
        answer = self._answers.get(seal.route)
        place = seal.request_id, seal.gateway, seal.route
        if answer is None:
            self._link.send(Sealed(*place, seal.attempt, (), ()))
            return
        answer.log.seal(seal.attempt)
        self._link.send(Sealed(*place, seal.attempt, answer.log.outputs, answer.log.reasons))

    def _on_hand_over(self, order: HandOver) -> None:
        answer, place = self._answers.get(order.route), (order.request_id, order.gateway, order.route)
        if answer is None:
            self._link.send(Sealed(*place, 0, (), ()))
            return
        if answer.num_claims:
            # The client has been back here since: the scheduler is about to hear so.
            return
        self._link.send(Sealed(*place, 0, answer.log.outputs, answer.log.reasons))
        if answer.ended is None:
            # Whoever still reads here comes back: words of gateways reach the scheduler in any order.
            self._fail(answer, Unavailable("the request went on through another gateway; resume to have it here", 0.1))
        if answer.ended is None or answer.outlet is None:
            self._forget(answer)

    def _on_replay(self, replay: Replay) -> None:
        """The scheduler's own record of a sequence that has ended, whose tokens may have died with their worker."""
        tokens = replay.tokens
        self.feed((tokens,))
        answer = self._answers.get(tokens.route)
        if answer is not None and tokens.reason is Reason.DROPPED:
            # From a worker that means that another goes on; here it is the end.
            answer.log.abort(tokens.index)
            self._settle(answer)

    def _on_done(self, done: Done) -> None:
        if self._pins.take(done):
            return
        answer = self._answers.get(done.route)
        if answer is None:
            self._link.send(Closed(done.request_id, done.gateway, done.route))
            return
        answer.done = done
        if not answer.log.is_complete:
            self._set_timer(answer, LAST_TOKENS_S, self._give_up_tokens)
        self._settle(answer)
        answer.wake()

    def _settle(self, answer: Answer) -> None:
        """Notes when an answer is complete; one that nobody waits for is then closed."""
        if answer.done is None or not answer.log.is_complete:
            return
        if answer.ended is None:
            answer.ended = time.monotonic()
            answer.stop_timer()
            self.watch.ended(answer)
        if answer.outlet is None and (answer.failure is not None or answer.is_cancelled):
            self._close(answer)

    def _on_models(self, served: ServedModels) -> None:
        self.catalogue.take_served(served)
        self.readiness_changed.set()

    def _on_connected(self, connected: Connected) -> None:
        self.is_connected = True
        self.catalogue.take_key(connected.hash_key)
        events: list[FrontEvent] = []
        if connected.wants_state or connected.was_lost:
            events = state_events(self.settings.name, self._answers.values())
        for event in events:
            self._link.send(event)
        if connected.wants_state or connected.was_lost:
            self._pins.ask_again()
        self.readiness_changed.set()

    def _on_disconnected(self, away: Disconnected) -> None:
        # Once for each time that it goes, however often it is tried.
        log.log(logging.WARNING if self.is_connected else logging.DEBUG, "the scheduler is away: %s", away.detail)
        self.is_connected = False
        self.readiness_changed.set()

    # -- endings

    def cancel(self, tenant: str, client_id: str) -> bool:
        """Ends a request of this tenant; False: none of that id is under way here."""
        answer = self._by_id.get(cluster_id(tenant, client_id))
        if answer is None:
            # It may run at another gateway.
            self._link.send(Cancel(cluster_id(tenant, client_id)))
            return False
        if answer.is_over or answer.is_cancelled:
            return False
        self.abort(answer)
        return True

    def abort(self, answer: Answer) -> None:
        """What has come stands; nothing more will. A stream that is there gets the rest of its answer."""
        if answer.is_over or answer.is_cancelled:
            return
        answer.is_cancelled = True
        answer.log.abort()
        self._link.send(Cancel(answer.request_id))
        self._settle(answer)
        answer.wake()

    def leave(self, answer: Answer, cursor: Cursor, *, is_final: bool) -> None:
        """A stream that showed this answer has ended. `is_final`: nobody will come back for it."""
        if answer.cursor is not cursor or self._answers.get(answer.route) is not answer:
            return  # Another stream has taken it over, or it is gone already.
        answer.outlet = answer.cursor = None
        self._left.set()
        if answer.grace_s > 0 and not is_final and answer.failure is None:
            answer.detached_at = answer.log.num_tokens
            # A client that was told all has it, unless its connection broke just then; such a one is back soon.
            grace_s = min(answer.grace_s, LINGER_S) if cursor.is_told else answer.grace_s
            self._set_timer(answer, grace_s, self._end_grace)
        else:
            self._abandon(answer)

    def _end_grace(self, answer: Answer) -> None:
        if answer.outlet is None:
            self._abandon(answer)

    def _abandon(self, answer: Answer) -> None:
        """Nobody waits for it any more: what still runs is cancelled, and closed here when the scheduler says Done."""
        if answer.ended is not None:
            self._close(answer)
            return
        answer.is_cancelled = True
        answer.log.abort()
        self._link.send(answer.given_up())
        self._settle(answer)

    def _give_up_waiting(self, answer: Answer) -> None:
        waited = self.settings.accept_timeout_s
        self._drop(answer, Unavailable(f"the scheduler did not take the request within {waited:g} s", 1.0))

    def _give_up_tokens(self, answer: Answer) -> None:
        detail = f"request {answer.client_id} was ended in the cluster, and its last tokens did not come"
        self._drop(answer, Aborted(detail))

    def _drop(self, answer: Answer, error: QuireError) -> None:
        """This gateway gives the request up."""
        self._fail(answer, error)
        self._link.send(answer.given_up())
        if answer.accepted is None:
            self._forget(answer)
        else:
            self._settle(answer)

    def _fail(self, answer: Answer, error: QuireError) -> None:
        answer.stop_timer()
        answer.failure = error
        answer.log.abort()
        self.watch.ended(answer)
        answer.wake()

    def _close(self, answer: Answer) -> None:
        self._forget(answer)
        self._closing.add(Closed(answer.request_id, answer.submit.gateway, answer.route))

    def _forget(self, answer: Answer) -> None:
        answer.stop_timer()
        self._answers.pop(answer.route, None)
        if self._by_id.get(answer.request_id) is answer:
            del self._by_id[answer.request_id]

    def _set_timer(self, answer: Answer, delay_s: float, action: Callable[[Answer], None]) -> None:
        answer.stop_timer()
        answer.timer = asyncio.get_running_loop().call_later(delay_s, action, answer)

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
