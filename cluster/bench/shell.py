"""The shell part of `quire bench limits`: one scheduler process with real connections to many workers and gateways.

Workers and gateways are made up in one other process, over local sockets; what the scheduler takes is all its
own: reading and writing of links, protobuf, turns, pulses. Rates and turns are told by its processor time, which other
work on the machine changes little. `--shell` runs it.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from typing import Any

from cluster.bench.report import Report, Row

START_S, JOIN_S = 120.0, 600.0
WARM_S = 3.0
STEP_S = 0.05


class ShellProcess:
    """One of the two processes. Use it in a `with`."""

    def __init__(self, **about: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.bench.shell_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told = self.ask(json.dumps(about))

    def __enter__(self) -> ShellProcess:
        return self

    def __exit__(self, *problem: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, line: str = "") -> dict[str, Any]:
        """What it answers; its end is an error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not answer:
            raise RuntimeError(f"a process of the bench ended, or said nothing for {START_S:g} s")
        found: dict[str, Any] = json.loads(answer)
        return found


def measure(workers: int, gateways: int, sequences: int, seconds: float, seed: int) -> Row:
    """`sequences` run on each worker; counted once all have begun, for so many seconds."""
    secret = secrets.token_hex(16)
    with ShellProcess(role="scheduler", secret=secret) as scheduler:
        empty = scheduler.ask()
        about = {"workers": workers, "gateways": gateways, "sequences": sequences, "step_s": STEP_S, "seed": seed}
        with ShellProcess(role="all others", secret=secret, **about, **scheduler.told) as others:
            joined = _wait_until(scheduler, lambda now: now["workers"] == workers and now["gateways"] == gateways)
            others.ask("load")
            _settle(others, sequences * workers)
            first, first_others = scheduler.ask(), others.ask()
            time.sleep(seconds)
            last, last_others = scheduler.ask(), others.ask()
    wall_s, cpu_s = last["at"] - first["at"], last["cpu_s"] - first["cpu_s"]
    tokens, turns = last_others["tokens"] - first_others["tokens"], last["turns"]
    return {
        "workers": workers,
        "gateways": gateways,
        "running": sequences * workers,
        "output tokens/s": tokens / wall_s,
        "requests/s": (last_others["done"] - first_others["done"]) / wall_s,
        "load of a core": cpu_s / wall_s,
        "of it turns and what they send": sum(turns) / wall_s,
        "tokens/processor s": tokens / cpu_s,
        "turns/s": len(turns) / wall_s,
        "turn p50 ms": 1e3 * turns[len(turns) // 2],
        "turn p99 ms": 1e3 * turns[int(len(turns) * 0.99)],
        "joining, ms a worker": 1e3 * (joined["cpu_s"] - empty["cpu_s"]) / workers,
        "scheduler MB": last["mb"],
        "load of the others": (last_others["cpu_s"] - first_others["cpu_s"]) / wall_s,
    }


def _wait_until(child: ShellProcess, is_so: Any) -> dict[str, Any]:
    until = time.monotonic() + JOIN_S
    while not is_so(now := child.ask()):
        if time.monotonic() > until:
            raise RuntimeError(f"after {JOIN_S:g} s only {now['workers']:,} workers have joined")
        time.sleep(0.2)
    return now


def _settle(others: ShellProcess, running: int) -> None:
    """Until all that was asked at once has begun: as many tokens have been made as three steps of all give."""
    until = time.monotonic() + JOIN_S
    while others.ask()["tokens"] < 3 * running and time.monotonic() < until:
        time.sleep(0.5)
    time.sleep(WARM_S)


def report_shell(report: Report, sizes: list[int], gateways: int, sequences: int, seconds: float, seed: int) -> None:
    for workers in sizes:
        row = measure(workers, gateways, sequences, seconds, seed)
        report.row(f"one scheduler process, {gateways} gateways, {sequences} sequences a worker, real links", row)
