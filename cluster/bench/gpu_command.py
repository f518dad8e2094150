"""The GPU's options of `quire bench kernels`, and what they start. Importing this loads neither torch nor Triton.

`cluster.bench.kernels` adds these options to its own and calls `run` where there is a GPU, or for `--interpret`, which
goes through the same code in Triton's interpreter on tiny batches: a rehearsal, not a measurement.
"""

from __future__ import annotations

import argparse
import os
import sys

from cluster.bench.report import Report

SECTIONS = ("decode", "balance", "prefill", "graph", "around")
PEERS = ("sdpa", "gather+sdpa", "varlen", "flex", "flashinfer", "flash-attn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a GPU")
    group.add_argument(
        "--interpret", action="store_true", help="rehearse without a GPU: tiny batches, figures mean nothing"
    )
    group.add_argument("--trace", action="store_true", help="also show where the time goes, kernel by kernel")
    group.add_argument("--tune", action="store_true", help="search tiles, warps and stages for this device instead")
    group.add_argument("--section", action="append", choices=SECTIONS, default=[], help="only these (may be repeated)")
    group.add_argument(
        "--shape", action="append", default=[], metavar="NAME", help="only these head shapes: llama-8b, ..."
    )
    group.add_argument("--peer", action="append", choices=PEERS, default=[], help="only these peers (may be repeated)")
    group.add_argument("--no-peers", action="store_true", help="our kernels alone")
    group.add_argument("--budget", type=float, default=0.4, metavar="S", help="seconds per candidate (default 0.4)")


def run(report: Report, arguments: argparse.Namespace, seed: int) -> None:
    """Runs what the options ask for, on the GPU or in the interpreter."""
    if arguments.interpret:
        if "triton" in sys.modules:
            raise RuntimeError(
                "--interpret must be set before Triton is imported; start the benchmark in a new process"
            )
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from cluster.bench import gpu_bench, gpu_kernels, gpu_tune

    device = torch.device("cpu" if arguments.interpret else "cuda")
    bench = gpu_bench.open_bench(
        report,
        device,
        peers=[] if arguments.no_peers else arguments.peer or list(PEERS),
        shapes=arguments.shape,
        budget_s=arguments.budget,
        seed=seed,
    )
    if arguments.tune:
        gpu_tune.tune_all(bench)
    else:
        gpu_kernels.run(bench, sections=arguments.section or list(SECTIONS), with_trace=arguments.trace)
