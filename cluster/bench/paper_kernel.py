"""What pages cost the kernel, whether swapping or recomputing is cheaper, by page size; where paging does not shine.

Kernels are timed here, in alternating rounds, on this processor's backend: the same one over shuffled pages and over
one run, and torch's attention over contiguous keys. Swapping and recomputing are simulated with the scheduler's own
rules.
"""

from __future__ import annotations

import torch

from cluster.bench.cpu_kernels import ANCHOR, CPU, SMALL, CpuBench, laid_out, ours
from cluster.bench.cpu_peers import grouped_sdpa
from cluster.bench.gpu_batches import GpuWorkload, build, decodes
from cluster.bench.page import Line, PagePlot
from cluster.bench.report import Report
from cluster.sim.choice import Cell, measure

PAGES = (1, 8, 16, 32, 64, 128, 256)
SWAP_PAGES = (1, 4, 16, 64, 256)
# A road to host memory as PCIe 4 has it on the paper's A100.
ROAD, PROMPT = 24e9, 256
PAPER_KERNEL = "20-26"
LONE = (decodes("one of 15", [15]), decodes("one of 100", [100]), decodes("one of 1,000", [1000]))


def kernel(report: Report, seed: int, quick: bool) -> None:
    bench = CpuBench(report, [torch.float32], [], True, 0.5 if quick else 2.0, seed)
    title = "Decode attention, 32 x 512, fp32: pages, shuffled, beside one run"
    print(title, flush=True)
    pages = PAGES[::2] if quick else PAGES
    costs = [_beside(bench, title, ANCHOR, page) for page in pages]
    report.plot(
        PagePlot("Attention over pages beside one run", "slots of a page", "times", [Line("", pages, costs)], True)
    )
    title = "A lone sequence: pages of 16, shuffled, beside one run"
    print(title, flush=True)
    for workload in LONE:
        _beside(bench, title, workload, 16)


def _beside(bench: CpuBench, title: str, workload: GpuWorkload, page: int) -> float:
    built = build(SMALL, workload, block_size=page, dtype=torch.float32, device=CPU)
    paged, run = (ours(bench, laid_out(bench, built, shuffled=shuffled)) for shuffled in (True, False))
    torchs = grouped_sdpa(built)
    error = float((paged() - torchs()).abs().max())
    bench.report.check(f"{workload.name}, pages of {page}: torch says the same", error < 1e-4, f"{error:.1e}")
    took = bench.times({"paged": paged, "run": run, "torch": torchs})
    longest = max(workload.contexts)
    bench.report.row(
        title,
        {
            "batch": workload.name,
            "page": page,
            "us": 1e6 * took["paged"],
            "times one run": took["paged"] / took["run"],
            "times torch's contiguous attention": took["paged"] / took["torch"],
            "slots empty in last pages %": 100 * (1 - longest / (-(-longest // page) * page)),
            "paper, % over": PAPER_KERNEL if page == 16 and workload is ANCHOR else None,
        },
    )
    return took["paged"] / took["run"]


def swap(report: Report, seed: int, quick: bool) -> None:
    title = f"Preempted all the time, prompts of {PROMPT}, {ROAD / 1e9:g} GB/s to the host: us a token (simulated)"
    print(title, flush=True)
    pages = SWAP_PAGES[::2] if quick else SWAP_PAGES
    found = []
    for page in pages:
        measured = measure(Cell(PROMPT, page, ROAD), seed, 10.0 if quick else 30.0)
        took = {str(name): 1e6 * seconds for name, seconds in measured.token_s.items()}
        report.row(title, {"page": page, **took, "swap / recompute": took["swap"] / took["recompute"]})
        found.append(took)
    report.check(
        "recomputing is better at the smallest pages than at the largest, beside swapping",
        found[0]["swap"] / found[0]["recompute"] >= found[-1]["swap"] / found[-1]["recompute"],
    )
    lines = [Line(name, pages, [took[name] for took in found]) for name in ("swap", "recompute", "cheapest")]
    report.plot(PagePlot("Swapping and recomputing", "slots of a page", "us an output token", lines, True))
