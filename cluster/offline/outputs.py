"""What the embedded engine hands back, under the names of vLLM's offline API, so that scripts port by their import.

`cluster/offline/engine.py` builds these from a request's log. They are values; nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate for a place in the text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sequence that was written for a prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    """"stop" or "length", "error" if its request failed; None while it is being written."""
    stop_reason: int | str | None = None
    """The stop id or stop string that ended it; None for an end token of the model."""
    score: float | None = None
    """Beam search: the sum of the log-probabilities divided by length ** length_penalty; None elsewhere."""
    detail: str = ""
    """Of an end by "length" at the most tokens that the model takes here: how many these are."""

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Seconds since the request was handed in, and what it met on its way."""

    first_token_s: float = 0.0
    finished_s: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All that came of one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    error: str | None = None
    """What made this request fail, where others of the same call did not; `outputs` is then what was written till then,
    or empty."""
    model: str = ""
    """The model that answered, from a cluster; "" from the embedded engine, which has one."""

    @property
    def num_cached_tokens(self) -> int:
        return self.metrics.cached_tokens


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """New tokens of one sequence of one prompt, as they come. `finish_reason` is set on the last one."""

    prompt_index: int
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    error: str | None = None
    detail: str = ""
    """See `CompletionOutput.detail`."""
