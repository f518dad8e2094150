"""One request as a client holds it: the message that asks, and what has come of the answer.

A Reception puts responses in their places, tells what is new as StreamOutput, and knows how to ask for the rest after a
broken connection. It does no I/O; `cluster/client/stream.py` does. Needs the base install only.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from cluster.errors import InvalidRequest, ProtocolError
from cluster.limits import MAX_PRIORITY
from cluster.offline.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, StreamOutput
from cluster.sampling import SamplingParams
from cluster.wire.chat import chat_of
from cluster.wire.sampling import fill_sampling
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]] | Mapping[str, Any]

_FORMS = 'give text, a list of token ids, a list of {"role": ..., "content": ...}, or {"prompt_token_ids": ids}'
_FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORTED: "abort",
    common_pb2.FINISH_REASON_FAILED: "error",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may say about a request beside prompt and sampling."""

    model: str = ""
    request_id: str = ""
    priority: int = 0
    timeout_s: float | None = None
    resume_grace_s: float = 10.0


def prompt_message(prompt: Prompt, field: str = "prompt") -> pb.Prompt:
    """Raises `InvalidRequest` for what is no prompt."""
    if isinstance(prompt, str):
        return pb.Prompt(text=prompt)
    if isinstance(prompt, Mapping):
        if "prompt_token_ids" in prompt:
            return prompt_message(prompt["prompt_token_ids"], f"{field}.prompt_token_ids")
        if isinstance(prompt.get("prompt"), str):
            return pb.Prompt(text=prompt["prompt"])
        if "messages" in prompt:
            messages, tools = prompt["messages"], prompt.get("tools") or ()
            return pb.Prompt(chat=chat_of(messages, f"{field}.messages", tools, prompt.get("tool_choice") or ""))
    elif len(prompt):
        try:
            if isinstance(prompt[0], Mapping):
                return pb.Prompt(chat=chat_of(prompt, field))  # type: ignore[arg-type]
            return pb.Prompt(token_ids=common_pb2.TokenIds(ids=prompt))  # type: ignore[arg-type]
        except (TypeError, ValueError, KeyError) as error:
            raise InvalidRequest(field, f"does not read as a prompt: {error}", _FORMS) from error
    raise InvalidRequest(field, "is empty or no prompt", _FORMS)


def generate_message(prompt: Prompt, params: SamplingParams, options: Options) -> pb.GenerateRequest:
    """A request that can be sent again: it has an id and a seed of its own, so that a repeat is the same request."""
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    if not -MAX_PRIORITY <= options.priority <= MAX_PRIORITY:
        raise InvalidRequest("priority", f"is {options.priority:,}", f"give -{MAX_PRIORITY:,} to {MAX_PRIORITY:,}")
    try:
        message = pb.GenerateRequest(
            request_id=options.request_id or secrets.token_hex(12),
            model=options.model,
            prompt=prompt_message(prompt),
            priority=options.priority,
            resume_grace_s=options.resume_grace_s,
        )
    except UnicodeEncodeError as error:
        raise InvalidRequest("request", f"holds text that is no Unicode: {error.reason}", "mend the text") from error
    fill_sampling(message.sampling, params)
    structure = params.structured_outputs
    if structure is not None and structure.kind == "choice":
        message.choice.extend(structure.choice or ())
    elif structure is not None:
        setattr(message, structure.kind, structure.text)
    return message


class _Sequence:
    __slots__ = ("detail", "finish_reason", "ids", "logprobs", "score", "stop_reason", "text")

    def __init__(self, has_logprobs: bool) -> None:
        self.ids: list[int] = []
        self.text: list[str] = []
        self.logprobs: list[dict[int, Logprob]] | None = [] if has_logprobs else None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.score: float | None = None
        self.detail = ""


class Reception:
    """The answer to one request so far."""

    def __init__(
        self, prompt: Prompt, request: pb.GenerateRequest, number: int = 0, timeout_s: float | None = None
    ) -> None:
        """`timeout_s`: counted from when it is first sent."""
        self.request = request
        self.number = number
        self.is_done = False
        self.is_accepted = False
        # Which model answers: the one that was asked, or whichever the gateway takes where none was.
        self.model = request.model
        # How often it was sent.
        self.num_sent = 0
        self._timeout_s = timeout_s
        self._until: float | None = None
        self._prompt = prompt
        has_logprobs = request.sampling.HasField("logprobs")
        num = request.sampling.n if request.sampling.HasField("n") else 1
        self._sequences = [_Sequence(has_logprobs) for _ in range(max(1, num))]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._metrics = RequestMetrics()

    @property
    def has_tokens(self) -> bool:
        return any(sequence.ids or sequence.finish_reason for sequence in self._sequences)

    @property
    def has_begun(self) -> bool:
        """Whether the cluster has taken it."""
        return self.is_accepted or self.has_tokens

    def send(self, now: float, left_s: float | None) -> float | None:
        """It is sent now, where `left_s` are left for all; returns the seconds that are left for it."""
        self.num_sent += 1
        if self._until is None and self._timeout_s is not None:
            self._until = now + self._timeout_s
        own_s = None if self._until is None else self._until - now
        return min((one for one in (left_s, own_s) if one is not None), default=None)

    def again(self) -> pb.GenerateRequest:
        """What to send after its connection broke."""
        return self.resumed() if self.has_begun else self.request

    def resumed(self) -> pb.GenerateRequest:
        """Asks for what has not come yet."""
        message = pb.GenerateRequest()
        message.CopyFrom(self.request)
        message.resume.positions.extend([len(sequence.ids) for sequence in self._sequences])
        return message

    def take(self, response: pb.GenerateResponse) -> StreamOutput | None:
        """Puts a response in its place; returns what is new for a reader. What came before is passed over."""
        kind = response.WhichOneof("event")
        if kind == "tokens":
            return self._take_tokens(response.tokens)
        if kind == "finished":
            return self._take_finished(response.finished)
        if kind == "accepted":
            self.is_accepted = True
            self.model = response.accepted.model or self.model
        elif kind == "done":
            self._take_done(response.done)
        return None

    def _at(self, index: int) -> _Sequence:
        if not 0 <= index < len(self._sequences):
            raise ProtocolError(f"the gateway sent sequence {index} of {len(self._sequences)}")
        return self._sequences[index]

    def _take_tokens(self, chunk: pb.TokenChunk) -> StreamOutput | None:
        sequence = self._at(chunk.sequence)
        if chunk.prompt_logprobs:
            self._take_prompt_logprobs(chunk)
        if chunk.position > len(sequence.ids):
            raise ProtocolError(f"the gateway's tokens jump from {len(sequence.ids)} to {chunk.position}")
        if not chunk.ids or chunk.position < len(sequence.ids) or sequence.finish_reason is not None:
            return None
        ids = list(chunk.ids)
        sequence.ids += ids
        sequence.text.append(chunk.text)
        logprobs = None
        if sequence.logprobs is not None:
            logprobs = [_candidates(one) for one in chunk.logprobs]
            sequence.logprobs += logprobs
        return StreamOutput(self.number, chunk.sequence, chunk.text, ids, logprobs=logprobs)

    def _take_prompt_logprobs(self, chunk: pb.TokenChunk) -> None:
        found = self._prompt_logprobs = self._prompt_logprobs or []
        if chunk.prompt_position == len(found):
            found += [_candidates(one.logprob) if one.HasField("logprob") else None for one in chunk.prompt_logprobs]

    def _take_finished(self, finished: pb.Finished) -> StreamOutput | None:
        sequence = self._at(finished.sequence)
        if sequence.finish_reason is not None:
            return None
        sequence.text.append(finished.text)
        sequence.finish_reason = _FINISH.get(finished.reason, "error")
        stopped_by = finished.WhichOneof("stopped_by")
        sequence.stop_reason = None if stopped_by is None else getattr(finished, stopped_by)
        sequence.score = finished.score if finished.HasField("score") else None
        sequence.detail = finished.detail
        return StreamOutput(
            self.number,
            finished.sequence,
            finished.text,
            [],
            sequence.finish_reason,
            sequence.stop_reason,
            detail=finished.detail,
        )

    def _take_done(self, done: pb.Done) -> None:
        self.is_done = True
        self._metrics = RequestMetrics(
            first_token_s=done.time_to_first_token_s,
            finished_s=done.total_s,
            cached_tokens=done.cached_tokens,
            preemptions=done.preemptions,
            prompt_tokens=done.prompt_tokens,
        )

    def output(self) -> RequestOutput:
        """All of it, when it is done."""
        prompt = self._prompt
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(self.request.prompt.token_ids.ids),
            prompt_logprobs=self._prompt_logprobs,
            outputs=[self._completion(index, sequence) for index, sequence in enumerate(self._sequences)],
            finished=self.is_done,
            metrics=self._metrics,
            model=self.model,
        )

    def _completion(self, index: int, sequence: _Sequence) -> CompletionOutput:
        logprobs = sequence.logprobs
        total = None
        if logprobs is not None:
            pairs = zip(sequence.ids, logprobs, strict=False)
            total = sum(found[token].logprob for token, found in pairs if token in found)
        return CompletionOutput(
            index=index,
            text="".join(sequence.text),
            token_ids=list(sequence.ids),
            cumulative_logprob=total,
            logprobs=logprobs,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            score=sequence.score,
            detail=sequence.detail,
        )


def _candidates(one: common_pb2.Logprob) -> dict[int, Logprob]:
    if not one.rank:
        return {}  # Its token was repeated by a later attempt, which knows it no more.
    found = {one.token: Logprob(one.logprob, one.rank)}
    for rank, top in enumerate(one.top, 1):
        found.setdefault(top.token, Logprob(top.logprob, rank))
    return found
