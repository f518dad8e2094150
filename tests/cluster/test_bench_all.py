"""All benchmarks in turn: what is run, what a figure is, and what counts as worse."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.bench import __main__ as bench
from cluster.bench.all import FIGURES, LEFT_OUT, PARTS, BenchPart
from cluster.bench.regressions import Figure, changes, figures, kind_of
from cluster.bench.report import Report

PACKAGES = ("cluster.bench", "tests.bench")


def test_every_benchmark_is_run_or_left_out_for_a_reason() -> None:
    for package in PACKAGES:
        found = {part.argv(True)[0] for part in PARTS if part.package == package}
        left = set(LEFT_OUT) if package == "cluster.bench" else set()
        assert found | left == set(bench.names(bench.ROOT.joinpath(*package.split("."))))
    assert {part.package for part in PARTS} == set(PACKAGES)
    # Half an hour with two rounds, at most.
    assert sum(part.quick_s * (1 + part.is_timed) for part in PARTS) <= 1800


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_understands_its_words(part: BenchPart, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says what it begins; here nothing is measured, for that ends it."""

    class Said(Exception):
        pass

    def says(self: Report, what: str, about_s: float) -> None:
        raise Said

    monkeypatch.setattr(Report, "begins", says)
    with pytest.raises(Said):
        bench.run([*part.argv(quick), "--json", "none.json"], part.package)


def test_the_list_says_what_would_run_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["all", "--quick", "--list", "--only", "seeds", "kernels"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("15 s x 1  quire bench seeds --seconds 0.2") and " s x 2  quire bench kernels" in said[1]
    assert said[-1].startswith("1 min in all") and len(said) == 3


@pytest.mark.parametrize(
    ("column", "more_is_better", "power"),
    [("output tokens/s", True, -1), ("GB/s", True, -1), ("first token ms", False, 1), ("us", False, 1),
     ("holds tokens %", True, 0), ("peak MiB", False, 0), ("times one run", False, 0), ("sdpa / ours", True, 0)],
)  # fmt: skip
def test_a_column_says_by_its_unit_which_way_is_better(column: str, more_is_better: bool, power: int) -> None:
    kind = kind_of(column)
    assert kind is not None and (kind.more_is_better, kind.power) == (more_is_better, power)


@pytest.mark.parametrize("column", ["batch", "page", "n", "prompt tokens", "version", "round", "paper %"])
def test_a_column_that_says_nothing_of_the_kind_is_not_compared(column: str) -> None:
    assert kind_of(column) is None


def test_a_slower_machine_is_not_slower_code() -> None:
    def rows(times: float) -> dict[str, list[dict[str, object]]]:
        return {"t": [{"engine": "a", "n": 3, "ms": 2.0 * times, "tokens/s": 100 / times, "peak MiB": 7.0}]}

    assert figures(rows(1.0), 0.1) == pytest.approx(figures(rows(3.0), 0.3))
    assert set(figures(rows(1.0), 0.1)) == {("t", "1: a", column) for column in ("ms", "tokens/s", "peak MiB")}


def test_what_got_worse_is_named_and_noise_is_not() -> None:
    rng = random.Random(1)

    def run(noise: float) -> list[Figure]:
        def figure(number: int, column: str) -> Figure:
            samples = tuple(10 * (1 + rng.uniform(-noise, noise)) for _ in range(2))
            return Figure("part", "table", str(number), column, samples)

        return [figure(number, ("ms", "tokens/s")[number % 2]) for number in range(40)]

    before, now = run(0.04), run(0.04)
    assert not [each for each in changes(before, now) if each.is_worse or each.is_better]
    # A time that grew and a rate that fell by a third; a rate that grew.
    for number, factor in ((4, 1.5), (5, 0.66), (7, 1.5)):
        now[number] = replace(now[number], samples=tuple(factor * each for each in now[number].samples))
    found = changes(before, now)
    assert [each.figure.row for each in found if each.is_worse] == ["4", "5"]
    assert [each.figure.row for each in found if each.is_better] == ["7"]
    # A change of a quarter drowns where the rounds themselves differ as much.
    loud = run(0.3)
    assert not [
        each
        for each in changes(loud, [replace(each, samples=tuple(1.25 * s for s in each.samples)) for each in loud])
        if each.is_worse or each.is_better
    ]
    named = sum(each.is_worse for _ in range(50) for each in changes(run(0.05), run(0.05)))
    assert named < 0.002 * 50 * 40, named


def test_a_run_is_held_against_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    argv = ["all", "--quick", "--only", "allocators"]
    assert bench.run([*argv, "--json", str(first)]) == 0
    kept = json.loads(first.read_text())
    assert kept["tables"]["Parts"][0]["rounds"] == 2 and kept["tables"][FIGURES]
    # What was ten times as fast then.
    for row in kept["tables"][FIGURES]:
        kind = kind_of(row["column"])
        assert kind is not None
        for number in (1, 2):
            row[f"round {number}"] *= 10.0 if kind.more_is_better else 0.1
    first.write_text(json.dumps(kept))
    assert bench.run([*argv, "--against", str(first), "--json", str(second)]) == 0
    worse = json.loads(second.read_text())["tables"]["Worse by more than the noise"]
    assert len(worse) == len(kept["tables"][FIGURES]) and all(row["worse %"] > row["noise %"] for row in worse)
    page = second.with_suffix(".html").read_text()
    assert "<h2>allocators</h2>" in page and "Worse by more than the noise" in page
    said = capsys.readouterr().out
    assert "[2/2] allocators --requests 1000: about 5 s; 0 min gone" in said
    with pytest.raises(SystemExit, match="not the results"):
        bench.run([*argv, "--against", str(tmp_path / "none.json")])
