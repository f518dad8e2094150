"""`quire bench peers`: the same model, requests and threads through other engines, beside Quire.

Each engine runs in a process of its own, under the Python of the virtual environment that has it: `--venv DIR ...`, and
this one. What none of them has is skipped by name. `--server URL` adds a running server behind the OpenAI door. One
adapter file each: `cluster/bench/engines/of_*.py`. Rounds go through all engines in turn; a figure is their median, and
agreement is the share of tokens up to the first that differs from the reference's (the first engine that ran).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cluster.bench.offline_models import DEFAULT_REQUESTS, SHAPES, WORKLOADS, Workload, folder_of, workload
from cluster.bench.page import Line, PagePlot
from cluster.bench.report import BenchHelp, Report, Row

# Engine -> the file of its adapter, the function in it, and the package that it needs.
ENGINES: Mapping[str, tuple[str, str, str]] = {
    "quire": ("of_quire", "quire", "torch"),
    "transformers-static": ("of_transformers", "static", "transformers"),
    "transformers-continuous": ("of_transformers", "continuous", "transformers"),
    "vllm": ("of_vllm", "vllm", "vllm"),
    "sglang": ("of_sglang", "sglang", "sglang"),
    "openvino": ("of_openvino", "openvino", "openvino_genai"),
    "ctranslate2": ("of_ctranslate2", "ctranslate2", "ctranslate2"),
    "llama.cpp": ("of_llamacpp", "llamacpp", "xllamacpp"),
}
SERVER = "server"
ROAD = Path(__file__).parent / "engines" / "road.py"
TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class PeerRan:
    """What one round of an engine came to."""

    seconds: float
    processor_s: float
    peak_bytes: int
    version: str
    outputs: list[list[int]]
    times: list[list[float]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.times))

    @property
    def first_s(self) -> float:
        return median(times[0] for times in self.times if times)

    @property
    def between_s(self) -> float:
        gaps = [(times[-1] - times[0]) / (len(times) - 1) for times in self.times if len(times) > 1]
        return median(gaps) if gaps else 0.0


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    # Environments are kept by their names: where they lie is of one machine.
    report = Report("peers", [Path(word).name if Path(word) in args.venv else word for word in argv])
    for name in args.workload:
        work = workload(name, args.shape, args.requests or DEFAULT_REQUESTS[args.shape].get(name, 1), args.seed)
        _compare(report, args, work)
    return report.finish(args.json)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench peers", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--venv", nargs="*", type=Path, default=[], help="virtual environments that have engines")
    parser.add_argument("--server", help="http://host:port of a server that serves the same checkpoint")
    parser.add_argument("--server-model", default="", help="its name there; default: the first that it lists")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["sharegpt"])
    parser.add_argument("--shape", choices=list(SHAPES), default="14m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--requests", type=int, help="default: what takes a minute or two on two cores")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    missing = [str(folder) for folder in args.venv if not (folder / "bin" / "python").exists()]
    if missing:
        parser.error(f"--venv: there is no bin/python in {', '.join(missing)}")
    if min(args.rounds, args.threads) < 1:
        parser.error("--rounds and --threads are 1 or more")
    return args


def _compare(report: Report, args: argparse.Namespace, work: Workload) -> None:
    title = f"{work.name}, {args.shape}, {args.dtype}, {args.threads} threads: {len(work.prompts)} requests at once"
    names = [*args.engines, *([SERVER] if args.server else [])]
    report.begins(f"{title}, {args.rounds} rounds of {', '.join(names)}", 60.0 * args.rounds * len(names) / 2)
    pythons = {name: sys.executable if name == SERVER else _python_with(name, args.venv) for name in names}
    for name in [name for name in names if pythons[name] is None]:
        report.note(f"{name} is skipped: none of the environments has {ENGINES[name][2]}")
    ran: dict[str, list[PeerRan]] = {}
    for number in range(args.rounds):
        for name in names:
            python = pythons[name]
            if python is None:
                continue
            found = run(name, python, _job(name, args, work))
            if isinstance(found, str):
                report.check(f"{name} runs", False, found)
                pythons[name] = None
                continue
            ran.setdefault(name, []).append(found)
            print(
                f"  {name}: {found.num_tokens / found.seconds:,.0f} output tokens/s in round {number + 1}", flush=True
            )
    _tell(report, title, work, ran)


def _python_with(name: str, venvs: Sequence[Path]) -> str | None:
    """The first Python that can import what the engine needs; Quire's own is this one."""
    package = ENGINES[name][2]
    for python in [*([] if name == "quire" else [str(venv / "bin" / "python") for venv in venvs]), sys.executable]:
        found = subprocess.run(
            [python, "-c", f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"],
            env=_environment(1, name), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        if found.returncode == 0:
            return python
    return None


def _environment(threads: int, name: str) -> dict[str, str]:
    """Of an engine's process: so many threads, and of Quire's files only its own engine sees any."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if name == "quire":
        kept["PYTHONPATH"] = str(Path(__file__).parents[2])
    return {**kept, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)), "HF_HUB_OFFLINE": "1"}


def _job(name: str, args: argparse.Namespace, work: Workload) -> dict[str, Any]:
    file, function, _ = ENGINES.get(name, ("of_server", "server", ""))
    warm = workload(work.name, args.shape, 1, args.seed + 1)
    prompts = [prompt for prompt in work.prompts for _ in range(work.n)]
    wanted = [count for count in work.max_tokens for _ in range(work.n)]
    return {
        "file": file,
        "function": function,
        "folder": str(folder_of(args.shape)),
        "dtype": args.dtype,
        "device": args.device,
        "threads": args.threads,
        "longest": 2048,
        "blocks": sum(-(-(len(prompt) + count) // 16) for prompt, count in zip(prompts, wanted, strict=True)),
        "server": args.server,
        "model": args.server_model,
        "warm": [warm.prompts, [min(8, count) for count in warm.max_tokens]],
        "prompts": prompts,
        "wanted": wanted,
    }


def run(name: str, python: str, job: Mapping[str, Any]) -> PeerRan | str:
    """One round in a new process; a text says what broke."""
    with tempfile.TemporaryDirectory(prefix="quire-peers-") as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(job))
        try:
            done = subprocess.run(
                [python, str(ROAD), str(asked), str(answered)],
                env=_environment(int(job["threads"]), name), capture_output=True, text=True, timeout=TIMEOUT_S,
                cwd=folder, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it was not done in {TIMEOUT_S} s"
        if not answered.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return f"it broke (exit {done.returncode}): {lines[-1] if lines else 'it said nothing'}"
        answer = json.loads(answered.read_text())
    return str(answer["missing"]) if "missing" in answer else PeerRan(**answer)


def _tell(report: Report, title: str, work: Workload, ran: Mapping[str, Sequence[PeerRan]]) -> None:
    reference = next(iter(ran.values()), [None])[0]
    rows: list[Row] = []
    wanted = [count for count in work.max_tokens for _ in range(work.n)]
    for name, rounds in ran.items():
        rates = [each.num_tokens / each.seconds for each in rounds]
        last = rounds[-1]
        agrees = None if reference is None or not any(last.outputs) else agreement(reference.outputs, last.outputs)
        rows.append(
            {
                "engine": name,
                "version": last.version,
                "output tokens/s": median(rates),
                "spread %": 100 * (max(rates) - min(rates)) / median(rates),
                "first token ms": 1e3 * median(each.first_s for each in rounds),
                "between tokens ms": 1e3 * median(each.between_s for each in rounds),
                # Of a server's process nothing is known here.
                "peak MiB": None if name == SERVER else max(each.peak_bytes for each in rounds) / 2**20,
                "processor s": None if name == SERVER else median(each.processor_s for each in rounds),
                "agreement %": None if agrees is None else 100 * agrees,
            }
        )
        whole = [len(times) for times in last.times] == wanted
        report.check(f"{name}: every request got its tokens", whole, f"{last.num_tokens} of {sum(wanted)}")
    report.table(title, rows)
    lines = [Line(name, *_cumulated(rounds[-1].times)) for name, rounds in ran.items()]
    report.plot(PagePlot(title, "seconds", "tokens that are there", lines))


def _cumulated(times: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """How many tokens are there by when, in at most 200 points."""
    stamps = sorted(stamp for each in times for stamp in each)
    step = max(1, len(stamps) // 200)
    counts = range(step, len(stamps) + 1, step)
    return [0.0, *(stamps[count - 1] for count in counts)], [0.0, *map(float, counts)]


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of tokens that agree, up to the first that does not in each sequence."""
    same = total = 0
    for own, other in zip(ours, theirs, strict=True):
        total += len(own)
        same += next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    return same / max(1, total)
