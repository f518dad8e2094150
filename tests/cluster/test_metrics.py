"""Figures: their text form, that every one is documented and in the dashboard's reach, and what a real scrape says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest

from cluster.errors import ConfigError
from cluster.serving import connections, scheduler_server
from cluster.serving.auth import load_tokens, make_tokens
from cluster.serving.auth_certificates import make_certificates
from cluster.serving.public_port import PortTls, PublicPort
from cluster.watching.metrics import PREFIX, Described, Families, Family, Histogram, merged, render, table_of
from cluster.watching.metrics_names import ALL, GATEWAY, SCHEDULER
from cluster.watching.metrics_serve import serve_metrics
from tests.cluster.doors import serving

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = {PREFIX + one.name: one for one in ALL}


def parse(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The text form, read strictly: every sample has a family of its own declared before it."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    kind = name = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in found, f"{name} is declared twice"
            found[name] = {}
        elif not line.startswith("# HELP "):
            match = re.fullmatch(r'([a-z0-9_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)', line)
            assert match, line
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert match[1] in {name + suffix for suffix in suffixes}, line
            labels = re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', match[2] or "")
            found.setdefault(match[1], {})[tuple(labels)] = float(match[3])
    return found


def test_a_histogram_counts_what_a_plain_count_counts() -> None:
    random = Random(5)
    values = [random.expovariate(3.0) for _ in range(500)]
    histogram = Histogram((0.1, 0.5, 1.0))
    for value in values:
        histogram.observe(value)
    histogram.observe(0.5, 3)
    family = Family("x_seconds", "histogram", "X.")
    family.add_histogram(histogram, model="m")
    found = parse(render([family]))
    buckets = {dict(labels)["le"]: count for labels, count in found["quire_x_seconds_bucket"].items()}
    for bound in (0.1, 0.5, 1.0):
        assert buckets[str(bound) if bound != 1.0 else "1"] == sum(value <= bound for value in [*values, 0.5, 0.5, 0.5])
    assert buckets["+Inf"] == found["quire_x_seconds_count"][(("model", "m"),)] == 503
    assert found["quire_x_seconds_sum"][(("model", "m"),)] == pytest.approx(sum(values) + 1.5)


def test_labels_are_escaped_and_families_of_several_processes_become_one() -> None:
    first, second = Family("a", "gauge", "A."), Family("a", "gauge", "A.")
    first.add(1, name='say "no"\\\n')
    second.add(2.5, name="b")
    text = render(merged([[first], [second]]))
    assert text.count("# TYPE") == 1
    assert '{name="say \\"no\\"\\\\\\n"} 1\n' in text and '{name="b"} 2.5\n' in text


def test_a_family_that_is_not_described_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        Families([Described("known", "gauge", "K.")])["unknown"].add(1)


def test_every_metric_is_documented_as_it_is() -> None:
    text = (DEPLOY / "WATCHING.md").read_text()
    for described in (GATEWAY, SCHEDULER):
        assert table_of(described) in text, "run cluster.watching.metrics.table_of and put it into deploy/WATCHING.md"


def _expressions(value: object) -> Iterable[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("expr", "query") and isinstance(item, str):
                yield item
            yield from _expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _expressions(item)


def test_the_dashboard_asks_only_for_metrics_and_labels_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana" / "quire.json").read_text())
    asked: set[str] = set()
    for expression in _expressions(board):
        names = re.findall(r"quire_[a-z_]+", expression)
        labels = {"le", "model"} if "histogram_quantile" in expression else set()
        for name in names:
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            described = NAMES.get(name) or NAMES.get(plain)
            assert described is not None, f"{expression}: there is no {name}"
            assert described.kind == "histogram" or name in NAMES, f"{expression}: {name} is no histogram"
            labels |= set(described.labels)
            asked.add(PREFIX + described.name)
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in group.split(",")} <= labels, expression
        for label in re.findall(r'([a-z_]+)=~?"', expression):
            assert label in labels, f"{expression}: no label {label}"
    left_out = {"quire_build_info", "quire_scheduler_uptime_seconds", "quire_gateway_open_requests"}
    left_out |= {"quire_gateway_connected", "quire_gateway_stale_tokens_total", "quire_pool_block_bytes"}
    left_out.add("quire_control_refused_total")
    assert asked == set(NAMES) - left_out - {"quire_block_seconds_total", "quire_worker_steps_total"}


def test_the_port_answers_http_and_nothing_else() -> None:
    async def ask(port: int, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    async def run() -> list[bytes]:
        family = Family("a", "gauge", "A.")
        family.add(7)

        async def collect() -> list[Family]:
            return [family]

        server = await serve_metrics(PublicPort("127.0.0.1", 0), collect)
        port = server.sockets[0].getsockname()[1]
        asked = (b"GET /metrics HTTP/1.1", b"GET / HTTP/1.1", b"POST /metrics HTTP/1.1", b"x" * 9_000)
        answers = [await ask(port, request + b"\r\nHost: h\r\n\r\n") for request in asked]
        server.close()
        return answers

    found, nowhere, posted, flood = asyncio.run(run())
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and f"Content-Length: {len(body)}".encode() in head
    assert parse(body.decode()) == {"quire_a": {(): 7.0}}
    assert nowhere.startswith(b"HTTP/1.1 404") and posted.startswith(b"HTTP/1.1 405") and flood == b""


def test_where_doors_have_tokens_figures_are_for_operators_over_tls(tmp_path: Path) -> None:
    """Names of tenants are among them. A port that lies open is refused."""
    tokens = make_tokens(tmp_path / "tokens.json", [("shop", ["inference"]), ("operator", ["admin"])])
    files = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    door = PublicPort(
        "127.0.0.1", 0, PortTls(files.server_certificate, files.server_key), load_tokens(tmp_path / "tokens.json")
    )
    context = ssl.create_default_context(cafile=str(files.authority))

    async def collect() -> list[Family]:
        return []

    async def ask(port: int, token: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        shown = f"authorization: Bearer {token}\r\n" if token else ""
        writer.write(f"GET /metrics HTTP/1.1\r\n{shown}\r\n".encode())
        answer = await reader.readline()
        writer.close()
        return answer

    async def run() -> list[bytes]:
        server = await serve_metrics(door, collect)
        port = server.sockets[0].getsockname()[1]
        answers = [await ask(port, token) for token in ("", "wrong", tokens["shop"], tokens["operator"])]
        server.close()
        return answers

    told = asyncio.run(run())
    assert [line.split()[1] for line in told] == [b"401", b"401", b"401", b"200"]
    with pytest.raises(ConfigError, match="lets other machines in"):
        asyncio.run(serve_metrics(PublicPort("0.0.0.0", 0), collect))


def test_connections_at_the_ports_of_the_schedulers_process_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens them without end gets its share of its descriptors, and says nothing."""
    monkeypatch.setattr(connections, "EVERY_S", 0.1)
    monkeypatch.setattr(scheduler_server, "MAX_OPERATORS_OF_MACHINE", 8)
    monkeypatch.setattr(scheduler_server, "MAX_SCRAPERS_OF_MACHINE", 8)
    before = listening()
    with serving(PublicPort("127.0.0.1", 0)), ExitStack() as stack:
        ports = listening() - before
        assert len(ports) == 2
        for port in ports:
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
            until = time.monotonic() + 3
            while (num := sum(is_closed(one) for one in held)) < 32:
                assert time.monotonic() < until, f"{num} of 40 are closed"
                time.sleep(0.05)
            assert num < 40


def listening() -> set[int]:
    """TCP ports of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                found.add(one.getsockname()[1])
    return found


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True
