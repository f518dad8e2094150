"""`quire bench serve`: a load on a running cluster, and what its users would have felt.

Starts client processes, each with its share of one load, and prints percentiles of first-token, inter-token and whole
times, throughput, and goodput under limits. Its own processor share and how late it sent are printed too, so that one
sees whether the server was measured or the generator. Files: --json, --csv, --html (with plots).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench.page import Line, PagePlot, page
from cluster.bench.report import BenchHelp, Report, Row
from cluster.bench.serve_figures import Floats, Limits, ServeFigures, figures, percentiles, under_way
from cluster.bench.serve_load import ARRIVALS, LoadShape
from cluster.errors import ConfigError, QuireError, Unavailable
from cluster.private_files import token_of
from cluster.sim.traces import TRACES

START_S = 3.0  # for the processes to draw their load
MAX_SHOTS = 1_000_000
BUSY, LATE_S = 0.8, 0.05
COLUMNS = ("number", "due", "sent", "first", "last", "end", "num_prompt", "cached", "num_tokens", "error")


def main(argv: list[str]) -> int:
    """Runs the load at each rate in turn. Exit code 1: a request failed."""
    args = _arguments(argv)
    report = Report("serve", argv)
    address, args.authority = _gateway(args)
    model, vocabulary, longest = _model(address, args)
    shape = _shape(args, longest)
    report.note(f"{model} at {address}; {_said(args, shape)}")
    limits = Limits(
        None if args.ttft_limit_ms is None else args.ttft_limit_ms / 1e3,
        None if args.itl_limit_ms is None else args.itl_limit_ms / 1e3,
    )
    runs: list[tuple[ServeFigures, list[dict[str, Any]]]] = []
    for rate in args.rate if args.arrival != "closed" else args.concurrency:
        run_shape = shape if args.arrival == "closed" else replace(shape, rate=rate)
        name = f"{rate:g} at once" if args.arrival == "closed" else f"{rate:g}/s"
        report.begins(name, _about_s(args, run_shape))
        records, busiest, cores = _run(args, run_shape, address, model, vocabulary, int(rate))
        found = figures(name, records, args.warm_up, limits, cores)
        runs.append((found, records))
        _tell(report, found, busiest, limits)
    _write(args, report, runs, limits)
    return report.finish(args.json)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench serve", description=__doc__, formatter_class=BenchHelp)
    add = parser.add_argument
    add("--address", help="a gateway; default: that of `quire up`")
    add("--token-file", type=Path, help="with the caller's token; default: QUIRE_TOKEN_FILE, or QUIRE_TOKEN itself")
    add("--authority", help="PEM file, for a gateway with TLS")
    add("--model", default="", help="which model, where several are served")
    add("--arrival", choices=ARRIVALS, default="poisson")
    add("--rate", type=float, nargs="+", default=[4.0], help="requests a second; several: one run after the other")
    add("--cv", type=float, default=4.0, help="of gaps in bursts: standard deviation over mean")
    add("--concurrency", type=int, nargs="+", default=[16], help="of a closed loop: requests under way at once")
    add("--requests", type=int, help="so many in each run; default: as many as fit into --seconds")
    add("--seconds", type=float, default=20.0, help="how long requests are sent in each run, warm-up included")
    add("--warm-up", type=float, default=2.0, help="seconds at the beginning that do not count")
    add("--trace", choices=list(TRACES), default="sharegpt", help="where lengths come from")
    add("--scale", type=float, default=1.0, help="lengths of the trace are divided by this")
    add("--prompt-tokens", type=int, help="all prompts this long")
    add("--output-tokens", type=int, help="all outputs this long")
    add("--max-prompt", type=int, help="default: half of what the model takes")
    add("--max-output", type=int, help="default: a third of what the model takes")
    add("--shared-prefix", type=int, default=0, help="tokens that prompts begin with in common")
    add("--prefixes", type=int, default=1, help="how many such prefixes there are")
    add("--ttft-limit-ms", type=float, help="goodput counts requests whose first token came within this")
    add("--itl-limit-ms", type=float, help="and whose tokens then came this close together on average")
    add("--clients", type=int, default=2, help="processes that send")
    add("--single", action="store_true", help="a call for each request instead of one stream for each process")
    add("--seed", type=int, default=0)
    for name in ("json", "csv", "html"):
        add(f"--{name}", help=f"write a {name.upper()} file")
    args = parser.parse_args(argv)
    args.token = token_of("QUIRE_TOKEN", args.token_file)
    for name, low in (("clients", 1), ("seconds", 0.1), ("warm_up", 0.0), ("scale", 0.01), ("cv", 0.01)):
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name):g}; give at least {low:g}")
    if args.requests is None and args.warm_up >= args.seconds:
        parser.error(f"--warm-up is {args.warm_up:g} s of {args.seconds:g} s, so nothing would count; give less")
    if min(args.concurrency) < args.clients and args.arrival == "closed":
        parser.error(f"--concurrency is {min(args.concurrency)} for {args.clients} clients; give at least one each")
    return args


def _gateway(args: argparse.Namespace) -> tuple[str, str | None]:
    """The address that was given, with its authority, or that of the cluster that this user has up."""
    if args.address:
        return args.address, args.authority or os.environ.get("QUIRE_TLS_AUTHORITY")
    from cluster.lifecycle.running import Running

    running = Running.load()
    if running is None:
        raise Unavailable("no cluster of this user is noted; start one with `quire up`, or give --address")
    return running.gateway, args.authority or running.settings["tls_authority"] or None


def _model(address: str, args: argparse.Namespace) -> tuple[str, int, int]:
    """Name, vocabulary and longest sequence of the model that is asked."""
    from cluster import Client
    from cluster.client.connection import Tls

    tls = None if args.authority is None else Tls(args.authority)
    with Client(address, token=args.token, tls=tls) as client:
        cards = client.models(timeout_s=10.0)
    names = ", ".join(card.name for card in cards) or "none"
    chosen = [card for card in cards if card.name == args.model or (not args.model and len(cards) == 1)]
    if not chosen:
        raise Unavailable(f"{address} serves {names}; say which with --model")
    return chosen[0].name, chosen[0].vocab_size, chosen[0].max_model_len


def _shape(args: argparse.Namespace, longest: int) -> LoadShape:
    shape = LoadShape(
        arrival=args.arrival,
        rate=args.rate[0],
        cv=args.cv,
        trace=args.trace,
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        scale=args.scale,
        max_prompt=args.max_prompt or args.prompt_tokens or longest // 2,
        max_output=args.max_output or args.output_tokens or longest // 3,
        shared_prefix=args.shared_prefix,
        num_prefixes=args.prefixes,
        seed=args.seed,
    )
    if shape.max_prompt + shape.max_output > longest:
        asked = f"prompts up to {shape.max_prompt:,} and outputs up to {shape.max_output:,}"
        raise ConfigError(f"{asked} are more than the {longest:,} tokens that the model takes; give less")
    return shape


def _said(args: argparse.Namespace, shape: LoadShape) -> str:
    lengths = f"lengths of {shape.trace} over {shape.scale:g}"
    if shape.prompt or shape.output:
        lengths = f"prompts of {shape.prompt or 'the trace'}, outputs of {shape.output or 'the trace'} tokens"
    shared = f", {shape.shared_prefix} tokens shared by {shape.num_prefixes} groups" if shape.shared_prefix else ""
    way = "a call for each request" if args.single else "one stream for each"
    return f"{shape.arrival} arrivals, {lengths}{shared}; {args.clients} client processes, {way}"


# -- one run


def _run(
    args: argparse.Namespace, shape: LoadShape, address: str, model: str, vocabulary: int, concurrency: int
) -> tuple[list[dict[str, Any]], float, float]:
    """All records, the busiest client process's share of a core, and cores used by all of them together."""
    is_closed = shape.arrival == "closed"
    count = args.requests or min(MAX_SHOTS, int(shape.rate * args.seconds * 1.5) + 64)
    if is_closed and args.requests is None:
        count = min(MAX_SHOTS, 20_000)
    start = time.monotonic() + START_S
    clients = []
    for share in range(args.clients):
        lanes = len(range(share, concurrency, args.clients)) if is_closed else 0
        about = {
            "shape": asdict(shape),
            "count": count,
            "vocabulary": vocabulary,
            "share": share,
            "of": args.clients,
            "lanes": lanes,
            "seconds": None if args.requests else args.seconds,
            "single": args.single,
            "model": model,
            "start": start,
            "address": address,
            "token": args.token,
            "authority": args.authority,
        }
        clients.append(_Client(about))
    try:
        total = count if args.requests else None
        _follow(clients, total, args.seconds, start)
        told = [client.finished() for client in clients]
    finally:
        for client in clients:
            client.kill()
    records = sorted((record for one in told for record in one["records"]), key=lambda record: record["due"])
    shares = [one["cpu_s"] / max(1e-9, one["wall_s"]) for one in told]
    return records, max(shares), sum(shares)


class _Client:
    """A client process, as the parent sees it."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.bench.serve_client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(about) + "\n")
        self._process.stdin.flush()
        self.num_done = self.num_tokens = 0
        self._end: dict[str, Any] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "records" in told:
                self._end = told
            else:
                self.num_done, self.num_tokens = told["done"], told["tokens"]

    @property
    def is_running(self) -> bool:
        return self._reader.is_alive()

    def finished(self) -> dict[str, Any]:
        self._reader.join()
        if self._end is None:
            raise QuireError("a client process ended before it had told its records; its error stands above")
        return self._end

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _follow(clients: list[_Client], total: int | None, seconds: float, start: float) -> None:
    """A bar on a terminal: over requests, or over time where their number is open."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("", total=total or seconds, told="")
        while any(client.is_running for client in clients):
            time.sleep(0.1)
            done, tokens = sum(client.num_done for client in clients), sum(client.num_tokens for client in clients)
            passed = max(1e-9, time.monotonic() - start)
            told = f"{done:,} requests done, {tokens / passed if passed > 0.5 else 0:,.0f} tokens/s"
            progress.update(task, completed=done if total else min(seconds, passed), told=told)


# -- what is said of it


def _tell(report: Report, found: ServeFigures, busiest: float, limits: Limits) -> None:
    row: dict[str, Any] = {
        "load": found.name,
        "requests": found.num_sent,
        "failed": found.num_failed,
        "requests/s": found.requests_per_s,
        "output tokens/s": found.output_per_s,
        "prompt tokens": found.num_prompt,
        "cached": found.num_cached,
        "good/s": found.good_per_s,
        "good %": 100.0 * found.num_good / max(1, found.num_sent),
        "client cores": found.cores,
    }
    report.table("throughput" + (f" (good: {_limits(limits)})" if _limits(limits) else ""), [row])
    kinds = (("first token", found.first), ("inter-token", found.gaps), ("whole request", found.whole))
    report.table("milliseconds", [_percentile_row(found.name, kind, values) for kind, values in kinds])
    report.check(f"{found.name}: no request failed", not found.num_failed, f"{found.num_failed} of {found.num_sent}")
    report.check(f"{found.name}: something was measured", found.num_sent > 0, "no request was due after the warm-up")
    late = percentiles(found.late)[99]
    if busiest > BUSY or late > LATE_S:
        report.note(
            f"{found.name}: a client process used {100 * busiest:.0f} % of a core and 1 % of requests were sent "
            f"{1e3 * late:.0f} ms late or later; give more --clients, or do not trust these figures"
        )


def _limits(limits: Limits) -> str:
    named = (("first token", limits.first_s), ("mean inter-token", limits.gap_s))
    return ", ".join(f"{name} within {1e3 * value:g} ms" for name, value in named if value is not None)


def _percentile_row(name: str, kind: str, values: Floats) -> Row:
    mean = float(values.mean()) if len(values) else 0.0
    columns = {f"p{each}": 1e3 * value for each, value in percentiles(values).items()}
    return {"load": name, "time": kind, "mean": 1e3 * mean, **columns, "count": len(values)}


def _write(
    args: argparse.Namespace, report: Report, runs: list[tuple[ServeFigures, list[dict[str, Any]]]], limits: Limits
) -> None:
    if args.csv:
        with Path(args.csv).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["load", *COLUMNS])
            for found, records in runs:
                table.writerows([found.name, *(record[column] for column in COLUMNS)] for record in records)
    if args.html:
        title = f"quire bench serve, {report.started:%Y-%m-%d %H:%M} UTC"
        about = ", ".join(f"{key} {value}" for key, value in {**report.machine, **report.versions}.items())
        Path(args.html).write_text(page(title, [*report.notes, about], dict(report.tables), _plots(runs, limits)))


def _limit(seconds: float | None) -> dict[str, float]:
    """As a plot of milliseconds shows it."""
    return {} if seconds is None else {f"limit {1e3 * seconds:g} ms": 1e3 * seconds}


def _about_s(args: argparse.Namespace, shape: LoadShape) -> float:
    """How long a run takes: as long as requests are sent, and the last ones' time."""
    return args.requests / shape.rate if args.requests and args.arrival != "closed" else float(args.seconds)


def _plots(runs: list[tuple[ServeFigures, list[dict[str, Any]]]], limits: Limits) -> list[PagePlot]:
    first, gap = _limit(limits.first_s), _limit(limits.gap_s)
    shown = [found for found, _ in runs]
    series = [(found.name, *(each.tolist() for each in under_way(records))) for found, records in runs]
    plots = [
        PagePlot(
            "Time to first token",
            "ms",
            "share of requests",
            [_share(found.name, found.first) for found in shown],
            limits=first,
        ),
        PagePlot(
            "Inter-token time", "ms", "share of tokens", [_share(found.name, found.gaps) for found in shown], limits=gap
        ),
        PagePlot("Whole request", "s", "share of requests", [_share(found.name, found.whole, 1.0) for found in shown]),
        PagePlot(
            "Output tokens",
            "s",
            "tokens/s",
            [Line(name, times, rate) for name, times, _, rate in series],
        ),
        PagePlot(
            "Requests under way",
            "s",
            "requests",
            [Line(name, times, now) for name, times, now, _ in series],
        ),
    ]
    if len(runs) > 1:
        sent = [found.num_sent / found.span_s for found in shown]
        good = Line("good", sent, [found.good_per_s for found in shown])
        done = Line("done", sent, [found.requests_per_s for found in shown])
        plots.append(PagePlot("Goodput", "requests/s that were sent", "requests/s", [done, good]))
    return plots


def _share(name: str, values: Floats, unit: float = 1e3) -> Line:
    """The share of values up to each; at most 300 points, and not the last percent, which would squeeze the rest."""
    if not len(values):
        return Line(name, [], [])
    shares = np.linspace(0.0, 0.99, min(300, len(values) + 1))
    return Line(name, (unit * np.quantile(values, shares)).tolist(), shares.tolist())
