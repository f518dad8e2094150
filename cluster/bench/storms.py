"""`quire bench storms`: several times the memory is asked for ten simulated minutes; what preemption costs then."""

from __future__ import annotations

import argparse

from cluster.bench.report import BenchHelp, Report
from cluster.serving.shell import tune_collector
from cluster.sim.storms import STORMS, weather

MOST_PREEMPTIONS, LEAST_GOODPUT, LONGEST_PAUSE_S = 3, 0.9, 60.0
# Of a simulated minute of a storm, in seconds of ours.
MINUTE_S = 8.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench storms", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--minutes", type=float, default=10.0, help="simulated, of each storm")
    parser.add_argument("--only", choices=[storm.name for storm in STORMS], help="the storm of this name alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("storms", argv)
    tune_collector()
    storms = [storm for storm in STORMS if arguments.only in (None, storm.name)]
    about_s = MINUTE_S * len(storms) * arguments.minutes
    report.begins(f"{len(storms)} storms of {arguments.minutes:g} simulated minutes", about_s)
    for storm in storms:
        found = weather(storm, 60 * arguments.minutes, arguments.seed)
        outcome = found.outcome
        report.row(
            f"demand of 4 x the device pools, {arguments.minutes:g} simulated minutes",
            {
                "storm": storm.name,
                "finished": outcome.finished,
                "tokens/s": round(outcome.tokens_per_s),
                "goodput": round(found.goodput, 3),
                "memory held": round(outcome.held, 3),
                "preempted": sum(outcome.preemptions),
                "median": found.median_preemptions,
                "most": max(outcome.preemptions),
                "longest pause s": round(found.longest_pause_s, 2),
            },
        )
        name = storm.name
        report.check(f"{name}: at most 3 preemptions in the median", found.median_preemptions <= MOST_PREEMPTIONS)
        report.check(f"{name}: goodput", found.goodput >= LEAST_GOODPUT, f"{found.goodput:.3f} of {LEAST_GOODPUT}")
        report.check(
            f"{name}: nothing stalls", found.longest_pause_s <= LONGEST_PAUSE_S, f"{found.longest_pause_s:.1f} s"
        )
    return report.finish(arguments.json)
