"""An answer as a gateway shows it: the door's entry with its text and figures, and a cursor that words it.

What was told to whom the door knows (`cluster/gateway/door/entry.py`); a Cursor turns the parts that it gives into
messages. An Outlet is where a stream waits for news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.errors import ProtocolError, QuireError
from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import Begun, Chunk, Entry, Finished, Part, PromptChunk, Reader, Whole
from cluster.gateway.door.log import RequestLog, SequenceLog
from cluster.gateway.pace import Pace, PacedStream
from cluster.gateway.texts import Texts
from cluster.messages import Accepted, Done, Ids, Reason, Submit
from cluster.watching.model_figures import ModelFigures
from cluster.watching.tracing import Span
from cluster.wire.tokens import fill_logprob
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb

MAX_FILL_BYTES = 1 << 18
"""What one call of `fill` adds at most, about: clients take 4 MiB in one message unless they say otherwise."""

_REASONS = {
    Reason.STOP: common_pb2.FINISH_REASON_STOP,
    Reason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    Reason.DROPPED: common_pb2.FINISH_REASON_ABORTED,
    Reason.FAILED: common_pb2.FINISH_REASON_FAILED,
}


class Outlet:
    """Where a stream waits: the answers that have something new to tell it. Ends come at once, all else when the stream
    may write again."""

    __slots__ = ("_event", "_has_turn", "pace", "ready")

    def __init__(self, pace: Pace) -> None:
        self.ready: dict[int, Answer] = {}
        self.pace = PacedStream(pace)
        self._event = asyncio.Event()
        self._has_turn = False

    def wake(self, answer: Answer) -> None:
        self.ready[answer.route] = answer
        if answer.is_over:
            self._event.set()
        elif not self._has_turn and not self._event.is_set():
            self._has_turn = True
            self.pace.call(self._turn)

    def _turn(self) -> None:
        self._has_turn = False
        if self.ready:
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
    """What the gateway has of a request beside the door's entry."""

    __slots__ = (
        "arrived",
        "cursor",
        "entry",
        "figures",
        "first_token",
        "is_counted",
        "is_started",
        "last_token",
        "outlet",
        "span",
        "texts",
        "vocab_size",
        "why_full",
    )

    def __init__(
        self,
        entry: Entry,
        texts: Texts,
        vocab_size: int,
        now: float,
        figures: ModelFigures,
        span: Span | None,
        why_full: str,
    ) -> None:
        """`why_full`: see `TextModel.why_full`."""
        self.entry = entry
        self.why_full = why_full
        self.vocab_size = vocab_size
        self.texts = texts
        self.arrived = now
        self.first_token: float | None = None
        self.last_token = 0.0
        # Where its times are counted; its beginning and its end are counted once.
        self.figures = figures
        self.is_started = self.is_counted = False
        self.span = span
        self.outlet: Outlet | None = None
        self.cursor: Cursor | None = None

    def add(self, index: int, new: Ids) -> int | None:
        """See `SequenceText.add`. Raises `ProtocolError` for tokens that the model does not have."""
        if min(new) < 0 or max(new) >= self.vocab_size:
            wrong = next(token for token in new if not 0 <= token < self.vocab_size)
            raise ProtocolError(f"token id {wrong} is none of the {self.vocab_size:,} of this model")
        return self.texts.add(index, new)

    @property
    def route(self) -> int:
        return self.entry.route

    @property
    def submit(self) -> Submit:
        return self.entry.submit

    @property
    def request_id(self) -> str:
        return self.entry.submit.request_id

    @property
    def client_id(self) -> str:
        return self.entry.client_id

    @property
    def log(self) -> RequestLog:
        return self.entry.log

    @property
    def accepted(self) -> Accepted | None:
        return self.entry.accepted

    @property
    def done(self) -> Done | None:
        return self.entry.done

    @property
    def failure(self) -> QuireError | None:
        return self.entry.failure

    @property
    def ended(self) -> float | None:
        return self.entry.ended

    @property
    def is_cancelled(self) -> bool:
        return self.entry.is_cancelled

    @property
    def is_over(self) -> bool:
        return self.entry.is_over


class Cursor:
    """Words one stream's share of an answer."""

    __slots__ = ("_answer", "_door", "reader")

    def __init__(self, door: Door, answer: Answer, reader: Reader) -> None:
        self.reader = reader
        self._door = door
        self._answer = answer

    @property
    def tag(self) -> int:
        return self.reader.tag

    @property
    def has_more(self) -> bool:
        """The last `fill` stopped at its bound."""
        return self.reader.has_more

    @property
    def is_told(self) -> bool:
        """The stream has all of the answer; if that failed, the caller says so."""
        return self.reader.is_told

    def fill(self, add: Callable[[], pb.GenerateResponse]) -> int:
        """Adds responses for what is new, up to a bound; returns about how many bytes. See `has_more`, `is_told`."""
        parts, size = self._door.read(self.reader, MAX_FILL_BYTES)
        for part in parts:
            message = add()
            message.tag = self.reader.tag
            self._word(message, part)
        return size

    def _word(self, message: pb.GenerateResponse, part: Part) -> None:
        if isinstance(part, Chunk):
            self._word_tokens(message.tokens, part)
        elif isinstance(part, Finished):
            self._word_finished(message.finished, part.sequence)
        elif isinstance(part, Begun):
            self._word_begun(message.accepted, part)
        elif isinstance(part, PromptChunk):
            _word_prompt(message.tokens, part)
        else:
            self._word_done(message.done, part)

    def _word_begun(self, message: pb.Accepted, part: Begun) -> None:
        message.request_id = self._answer.client_id
        message.model = self._answer.submit.model
        message.prompt_tokens = len(self._answer.submit.prompt)
        if part.started is None:
            message.place = part.accepted.place
            message.reason = part.accepted.reason
        else:
            message.cached_tokens = part.started.cached_tokens
            message.started = True

    def _word_tokens(self, message: pb.TokenChunk, part: Chunk) -> None:
        sequence, first, last = part.sequence, part.first, part.last
        message.sequence = sequence.index
        message.position = first
        message.ids.extend(sequence.ids[first:last])
        message.text = self._answer.texts.text(sequence.index, first, last)
        if sequence.logprobs is not None:
            for logprob in sequence.logprobs[first:last]:
                entry = message.logprobs.add()
                if logprob is not None:
                    fill_logprob(entry, logprob)

    def _word_finished(self, message: pb.Finished, sequence: SequenceLog) -> None:
        texts, sampling = self._answer.texts, self._answer.submit.sampling
        message.sequence = sequence.index
        message.reason = _REASONS[sequence.reason]
        message.num_tokens = len(sequence.ids)
        message.text = texts.rest(sequence.index)
        message.detail = sequence.detail
        if sequence.reason is Reason.LENGTH:
            message.detail = self._answer.why_full
        stop_string = texts.stop_string(sequence.index)
        if stop_string is not None:
            message.stop_string = stop_string
        elif sequence.reason is Reason.STOP and sequence.ids and sequence.ids[-1] in sampling.stop_token_ids:
            message.stop_token_id = sequence.ids[-1]
        if sampling.width:
            message.score = sequence.score

    def _word_done(self, message: pb.Done, part: Whole) -> None:
        answer, done = self._answer, part.done
        assert answer.ended is not None
        message.prompt_tokens = len(answer.submit.prompt)
        message.cached_tokens = done.cached_tokens
        message.completion_tokens = answer.log.num_tokens
        message.queue_s = done.queue_seconds
        if answer.first_token is not None:
            message.time_to_first_token_s = answer.first_token - answer.arrived
        message.total_s = answer.ended - answer.arrived
        message.preemptions = done.preemptions
        message.device_block_seconds = done.device_block_seconds
        message.host_block_seconds = done.host_block_seconds


def _word_prompt(message: pb.TokenChunk, part: PromptChunk) -> None:
    message.sequence = part.sequence.index
    message.position = part.position
    message.prompt_position = part.first
    for logprob in part.sequence.prompt_logprobs[part.first : part.last]:
        entry = message.prompt_logprobs.add()
        if logprob is not None:
            fill_logprob(entry.logprob, logprob)
