"""The GPU's options of `quire bench kernels`, and what they start. Importing this loads neither torch nor Triton.

`cluster.bench.kernels` adds these options to its own and calls `run` where there is a GPU, or for `--interpret`, which
goes through the same code on the twin and in Triton's interpreter on tiny batches: a rehearsal, not a measurement.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from cluster.bench.report import Report

if TYPE_CHECKING:
    import torch

SECTIONS = ("decode", "traffic", "balance", "prefill", "mixed", "graph", "around")
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
    device = open_device(rehearses=arguments.interpret)
    from cluster.bench import gpu_bench, gpu_kernels, gpu_tune
    from kernels.device.seam import device_of

    with device_of(device).may_wait():
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


def open_device(*, rehearses: bool) -> torch.device:
    """The GPU, or to rehearse without one the twin, with kernels in Triton's interpreter."""
    if rehearses and os.environ.get("TRITON_INTERPRET") != "1":
        if "triton" in sys.modules:
            raise RuntimeError(
                "without a GPU this must begin before Triton is imported; start the benchmark in a new process"
            )
        os.environ["TRITON_INTERPRET"] = "1"
    from kernels.device.seam import device_of, find_device

    device = find_device("twin@0" if rehearses else "cuda")
    device_of(device).bind()
    return device
