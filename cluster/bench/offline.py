"""`quire bench offline`: one workload through the engine and through transformers' two ways, in one run.

Same checkpoint, dtype, threads and requests. It prints output tokens per second, first-token and inter-token times,
memory, agreement of tokens and ratios, then where a step of ours goes. Correctness is checked on what is timed: greedy
tokens in float32 must be those of `generate`, one prompt at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cluster.bench.offline_engines import Engine, Ours, Outcome, Transformers, measured
from cluster.bench.offline_gpu import decode_batches
from cluster.bench.offline_limits import MachineLimits, limits
from cluster.bench.offline_models import DEFAULT_REQUESTS, SHAPES, WORKLOADS, Workload, folder_of, workload
from cluster.bench.offline_step import breakdown, prefix_cost, step_cost
from cluster.bench.peers import agreement
from cluster.bench.report import BenchHelp, Report, Row

ENGINES = ("quire", "static", "continuous")
CHECKED, CHECKED_TOKENS = 3, 24


def main(argv: list[str]) -> int:
    """Runs the benchmark; 1 if a check failed."""
    args = _arguments(argv)
    report = Report("offline", argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    for dtype in args.dtype:
        for name in args.workload:
            report.begins(f"workload {name} in {dtype}, beside other engines where they are installed", 120)
            _run(report, args, name, dtype)
        if args.device == "cpu":
            _steps(report, args, dtype)
        if args.batches:
            title = f"decode steps, {args.shape}, {dtype}, {args.device}"
            settings = {"dtype": dtype, "device": args.device}
            decode_batches(report, folder_of(args.shape), title, args.batches, args.prompt, **settings)
    return report.finish(args.json)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench offline", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--workload", nargs="*", choices=WORKLOADS, default=["sharegpt"])
    parser.add_argument("--device", default="cpu", help='"cuda" on a GPU, with --shape 1b or 8b and --dtype bfloat16')
    parser.add_argument("--batches", nargs="+", type=int, help="decode steps at these batches beside transformers")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt for --batches")
    parser.add_argument("--shape", choices=list(SHAPES), default="14m")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--requests", type=int, help="default: what takes a minute or two on two cores")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batch", type=int, default=32, help="batch of the step that is taken apart")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    if args.requests is not None and args.requests < 1:
        parser.error(f"--requests is {args.requests}; give 1 or more")
    return args


def _run(report: Report, args: argparse.Namespace, name: str, dtype: str) -> None:
    count = args.requests or DEFAULT_REQUESTS[args.shape].get(name, 1)
    work = workload(name, args.shape, count, args.seed)
    folder = folder_of(args.shape)
    title = (
        f"{name}, {args.shape}, {dtype}: {len(work.prompts)} requests, {work.num_prompt:,} + {work.num_output:,} tokens"
    )
    outcomes: dict[str, Outcome] = {}
    for engine in args.engines:

        def make(engine: str = engine) -> Engine:
            if engine == "quire":
                made: Engine = Ours(folder, dtype, device=args.device)
            else:
                made = getattr(Transformers(folder, dtype, args.device), engine)
            # Kernels are compiled and threads are up before anything is timed.
            made(workload(name, args.shape, 1, args.seed + 1))
            return made

        outcomes[engine] = measured(make, work)
        # At once: whoever stops the run later has what was measured.
        print(f"{title}: {_rate(work, engine, outcomes[engine])}", flush=True)
    report.table(title, _rows(work, outcomes))
    _check(report, work, outcomes, folder_of(args.shape), dtype, title)


def _rate(work: Workload, engine: str, outcome: Outcome) -> str:
    """The line of an engine that is done."""
    return (
        f"{engine} {work.num_output / outcome.seconds:,.1f} output tokens/s,"
        f" first token {outcome.first_token_s * 1e3:,.1f} ms, inter-token {outcome.inter_token_s * 1e3:,.2f} ms,"
        f" peak {outcome.peak_bytes / 2**20:,.0f} MiB, processor {outcome.processor_s:,.1f} s"
    )


def _rows(work: Workload, outcomes: dict[str, Outcome]) -> list[Row]:
    theirs = [(outcome.seconds, outcome.processor_s) for name, outcome in outcomes.items() if name != "quire"]
    rows: list[Row] = []
    ours = outcomes.get("quire")
    for name, outcome in outcomes.items():
        rows.append(
            {
                "engine": name if name == "quire" else f"transformers {name}",
                "output tokens/s": work.num_output / outcome.seconds,
                "first token ms": outcome.first_token_s * 1e3,
                "inter-token ms": outcome.inter_token_s * 1e3,
                "peak MiB": outcome.peak_bytes / 2**20,
                "agreement %": None if ours is None else 100 * agreement(ours.outputs, outcome.outputs),
                "processor s": outcome.processor_s,
                "ratio to the better of transformers": min(theirs)[0] / outcome.seconds if theirs else None,
                # On a machine that is busy with other things this is the one to look at.
                "by processor time": min(theirs)[1] / outcome.processor_s if theirs else None,
            }
        )
    return rows


def _check(report: Report, work: Workload, outcomes: dict[str, Outcome], folder: Path, dtype: str, title: str) -> None:
    ours = outcomes.get("quire")
    if ours is None:
        return
    wanted = [count for count in work.max_tokens for _ in range(work.n)]
    whole = [len(output) for output in ours.outputs] == wanted
    report.check(f"every request got its tokens ({title})", whole, f"{sum(map(len, ours.outputs))} of {sum(wanted)}")
    if dtype != "float32":
        return
    model = Transformers(folder, dtype)
    shortest = sorted(range(len(work.prompts)), key=lambda i: len(work.prompts[i]))[:CHECKED]
    for i in shortest:
        count = min(CHECKED_TOKENS, work.max_tokens[i])
        alone = model.static(Workload("check", [work.prompts[i]], [count]))
        found = list(ours.outputs[i * work.n][:count])
        detail = f"{found} instead of {alone.outputs[0]}"
        report.check(f"prompt {i} alone in generate says the same ({title})", found == alone.outputs[0], detail)


def _steps(report: Report, args: argparse.Namespace, dtype: str) -> None:
    if "quire" not in args.engines:
        return
    folder = folder_of(args.shape)
    llm = Ours(folder, dtype, max_batch=max(64, args.batch)).llm
    machine = MachineLimits(llm) if llm._worker.parts.model.picks else None
    for batch, draws in ((args.batch, False), (args.batch, True), (1, False)):
        kind = "top-p and top-k" if draws else "greedy"
        rows = breakdown(llm, args.shape, batch, draws=draws)
        decodes = "decode" if batch == 1 else "decodes"
        report.table(f"a step of {batch} {decodes}, {args.shape}, {dtype}, {kind}", rows)
        if machine is not None and not draws:
            found = limits(machine, llm, rows, batch)
            report.table(f"against the machine, {batch} {decodes}, {args.shape}, {dtype}", found)
    report.table(f"a step by its tokens, {args.shape}, {dtype}", [step_cost(llm, args.shape)])
    cost = prefix_cost(lambda caches: Ours(folder, dtype, prefix_caching=caches), args.shape)
    report.table(f"prefix caching where nothing is shared, {args.shape}, {dtype}", cost)
