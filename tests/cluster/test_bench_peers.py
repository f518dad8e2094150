"""Engines side by side: each in a process of its own, missing ones skipped by name, tokens compared."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from cluster.bench import __main__ as bench
from cluster.bench.peers import ENGINES, ROAD, agreement


def test_engines_do_the_same_requests_and_say_the_same_tokens(tmp_path: Path) -> None:
    # An environment that has nothing: what it lacks comes from the Python that runs this.
    empty = tmp_path / "empty" / "bin"
    empty.mkdir(parents=True)
    os.symlink(sys.executable, empty / "python")
    out = tmp_path / "out.json"
    argv = ["--workload", "alpaca", "--requests", "3", "--threads", "1", "--venv", str(empty.parent)]
    asked = ["--engines", "quire", "transformers-static", "sglang"]
    assert bench.run(["peers", *asked, *argv, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["command"][-1] == "empty"
    (rows,) = found["tables"].values()
    assert [row["engine"] for row in rows] == ["quire", "transformers-static"]
    assert found["notes"] == ["sglang is skipped: none of the environments has sglang"]
    assert [row["agreement %"] for row in rows] == [100.0, 100.0]
    for row in rows:
        assert row["output tokens/s"] > 0 and row["peak MiB"] > 50 and row["version"]
        assert 0 < row["between tokens ms"] < row["first token ms"] * 100
    assert len(found["plots"][0]["lines"]) == 2 and len(found["checks"]) == 2


def test_a_server_that_is_not_there_fails_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["peers", "--engines", "sglang", "--workload", "short", "--server", "http://127.0.0.1:9"]
    assert bench.run(argv) == 1
    said = capsys.readouterr().out
    assert "FAILED server runs: it broke (exit 1): ConnectionRefusedError" in said


def test_every_engine_has_an_adapter() -> None:
    for file, function, _ in ENGINES.values():
        text = (ROAD.with_name(f"{file}.py")).read_text()
        assert f"def {function}(job" in text and "def version(job" in text and "cluster.bench" not in text[:200]


def test_agreement_counts_up_to_the_first_token_that_differs() -> None:
    assert agreement([[1, 2, 3, 4], [5]], [[1, 2, 9, 4], [5]]) == pytest.approx(3 / 5)
    assert agreement([[1, 2]], [[1]]) == 0.5
