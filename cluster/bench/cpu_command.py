"""The CPU's options of `quire bench kernels`, and what they start. Importing this loads no torch.

`cluster.bench.kernels` adds these options to those of the GPU; `--section`, `--shape`, `--peer`, `--no-peers`,
`--budget` and `--trace` are understood by both.
"""

from __future__ import annotations

import argparse

from cluster.bench.report import Report

# Of the GPU's sections those that mean something here.
SECTIONS = ("decode", "balance", "prefill", "around")
DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a CPU")
    group.add_argument("--quick", action="store_true", help="only what the targets are about")
    group.add_argument("--threads", type=int, default=2, metavar="N", help="threads of torch and ours (default 2)")
    group.add_argument(
        "--dtype", action="append", choices=DTYPES, default=[], help="of keys and values (may be repeated)"
    )
    group.add_argument("--long", action="store_true", help="unequal lengths as on a GPU: 1 x 128K and 31 x 4K")


def run(report: Report, arguments: argparse.Namespace, seed: int) -> None:
    """Runs what the options ask for, on the CPU."""
    import torch

    from cluster.bench import cpu_kernels

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(seed)
    sections = [name for name in arguments.section or SECTIONS if name in SECTIONS]
    bench = cpu_kernels.CpuBench(
        report=report,
        dtypes=[getattr(torch, name) for name in arguments.dtype or ("float32", "bfloat16")],
        shapes=arguments.shape,
        peers=not arguments.no_peers,
        budget_s=arguments.budget,
        seed=seed,
    )
    cpu_kernels.run(bench, sections=sections, quick=arguments.quick, long=arguments.long, trace=arguments.trace)
