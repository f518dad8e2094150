"""The figures of planned runs in rows for people: one column a run, so that policies stand side by side.

`quire simulate --workers` prints them; cluster/sim/README.md says what each means. Nothing is computed here beyond
percentiles and shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from cluster.bench.report import Row
from cluster.sim.capacity import CapacityOutcome

_PERCENTILES = (0.5, 0.9, 0.99)


def compared(outcomes: Mapping[str, CapacityOutcome]) -> list[Row]:
    """One row a figure, one column a run."""
    figures = {name: _figures(outcome) for name, outcome in outcomes.items()}
    names = next(iter(figures.values()))
    return [{"figure": name, **{run: each[name] for run, each in figures.items()}} for name in names]


def _figures(outcome: CapacityOutcome) -> dict[str, str]:
    return {
        "requests asked / finished / refused": f"{outcome.asked:,} / {outcome.finished:,} / {outcome.refused:,}",
        "output tokens/s": f"{outcome.tokens_per_s:,.0f}",
        "output tokens/s of a worker": f"{outcome.tokens_per_s / outcome.site.num_workers:,.1f}",
        "first token p50 / p90 / p99": _times([outcome.gaps.first.percentile(share) for share in _PERCENTILES]),
        "between tokens p50 / p90 / p99": _times([outcome.gaps.between.percentile(share) for share in _PERCENTILES]),
        "whole request p50 / p90 / p99": _times([_share(outcome.latencies, share) for share in _PERCENTILES]),
        "memory held, mean / most": f"{_percent(outcome.held)} / {_percent(_most_held(outcome))}",
        "running, waiting at the end": f"{outcome.running:,}, {outcome.waiting:,}",
        "preempted": _preempted(outcome),
        "times a request was preempted, median / most": _preemptions(outcome),
        "copied to and from host memory": f"{outcome.copied_bytes / 1e9:,.1f} GB",
        "prompt tokens found in a cache": _percent(outcome.cached_tokens / max(1, outcome.prompt_tokens)),
        "scheduler load, share of one core": _percent(outcome.scheduler_load),
    }


def speed(outcome: CapacityOutcome) -> str:
    """How fast the simulation itself was."""
    return (
        f"{outcome.seconds:,.0f} s of {outcome.site.num_workers:,} workers in {outcome.wall_s:,.1f} s: "
        f"{outcome.num_steps:,} steps, {outcome.num_tokens:,} tokens"
    )


def _times(seconds: list[float]) -> str:
    return " / ".join(f"{each * 1e3:,.1f}" if each < 10 else f"{each * 1e3:,.0f}" for each in seconds) + " ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def _most_held(outcome: CapacityOutcome) -> float:
    return max((sample.held for sample in outcome.samples), default=0.0)


def _preempted(outcome: CapacityOutcome) -> str:
    kinds = {
        kind.removeprefix("preempted "): count
        for kind, count in sorted(outcome.counters.items())
        if kind.startswith("preempted ")
    }
    return ", ".join(f"{kind} {count:,}" for kind, count in kinds.items()) or "none"


def _preemptions(outcome: CapacityOutcome) -> str:
    times = outcome.preemptions
    return f"{median(times):.0f} / {max(times)}" if times else "-"
