"""`quire bench all`: every benchmark that this machine can run, in turn, in several rounds, and one page of it all.

`--quick` takes shortened forms, half an hour at most on two cores; `--list` says what would run. Each part runs in a
process of its own. Those that measure times run once a round, rounds go through all parts, so that a busy quarter of an
hour does not hit one part alone; what is counted or simulated runs once. Results go to a JSON file and an HTML page
beside it with all tables and plots. `--against FILE`, such a JSON file of an earlier day, names what got worse by more
than the noise that the rounds of both measured themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.bench.page import Line, PagePlot, section, whole
from cluster.bench.regressions import Change, Figure, changes, figures, noise_of, yardstick
from cluster.bench.report import RawHelp, Report, Row

ROOT = Path(__file__).parents[2]
FIGURES = "Figures: absolute times and rates in yardsticks"


@dataclass(frozen=True, slots=True)
class BenchPart:
    """A benchmark with its words, whole and quick, and the seconds that these take on two quiet cores."""

    name: str
    words: str
    quick: str
    about_s: float
    quick_s: float
    # Counted or simulated: it comes out the same each time.
    is_timed: bool = True
    # `tests.bench`, which only a checkout has, measures single parts.
    package: str = "cluster.bench"

    @property
    def is_here(self) -> bool:
        return ROOT.joinpath(*self.package.split(".")).is_dir()

    def argv(self, quick: bool) -> list[str]:
        return [self.name.split()[0], *(self.quick if quick else self.words).split()]

    def command(self, quick: bool) -> str:
        begin = "quire bench" if self.package == "cluster.bench" else f"python -m {self.package}"
        return f"{begin} {' '.join(self.argv(quick))}"


PARTS = (
    BenchPart("seeds", "--seconds 2", "--seconds 0.2", 40, 15, is_timed=False),
    BenchPart(
        "paper counted", "--parts memory sharing load swap", "--quick --parts memory sharing load swap",
        740, 130, is_timed=False,
    ),
    BenchPart("paper timed", "--parts engine kernel", "--quick --parts engine kernel", 330, 85),
    BenchPart("allocators", "", "--requests 1000", 10, 5, package="tests.bench"),
    BenchPart("kernels", "--device cpu --no-peers", "--device cpu --quick --no-peers --budget 0.3", 120, 20),
    BenchPart("offline", "", "--workload alpaca --requests 8", 200, 60),
    BenchPart("peers", "--rounds 1", "--workload alpaca --requests 8", 200, 50),
    BenchPart("scheduler", "", "--quick --steps 8 --sizes 1x64,8x256", 120, 15),
    BenchPart("capacity", "", "--requests 60", 40, 20),
    BenchPart("choice", "", "--prompts 256 --blocks 16 --roads 1,24 --seconds 10", 900, 15, is_timed=False),
    BenchPart("storms", "", "--minutes 1", 600, 60, is_timed=False),
    BenchPart("limits", "--rate 0.7 --block-size 64", "--workers 30 100 --seconds 4 --rate 0.7", 600, 20),
    BenchPart("cluster door", "--parts door", "--parts door --scale 0.1", 60, 15),
    BenchPart("control", "", "--scale 0.1", 150, 30),
    BenchPart("structures", "", "--model 14m --rounds 2 --tokens 24", 240, 30),
    BenchPart("transfer", "", "--blocks 64,1024 --mib 64 --rounds 3 --seconds 5 --no-ray", 150, 25,
         package="tests.bench"),
    BenchPart("flood", "", "--seconds 2 --cancels 100 --readers 100 --rounds 1 --minutes 0.2", 600, 60,
         package="tests.bench"),
    BenchPart("swap", "--storm 0", "--choice 1 --storm 0", 180, 60, package="tests.bench"),
    BenchPart("cluster served", "--parts engine workers", "--parts engine --shape 14m --rounds 1", 600, 90),
)  # fmt: skip
# What is not run, and why.
LEFT_OUT = {
    "all": "is this one",
    "gpu": "needs a GPU: `quire bench gpu`",
    "serve": "needs a server that runs: `quire bench serve`",
}
TIMES_LONGER = 10


@dataclass(frozen=True, slots=True)
class PartRan:
    """One run of a part: what it reported, the yardstick beside it."""

    report: dict[str, Any]
    yard_s: float
    seconds: float


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    parts = [part for part in PARTS if part.is_here and (not args.only or part.name in args.only)]
    about_s = sum((part.quick_s if args.quick else part.about_s) * _rounds(part, args.rounds) for part in parts)
    if args.list:
        for part in parts:
            seconds = part.quick_s if args.quick else part.about_s
            times = _rounds(part, args.rounds)
            print(f"{seconds:5.0f} s x {times}  {part.command(args.quick)}")
        print(f"{about_s / 60:.0f} min in all; " + "; ".join(f"`{name}` {why}" for name, why in LEFT_OUT.items()))
        return 0
    before = _earlier(args.against) if args.against else None
    report = Report("all", argv)
    report.begins(f"{len(parts)} benchmarks, {args.rounds} rounds of those that measure times", about_s)
    ran = _run(report, parts, args, about_s)
    found = _figures(ran)
    report.tables[FIGURES] = [dict(figure.as_row()) for figure in found]
    told = _told(report, parts, ran, found, before)
    code = report.finish(args.json)
    page = Path(args.json).with_suffix(".html")
    page.write_text(whole("Quire, all benchmarks", _sections(report, told, ran)))
    print(f"{args.json} has the results, {page} all tables and plots")
    return code


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench all", description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--quick", action="store_true", help="shortened forms")
    parser.add_argument("--list", action="store_true", help="only say what would run, and for how long")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--rounds", type=int, default=2, help="of what measures times (default: %(default)s)")
    parser.add_argument("--against", type=Path, metavar="FILE", help="the JSON file of an earlier run of the same form")
    parser.add_argument("--json", default="quire-bench.json", help="default: %(default)s; the page lies beside it")
    args = parser.parse_args(argv)
    if args.rounds < 1 or (args.against and args.rounds < 2):
        parser.error("--rounds is 1 or more, and with --against 2: noise is what rounds differ by")
    return args


def _rounds(part: BenchPart, rounds: int) -> int:
    return rounds if part.is_timed else 1


def _run(
    report: Report, parts: Sequence[BenchPart], args: argparse.Namespace, about_s: float
) -> dict[str, list[PartRan]]:
    """Rounds go through all parts. What breaks is a check that failed, and the rest goes on."""
    ran: dict[str, list[PartRan]] = {}
    began, done_s = time.monotonic(), 0.0
    for number in range(args.rounds):
        for part in parts:
            if number >= _rounds(part, args.rounds):
                continue
            quick_s = part.quick_s if args.quick else part.about_s
            took = time.monotonic() - began
            left_s = (about_s - done_s) * (max(1.0, took / done_s) if done_s else 1.0)
            print(
                f"[{number + 1}/{args.rounds}] {' '.join(part.argv(args.quick))}: about {quick_s:.0f} s; "
                f"{took / 60:.0f} min gone, about {left_s / 60:.0f} left",
                flush=True,
            )
            found = run(part, args.quick)
            done_s += quick_s
            if isinstance(found, str):
                report.check(f"{part.name}, round {number + 1}", False, found)
                continue
            failed = [check["what"] for check in found.report["checks"] if not check["ok"]]
            report.check(f"{part.name}, round {number + 1}", not failed, "; ".join(failed))
            ran.setdefault(part.name, []).append(found)
    return ran


def run(part: BenchPart, quick: bool) -> PartRan | str:
    """One run in a process of its own; a text says what broke."""
    limit_s = 60 + TIMES_LONGER * (part.quick_s if quick else part.about_s)
    with tempfile.TemporaryDirectory(prefix="quire-bench-all-") as folder:
        out = Path(folder) / "out.json"
        yard_s, began = yardstick(), time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", part.package, *part.argv(quick), "--json", str(out)],
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                timeout=limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it was not done in {limit_s:.0f} s"
        seconds = time.monotonic() - began
        if not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return f"it broke (exit {done.returncode}): {lines[-1] if lines else 'it said nothing'}"
        return PartRan(json.loads(out.read_text()), (yard_s + yardstick()) / 2, seconds)


def _figures(ran: dict[str, list[PartRan]]) -> list[Figure]:
    found: list[Figure] = []
    for name, runs in ran.items():
        rounds = [figures(each.report["tables"], each.yard_s) for each in runs]
        for key in rounds[0]:
            if all(key in each for each in rounds):
                found.append(Figure(name, *key, tuple(each[key] for each in rounds)))
    return found


def _earlier(path: Path) -> list[Figure]:
    try:
        found = json.loads(path.read_text())["tables"][FIGURES]
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"--against {path}: not the results of `quire bench all` ({error!r})") from error
    return [Figure.of_row(row) for row in found]


def _told(
    report: Report,
    parts: Sequence[BenchPart],
    ran: dict[str, list[PartRan]],
    found: Sequence[Figure],
    before: Sequence[Figure] | None,
) -> list[str]:
    """The tables of the whole; returns their titles."""
    noises = noise_of(found)
    rows: list[Row] = [
        {
            "part": part.name,
            "rounds": len(ran[part.name]),
            "seconds": sum(each.seconds for each in ran[part.name]),
            "figures": sum(figure.part == part.name for figure in found),
            "noise %": 100 * noises[part.name] if part.is_timed and part.name in noises else None,
            "yardstick ms": 1e3 * min(each.yard_s for each in ran[part.name]),
        }
        for part in parts
        if part.name in ran
    ]
    report.table("Parts", rows)
    titles = ["Parts"]
    if before is not None:
        compared = changes(before, found)
        for title, chosen in (
            ("Worse", sorted((each for each in compared if each.is_worse), key=lambda each: -each.worse)),
            ("Better", sorted((each for each in compared if each.is_better), key=lambda each: each.worse)),
        ):
            report.table(f"{title} by more than the noise", [_row(each) for each in chosen])
            titles.append(f"{title} by more than the noise")
        report.note(f"{len(compared)} figures compared, of {len(found)} now and {len(before)} then")
    return titles


def _row(change: Change) -> Row:
    figure = change.figure
    return {
        "part": figure.part, "table": figure.table, "row": figure.row, "column": figure.column,
        "then": change.before, "now": change.now, "worse %": 100 * change.worse, "noise %": 100 * change.noise,
    }  # fmt: skip


def _sections(report: Report, titles: Sequence[str], ran: dict[str, list[PartRan]]) -> list[str]:
    about = ", ".join(f"{key} {value}" for key, value in {**report.machine, **report.versions}.items())
    parts = [f"<p>{about}</p>", *section(report.notes, {title: report.tables[title] for title in titles}, [])]
    for name, runs in ran.items():
        last = runs[-1].report
        plots = [PagePlot(**{**plot, "lines": [Line(**line) for line in plot["lines"]]}) for plot in last["plots"]]
        parts.append(f"<h2>{name}</h2><p><code>{' '.join(last['command'])}</code></p>")
        parts += section(last["notes"], last["tables"], plots)
    return parts
