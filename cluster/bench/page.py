"""Plots as SVG and reports as one HTML file, without a plotting library.

Takes figures and lines, returns text. It measures nothing and reads nothing; every benchmark draws through it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 300, 64, 40, 28, 12
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
NUM_TICKS = 5
# Points of lines with at most so many are marked.
MARKED = 20
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:right;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}"
    "figure{display:inline-block;margin:.5rem}figcaption{font-weight:600}svg{background:#fff}"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class PagePlot:
    """Lines over the same axes, which begin at zero; `is_log`: the horizontal one goes by powers of two. `limits`: what
    each figure on the horizontal one may be, by name."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    is_log: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


def page(
    title: str, notes: Sequence[str], tables: Mapping[str, Sequence[Mapping[str, object]]], plots: Sequence[PagePlot]
) -> str:
    """A whole page of one report."""
    return whole(title, [*section(notes, tables, plots)])


def whole(title: str, parts: Sequence[str]) -> str:
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    return "".join([head, f"<h1>{escape(title)}</h1>", *parts]) + "</html>\n"


def section(
    notes: Sequence[str], tables: Mapping[str, Sequence[Mapping[str, object]]], plots: Sequence[PagePlot]
) -> list[str]:
    parts = [f"<p>{escape(note)}</p>" for note in notes]
    for name, rows in tables.items():
        parts.append(f"<h3>{escape(name)}</h3>{_table(rows)}")
    return parts + [f"<figure><figcaption>{escape(plot.title)}</figcaption>{svg(plot)}</figure>" for plot in plots]


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(row.get(column)))}</td>" for column in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def svg_file(plots: Sequence[PagePlot]) -> str:
    """All plots in one picture, one below the other, each with its title."""
    height = HEIGHT + TOP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height * len(plots)}" width="{WIDTH}">']
    parts.append('<rect width="100%" height="100%" fill="#fff"/>')
    for number, plot in enumerate(plots):
        title = f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-weight="600">{escape(plot.title)}</text>'
        parts.append(f'<g font-family="sans-serif" transform="translate(0 {number * height})">{title}')
        parts.append(f'<g transform="translate(0 {TOP})">{"".join(_drawn(plot))}</g></g>')
    return "".join(parts) + "</svg>\n"


def svg(plot: PagePlot) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(_drawn(plot))}</svg>'


def _drawn(plot: PagePlot) -> list[str]:
    lines = [line for line in plot.lines if len(line.xs)]
    y_most = round_ticks(max((max(line.ys) for line in lines), default=1.0) or 1.0)[-1]
    xs = [x for line in lines for x in line.xs] or [1.0]
    x_most = round_ticks(max([*xs, *plot.limits.values()]) or 1.0)[-1]
    axis = _Axis(math.log2(min(xs)), math.log2(max(xs)), True) if plot.is_log else _Axis(0.0, x_most, False)
    parts = _axes(plot, axis, y_most)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{axis.at(x):.1f},{_y(y, y_most):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{points}"/>')
        if len(line.xs) <= MARKED:
            parts += [f'<circle r="3" fill="{colour}" cx="{at[0]}" cy="{at[1]}"/>' for at in map(_pair, points.split())]
        if len(plot.lines) > 1:
            y = TOP + 14 * number
            parts.append(f'<text x="{LEFT + 10}" y="{y}" fill="{colour}" font-size="12">{escape(line.label)}</text>')
    return parts + [piece for name, value in plot.limits.items() for piece in _limit(name, axis.at(value))]


def round_ticks(most: float) -> list[float]:
    """From zero to `most` or a little beyond, about as many as fit, each a figure that people read at once."""
    power = 10.0 ** math.floor(math.log10(most / NUM_TICKS))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= most / NUM_TICKS * 0.999)
    return [step * tick for tick in range(math.ceil(most / step - 1e-6) + 1)]


def _limit(name: str, x: float) -> list[str]:
    base, text = HEIGHT - BOTTOM, escape(name)
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}" stroke="#b00" stroke-dasharray="4 3"/>',
        f'<text x="{x - 4:.1f}" y="{base - 6}" text-anchor="end" font-size="11" fill="#b00">{text}</text>',
    ]


def _pair(point: str) -> list[str]:
    return point.split(",")


@dataclass(frozen=True, slots=True)
class _Axis:
    """The horizontal one, from `least` to `most`; of a logarithmic one these are powers of two."""

    least: float
    most: float
    is_log: bool

    def at(self, value: float) -> float:
        value = math.log2(value) if self.is_log else value
        return LEFT + (value - self.least) / ((self.most - self.least) or 1.0) * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        if self.is_log:
            return [2.0**power for power in range(math.ceil(self.least), math.floor(self.most) + 1)]
        return round_ticks(self.most)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP)


def _axes(plot: PagePlot, axis: _Axis, y_most: float) -> list[str]:
    base, parts, style = HEIGHT - BOTTOM, list[str](), 'font-size="11" fill="#555"'
    for value in round_ticks(y_most):
        at = _y(value, y_most)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" {style}>{_text(value)}</text>')
    for x in axis.ticks():
        parts.append(f'<text x="{axis.at(x):.1f}" y="{base + 15}" text-anchor="middle" {style}>{_text(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    x_name, y_name = escape(plot.x_name), escape(plot.y_name)
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" font-size="12">{x_name}</text>')
    parts.append(
        f'<text transform="translate(12 {(TOP + base) / 2}) rotate(-90)" text-anchor="middle" font-size="12">'
        f"{y_name}</text>"
    )
    return parts
