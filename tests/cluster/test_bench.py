"""What benchmarks report through, how they take turns, and the kernels' benchmark itself on a CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.bench import __main__ as bench
from cluster.bench import gpu, gpu_slices
from cluster.bench.report import Report, render
from cluster.bench.timing import alternate

ROOT = Path(__file__).parents[2]
BENCHMARKS = [
    (package, name)
    for package in ("cluster.bench", "tests.bench")
    for name in bench.names(ROOT.joinpath(*package.split(".")))
]


def test_report_writes_what_it_was_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("example", ["--quick"])
    report.table("first", [{"name": "a", "ms": 1.25, "count": 12345}, {"name": "bb", "share": None, "ok": True}])
    report.table("first", [{"name": "c", "ms": 0.001234}])
    assert report.check("holds", True)
    report.note("a peer is missing")
    assert report.finish(tmp_path / "deep" / "out.json") == 0
    assert not report.check("does not hold", False, "off by 3")
    assert report.finish() == 1
    found = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert found["command"] == ["quire", "bench", "example", "--quick"]
    assert [row["name"] for row in found["tables"]["first"]] == ["a", "bb", "c"]
    assert found["checks"] == [{"what": "holds", "ok": True, "detail": ""}]
    assert found["notes"] == ["a peer is missing"]
    assert found["machine"]["cores"] and found["versions"]["python"] and found["date"]
    printed = capsys.readouterr().out
    assert "FAILED does not hold: off by 3" in printed and "1 of 2 checks hold" in printed


def test_render_aligns_figures_to_the_right() -> None:
    text = render([{"name": "a", "ms": 1.25}, {"name": "long", "ms": 1234.5}])
    assert text.splitlines() == ["name     ms", "----  -----", "a      1.25", "long  1,234"]
    assert render([]) == "(no rows)"


def test_candidates_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0
    monkeypatch.setattr("cluster.bench.timing.time.perf_counter", lambda: now)

    def call(name: str, *seconds: float) -> None:
        """Takes the first of `seconds` at its first call, then the next, and so on."""
        nonlocal now
        now += seconds[order.count(name)]
        order.append(name)

    def before() -> None:
        nonlocal now
        now += 1000.0
        order.append("-")

    times = alternate(
        {"a": lambda: call("a", 50.0, 1.0, 9.0, 2.0), "b": lambda: call("b", 70.0, 4.0, 3.0, 5.0)},
        budget_s=0.0,
        min_rounds=3,
        before=before,
    )
    assert order == ["-", "a", "-", "b"] * 4
    assert times == {"a": 2.0, "b": 4.0}


def test_benchmarks_are_found_by_their_main(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kernels" in bench.names() and not {"report", "timing", "__main__"} & set(bench.names())
    assert bench.run(["no-such-thing"]) == 2
    assert "there is no benchmark named 'no-such-thing'; there are " in capsys.readouterr().err
    for words in ([], ["--help"]):
        assert bench.run(words) == 0
        told = capsys.readouterr().out
        assert told.startswith("usage: quire bench [")
        # What each is for, in a sentence.
        assert all(re.search(rf"^{name} .*", told, re.MULTILINE) for name in bench.names()) and told.endswith(".\n")


@pytest.mark.parametrize(("package", "name"), BENCHMARKS)
def test_every_benchmark_can_write_json(package: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench.run([name, "--help"], package)
    assert left.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--json" in told
    if name == "serve":
        assert "default: half of what the model takes --max-output" in told
        assert re.search(r"--warm-up WARM_UP seconds at the beginning that do not count \(default [\d.]+\)", told)


def test_kernels_on_a_cpu(tmp_path: Path) -> None:
    """In a process of its own, as users start it: rows for both dtypes, every timed shape checked."""
    out = tmp_path / "kernels.json"
    command = [
        sys.executable,
        "-m",
        "cluster.bench",
        "kernels",
        "--device",
        "cpu",
        "--quick",
        "--no-peers",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        [*command, "--budget", "0.01", "--json", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {row["dtype"] for row in found["tables"]["decode"]} == {"float32", "bfloat16"}
    assert len(found["checks"]) == 8 and all(check["ok"] for check in found["checks"])
    assert len(found["tables"]["targets"]) == 4


def rehearsed(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`quire bench gpu` on the twin, where Ray is not installed."""
    arguments = ["gpu", "--rehearse", *options, "--json", str(out)]
    code = f"import sys; sys.modules['ray'] = None; from cluster.bench.__main__ import run; sys.exit(run({arguments}))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=960, check=False
    )


def tables_of(out: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads(out.with_name(f"{out.stem}-{name}.json").read_text())["tables"]
    return found


def test_the_gpu_benchmark_rehearsed(tmp_path: Path) -> None:
    """Slices of every kind on the twin, on which what a GPU forbids is an error: each leaves a file of its own."""
    out = tmp_path / "gpu.json"
    names = ["make-small", "swap", "steps-small", "contexts", "prompts", "decode", "others"]
    done = rehearsed(out, "--slice", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"gpu-{name}.json" for name in names)
    tables = tables_of(out, "steps-small")
    row = tables["decode steps, tiny, float32, twin"][0]
    # The embedding is looked up; all else is read once, and keys and values of every sequence.
    # Behind them the frequencies of rotation, which transformers keeps twice.
    weights = 64 * 32 + 3 * 32 * 48 + (4 + 2 * 2 + 4) * 8 * 32 + 3 * 32 + 2 * 4
    token_bytes = 2 * 2 * 8 * 4
    assert row["MB to read"] * 1e6 == pytest.approx(4 * weights + row["context"] * token_bytes)
    assert row["tokens/s"] > 0 and tables["decode steps, tiny, float32, twin: transformers"][0]["tokens/s"] > 0
    assert [row["what"] for row in tables_of(out, "swap")["swap"]] == [
        "one copy out", "one copy in", "blocks out", "blocks in",
    ]  # fmt: skip
    assert tables_of(out, "contexts")["decode steps at long contexts, quire-bench-tiny-2"][0]["longest"] == 40


@pytest.mark.trust
@pytest.mark.timeout(1000)
def test_the_whole_gpu_benchmark_rehearsed(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = rehearsed(out)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    rows = json.loads(out.read_text())["tables"]["slices"]
    assert len(rows) == 15 and all(row["came to its end"] for row in rows)
    assert tables_of(out, "ranks")["decode steps, tiny, float32, 2 ranks"][0]["tokens/s"] > 0


def test_a_slice_that_takes_too_long_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on, and the summary says which it was."""
    slices = {name: gpu_slices.SLICES[name] for name in ("swap", "others")}
    monkeypatch.setattr(gpu, "SLICES", slices)
    assert gpu.main(["--rehearse", "--limit", "0.2", "--json", str(tmp_path / "gpu.json")]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["slice"] for row in found["tables"]["slices"]] == ["swap", "others"]
    assert all("was ended after 0.2 s" in check["detail"] for check in found["checks"])


def test_what_a_report_has_found_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    report = Report("kernels", [], quiet=True, path=path, limit_s=0.0)
    seen = []
    for item in report.in_time("rows", [1, 2, 3]):
        seen.append(item)
        report.row("rows", {"item": item})
        assert len(json.loads(path.read_text())["tables"]["rows"]) == len(seen)
    assert seen == [1] and report.notes == ["rows: the time was over after 1 of 3"]


def test_an_unknown_head_shape_is_named() -> None:
    command = [sys.executable, "-m", "cluster.bench", "kernels", "--device", "cpu", "--shape", "no-model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "there is no head shape named 'no-model'; there are small, llama-8b" in done.stderr


def test_the_examples_of_paging_hold_on_the_real_parts(tmp_path: Path) -> None:
    assert bench.run(["seeds", "--seconds", "0", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    rows = {row["example"]: row for row in found["tables"]["Examples"]}
    assert rows["sixteen lengths, pages of 16"]["ours"] == "552 pages, 73.0 % saved"
    assert len(found["checks"]) == len(rows) >= 16 and all(check["ok"] for check in found["checks"])


def test_each_bench_says_at_once_what_it_does_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it measures comes after the line: here nothing is measured, for the line ends it."""

    class Said(Exception):
        pass

    def says(self: Report, what: str, about_s: float) -> None:
        assert what and 0 < about_s < 24 * 3_600
        raise Said

    monkeypatch.setattr(Report, "begins", says)
    # Those that need a cluster or a GPU say so instead.
    words = {"kernels": ["--device", "cpu"], "transfer": ["--no-ray"], "gpu": ["--rehearse"]}
    for package, name in BENCHMARKS:
        if name != "serve":
            with pytest.raises(Said):
                bench.run([name, *words.get(name, [])], package)


def test_rows_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.bench import choice

    words = ["--prompts", "256", "--blocks", "16,32", "--roads", "1", "--seconds", "2"]
    choice.main(words)
    told = capsys.readouterr().out
    assert "2 cells" in told and told.index("about") < told.index("prompt 256, block 16") < told.index("block 32")
