"""Where swapping wins and where recomputing does: the same short memory under each policy, over lengths, blocks, roads.

A cell is a prompt length, a block size and a road to host memory. In each, a closed loop of clients asks more than the
pool holds, so that requests are preempted all the time; what a policy costs is the time that a token takes.
The scheduler's cost model is to be as good as the better of the two fixed policies everywhere. `quire bench choice`
prints and plots it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from cluster.settings import PreemptionName, SchedulerSettings
from cluster.sim.capacity import Capacity, PaperSite
from cluster.sim.costs import copy_rate, machine
from cluster.sim.load import ArrivingLoad
from cluster.sim.traces import TRACES

PROMPTS = (64, 256, 1024, 4096)
BLOCK_SIZES = (1, 16, 64, 256)
ROADS = (1e9, 4e9, 16e9, 50e9)
POLICIES: tuple[PreemptionName, ...] = ("cheapest", "swap", "recompute")
# Of a swap's time the steps lose so much: a road that shares memory bandwidth with them, as on a CPU.
SWAP_SHARE = 0.5
# Requests that the pool holds, and that are open all the time.
HELD, CLIENTS = 32, 96
SECONDS = 60.0
MEAN_OUTPUT, LONGEST_OUTPUT = 338, 1024


@dataclass(frozen=True, slots=True)
class Cell:
    prompt: int
    block_size: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds for each output token, by policy, and how often requests were preempted under `cheapest`."""

    cell: Cell
    token_s: dict[PreemptionName, float]
    preempted: int
    swapped: int

    @property
    def ratio(self) -> float:
        """The cost model's time beside that of the better fixed policy."""
        return self.token_s["cheapest"] / min(self.token_s["swap"], self.token_s["recompute"])


def cells(
    prompts: Iterable[int] = PROMPTS, block_sizes: Iterable[int] = BLOCK_SIZES, roads: Iterable[float] = ROADS
) -> Iterator[Cell]:
    yield from (Cell(*each) for each in product(prompts, block_sizes, roads))


def measure(cell: Cell, seed: int = 1, seconds: float = SECONDS) -> Measured:
    """One cell under all three policies."""
    plain = machine("h100", "8b", cell.block_size)
    held = HELD * -(-(cell.prompt + MEAN_OUTPUT) // cell.block_size)
    longest = -(-(cell.prompt + LONGEST_OUTPUT) // cell.block_size)
    host = replace(
        plain,
        num_blocks=max(held, longest),
        host_bytes_per_s=copy_rate(cell.bytes_per_s, plain.block_bytes),
        swap_share=SWAP_SHARE,
    )
    site = PaperSite(1, host, max_batch=128, token_budget=2048, host_blocks=8 * host.num_blocks, turn_s=0.002)
    load = ArrivingLoad(TRACES["sharegpt"], 1.0, 2 * LONGEST_OUTPUT, seed, prompt=cell.prompt, clients=CLIENTS)
    token_s: dict[PreemptionName, float] = {}
    counters = None
    for policy in POLICIES:
        settings = SchedulerSettings(preemption=policy, swap_share=SWAP_SHARE)
        outcome = Capacity(site, load, settings, until_s=seconds).run()
        token_s[policy] = outcome.seconds / outcome.num_tokens
        counters = counters if counters is not None else outcome.counters
    assert counters is not None
    swapped = counters["preempted swap"]
    return Measured(cell, token_s, swapped + counters["preempted recompute"], swapped)
