"""`quire bench paper`: experiments of the PagedAttention paper (SOSP 2023) again, on this code.

    memory    the share of KV memory that holds tokens, and requests at once: reserved for the longest, to the next
              power of two, by an oracle (each one contiguous run, by a buddy allocator), and in pages of 1 to 256
    sharing   blocks saved by parallel sampling, by beams, and by a history that grows, in the engine while it runs
    load      request rate against normalised latency under the three reservations and in pages: OPT-13B, 66B and 175B
              on A100s simulated, with shared prefixes and chat as well
    engine    the same with the real engine and a small model on this processor
    kernel    attention over pages beside attention over one run, by page size; the same for single short sequences
    swap      swapping against recomputing by page size, simulated

A row has the paper's figure beside ours. Lengths are log-normal with the public means of ShareGPT and Alpaca.
`--quick` is a few minutes of everything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cluster.bench.report import RawHelp, Report

PARTS = ("memory", "sharing", "load", "engine", "kernel", "swap")
# Seconds that a part takes on two quiet cores; quick ones behind.
ABOUT_S = {
    "memory": (20, 20),
    "sharing": (150, 50),
    "load": (420, 30),
    "engine": (240, 60),
    "kernel": (90, 25),
    "swap": (150, 30),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench paper", description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--requests", type=int, default=1500, help="of the memory part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("paper", argv)
    for name in arguments.parts:
        report.begins(name, ABOUT_S[name][arguments.quick])
        _part(name, arguments.requests)(report, arguments.seed, arguments.quick)
    return report.finish(arguments.json)


def _part(name: str, requests: int) -> Callable[[Report, int, bool], object]:
    """The part of this name. Each is imported when it runs: some need torch, and some do not."""
    if name == "memory":
        from cluster.bench.paper_memory import memory

        return lambda report, seed, quick: memory(report, seed, requests)
    if name == "sharing":
        from cluster.bench.paper_sharing import sharing

        return sharing
    if name == "load":
        from cluster.bench.paper_load import load

        return load
    if name == "engine":
        from cluster.bench.paper_engine import engine

        return engine
    from cluster.bench import paper_kernel

    return paper_kernel.kernel if name == "kernel" else paper_kernel.swap
