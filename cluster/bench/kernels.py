"""`quire bench kernels`: the kernels of this machine's device beside their peers, checked against the reference.

On a GPU the Triton kernels are timed (`gpu_*` files), elsewhere the CPU's (`cpu_*` files); `--device cpu` times the
CPU's on a machine that has both. Needs torch and what the kernels need, no Ray and no running cluster.
"""

from __future__ import annotations

import argparse
import random

from cluster.bench import cpu_command, gpu_command
from cluster.bench.report import BenchHelp, Report


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="quire bench kernels", description=__doc__.splitlines()[0], formatter_class=BenchHelp
    )
    parser.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto", help="what to time (default auto)")
    parser.add_argument("--json", metavar="FILE", help="also write command, versions, machine, date and rows here")
    parser.add_argument("--seed", type=int, default=None, help="seed of what is drawn at random; printed")
    gpu_command.add_arguments(parser)
    cpu_command.add_arguments(parser)
    arguments = parser.parse_args(argv)
    seed = random.randrange(1 << 31) if arguments.seed is None else arguments.seed
    on_gpu = arguments.interpret or arguments.device == "gpu"
    if arguments.device == "auto" and not on_gpu:
        from kernels.device.seam import device_of, find_device

        on_gpu = device_of(find_device("auto")).is_apart
    report = Report("kernels", argv)
    report.note(f"seed {seed}")
    report.begins(f"kernels on the {'GPU' if on_gpu else 'CPU'}, each beside its peers", 600)
    try:
        (gpu_command if on_gpu else cpu_command).run(report, arguments, seed)
    except ValueError as error:
        parser.error(str(error))
    return report.finish(arguments.json)
