"""What every benchmark reports through: rows as they come, checks, plots, the machine, and one JSON file at the end.

A benchmark makes one Report, says what it is about to do and for how long, adds rows, checks, plots and notes, and
returns `finish()` as its exit code: 1 if any correctness check failed. With a JSON file its plots lie beside it as an
SVG. Standard library only, so that a bare checkout can report. It measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from cluster.bench.page import Line, PagePlot, svg_file

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
T = TypeVar("T")

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "llvmlite",
    "numba",
    "ray",
    "grpcio",
    "vllm",
    "sglang",
    "flash-attn",
    "flashinfer-python",
)


class BenchHelp(argparse.HelpFormatter):
    """The help of a benchmark: what an option is unless it is given stands behind what it says."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told, default = action.help or "", action.default
        has_none = default is None or default is False or default == argparse.SUPPRESS
        if has_none or not action.option_strings or "default" in told:
            return told
        return f"{told} (default %(default)s)"


class RawHelp(BenchHelp, argparse.RawDescriptionHelpFormatter):
    """Of a description in columns."""


class Report:
    """The rows, checks and notes of one run of one benchmark."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        quiet: bool = False,
        path: str | Path | None = None,
        limit_s: float | None = None,
        command: Sequence[str] = ("quire", "bench"),
    ) -> None:
        """With a `path` what is there is written after each row and table, so that it outlives this process. After
        `limit_s` nothing new is begun of what is asked for `in_time`."""
        self.name = name
        self._path = None if path is None else Path(path)
        self._ends_at = None if limit_s is None else time.monotonic() + limit_s
        self.command = [*command, name, *_without_json(argv)]
        self.started = datetime.now(UTC)
        self.machine = machine()
        self.versions = versions()
        self.tables: dict[str, list[dict[str, Cell]]] = {}
        self.checks: list[dict[str, Cell]] = []
        self.notes: list[str] = []
        self.plots: list[PagePlot] = []
        self._quiet = quiet
        self._say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in {**self.machine, **self.versions}.items()))

    def begins(self, what: str, about_s: float) -> None:
        """Says what comes next and about how long it takes on two cores."""
        about = f"{about_s:.0f} s" if about_s < 120 else f"{about_s / 60:.0f} min"
        self._say(f"\n{what}: about {about} ...")

    def row(self, title: str, row: Row) -> None:
        """One row of a table whose rows take a while each: it is printed as soon as it is there."""
        self.tables.setdefault(title, []).append(dict(row))
        self._say("  " + ", ".join(f"{column} {_cell(value)}" for column, value in row.items() if value is not None))
        self._keep()

    def in_time(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """These, until the time is over; what is left out then is noted. The first is never left out."""
        left = list(items)
        for number, item in enumerate(left):
            if number and self._ends_at is not None and time.monotonic() > self._ends_at:
                self.note(f"{what}: the time was over after {number} of {len(left)}")
                return
            yield item

    def plot(self, plot: PagePlot) -> None:
        """Kept with the results, and drawn where these are written."""
        lines = [Line(line.label, list(line.xs), list(line.ys)) for line in plot.lines]
        self.plots.append(replace(plot, lines=lines))

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Prints `rows` at once and keeps them; a title used again goes on in the same table of the JSON."""
        self.tables.setdefault(title, []).extend(dict(row) for row in rows)
        self._say(f"\n{title}\n{render(rows)}")
        self._keep()

    def check(self, what: str, ok: bool, detail: str = "") -> bool:
        """Records whether something that must hold did; a failure is printed and makes the exit code 1."""
        self.checks.append({"what": what, "ok": ok, "detail": detail})
        if not ok:
            self._say(f"FAILED {what}: {detail}")
        return ok

    def note(self, text: str) -> None:
        """A sentence that belongs beside the figures, such as why a peer was left out."""
        self.notes.append(text)
        self._say(f"note: {text}")

    @property
    def failed(self) -> list[str]:
        return [str(check["what"]) for check in self.checks if not check["ok"]]

    def finish(self, json_path: str | Path | None = None) -> int:
        """Prints the tally, writes the JSON file if one is wanted, returns the exit code."""
        took = (datetime.now(UTC) - self.started).total_seconds()
        self._say(f"\n{len(self.checks) - len(self.failed)} of {len(self.checks)} checks hold, {took:.1f} s")
        path = self._path if json_path is None else Path(json_path)
        if path is not None:
            self._write(path)
            if self.plots:
                path.with_suffix(".svg").write_text(svg_file(self.plots))
        return 1 if self.failed else 0

    def _keep(self) -> None:
        if self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "command": self.command,
            "date": self.started.isoformat(timespec="seconds"),
            "machine": self.machine,
            "versions": self.versions,
            "tables": self.tables,
            "checks": self.checks,
            "notes": self.notes,
            "plots": [asdict(plot) for plot in self.plots],
        }

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


def _without_json(argv: Sequence[str]) -> list[str]:
    """The command without the file that it writes: that is a path of one machine."""
    kept, skip = [], False
    for word in argv:
        if not skip and not word.startswith("--json"):
            kept.append(word)
        skip = word == "--json"
    return kept


def target_row(what: str, wanted: float, got: float, *, at_least: bool = True) -> Row:
    """Whether a figure is where it should be."""
    met = got >= wanted if at_least else got <= wanted
    bound = "at least" if at_least else "at most"
    return {"target": what, "wanted": f"{bound} {wanted}", "measured": got, "met": met}


def render(rows: Sequence[Row]) -> str:
    """Rows as text in columns, in the order in which the columns first appear; figures to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return "(no rows)"
    # A column in which nothing stands says nothing.
    columns = [column for column in columns if any(_cell(row.get(column)) for row in rows)]
    texts = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in texts)) for i, column in enumerate(columns)]
    figures = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    lines = []
    for line in [columns, ["-" * width for width in widths], *texts]:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, figures, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def machine() -> dict[str, str]:
    """The processor, its cores that this process may use, memory, and the GPU if the seam is loaded and sees one."""
    found = {"system": f"{platform.system()} {platform.machine()}", "cpu": _processor(), "cores": str(_cores())}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    seam = sys.modules.get("kernels.device.seam")
    if seam is not None:
        facts = seam.device_of(seam.find_device("auto")).facts()
        if facts.family != "interpreter":
            found["gpu"] = facts.name
    return found


def versions() -> dict[str, str]:
    """Python and those packages that a figure may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    names = re.findall(r"^(?:model name|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0] if names else "unknown"
