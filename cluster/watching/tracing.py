"""OpenTelemetry spans of requests: one at the gateway, and one for each attempt at a worker, which is its child.

Off unless `--trace` says where spans go: "file" (JSON lines beside the logs) or the name of an installed OpenTelemetry
exporter, such as "otlp", which reads the usual OTEL_... variables. Off, or without opentelemetry installed, there is no
tracer and nothing is paid. A span costs something when a request begins and ends, and nothing per token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError

_EXPORTERS = "opentelemetry_traces_exporter"
_MISSING = "pip install opentelemetry-sdk opentelemetry-exporter-otlp"


class Span:
    """One span under way."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Any, traceparent: str) -> None:
        self._span = span
        # What a child is given as its parent.
        self.traceparent = traceparent

    def event(self, name: str, **attributes: str | int | float) -> None:
        self._span.add_event(name, attributes)

    def end(self, error: str = "", **attributes: str | int | float) -> None:
        self._span.set_attributes(attributes)
        if error:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class Tracer:
    """Begins spans of one process."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("quire")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: str, **attributes: str | int | float) -> Span:
        """`parent` is a W3C traceparent; one that cannot be read, or is empty, begins a trace of its own."""
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        span = self._tracer.start_span(name, context=context, attributes=attributes)
        carrier: dict[str, str] = {}
        from opentelemetry.trace import set_span_in_context

        self._propagator.inject(carrier, set_span_in_context(span))
        return Span(span, carrier.get("traceparent", ""))

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def make_tracer(where: str, process: str, folder: Path) -> Tracer | None:
    """A tracer for this process; None where tracing is off. Raises `ConfigError` for an exporter that is not there."""
    if not where:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(f"trace is {where!r}, and {error.name} is not installed: {_MISSING}") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "quire", "service.instance.id": process}))
    provider.add_span_processor(BatchSpanProcessor(_exporter(where, folder / f"spans-{process}.jsonl")))
    return Tracer(provider)


def check_trace(where: str) -> None:
    """Raises `ConfigError` before anything is started."""
    if where:
        make_tracer(where, "check", Path("/dev"))


def _exporter(where: str, path: Path) -> Any:
    if where == "file":
        return FileExporter(path)
    known = metadata.entry_points(group=_EXPORTERS)
    for entry in known:
        if entry.name == where:
            return entry.load()()
    names = ", ".join(sorted({"file", *(entry.name for entry in known)}))
    raise ConfigError(f"trace is {where!r}, and there is {names}; for OTLP: {_MISSING}")


class FileExporter:
    """Spans as JSON lines, for a machine without a collector. Implements the SDK's SpanExporter."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[Any]) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        with self._path.open("a", encoding="utf-8") as file:
            for span in spans:
                file.write(json.dumps(_plain(span)) + "\n")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        return

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def _plain(span: Any) -> dict[str, Any]:
    began, ended = span.start_time, span.end_time or time.time_ns()
    return {
        "trace": f"{span.context.trace_id:032x}",
        "span": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else "",
        "name": span.name,
        "start": began / 1e9,
        "seconds": (ended - began) / 1e9,
        "attributes": dict(span.attributes or {}),
        "events": [{"name": event.name, "after_s": (event.timestamp - began) / 1e9} for event in span.events],
        "error": span.status.description or "",
    }
