"""Figures of repeated runs beside those of an earlier day: what got worse by more than the noise that was measured.

A figure is a cell of a table whose column says by its unit which way is better; a sample of it comes from each round.
Absolute times and rates are in units of a yardstick, fixed work that is timed beside each run, so that a machine that
is slower today is not taken for code that is. `all.py` runs the rounds; nothing is run here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# A change below this much is never called worse, however quiet the rounds were.
LEAST = 0.02
# Noise of a part: this share of its figures spread less. A few rounds show less than all of it: so many times.
SHARE = 0.9
FEW_ROUNDS = 1.5

_RATE = re.compile(r"/s$|/s \(|tokens/s|GB/s|per second")
_TIME = re.compile(r"\b(ns|us|ms|s)$|\b(ns|us|ms) ")
_MORE = re.compile(r"holds|saved|cached|agreement|/ ours$|requests at once|pages sustain")
_LESS = re.compile(r"\bMiB$|times one run|preempted")


@dataclass(frozen=True, slots=True)
class FigureKind:
    """Which way is better, and by what power of a second the figure goes: 1 a time, -1 a rate, 0 neither."""

    more_is_better: bool
    power: int


def kind_of(column: str) -> FigureKind | None:
    """None where the column's name does not say it: then it is shown and not compared."""
    if _RATE.search(column):
        return FigureKind(True, -1)
    if _MORE.search(column):
        return FigureKind(True, 0)
    if _LESS.search(column):
        return FigureKind(False, 0)
    return FigureKind(False, 1) if _TIME.search(column) else None


def figures(tables: Mapping[str, Sequence[Mapping[str, Any]]], yard_s: float) -> dict[tuple[str, str, str], float]:
    """The figures of one run by table, row and column."""
    found: dict[tuple[str, str, str], float] = {}
    for title, rows in tables.items():
        for number, row in enumerate(rows):
            label = _label(number, row)
            for column, value in row.items():
                kind = kind_of(column)
                if kind is None or isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    continue
                found[title, label, column] = float(value) / yard_s**kind.power
    return found


def _label(number: int, row: Mapping[str, Any]) -> str:
    """A row by its words, or by its first cell; its number keeps two that read alike apart."""
    words = [str(value) for value in row.values() if isinstance(value, str)][:3]
    return f"{number + 1}: {', '.join(words or [str(value) for value in list(row.values())[:1]])}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one part over all rounds."""

    part: str
    table: str
    row: str
    column: str
    samples: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.part, self.table, self.row, self.column

    @property
    def spread(self) -> float:
        return (max(self.samples) - min(self.samples)) / median(self.samples)

    def as_row(self) -> dict[str, str | float]:
        rounds = {f"round {number}": sample for number, sample in enumerate(self.samples, 1)}
        return {"part": self.part, "table": self.table, "row": self.row, "column": self.column, **rounds}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Figure:
        samples = tuple(float(value) for name, value in row.items() if name.startswith("round "))
        return cls(row["part"], row["table"], row["row"], row["column"], samples)


@dataclass(frozen=True, slots=True)
class Change:
    figure: Figure
    before: float
    now: float
    noise: float
    # How much worse, as a share; below zero: better.
    worse: float

    @property
    def is_worse(self) -> bool:
        return self.worse > max(self.noise, LEAST)

    @property
    def is_better(self) -> bool:
        return -self.worse > max(self.noise, LEAST)


def noise_of(found: Iterable[Figure]) -> dict[str, float]:
    """Of each part: what most of its figures spread less than. Two samples that are close by chance do not lower it."""
    spreads: dict[str, list[float]] = {}
    for figure in found:
        spreads.setdefault(figure.part, []).append(figure.spread)
    return {part: sorted(each)[min(len(each) - 1, int(SHARE * len(each)))] for part, each in spreads.items()}


def changes(before: Sequence[Figure], now: Sequence[Figure]) -> list[Change]:
    """Each figure that both have. Its noise is the most of what it spread itself and what its part does, in either."""
    old = {figure.key: figure for figure in before}
    noises = noise_of(before), noise_of(now)
    found = []
    for figure in now:
        was = old.get(figure.key)
        kind = kind_of(figure.column)
        if was is None or kind is None:
            continue
        noise = FEW_ROUNDS * max(figure.spread, was.spread, *(each[figure.part] for each in noises))
        then, here = median(was.samples), median(figure.samples)
        worse = (then / here if kind.more_is_better else here / then) - 1
        found.append(Change(figure, then, here, noise, worse))
    return found


def yardstick() -> float:
    """Seconds of fixed work on one core, arrays and plain Python; the best of three."""
    import numpy as np

    values = np.arange(1 << 16, dtype=np.float64)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        total = 0
        for number in range(100_000):
            total += number ^ 21
        for _ in range(40):
            (values * 1.0001 + total).sum()
        took.append(time.perf_counter() - began)
    return min(took)
