"""What benchmarks report through, how they take turns, and the kernels' benchmark itself on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.bench import __main__ as bench
from cluster.bench.report import Report, render
from cluster.bench.timing import alternate

ROOT = Path(__file__).parents[2]


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
    assert bench.run(["--help"]) == 0


@pytest.mark.parametrize("name", bench.names())
def test_every_benchmark_can_write_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench.run([name, "--help"])
    assert left.value.code == 0
    assert "--json" in capsys.readouterr().out


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


def test_the_gpu_benchmark_rehearsed(tmp_path: Path) -> None:
    """All of it but the GPU, where Ray is not installed: steps, bytes, transformers beside it, the results file."""
    out = tmp_path / "gpu.json"
    arguments = ["gpu", "--rehearse", "--prompt", "24", "--batches", "1", "3", "--json", str(out)]
    code = f"import sys; sys.modules['ray'] = None; from cluster.bench.__main__ import run; sys.exit(run({arguments}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["tables"]["decode steps, 14m, float32, cpu"]
    assert [row["batch"] for row in rows] == [1, 3]
    # Weights once, keys and values of every sequence.
    token_bytes = 2 * 8 * 2 * 32 * 4
    assert (rows[1]["MB to read"] - rows[0]["MB to read"]) * 1e6 == pytest.approx(2 * rows[0]["context"] * token_bytes)
    assert all(row["tokens/s"] > 0 and row["transformers tokens/s"] > 0 for row in rows)


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


def test_memory_is_held_as_in_the_paper(tmp_path: Path) -> None:
    argv = ["paper", "--parts", "memory", "--requests", "1500", "--json", str(tmp_path / "out.json")]
    assert bench.run(argv) == 0
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    rows = {row["memory"]: row for title, table in tables.items() if "sharegpt" in title for row in table}
    shares = [rows[name]["holds tokens %"] for name in ("longest", "power of two", "oracle", "pages of 16")]
    assert shares == sorted(shares) and shares[-1] > 95 > 45 > shares[-2]
