"""The report of `quire bench serve` as one HTML file: tables and plots, drawn as SVG without a plotting library.

Takes figures and series, returns text. It measures nothing and reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cluster.bench.report import Row

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 300, 64, 40, 28, 12
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
NUM_TICKS = 5
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


def page(title: str, notes: Sequence[str], tables: dict[str, Sequence[Row]], plots: Sequence[str]) -> str:
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{escape(title)}</h1>")
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    for name, rows in tables.items():
        parts.append(f"<h2>{escape(name)}</h2>{_table(rows)}")
    parts += plots
    return "".join(parts) + "</html>\n"


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(_text(row.get(column)))}" for column in columns) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def plot(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """A figure with one or several lines over the same axes, which begin at zero."""
    drawn = [line for line in lines if len(line.xs)]
    x_most = max((max(line.xs) for line in drawn), default=1.0) or 1.0
    y_most = max((max(line.ys) for line in drawn), default=1.0) or 1.0
    parts = [f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">']
    parts += _axes(x_name, y_name, x_most, y_most)
    for number, line in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{_x(x, x_most):.1f},{_y(y, y_most):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{points}"/>')
        if len(lines) > 1:
            at = TOP + 14 * number
            parts.append(f'<text x="{LEFT + 10}" y="{at}" fill="{colour}" font-size="12">{escape(line.label)}</text>')
    return "".join(parts) + "</svg></figure>"


def _x(value: float, most: float) -> float:
    return LEFT + value / most * (WIDTH - LEFT - RIGHT)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - value / most * (HEIGHT - BOTTOM - TOP)


def _axes(x_name: str, y_name: str, x_most: float, y_most: float) -> list[str]:
    base, parts = HEIGHT - BOTTOM, []
    for tick in range(NUM_TICKS + 1):
        x, y = x_most * tick / NUM_TICKS, y_most * tick / NUM_TICKS
        at_x, at_y = _x(x, x_most), _y(y, y_most)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}" stroke="#e5e5e5"/>')
        anchor = 'font-size="11" fill="#555"'
        parts.append(f'<text x="{at_x:.1f}" y="{base + 15}" text-anchor="middle" {anchor}>{_text(x)}</text>')
        parts.append(f'<text x="{LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end" {anchor}>{_text(y)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" font-size="12">{escape(x_name)}</text>')
    parts.append(
        f'<text transform="translate(12 {(TOP + base) / 2}) rotate(-90)" text-anchor="middle" font-size="12">'
        f"{escape(y_name)}</text>"
    )
    return parts
