"""`quire bench choice`: where swapping wins, where recomputing does, how near the cost model comes to the better."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.bench.report import BenchHelp, Report, Row
from cluster.serving.shell import tune_collector
from cluster.settings import PreemptionName
from cluster.sim.choice import BLOCK_SIZES, PROMPTS, ROADS, SECONDS, Measured, cells, measure
from cluster.sim.plots import LinePlot, to_png, to_text

WORST = 1.02
# Of a cell, with the seconds that it has unless told otherwise.
CELL_S = 9.0
NAMES: dict[str, PreemptionName] = {"swap": "swap", "recompute": "recompute", "cost model": "cheapest"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench choice", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="simulated, of each policy in each cell")
    parser.add_argument("--prompts", default=",".join(map(str, PROMPTS)))
    parser.add_argument("--blocks", default=",".join(map(str, BLOCK_SIZES)))
    parser.add_argument("--roads", default=",".join(f"{road / 1e9:g}" for road in ROADS), help="GB/s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="a PNG to plot into")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("choice", argv)
    tune_collector()
    prompts, sizes = ([int(word) for word in words.split(",")] for words in (arguments.prompts, arguments.blocks))
    roads = [1e9 * float(word) for word in arguments.roads.split(",")]

    asked = list(cells(prompts, sizes, roads))
    report.begins(f"{len(asked)} cells, three policies in each", CELL_S * len(asked) * arguments.seconds / SECONDS)
    found = []
    for cell in asked:
        found.append(measure(cell, arguments.seed, arguments.seconds))
        report.row("microseconds for an output token", _row(found[-1]))
    worst = max(found, key=lambda measured: measured.ratio)
    report.check(f"at most {WORST} x the better policy everywhere", worst.ratio <= WORST, f"{worst.ratio:.4f}")
    plots = _plots(found, sizes, roads)
    for plot in plots:
        print("\n" + to_text(plot))
    if arguments.plot is not None:
        to_png(plots, arguments.plot)
    return report.finish(arguments.json)


def _row(measured: Measured) -> Row:
    cell = measured.cell
    return {
        "prompt": cell.prompt,
        "block": cell.block_size,
        "GB/s": cell.bytes_per_s / 1e9,
        **{name: round(1e6 * measured.token_s[policy], 1) for name, policy in NAMES.items()},
        "swapped": f"{measured.swapped}/{measured.preempted}",
        "beside the better": round(measured.ratio, 4),
    }


def _plots(found: list[Measured], sizes: list[int], roads: list[float]) -> list[LinePlot]:
    """For each road: the time of swapping and of recomputing over block sizes, all prompt lengths together."""
    plots = []
    for road in roads:
        here = [each for each in found if each.cell.bytes_per_s == road]
        lines = {
            name: [sum(1e6 * each.token_s[policy] for each in here if each.cell.block_size == size) for size in sizes]
            for name, policy in NAMES.items()
        }
        plots.append(
            LinePlot(f"a road of {road / 1e9:g} GB/s", "us a token", sizes, "slots in a block", lines, is_log=True)
        )
    return plots
