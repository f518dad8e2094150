"""What a gateway tells about its requests: counts, one log line each, and a span where somebody traces.

The gateway calls it when a request begins, gets tokens and ends. Per message of tokens it costs one observation; all
else is paid once per request. It keeps no request and decides nothing.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from cluster.errors import QuireError
from cluster.gateway.answer import Answer
from cluster.gateway.intake import Question
from cluster.messages import Started, Submit
from cluster.watching.metrics_gateway import GatewayMetrics, end_of
from cluster.watching.tracing import Span, Tracer

log = logging.getLogger(__name__)


class Watch:
    """One gateway's figures, log lines and spans."""

    def __init__(self, gateway: str, tracer: Tracer | None = None) -> None:
        self.metrics = GatewayMetrics(gateway)
        self._tracer = tracer

    def begin(self, submit: Submit, question: Question) -> tuple[Submit, Span | None]:
        """The span of a request that begins here; spans of its attempts at workers will be children of it."""
        if self._tracer is None:
            return submit, None
        told: dict[str, str | int | float] = {"quire.request_id": submit.request_id, "quire.model": submit.model}
        span = self._tracer.begin("request", question.trace, **told)
        return replace(submit, trace=span.traceparent), span

    def refused(self, error: QuireError, client_id: str = "", model: str = "") -> None:
        """A call that never became a request. `model`: where it is served; what nobody serves is the client's own word,
        and no label."""
        self.metrics.refused(model or "unknown", error)
        log.info("refused: %s", error, extra={"request_id": client_id})

    def started(self, answer: Answer, started: Started) -> None:
        answer.is_started = True
        if answer.span is not None:
            answer.span.event("started", replica=started.replica)

    def tokens(self, answer: Answer, num_new: int, now: float) -> None:
        if answer.first_token is None:
            answer.first_token = now
            answer.figures.first.observe(now - answer.arrived)
        else:
            answer.figures.gap.observe((now - answer.last_token) / num_new, num_new)
        answer.last_token = now

    def ended(self, answer: Answer) -> None:
        """Counts and logs it, once: an answer that failed may get its Done later."""
        if answer.is_counted:
            return
        answer.is_counted = True
        now = time.monotonic()
        outcome = self.metrics.ended(answer, now)
        told = end_of(answer, outcome, now)
        log.info("ended: %s", outcome, extra={"request_id": answer.request_id, "figures": told})
        if answer.span is not None:
            answer.span.end("" if answer.failure is None else str(answer.failure), **told)
