"""Results that are kept, and how a page quotes a figure of them.

`quire bench --keep LABEL NAME ...` writes the benchmark's JSON to `tests/bench/results/LABEL.json` of a checkout, and
its plots to an SVG beside it. A page quotes a figure with a comment right behind it that says where it stands:

    24.3<!--paper-memory; sharegpt; longest; holds--> %

The four parts are the file, the table whose title has these words, the row that has this cell (or `column=cell` pairs
with commas between them), and the column whose name begins so. `tests/cluster/test_results.py` holds the pages to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "tests" / "bench" / "results"
_QUOTATION = re.compile(r"(-?[\d,]*\.?\d+)<!--([^>]*?)-->")


@dataclass(frozen=True, slots=True)
class Quotation:
    """A figure as a page writes it, and where it says that it stands."""

    text: str
    reference: str

    def problem(self, folder: Path = FOLDER) -> str:
        """What is wrong with it; empty: the kept figure, rounded as this one is, is this one."""
        try:
            found = lookup(self.reference, folder)
        except LookupError as error:
            return f"{self.text} <!--{self.reference}-->: {error}"
        _, _, decimals = self.text.partition(".")
        kept = f"{found:,.{len(decimals)}f}"
        if kept.replace(",", "") == self.text.replace(",", ""):
            return ""
        return f"{self.text} <!--{self.reference}-->: the file has {kept} ({found!r})"


def quotations(text: str) -> Iterator[Quotation]:
    for figure, reference in _QUOTATION.findall(text):
        yield Quotation(figure, reference.strip())


def lookup(reference: str, folder: Path = FOLDER) -> float:
    """The figure that a reference names. Raises LookupError with what there is, if it names none or several."""
    parts = [part.strip() for part in reference.split(";")]
    if len(parts) != 4:
        raise LookupError("a reference has four parts: file; table; row; column")
    label, title, row, column = parts
    path = folder / f"{label}.json"
    if not path.is_file():
        raise LookupError(f"there is no results file {path.name}")
    tables: Mapping[str, list[dict[str, Any]]] = json.loads(path.read_text())["tables"]
    named = {name: table for name, table in tables.items() if title in name}
    rows = [found for table in named.values() for found in table if _is_row(found, row)]
    found = [figure for each in rows for figure in _figures(each, column)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} figures in {len(rows)} rows fit ({'; '.join(named or tables)})")
    return found[0]


def _figures(row: Mapping[str, Any], column: str) -> list[float]:
    """What stands in the column of this name, or in those that begin so."""
    columns = [column] if column in row else [name for name in row if name.startswith(column)]
    return [float(row[name]) for name in columns if isinstance(row[name], int | float)]


def _is_row(row: Mapping[str, Any], selector: str) -> bool:
    for wanted in selector.split(","):
        column, equals, value = wanted.strip().rpartition("=")
        cells = [row.get(column)] if equals else list(row.values())
        if not any(str(cell) == value for cell in cells):
            return False
    return True
