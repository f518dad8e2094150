"""Plots of planned runs: in the terminal with block characters, and as a PNG where matplotlib is installed.

A plot is named series over one axis; whoever plans makes them from samples. Nothing here knows the cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError

_LEVELS = " ▁▂▃▄▅▆▇█"
WIDTH, HEIGHT = 72, 6


@dataclass(frozen=True, slots=True)
class LinePlot:
    """Lines over a common axis. `lines`: by name the values at `at`."""

    title: str
    unit: str
    at: Sequence[float]
    at_unit: str
    lines: Mapping[str, Sequence[float]]
    is_log: bool = False


def to_text(plot: LinePlot) -> str:
    """One strip of columns for each line, under one scale."""
    most = max((max(values, default=0.0) for values in plot.lines.values()), default=0.0)
    width = max(map(len, plot.lines), default=0)
    lines = [f"{plot.title}, {plot.unit} (full height: {most:,.4g})"]
    for name, values in plot.lines.items():
        columns = _columns(values, WIDTH)
        for row in range(HEIGHT - 1, -1, -1):
            filled = "".join(_cell(value / most * HEIGHT - row if most else 0.0) for value in columns)
            lines.append(f"{name if row == HEIGHT // 2 else '':>{width}} |{filled}")
        lines.append(f"{'':>{width}} +{'-' * len(columns)}")
    if plot.at:
        lines.append(f"{'':>{width}}  {plot.at[0]:,.4g} to {plot.at[-1]:,.4g} {plot.at_unit}")
    return "\n".join(lines)


def _columns(values: Sequence[float], width: int) -> list[float]:
    """Values squeezed into at most `width` columns: each is the mean of what falls into it."""
    count = min(width, len(values))
    bounds = [len(values) * column // count for column in range(count + 1)] if count else []
    return [sum(values[first:last]) / (last - first) for first, last in itertools.pairwise(bounds)]


def _cell(height: float) -> str:
    return _LEVELS[round(max(0.0, min(1.0, height)) * (len(_LEVELS) - 1))]


def to_png(plots: Sequence[LinePlot], path: Path) -> None:
    """All plots in one picture, one below the other. Needs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"{path} needs matplotlib, which is not installed; pip install 'quire[plot]'") from error
    figure = Figure(figsize=(9, 2.6 * len(plots)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(plots), 1, squeeze=False)
    for plot, (axis,) in zip(plots, axes, strict=True):
        for name, values in plot.lines.items():
            axis.plot(plot.at, values, label=name, marker="o" if len(plot.at) < 20 else None, markersize=3)
        axis.set_title(plot.title, fontsize=10)
        axis.set_ylabel(plot.unit)
        axis.set_xlabel(plot.at_unit)
        if plot.is_log:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        if len(plot.lines) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
