"""Spans of attempts at a worker, for requests whose gateway traces them.

The step loop tells of the plans that it obeyed and the results that it made: one entry per start and stop, none per
token. How a span is made comes from the process that hosts the worker; without that nothing here exists.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from cluster.messages import Plan, Reason, Result

Value: TypeAlias = str | int | float


class AttemptSpan(Protocol):
    def end(self, error: str = "", **attributes: Value) -> None: ...


class Begin(Protocol):
    def __call__(self, name: str, parent: str, **attributes: Value) -> AttemptSpan: ...


class AttemptSpans:
    """Spans under way, by seq."""

    def __init__(self, begin: Begin, worker: str) -> None:
        self._begin = begin
        self._worker = worker
        self._open: dict[int, AttemptSpan] = {}

    def obeyed(self, plan: Plan) -> None:
        for start in plan.starts:
            if start.trace and start.seq not in self._open:
                told: dict[str, Value] = {
                    "quire.request_id": start.request_id,
                    "quire.worker": self._worker,
                    "quire.attempt": start.attempt,
                    "quire.cached_tokens": start.position,
                    "quire.known_tokens": len(start.tokens),
                }
                self._open[start.seq] = self._begin("attempt", start.trace, **told)

    def reported(self, result: Result) -> None:
        for stopped in result.stopped:
            span = self._open.pop(stopped.seq, None)
            if span is not None:
                error = stopped.detail if stopped.reason is Reason.FAILED else ""
                ends: dict[str, Value] = {"quire.position": stopped.position}
                ends["quire.reason"] = stopped.reason.name.lower()
                span.end(error, **ends)
