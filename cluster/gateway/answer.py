"""One request and its answer as a gateway holds them, and the cursor that turns the log into messages for a stream.

An Answer lives from the question to `Closed`; the gateway changes it. A Cursor belongs to one stream of one client and
remembers what that stream was told, so that a resumed stream is a new cursor at other positions over the same log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.errors import QuireError
from cluster.gateway.log import RequestLog, SequenceLog
from cluster.messages import Accepted, Cancel, Claim, Done, Reason, Started, Submit
from cluster.watching.metrics_gateway import ModelFigures
from cluster.watching.tracing import Span
from cluster.wire.tokens import fill_logprob
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb

MAX_CHUNK = 2_048
MAX_CHUNK_LOGPROBS = 256
"""Tokens of one sequence in one response."""

MAX_FILL_BYTES = 1 << 18
"""What one call of `fill` adds at most, about: clients take 4 MiB in one message unless they say otherwise."""

_TOKEN_BYTES, _LOGPROB_BYTES = 9, 240

_REASONS = {
    Reason.STOP: common_pb2.FINISH_REASON_STOP,
    Reason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    Reason.DROPPED: common_pb2.FINISH_REASON_ABORTED,
    Reason.FAILED: common_pb2.FINISH_REASON_FAILED,
}


class Outlet:
    """Where a stream waits: the answers that have something new to tell it."""

    __slots__ = ("_event", "ready")

    def __init__(self) -> None:
        self.ready: dict[int, Answer] = {}
        self._event = asyncio.Event()

    def wake(self, answer: Answer) -> None:
        self.ready[answer.route] = answer
        self._event.set()

    def nudge(self) -> None:
        """Wakes the stream though no answer has news."""
        self._event.set()

    async def news(self) -> None:
        """Returns when there is something to take."""
        await self._event.wait()

    def take(self) -> list[Answer]:
        """Answers with news, in the order in which they had them."""
        self._event.clear()
        ready, self.ready = list(self.ready.values()), {}
        return ready


class Answer:
    """The state of a request here. `request_id` is the cluster's, `client_id` the tenant's own."""

    __slots__ = (
        "accepted",
        "arrived",
        "client_id",
        "cursor",
        "detached_at",
        "done",
        "ended",
        "failure",
        "figures",
        "first_token",
        "grace_s",
        "is_adopted",
        "is_cancelled",
        "is_counted",
        "last_token",
        "log",
        "num_claims",
        "outlet",
        "route",
        "span",
        "started",
        "submit",
        "timer",
        "turn",
    )

    def __init__(
        self, submit: Submit, client_id: str, log: RequestLog, grace_s: float, now: float, figures: ModelFigures
    ) -> None:
        self.submit = submit
        self.client_id = client_id
        self.route = submit.route
        self.log = log
        self.grace_s = grace_s
        self.arrived = now
        self.first_token: float | None = None
        self.last_token = 0.0
        # Where its times are counted; its end is counted once.
        self.figures = figures
        self.is_counted = False
        self.span: Span | None = None
        self.ended: float | None = None
        self.accepted: Accepted | None = None
        self.started: Started | None = None
        self.done: Done | None = None
        self.failure: QuireError | None = None
        self.is_cancelled = False
        # It began at another gateway, and a client came back through this one.
        self.is_adopted = False
        # Its client came back here, and the scheduler has not answered yet that the request is told to this gateway.
        self.num_claims = 0
        # Which of its owners this gateway is (see Accepted).
        self.turn = 0
        self.outlet: Outlet | None = None
        self.cursor: Cursor | None = None
        # Tokens in the log when its client went away.
        self.detached_at = 0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def is_over(self) -> bool:
        """Nothing of it is to come: not from the scheduler, not from a worker."""
        return self.failure is not None or (self.done is not None and self.log.is_complete)

    def claim(self) -> Claim:
        return Claim(self.request_id, self.submit.gateway, self.route)

    def given_up(self) -> Cancel:
        """Nobody waits for it here: it ends, unless its client has come back elsewhere."""
        return Cancel(self.request_id, self.submit.gateway, self.route)

    def wake(self) -> None:
        if self.outlet is not None:
            self.outlet.wake(self)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Cursor:
    """What one stream was told of an answer."""

    __slots__ = ("_accepted", "_answer", "_finished", "_prompt_sent", "_sent", "_started", "has_more", "is_told", "tag")

    def __init__(self, answer: Answer, tag: int = 0, positions: Sequence[int] = ()) -> None:
        num = len(answer.log.sequences)
        self.tag = tag
        # The last `fill` stopped at its bound.
        self.has_more = False
        # The stream has all of the answer; if that failed, the caller says so.
        self.is_told = False
        self._answer = answer
        self._accepted = self._started = False
        self._sent = list(positions) or [0] * num
        self._finished = [False] * num
        # Prompt logprobs go with the first tokens, so that who has those has them.
        self._prompt_sent = [0 if not sent else -1 for sent in self._sent]

    def fill(self, add: Callable[[], pb.GenerateResponse]) -> int:
        """Adds responses for what is new, up to a bound; returns about how many bytes. See `has_more`, `is_told`."""
        answer = self._answer
        size = 0
        if answer.accepted is not None and not (self._accepted and self._started):
            size += self._fill_accepted(add, answer.accepted)
        self.has_more = True
        for sequence in answer.log.sequences:
            size += self._fill_tokens(add, sequence, MAX_FILL_BYTES - size)
            if size >= MAX_FILL_BYTES:
                return size
            # What a failure cut off did not finish: the failure itself is the word on that.
            is_cut = sequence.reason is Reason.DROPPED and answer.failure is not None
            if sequence.reason is not Reason.NONE and not is_cut and not self._finished[sequence.index]:
                self._finished[sequence.index] = True
                self._fill_finished(add(), sequence)
        self.has_more = False
        if answer.is_over:
            self.is_told = True
            if answer.failure is None:
                self._fill_done(add())
        return size

    def _fill_accepted(self, add: Callable[[], pb.GenerateResponse], accepted: Accepted) -> int:
        answer, started = self._answer, self._answer.started
        if self._accepted and started is None:
            return 0
        self._accepted, self._started = True, started is not None
        message = add()
        message.tag = self.tag
        part = message.accepted
        part.request_id = answer.client_id
        part.prompt_tokens = len(answer.submit.prompt)
        if started is None:
            part.place = accepted.place
            part.reason = accepted.reason
        else:
            part.cached_tokens = started.cached_tokens
            part.started = True
        return 64

    def _fill_tokens(self, add: Callable[[], pb.GenerateResponse], sequence: SequenceLog, room: int) -> int:
        index, ids, logprobs = sequence.index, sequence.ids, sequence.logprobs
        sent, size = self._sent[index], 0
        if sequence.prompt_logprobs and 0 <= self._prompt_sent[index] < len(sequence.prompt_logprobs):
            size += self._fill_prompt(add, sequence, room)
        while sent < len(ids) and size < room:
            end = min(len(ids), sent + (MAX_CHUNK if logprobs is None else MAX_CHUNK_LOGPROBS))
            message = add()
            message.tag = self.tag
            chunk = message.tokens
            chunk.sequence = index
            chunk.position = sent
            chunk.ids.extend(ids[sent:end])
            if sequence.pieces:
                chunk.text = sequence.text(sent, end)
            size += _TOKEN_BYTES * (end - sent)
            if logprobs is not None:
                for logprob in logprobs[sent:end]:
                    part = chunk.logprobs.add()
                    if logprob is not None:
                        fill_logprob(part, logprob)
                size += _LOGPROB_BYTES * (end - sent)
            self._sent[index] = sent = end
        return size

    def _fill_prompt(self, add: Callable[[], pb.GenerateResponse], sequence: SequenceLog, room: int) -> int:
        index, logprobs = sequence.index, sequence.prompt_logprobs
        first, size = self._prompt_sent[index], 0
        while first < len(logprobs) and size < room:
            last = min(len(logprobs), first + MAX_CHUNK_LOGPROBS)
            message = add()
            message.tag = self.tag
            chunk = message.tokens
            chunk.sequence = index
            chunk.position = self._sent[index]
            chunk.prompt_position = first
            for logprob in logprobs[first:last]:
                part = chunk.prompt_logprobs.add()
                if logprob is not None:
                    fill_logprob(part.logprob, logprob)
            size += _LOGPROB_BYTES * (last - first)
            self._prompt_sent[index] = first = last
        return size

    def _fill_finished(self, message: pb.GenerateResponse, sequence: SequenceLog) -> None:
        message.tag = self.tag
        part = message.finished
        part.sequence = sequence.index
        part.reason = _REASONS[sequence.reason]
        part.num_tokens = len(sequence.ids)
        part.text = sequence.rest
        part.detail = sequence.detail
        sampling = self._answer.submit.sampling
        if sequence.stop_string is not None:
            part.stop_string = sequence.stop_string
        elif sequence.reason is Reason.STOP and sequence.ids and sequence.ids[-1] in sampling.stop_token_ids:
            part.stop_token_id = sequence.ids[-1]
        if sampling.width:
            part.score = sequence.score

    def _fill_done(self, message: pb.GenerateResponse) -> None:
        answer, done = self._answer, self._answer.done
        assert done is not None and answer.ended is not None
        message.tag = self.tag
        part = message.done
        part.prompt_tokens = len(answer.submit.prompt)
        part.cached_tokens = done.cached_tokens
        part.completion_tokens = answer.log.num_tokens
        part.queue_s = done.queue_seconds
        if answer.first_token is not None:
            part.time_to_first_token_s = answer.first_token - answer.arrived
        part.total_s = answer.ended - answer.arrived
        part.preemptions = done.preemptions
        part.device_block_seconds = done.device_block_seconds
        part.host_block_seconds = done.host_block_seconds
