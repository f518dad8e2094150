"""What every benchmark reports through: tables as they come, checks, the machine, and one JSON file at the end.

A benchmark makes one Report, adds tables, checks and notes, and returns `finish()` as its exit code: 1 if any
correctness check failed. Standard library only, so that a bare checkout can report. It measures nothing itself.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]

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
    "flashinfer-python",
)


class Report:
    """The rows, checks and notes of one run of one benchmark."""

    def __init__(self, name: str, argv: Sequence[str], *, quiet: bool = False) -> None:
        self.name = name
        self.command = ["quire", "bench", name, *argv]
        self.started = datetime.now(UTC)
        self.machine = machine()
        self.versions = versions()
        self.tables: dict[str, list[dict[str, Cell]]] = {}
        self.checks: list[dict[str, Cell]] = []
        self.notes: list[str] = []
        self._quiet = quiet
        self._say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in {**self.machine, **self.versions}.items()))

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Prints `rows` at once and keeps them; a title used again goes on in the same table of the JSON."""
        self.tables.setdefault(title, []).extend(dict(row) for row in rows)
        self._say(f"\n{title}\n{render(rows)}")

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
        if json_path is not None:
            path = Path(json_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        return 1 if self.failed else 0

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
        }

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)


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
    """The processor, its cores that this process may use, memory, and the GPU if torch is loaded and sees one."""
    found = {"system": f"{platform.system()} {platform.machine()}", "cpu": _processor(), "cores": str(_cores())}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
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
