"""Finds tiles, warps and stages for a device: what `quire bench kernels --tune` prints to be written into the table.

Tries the cuts that fit the device on a few batches each, first tiles, warps and stages, then how many programs share a
multiprocessor and how edges are computed, and checks each one against the reference. Serving never tunes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

from cluster.bench.gpu_batches import (
    GEMMA3_12B,
    LLAMA_1B,
    LLAMA_8B,
    Built,
    GpuWorkload,
    LayerHeads,
    decodes,
    worst_error,
)
from cluster.bench.gpu_bench import GpuBench
from cluster.bench.gpu_kernels import LONG, SHORT
from cluster.bench.report import Cell
from kernels.gpu.backend import TritonBackend
from kernels.gpu.choices import Choice, DeviceFacts, Schedule, choose, device_facts
from kernels.gpu.step import padded

SCHEDULES: tuple[Schedule, ...] = ("flat", "parts")
FLAT_BATCHES = (
    decodes("32 x 4K", [SHORT] * 32),
    decodes("256 x 512", [512] * 256),
    decodes("1 x 128K + 31 x 4K", [LONG] + [SHORT] * 31),
)
PART_BATCHES = (
    GpuWorkload("1 x 8K", (8192,), (8192,)),
    GpuWorkload("16 x 512", (512,) * 16, (512,) * 16),
    GpuWorkload("2K of 32K", (2048,), (32768,)),
)


def candidates(schedule: Schedule, start: Choice) -> list[Choice]:
    """Cuts around the table's."""
    if schedule == "flat":
        cuts = itertools.product((16,), (32, 64, 128), (4, 8), (2, 3, 4, 5))
    else:
        cuts = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    found = [replace(start, rows=rows, tile=tile, warps=warps, stages=stages) for rows, tile, warps, stages in cuts]
    return [start, *(choice for choice in found if choice != start)]


def variations(schedule: Schedule, best: Choice) -> list[Choice]:
    """What is tried on the best of the cuts."""
    programs = (1, 2, 3, 4) if schedule == "flat" else (1, 2)
    found = [replace(best, programs_per_sm=number, split_edges=edges) for number in programs for edges in (True, False)]
    return [best, *(choice for choice in found if choice != best)]


def tune_all(bench: GpuBench) -> None:
    """One head shape per head size, both schedules."""
    for shape in bench.of((LLAMA_1B, LLAMA_8B, GEMMA3_12B)):
        for schedule in SCHEDULES:
            tune(bench, shape, schedule)


def tune(bench: GpuBench, shape: LayerHeads, schedule: Schedule) -> Choice:
    """The best choice found; prints how it and the runners-up compare with the table's row."""
    facts = device_facts(bench.device)
    start = choose(facts, schedule, padded(shape.dim), bench.dtype.itemsize)
    built = [bench.build(shape, workload) for workload in (FLAT_BATCHES if schedule == "flat" else PART_BATCHES)]
    few = slice(0, 2 if bench.tiny else None)
    first = measured(bench, facts, schedule, candidates(schedule, start)[few], built)
    base = first[start]
    best = min(first, key=lambda choice: mean(first[choice]))
    second = measured(bench, facts, schedule, variations(schedule, best)[few], built)
    # What was measured twice keeps its first figure: the table's own is what all are compared with.
    times = second | first
    order = sorted(times, key=lambda choice: mean(times[choice]))
    rows: list[dict[str, Cell]] = []
    for choice in dict.fromkeys([*order[:8], start]):
        row: dict[str, Cell] = {"choice": describe(choice), "time over the table's": mean(times[choice]) / mean(base)}
        row |= {of.workload.name + " us": took * 1e6 for of, took in zip(built, times[choice], strict=True)}
        rows.append(row)
    bench.report.table(f"tuning {facts.family}, {schedule}, {shape.name}", rows)
    key = f'("{facts.family}", "{schedule}", {padded(shape.dim)}, {bench.dtype.itemsize})'
    bench.report.note(f"for the table: {key}: Choice({describe(order[0])})")
    return order[0]


def describe(choice: Choice) -> str:
    """As it is written in the table, without what is left at its default."""
    default = Choice(0, 0, 0, 0, 0)
    fields = {name: value for name, value in vars(choice).items() if value != getattr(default, name)}
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def mean(times: list[float]) -> float:
    """Geometric, so that no batch counts more for taking longer."""
    return math.exp(sum(math.log(max(took, 1e-9)) for took in times) / len(times))


def measured(
    bench: GpuBench, facts: DeviceFacts, schedule: Schedule, choices: Iterable[Choice], batches: list[Built]
) -> dict[Choice, list[float]]:
    """Seconds on each batch, of the choices that fit the device. One that computes something else fails the run."""
    found: dict[Choice, list[float]] = {}
    for choice in choices:
        backend = TritonBackend(bench.device, facts=replace(facts, fixed=((schedule, choice),)))
        times = []
        try:
            for built in batches:
                work = bench.ours(built, backend)
                error = worst_error(built, work(), rows=4, sequences=2)  # type: ignore[arg-type]
                bench.report.check(
                    f"{schedule} {describe(choice)}, {built.workload.name}", error <= 1.0, f"{error:.2f}"
                )
                times.append(bench.clock.seconds(work))
        except Exception as error_of_choice:  # too much shared memory, or a shape the compiler refuses
            reason = str(error_of_choice).splitlines()[0][:100] if str(error_of_choice) else ""
            bench.report.note(f"{describe(choice)}: {type(error_of_choice).__name__} {reason}")
            continue
        found[choice] = times
    return found
