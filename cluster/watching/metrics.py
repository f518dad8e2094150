"""Figures for Prometheus: histograms that cost a third of a microsecond, families of samples, and their text form.

Gateways and the scheduler keep plain counts where things happen; families are only made when somebody asks, so that
nothing is paid per token for metrics that nobody reads. Our own text form and not prometheus_client's, because that
takes a lock and a dictionary per observation and is missing in an install without Ray's extras. Standard library only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

PREFIX = "quire_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: from a fast inter-token time to a long queue; a turn takes tens of microseconds.
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TURN_BOUNDS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 1.0)

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts by bucket. `counts` has one more entry than `bounds`: what is above all of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count


@dataclass(frozen=True, slots=True)
class Sample:
    suffix: str
    labels: Labels
    value: float


@dataclass(slots=True)
class Family:
    """One metric with all its samples. `name` is without the prefix."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> None:
        self.samples.append(Sample("", tuple(labels.items()), float(value)))

    def add_histogram(self, histogram: Histogram, **labels: str) -> None:
        at = tuple(labels.items())
        so_far = 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            so_far += count
            self.samples.append(Sample("_bucket", (*at, ("le", _number(bound))), float(so_far)))
        self.samples.append(Sample("_sum", at, histogram.total))
        self.samples.append(Sample("_count", at, float(so_far)))


@dataclass(frozen=True, slots=True)
class Described:
    """What a metric is called and means, said once: families are made of these, and the documentation lists them."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def family(self) -> Family:
        return Family(self.name, self.kind, self.help)


class Families(dict[str, Family]):
    """Families under construction, from descriptions: unknown names are a mistake of ours."""

    def __init__(self, described: Iterable[Described]) -> None:
        super().__init__((one.name, one.family()) for one in described)

    def in_use(self) -> list[Family]:
        return [family for family in self.values() if family.samples]


def merged(groups: Iterable[Iterable[Family]]) -> list[Family]:
    """Families of several processes as one list: those of one name become one, as the text form wants it."""
    together: dict[str, Family] = {}
    for group in groups:
        for family in group:
            known = together.setdefault(family.name, Family(family.name, family.kind, family.help))
            known.samples.extend(family.samples)
    return list(together.values())


def render(families: Iterable[Family]) -> str:
    """The Prometheus text form, version 0.0.4."""
    lines: list[str] = []
    for family in families:
        name = PREFIX + family.name
        lines.append(f"# HELP {name} {_escaped(family.help)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for sample in family.samples:
            labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in sample.labels)
            lines.append(f"{name}{sample.suffix}{'{' + labels + '}' if labels else ''} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def table_of(described: Iterable[Described]) -> str:
    """The documentation of these metrics, as a Markdown table."""
    lines = ["| metric | kind | labels | means |", "|---|---|---|---|"]
    lines += [f"| `{PREFIX}{one.name}` | {one.kind} | {', '.join(one.labels)} | {one.help} |" for one in described]
    return "\n".join(lines)
