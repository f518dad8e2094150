"""The figures that pages quote are those of the results that were kept, and every measured line quotes one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.bench import __main__ as bench
from cluster.bench.results import FOLDER, lookup, quotations

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "tests" / "bench" / f"{name}.md" for name in ("MEASURED", "paper", "limits"))]
# Lines of MEASURED.md that were seen before results were kept. Whoever measures one again moves it up, and lowers this.
MOST_UNKEPT = 22


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_quoted_figures_are_those_that_were_kept(page: Path) -> None:
    problems = [problem for quotation in quotations(page.read_text()) if (problem := quotation.problem())]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_every_measured_line_quotes_what_was_kept(page: Path) -> None:
    kept, _, unkept = page.read_text().partition("## Seen before results were kept")
    rows = [
        line for line in kept.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| experiment"))
    ]
    without = [line for line in rows if re.search(r"\d", line) and not list(quotations(line))]
    assert rows and not without, "\n".join(without)
    assert sum(line.startswith("| ") for line in unkept.splitlines()) <= MOST_UNKEPT


def test_kept_results_say_what_ran_where_and_when() -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert files
    for path in files:
        found = json.loads(path.read_text())
        assert (
            " ".join(found["command"]).startswith(("quire bench ", "python -m tests.bench "))
            and found["date"][:2] == "20"
        ), path.name
        assert found["machine"]["cpu"] and found["versions"]["python"] and any(found["tables"].values()), path.name
        assert all(check["ok"] for check in found["checks"]), path.name
        assert not found["plots"] or path.with_suffix(".svg").is_file(), path.name


def test_a_quotation_that_is_off_or_names_nothing_is_found(tmp_path: Path) -> None:
    rows = [{"memory": "oracle", "holds %": 39.84}, {"memory": "pages", "holds %": 97.3}]
    (tmp_path / "x.json").write_text(json.dumps({"tables": {"KV memory, small": rows}}))
    said = (
        "a 39.8<!--x; small; oracle; holds-->, b 39.84<!-- x; small; memory=oracle; holds % -->, 1,040<!--x; a; b; c-->"
    )
    good, exact, missing = quotations(said)
    assert not good.problem(tmp_path) and not exact.problem(tmp_path)
    assert "0 figures in 0 rows fit" in missing.problem(tmp_path)
    (off,) = quotations("39.9<!--x; small; oracle; holds-->")
    assert "the file has 39.8" in off.problem(tmp_path)
    with pytest.raises(LookupError, match="0 figures in 0 rows"):
        lookup("x; small; nothing; holds", tmp_path)


def test_results_are_kept_under_the_label_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "results")
    assert bench.run(["--keep", "by-hand", "allocators", "--requests", "50"], "tests.bench") == 0
    found = json.loads((tmp_path / "results" / "by-hand.json").read_text())
    assert found["command"] == [*"python -m tests.bench allocators --requests 50".split()] and found["tables"]
    assert bench.run(["--keep", "../x", "seeds"]) == 2
