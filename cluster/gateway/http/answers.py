"""From the wire's responses to OpenAI's objects: whole ones, and the chunks of a stream.

Both kinds are made by one Writer per HTTP request, which is fed what a cursor filled. Where a model calls tools or
reasons, its text goes through a parser of `cluster/speech`. It knows no gateway and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from cluster.gateway.http.look import Look
from cluster.speech.parts import Parser, Part, PartKind, joined
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb

_FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORTED: "abort",
    common_pb2.FINISH_REASON_FAILED: "error",
}


@dataclass(slots=True)
class HttpChoice:
    """One sequence on its way: what has come of it, and how far that was told."""

    index: int
    parts: list[Part] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None
    num_chars: int = 0
    num_tokens: int = 0
    num_calls: int = 0
    parser: Parser | None = None
    # How far it was taken: its tokens; behind a parser the characters of its parts, and one for each call.
    position: int = 0
    # So much of a stream that broke was told already.
    skip: int = 0


KEPT_TOKEN_BYTES = 40
KEPT_LOGPROB_BYTES = 700
"""What a token, and a logprob of one, take in an answer that is put together here, about."""


class Writer:
    """`choices` are by prompt and sequence; `usage` is complete when every request has said Done. `spells` gives a
    token's text in UTF-8, of which it may be a part of a character; `num_bytes` is about what was taken."""

    def __init__(
        self, look: Look, per_prompt: int, num_prompts: int, request_id: str, model: str, spells: Callable[[int], bytes]
    ) -> None:
        self._look = look
        self._spells = spells
        self._per_prompt = per_prompt
        self.choices = [HttpChoice(at) for at in range(per_prompt * num_prompts)]
        # Of each prompt, once it is known.
        self.prompt_tokens = [0] * num_prompts
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._cached = self.num_bytes = 0
        self._is_chat = look.kind == "chat"
        name = "chat.completion" if self._is_chat else "text_completion"
        self._head = {"id": request_id, "object": name, "created": look.created, "model": model}
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"} if self._is_chat else self._head

    def parse(self, make: Callable[[], Parser | None], told: Sequence[int]) -> None:
        """What the sequences say is more than text. `told`: their positions in a stream that broke."""
        for choice in self.choices:
            choice.parser = make()
            choice.skip = told[choice.index] if told else 0

    def take(self, response: pb.GenerateResponse) -> HttpChoice | None:
        """Notes what is new; returns the choice that has something to tell."""
        event = response.WhichOneof("event")
        if event == "tokens":
            tokens = response.tokens
            choice = self._choice(response.tag, tokens.sequence)
            self._say(choice, tokens.text)
            if choice.parser is None:
                choice.position = tokens.position + len(tokens.ids)
            choice.num_tokens = tokens.position + len(tokens.ids)
            choice.ids.extend(tokens.ids)
            self.num_bytes += KEPT_TOKEN_BYTES * len(tokens.ids) + len(tokens.text)
            if self._look.num_top is not None:
                choice.logprobs.extend(self._entry(logprob) for logprob in tokens.logprobs)
                self.num_bytes += KEPT_LOGPROB_BYTES * len(tokens.logprobs) * (1 + self._look.num_top)
            return choice
        if event == "finished":
            finished = response.finished
            choice = self._choice(response.tag, finished.sequence)
            self._say(choice, finished.text)
            if choice.parser is not None:
                self._note(choice, choice.parser.end())
            choice.finish = _FINISH.get(finished.reason, "stop")
            if choice.num_calls and choice.finish == "stop":
                choice.finish = "tool_calls"
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

    def _say(self, choice: HttpChoice, text: str) -> None:
        if choice.parser is not None:
            self._note(choice, choice.parser.feed(text))
        elif text:
            choice.parts.append(Part(PartKind.TEXT, text))

    def _note(self, choice: HttpChoice, parts: Sequence[Part]) -> None:
        for part in parts:
            size = 1 if part.kind is PartKind.CALL else len(part.text)
            choice.position += size
            told = min(size, choice.skip)
            choice.skip -= told
            if part.kind is PartKind.CALL:
                choice.num_calls += 1
            if told < size:
                choice.parts.append(part if part.kind is PartKind.CALL else Part(part.kind, part.text[told:]))

    def _choice(self, tag: int, sequence: int) -> HttpChoice:
        return self.choices[tag * self._per_prompt + sequence]

    def usage(self) -> dict[str, Any]:
        return {**self._usage, "prompt_tokens_details": {"cached_tokens": self._cached}}

    # -- whole

    def whole(self) -> dict[str, Any]:
        return {**self._head, "choices": [self._whole(choice) for choice in self.choices], "usage": self.usage()}

    def _whole(self, choice: HttpChoice) -> dict[str, Any]:
        found: dict[str, Any] = {"index": choice.index}
        if self._is_chat:
            message = self._spoken(choice, choice.parts)
            for call in message.get("tool_calls", ()):
                del call["index"]
            found["message"] = {"role": "assistant", "content": None if choice.num_calls else "", **message}
        else:
            found["text"] = _text(choice.parts)
        found["logprobs"] = self._logprobs(choice, choice.logprobs)
        return self._ended(found, choice, choice.ids)

    def _ended(self, found: dict[str, Any], choice: HttpChoice, ids: Iterable[int]) -> dict[str, Any]:
        found["finish_reason"] = choice.finish
        if choice.finish is not None:
            found["stop_reason"] = choice.stop_reason
        if self._look.returns_ids:
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

    def chunk(self, choice: HttpChoice) -> dict[str, Any] | None:
        """What of a choice was not told yet; None if that is nothing that a reader could see."""
        parts, ids, logprobs = choice.parts, choice.ids, choice.logprobs
        if not parts and choice.finish is None and not logprobs and not self._look.returns_ids:
            return None
        choice.parts, choice.ids, choice.logprobs = [], [], []
        found: dict[str, Any] = {"index": choice.index}
        if self._is_chat:
            found["delta"] = self._spoken(choice, parts) or ({} if choice.finish is not None else {"content": ""})
        else:
            found["text"] = _text(parts)
        found["logprobs"] = self._logprobs(choice, logprobs)
        chunk = self._chunk([self._ended(found, choice, ids)])
        if self._look.counts_on:
            prompt, written = self.prompt_tokens[choice.index // self._per_prompt], choice.num_tokens
            counts = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
            chunk["usage"] = counts
        return chunk

    def last(self) -> list[dict[str, Any]]:
        """The chunk of the usage, if it was asked for."""
        return [{**self._chunk([]), "usage": self.usage()}] if self._look.includes_usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": choices}

    def _spoken(self, choice: HttpChoice, parts: Sequence[Part]) -> dict[str, Any]:
        """Parts as a message, or as the delta of one."""
        found: dict[str, Any] = {}
        calls: list[dict[str, Any]] = []
        at = choice.num_calls - sum(part.kind is PartKind.CALL for part in parts) - 1
        for part in joined(parts):
            if part.kind is PartKind.TEXT:
                found["content"] = found.get("content", "") + part.text
            elif part.kind is PartKind.REASONING:
                found["reasoning_content"] = found.get("reasoning_content", "") + part.text
            elif part.kind is PartKind.CALL:
                at += 1
                call = {"index": at, "id": self._call_id(choice, at), "type": "function"}
                calls.append({**call, "function": {"name": part.text, "arguments": ""}})
            else:
                if not calls:
                    calls.append({"index": at, "function": {"arguments": ""}})
                calls[-1]["function"]["arguments"] += part.text
        return {**found, "tool_calls": calls} if calls else found

    def _call_id(self, choice: HttpChoice, at: int) -> str:
        """The same wherever the client comes back."""
        name = f"{self._head['id']}/{choice.index}/{at}"
        return "call_" + blake2b(name.encode(), digest_size=12).hexdigest()

    # -- logprobs

    def _entry(self, logprob: common_pb2.Logprob) -> dict[str, Any]:
        entry = self._token(logprob.token, logprob.logprob)
        top = [self._token(one.token, one.logprob) for one in logprob.top]
        entry["top_logprobs"] = top[: self._look.num_top]
        return entry

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._spells(token)
        return {"token": self._shown(raw), "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    def _shown(self, raw: bytes) -> str:
        """Completions tell tokens apart by their text alone: parts of characters are written as OpenAI writes them."""
        text = raw.decode(errors="replace")
        if self._is_chat or text.encode() == raw:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _logprobs(self, choice: HttpChoice, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self._look.num_top is None:
            return None
        if self._is_chat:
            return {"content": list(entries)}
        offsets = []
        for entry in entries:
            offsets.append(choice.num_chars)
            # Those that begin in it.
            choice.num_chars += sum(byte & 0xC0 != 0x80 for byte in entry["bytes"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts)
