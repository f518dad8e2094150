"""What a gateway counts: one observation per message of tokens, and a handful when a request ends.

The gateway calls it where an answer begins, gets tokens and ends; `families` is called when somebody asks for figures.
It keeps no request and decides nothing.
"""

from __future__ import annotations

from collections import Counter

from cluster.errors import QuireError
from cluster.gateway.answer import Answer
from cluster.messages import Reason
from cluster.watching.metrics import Families, Family
from cluster.watching.metrics_names import GATEWAY
from cluster.watching.model_figures import ModelFigures

_OUTCOMES = {Reason.STOP: "stop", Reason.LENGTH: "length", Reason.FAILED: "failed"}


class GatewayMetrics:
    """All figures of one gateway since it started."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._models: dict[str, ModelFigures] = {}
        self._outcomes: Counter[tuple[str, str]] = Counter()

    def of(self, model: str) -> ModelFigures:
        figures = self._models.get(model)
        if figures is None:
            figures = self._models[model] = ModelFigures()
        return figures

    def refused(self, model: str, error: QuireError) -> None:
        """A question that never became a request."""
        self._outcomes[model, error.reason().lower()] += 1

    def ended(self, answer: Answer, now: float) -> str:
        """Counts a request that is over, once; returns how it ended."""
        figures = self.of(answer.submit.model)
        if answer.failure is not None:
            outcome = answer.failure.reason().lower()
        elif answer.is_cancelled:
            outcome = "cancelled"
        else:
            outcome = _OUTCOMES.get(answer.log.reasons[0], "cancelled")
        self._outcomes[answer.submit.model, outcome] += 1
        figures.prompt += len(answer.submit.prompt)
        figures.output += answer.log.num_tokens
        figures.whole.observe(now - answer.arrived)
        if answer.done is not None:
            figures.cached += answer.done.cached_tokens
            figures.queue.observe(answer.done.queue_seconds)
        return outcome

    def families(self, num_open: int, is_connected: bool, num_stale: int) -> list[Family]:
        found, name = Families(GATEWAY), self._gateway
        for (model, outcome), count in self._outcomes.items():
            found["requests_total"].add(count, gateway=name, model=model, outcome=outcome)
        for model, figures in self._models.items():
            found["prompt_tokens_total"].add(figures.prompt, gateway=name, model=model)
            found["cached_tokens_total"].add(figures.cached, gateway=name, model=model)
            found["output_tokens_total"].add(figures.output, gateway=name, model=model)
            found["time_to_first_token_seconds"].add_histogram(figures.first, gateway=name, model=model)
            found["inter_token_seconds"].add_histogram(figures.gap, gateway=name, model=model)
            found["request_seconds"].add_histogram(figures.whole, gateway=name, model=model)
            found["queue_seconds"].add_histogram(figures.queue, gateway=name, model=model)
        found["gateway_open_requests"].add(num_open, gateway=name)
        found["gateway_connected"].add(is_connected, gateway=name)
        found["gateway_stale_tokens_total"].add(num_stale, gateway=name)
        return found.in_use()


def end_of(answer: Answer, outcome: str, now: float) -> dict[str, str | int | float]:
    """What its log line and its span say of a request that is over."""
    told: dict[str, str | int | float] = {
        "outcome": outcome,
        "prompt_tokens": len(answer.submit.prompt),
        "output_tokens": answer.log.num_tokens,
        "total_s": round(now - answer.arrived, 6),
    }
    if answer.first_token is not None:
        told["first_token_s"] = round(answer.first_token - answer.arrived, 6)
    if answer.done is not None:
        told["queue_s"] = round(answer.done.queue_seconds, 6)
        told["cached_tokens"] = answer.done.cached_tokens
        told["preemptions"] = answer.done.preemptions
    if answer.failure is not None:
        told["error"] = str(answer.failure)
    return told
