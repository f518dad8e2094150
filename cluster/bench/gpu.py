"""`quire bench gpu`: all that can be measured on the GPU at hand, in slices that each end within four minutes.

One command, no options needed. Each slice runs in a process of its own and writes its results as they come, to
gpu-NAME-SLICE.json beside the summary; one that fails or takes too long ends alone. Named slices (`--slice`) run here,
one after the other. `--rehearse` runs the same code on the twin with tiny shapes and kernels in Triton's interpreter:
the figures mean nothing. It needs neither Ray nor a network.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from cluster.bench.gpu_command import open_device
from cluster.bench.gpu_slices import SLICES, Scale
from cluster.bench.report import BenchHelp, Report, Row

LIMIT_S = 240.0
# What a slice begins nothing new in, so that what it has begun ends in time.
SPARE_S = 60.0
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(argv: list[str]) -> int:
    """Runs the benchmark; 1 if a check failed, a slice did not end or there is no GPU."""
    args = _arguments(argv)
    if args.host:
        from cluster.bench.gpu_host import host_steps

        report = Report("gpu", argv)
        host_steps(report, list(args.batches or BATCHES))
        return report.finish(args.json)
    if not args.rehearse:
        from kernels.device.seam import device_of, find_device

        facts = device_of(find_device("auto")).facts()
        if facts.family == "interpreter":
            report = Report("gpu", argv)
            report.check("a GPU", False, "torch sees none; --rehearse runs the same code without one")
            return report.finish(args.json)
    name = "rehearsal" if args.rehearse else re.sub(r"[^a-z0-9]+", "-", facts.name.lower()).strip("-")
    summary = Path(args.json or f"gpu-{name}.json")
    return _here(args, argv, summary) if args.slice else _apart(args, argv, summary)


def _here(args: argparse.Namespace, argv: list[str], summary: Path) -> int:
    device = open_device(rehearses=args.rehearse)
    scale = Scale.rehearsal(device, args.batches) if args.rehearse else Scale.full(device, args.batches or BATCHES)
    codes = []
    for name in args.slice:
        # The interpreter's rows take seconds: one of each kind is enough.
        limit_s = 0.0 if args.rehearse else max(1.0, args.limit - SPARE_S)
        report = Report("gpu", argv, path=_file_of(summary, name), limit_s=limit_s)
        report.begins(f"{name}: {SLICES[name].what}", args.limit)
        SLICES[name].run(report, scale)
        codes.append(report.finish())
    return max(codes)


def _apart(args: argparse.Namespace, argv: list[str], summary: Path) -> int:
    """All slices, each in a process of its own."""
    report = Report("gpu", argv, path=summary)
    report.begins(f"{len(SLICES)} slices", args.limit * len(SLICES))
    for name in SLICES:
        command = [sys.executable, "-m", "cluster.bench", "gpu", *argv, "--slice", name, "--json", str(summary)]
        try:
            code = subprocess.run(command, timeout=args.limit, check=False, env=dict(os.environ)).returncode
            what = "ended" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            code, what = 1, f"was ended after {args.limit:g} s; its file has what it found until then"
        report.check(name, code == 0, what)
        row: Row = {"slice": name, "came to its end": code == 0, "file": _file_of(summary, name).name}
        report.row("slices", row)
    return report.finish()


def _file_of(summary: Path, name: str) -> Path:
    return summary.with_name(f"{summary.stem}-{name}.json")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire bench gpu", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--slice", nargs="+", choices=list(SLICES), help="only these, in this process")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="seconds of a slice (default 240)")
    parser.add_argument("--batches", nargs="+", type=int, help="of decode steps (default 1 to 256)")
    parser.add_argument("--rehearse", action="store_true", help="on the twin with tiny shapes: figures mean nothing")
    parser.add_argument("--host", action="store_true", help="only what the host does in a step, on any machine")
    parser.add_argument("--json", help="of the summary; default: gpu-NAME.json here, named after the GPU")
    args = parser.parse_args(argv)
    if min(args.batches or BATCHES) < 1:
        parser.error(f"--batches has {min(args.batches)}; give 1 or more")
    return args
