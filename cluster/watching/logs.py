"""Logs as JSON lines, a file per process, with the request's id where a line is about one.

Each actor calls `begin_logs` once. Lines of level error and above are root causes: a failure has one, from the process
that failed. A process that was killed can't write its own, so its next life writes it. Reading is done by `quire logs`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")
ROOMS = ("cluster", "worker")
EVERY_S, MAX_TOLD = 60.0, 256
MAX_BYTES, NUM_OLD = 16 << 20, 2
SILENT_END = "the life before this one ended without a word: killed from outside, or out of memory (see dmesg)"

log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """One object a line. `run` names the cluster's life, so that a crash is told from a restart."""

    def __init__(self, process: str, run: str) -> None:
        super().__init__()
        self._process, self._run = process, run

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "run": self._run,
            "from": record.name,
            "message": record.getMessage(),
        }
        for name in ("request_id", "figures"):
            if (value := getattr(record, name, None)) is not None:
                line[name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Seldom(logging.Filter):
    """Of what libraries say again and again, so often as whoever makes them do it, a line a minute: no stranger fills
    the files, or washes out what else is in them. Our own lines all pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in ROOMS:
            return True
        # Whatever figures it has behind its beginning.
        key, now = (record.name, str(record.msg)[:40]), self._clock()
        if now - self._told.get(key, -EVERY_S) < EVERY_S:
            return False
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[key] = now
        return True


class PrivateFile(RotatingFileHandler):
    """Log lines name tenants and requests, so only their owner can read them."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding=self.encoding)


def begin_logs(process: str, folder: Path, level: str, run: str) -> None:
    """Sends this process's log lines to its file, and notes how its life before this one ended."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{process}.jsonl"
        last = _last_line(path)
        handler = PrivateFile(path, maxBytes=MAX_BYTES, backupCount=NUM_OLD, encoding="utf-8")
    except OSError as error:
        # On another machine of the cluster, say. Ray keeps what goes to stderr.
        log.warning("log folder %s cannot be written, so logs go to stderr: %s; give another --log-dir", folder, error)
        return
    handler.setFormatter(JsonLines(process, run))
    handler.addFilter(Seldom())
    logging.getLogger().addHandler(handler)
    for room in ROOMS:
        logging.getLogger(room).setLevel(level.upper())
    if last.get("run") == run and last.get("level") not in ("error", "critical") and not last.get("is_end"):
        log.error("%s (process %s, last heard of at %s)", SILENT_END, last.get("pid"), last.get("time"))
    log.info("started")


def end_logs(process: str, folder: Path, run: str) -> None:
    """Notes that this life ends by order: its end is no failure."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": "info",
        "process": process,
        "pid": os.getpid(),
        "run": run,
        "from": __name__,
        "message": "ended by order",
        "is_end": True,
    }
    with contextlib.suppress(OSError), (folder / f"{process}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _last_line(path: Path) -> dict[str, Any]:
    """With `is_end` where its process had said so: it may write on until it is ended."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65_536))
            lines = file.read().splitlines()
        read = json.loads(lines[-1]) if lines else {}
        if not isinstance(read, dict):
            return {}
        ends = [json.loads(line) for line in lines if b'"is_end"' in line]
    except (OSError, ValueError):
        return {}
    is_end = any(end.get("pid") == read.get("pid") and end.get("run") == read.get("run") for end in ends)
    return {**read, "is_end": is_end}


# -- reading


def log_files(folder: Path) -> list[Path]:
    """All log files of all processes, older parts included."""
    return sorted(folder.glob("*.jsonl*"))


def processes_of(folder: Path) -> list[str]:
    """Who has a log here."""
    names = {path.name.partition(".jsonl")[0] for path in log_files(folder)}
    return sorted(name for name in names if not name.startswith("spans-"))


def read_lines(
    folder: Path, *, request: str = "", level: str = "debug", process: str = "", since_s: float | None = None
) -> list[dict[str, Any]]:
    """Lines of all processes in order of time. `request`: only those about it, by its id or the end of that; otherwise
    only those of the cluster's last life. Raises `ConfigError` for a level that there is not."""
    if level not in LEVELS:
        raise ConfigError(f"level is {level!r}; give one of {', '.join(LEVELS)}")
    lowest = LEVELS.index(level)
    oldest = "" if since_s is None else datetime.fromtimestamp(time.time() - since_s, UTC).isoformat()
    found: list[dict[str, Any]] = []
    last = ("", "")
    for path in log_files(folder):
        name = path.name.partition(".jsonl")[0]
        # All of a kind, or of a replica, but not demo-10 with demo-1.
        if name.startswith("spans-") or (process and not f"{name}.".startswith((f"{process}.", f"{process}-"))):
            continue
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if request and request not in text:
                continue
            try:
                line = json.loads(text)
            except ValueError:
                continue  # half-written by a process that was killed
            last = max(last, (line["time"], line["run"]))
            rank = LEVELS.index(line["level"]) if line["level"] in LEVELS else len(LEVELS)
            if rank >= lowest and line["time"] >= oldest and (not request or _is_about(line, request)):
                found.append(line)
    found.sort(key=lambda line: str(line["time"]))
    return found if request else [line for line in found if line["run"] == last[1]]


def of_last_run(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of lines in order of time, those of the life that the last one belongs to."""
    return [line for line in lines if line["run"] == lines[-1]["run"]]


def _is_about(line: dict[str, Any], request: str) -> bool:
    return str(line.get("request_id", "")).endswith(request) or request in line["message"]


def shown(line: dict[str, Any]) -> str:
    """One line for people."""
    figures = "  ".join(f"{name} {value}" for name, value in line.get("figures", {}).items())
    about = f" [{line['request_id']}]" if "request_id" in line else ""
    text = f"{line['time'][11:23]} {line['level']:7} {line['process']:12}{about} {line['message']}"
    return f"{text}  {figures}" if figures else text
