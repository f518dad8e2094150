"""From the wire's responses to OpenAI's objects: whole ones, and the chunks of a stream.

Both kinds are made by one Writer per HTTP request, which is fed what a cursor filled. It knows no gateway and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.gateway.http.asks import Asked
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb

_FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORTED: "abort",
    common_pb2.FINISH_REASON_FAILED: "error",
}


@dataclass(slots=True)
class Choice:
    """One sequence on its way: what has come of it, and how far that was told."""

    index: int
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None
    num_chars: int = 0
    has_begun: bool = False


class Writer:
    """`choices` are by prompt and sequence; `usage` is complete when every request has said Done. `spells` gives a
    token's text."""

    def __init__(self, asked: Asked, request_id: str, model: str, created: int, spells: Callable[[int], str]) -> None:
        self._asked = asked
        self._spells = spells
        self._per_prompt = max(1, asked.requests[0].sampling.n)
        self.choices = [Choice(at) for at in range(self._per_prompt * len(asked.requests))]
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._cached = 0
        name = "chat.completion" if asked.kind == "chat" else "text_completion"
        self._is_chat = asked.kind == "chat"
        self._head = {"id": request_id, "object": name, "created": created, "model": model}
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"} if self._is_chat else self._head

    def take(self, response: pb.GenerateResponse) -> Choice | None:
        """Notes what is new; returns the choice that has something to tell."""
        event = response.WhichOneof("event")
        if event == "tokens":
            choice = self._choice(response.tag, response.tokens.sequence)
            choice.text.append(response.tokens.text)
            choice.ids.extend(response.tokens.ids)
            if self._asked.num_top is not None:
                choice.logprobs.extend(self._entry(logprob) for logprob in response.tokens.logprobs)
            return choice
        if event == "finished":
            finished = response.finished
            choice = self._choice(response.tag, finished.sequence)
            choice.text.append(finished.text)
            choice.finish = _FINISH.get(finished.reason, "stop")
            stopped_by = finished.WhichOneof("stopped_by")
            choice.stop_reason = getattr(finished, stopped_by) if stopped_by else None
            return choice
        if event == "done":
            done = response.done
            self._usage["prompt_tokens"] += done.prompt_tokens
            self._usage["completion_tokens"] += done.completion_tokens
            self._usage["total_tokens"] += done.prompt_tokens + done.completion_tokens
            self._cached += done.cached_tokens
        return None

    def _choice(self, tag: int, sequence: int) -> Choice:
        return self.choices[tag * self._per_prompt + sequence]

    def usage(self) -> dict[str, Any]:
        return {**self._usage, "prompt_tokens_details": {"cached_tokens": self._cached}}

    # -- whole

    def whole(self) -> dict[str, Any]:
        return {**self._head, "choices": [self._whole(choice) for choice in self.choices], "usage": self.usage()}

    def _whole(self, choice: Choice) -> dict[str, Any]:
        said = "".join(choice.text)
        found: dict[str, Any] = {"index": choice.index}
        if self._is_chat:
            found["message"] = {"role": "assistant", "content": said}
        else:
            found["text"] = said
        found["logprobs"] = self._logprobs(choice, choice.logprobs)
        return self._ended(found, choice, choice.ids)

    def _ended(self, found: dict[str, Any], choice: Choice, ids: Iterable[int]) -> dict[str, Any]:
        found["finish_reason"] = choice.finish
        if choice.finish is not None:
            found["stop_reason"] = choice.stop_reason
        if self._asked.returns_ids:
            found["token_ids"] = list(ids)
        return found

    # -- chunks

    def begin(self) -> list[dict[str, Any]]:
        """Chat tells the role of each choice before anything else."""
        if not self._is_chat:
            return []
        role = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": choice.index, "delta": role, "logprobs": None, "finish_reason": None}])
            for choice in self.choices
        ]

    def chunk(self, choice: Choice) -> dict[str, Any] | None:
        """What of a choice was not told yet; None if that is nothing that a reader could see."""
        said, ids, logprobs = "".join(choice.text), choice.ids, choice.logprobs
        if not said and choice.finish is None and not logprobs and not self._asked.returns_ids:
            return None
        choice.text, choice.ids, choice.logprobs = [], [], []
        found: dict[str, Any] = {"index": choice.index}
        if self._is_chat:
            found["delta"] = {"content": said} if said or choice.finish is None else {}
        else:
            found["text"] = said
        found["logprobs"] = self._logprobs(choice, logprobs)
        return self._chunk([self._ended(found, choice, ids)])

    def last(self) -> list[dict[str, Any]]:
        """The chunk of the usage, if it was asked for."""
        return [{**self._chunk([]), "usage": self.usage()}] if self._asked.includes_usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": choices}

    # -- logprobs

    def _entry(self, logprob: common_pb2.Logprob) -> dict[str, Any]:
        entry = self._token(logprob.token, logprob.logprob)
        top = [self._token(one.token, one.logprob) for one in logprob.top]
        entry["top_logprobs"] = top[: self._asked.num_top]
        return entry

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        spelt = self._spells(token)
        return {"token": spelt, "logprob": max(logprob, -9999.0), "bytes": list(spelt.encode())}

    def _logprobs(self, choice: Choice, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self._asked.num_top is None:
            return None
        if self._is_chat:
            return {"content": list(entries)}
        offsets = []
        for entry in entries:
            offsets.append(choice.num_chars)
            choice.num_chars += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }
