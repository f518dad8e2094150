"""Scheduler and worker in one process and one thread: the loop of the embedded engine.

`cluster/offline/engine.py` submits requests and calls `turn` until they are done. The scheduler, the plans and the
worker are those of the cluster; only the shell between them is missing. It knows tokens and logs; of their text only
where a stop string ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from cluster.centre.scheduler import Scheduler
from cluster.desk.steps import most_at_once
from cluster.errors import InvalidRequest, QueueFull, QuireError
from cluster.gateway.door.log import RequestLog
from cluster.gateway.texts import Texts, take_tokens
from cluster.hashing import BlockHasher
from cluster.messages import (
    Accepted,
    Cancel,
    Closed,
    Done,
    Event,
    Order,
    Plan,
    Refused,
    Seal,
    Sealed,
    Started,
    StopAt,
    Submit,
    Tokens,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from worker.worker import Worker

GATEWAY = "embedded"
STRUCTURE_S = 1.0
"""Who has nothing else to do looks again after so long whether a structure is compiled."""


class Live:
    """A request under way. `prompt_index` is its place in the call that it belongs to."""

    __slots__ = (
        "cached_tokens",
        "done",
        "error",
        "finished_s",
        "first_token_s",
        "log",
        "made_at",
        "preemptions",
        "prompt",
        "prompt_index",
        "request_id",
        "route",
        "sampling",
        "texts",
    )

    def __init__(self, prompt_index: int, prompt: list[int], sampling: SamplingParams, texts: Texts) -> None:
        self.prompt_index = prompt_index
        self.prompt = prompt
        self.sampling = sampling
        self.log = RequestLog(sampling.n, sampling.logprobs is not None)
        self.texts = texts
        self.request_id = ""
        self.route = -1
        self.made_at = time.monotonic()
        self.first_token_s = 0.0
        self.finished_s = 0.0
        self.cached_tokens = 0
        self.preemptions = 0
        self.done = False
        self.error: QuireError | None = None


class Embedded:
    """Runs requests. One thread at a time may call it."""

    def __init__(self, worker: Worker, settings: SchedulerSettings) -> None:
        self.worker = worker
        self.scheduler = Scheduler(settings)
        self.live: dict[int, Live] = {}
        # Seconds that went into decisions, beside what the worker counts.
        self.scheduling_seconds = 0.0
        self._hasher = BlockHasher(worker.settings.hash_key, worker.parts.digest, b"", worker.settings.block_size)
        self._caches = settings.prefix_caching
        # Steps since a result was taken, and how many may pass.
        self._steps_alone = 0
        self._steps_ahead = most_at_once(settings.ahead)
        self._num_submitted = 0
        self._began = time.monotonic()
        self._events: list[Event] = [worker.joined()]
        self._obey: dict[type, Callable[[Order], None]] = {
            Plan: self._on_plan,
            Started: self._on_started,
            Refused: self._on_refused,
            Done: self._on_done,
            Accepted: lambda order: None,
            Seal: self._on_seal,
        }

    def submit(self, live: Live, priority: int = 0) -> None:
        """Hands a request to the scheduler; it takes part from the next turn on."""
        live.route = self._num_submitted
        live.request_id = str(live.route)
        self._num_submitted += 1
        self.live[live.route] = live
        prompt = ids(live.prompt)
        self._events.append(
            Submit(
                request_id=live.request_id,
                gateway=GATEWAY,
                route=live.route,
                model=self.worker.settings.name,
                tenant="",
                prompt=prompt,
                hashes=self._hasher.prompt(prompt) if self._caches else (),
                sampling=live.sampling,
                priority=priority,
                digest=self.worker.parts.digest,
            )
        )

    def cancel(self, live: Live) -> None:
        if not live.done:
            self._events.append(Cancel(live.request_id))

    def holds(self, lives: Iterable[Live]) -> bool:
        """Whether the scheduler still knows any of these requests, or is still to be told of them."""
        known = self.scheduler.requests
        return bool(self._events) or any(live.request_id in known for live in lives)

    def turn(self, *, eager: bool) -> None:
        """One round: the scheduler decides, the worker obeys and runs a step, tokens go to their logs.

        `eager`: tokens are taken after every step; otherwise only when a sequence has ended, which costs less.
        """
        if self._events:
            self._decide()
        # Whoever wants every token at once wants every step alone.
        ran = self.worker.step(1 if eager else max(1, self._steps_ahead - self._steps_alone))
        self._steps_alone = self._steps_alone + ran if ran else self._steps_ahead
        result = None
        # Leases are asked for some slots before they end, so that a report may wait for others; an end may not.
        if self._steps_alone >= self._steps_ahead or self.worker.has_ends:
            self._steps_alone = 0
            result = self.worker.take_result()
        if result is not None:
            self._events.append(result)
        if eager or (result is not None and result.stopped):
            for tokens in self.worker.take_tokens().get(GATEWAY, ()):
                self._take(tokens)
        if not ran and self.worker.sampler.structures.late():
            self.worker.sampler.structures.wait(STRUCTURE_S)
        elif not ran and not self._events and self.live:
            waits = self.scheduler.waiting.num_waiting(self.worker.settings.name)
            raise AssertionError(f"nothing can run, {len(self.live)} requests are open and {waits} wait")

    def _decide(self) -> None:
        began = time.perf_counter()
        events, self._events = self._events, []
        for order in self.scheduler.turn(events, time.monotonic() - self._began):
            self._obey[type(order)](order)
        self.scheduling_seconds += time.perf_counter() - began

    def _on_plan(self, order: Order) -> None:
        assert isinstance(order, Plan)
        self.worker.obey(order)

    def _on_started(self, order: Order) -> None:
        assert isinstance(order, Started)
        live = self.live.get(order.route)
        if live is not None and not live.cached_tokens and not live.log.num_tokens:
            live.cached_tokens = order.cached_tokens

    def _on_refused(self, order: Order) -> None:
        assert isinstance(order, Refused)
        live = self.live.pop(order.route, None)
        if live is not None:
            live.done = True
            live.error = _as_error(order)

    def _on_done(self, order: Order) -> None:
        assert isinstance(order, Done)
        live = self.live.pop(order.route, None)
        if live is not None:
            live.done = True
            live.preemptions = order.preemptions
            live.finished_s = time.monotonic() - live.made_at
        self._events.append(Closed(order.request_id, order.gateway, order.route))

    def _on_seal(self, order: Order) -> None:
        """It was preempted, and only who drew a token knows its logprobs: what the log has is told."""
        assert isinstance(order, Seal)
        live, place = self.live.get(order.route), (order.request_id, order.gateway, order.route, order.attempt)
        if live is None:
            self._events.append(Sealed(*place, (), ()))
            return
        live.log.seal(order.attempt)
        self._events.append(Sealed(*place, live.log.outputs, live.log.reasons))

    def _take(self, tokens: Tokens) -> None:
        live = self.live.get(tokens.route)
        if live is None:
            return
        if not live.first_token_s:
            live.first_token_s = time.monotonic() - live.made_at
        cut = take_tokens(live.log, live.texts, tokens)
        if cut is not None:
            self._events.append(StopAt(live.request_id, cut.index, len(cut.ids)))


def _as_error(refused: Refused) -> QuireError:
    if refused.code == "RESOURCE_EXHAUSTED":
        return QueueFull(refused.detail, refused.retry_after_s)
    if refused.code == "INVALID_ARGUMENT":
        return InvalidRequest("prompt", refused.detail)
    return QuireError(f"{refused.code}: {refused.detail}")
