"""Spans: whose child they are, what a file exporter writes, and that nothing exists where nobody traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.watching.tracing import check_trace, make_tracer

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_span_is_the_child_of_the_callers_and_the_parent_of_the_workers(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    tracer = make_tracer("file", "gateway-0", tmp_path)
    assert tracer is not None
    request = tracer.begin("request", PARENT, **{"quire.model": "demo"})
    attempt = tracer.begin("attempt", request.traceparent)
    request.event("started", replica="demo-0")
    attempt.end("", **{"quire.position": 3})
    request.end("it broke", output_tokens=3)
    alone = tracer.begin("request", "no traceparent at all")
    alone.end()
    tracer.close()
    spans = [json.loads(line) for line in (tmp_path / "spans-gateway-0.jsonl").read_text().splitlines()]
    child, parent, other = spans
    assert child["trace"] == parent["trace"] == PARENT.split("-")[1] != other["trace"]
    assert (parent["parent"], child["parent"], other["parent"]) == (PARENT.split("-")[2], parent["span"], "")
    assert parent["error"] == "it broke" and parent["events"][0]["name"] == "started"
    assert child["attributes"] == {"quire.position": 3} and 0 <= child["seconds"] <= parent["seconds"]


def test_an_exporter_that_is_not_there_is_named() -> None:
    pytest.importorskip("opentelemetry.sdk")
    with pytest.raises(ConfigError, match=r"trace is .nowhere., and there is .*file"):
        check_trace("nowhere")


def test_without_a_wish_nothing_of_opentelemetry_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; import cluster.gateway.watch;"
        "from pathlib import Path; from cluster.watching.tracing import make_tracer;"
        "assert make_tracer('', 'x', Path('/')) is None; assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
