"""Storms: far more is asked than fits, for a long time, and what that costs beside memory that swaps for nothing.

A closed loop of clients keeps `demand` times the device pools asked for. The same site is run with its own roads and
with roads that take no time: goodput is what remains of the second one's tokens. A storm can come with a host pool that
is too small, or one that dies on the way. `quire bench storms` prints it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from cluster.messages import HostPoolLost
from cluster.settings import PreemptionName, SchedulerSettings
from cluster.sim.capacity import Capacity, CapacityOutcome, PaperSite
from cluster.sim.costs import Machine, machine
from cluster.sim.load import ArrivingLoad
from cluster.sim.traces import TRACES, Trace

# Host pools, in device pools.
PLENTY, SCARCE = 20.0, 0.25


@dataclass(frozen=True, slots=True)
class Storm:
    """`pool_bytes` of each of `num_workers` workers; `host` is the host pool in device pools of one worker."""

    name: str
    trace: str = "sharegpt"
    num_workers: int = 2
    pool_bytes: float = 3e9
    demand: float = 4.0
    host: float = PLENTY
    preemption: PreemptionName = "cheapest"
    pool_dies: bool = False


STORMS = (
    Storm("long answers"),
    Storm("long prompts", trace="azure-conv", pool_bytes=6e9),
    Storm("always swapped", preemption="swap"),
    Storm("always recomputed", preemption="recompute"),
    Storm("host pool full", host=SCARCE, preemption="swap"),
    Storm("host pool dies", preemption="swap", pool_dies=True),
)


@dataclass(frozen=True, slots=True)
class Weathered:
    """A storm and the same without any cost of preemption."""

    storm: Storm
    outcome: CapacityOutcome
    free: CapacityOutcome

    @property
    def goodput(self) -> float:
        return self.outcome.num_tokens / self.free.num_tokens

    @property
    def median_preemptions(self) -> float:
        return median(self.outcome.preemptions)

    @property
    def longest_pause_s(self) -> float:
        """The longest time for which any stream stood still."""
        return self.outcome.gaps.between.longest_s


def weather(storm: Storm, seconds: float, seed: int = 1) -> Weathered:
    """Runs the storm for so many simulated seconds, and its counterpart."""
    short = machine("h100", "8b", 16, kv_bytes=storm.pool_bytes)
    costless = replace(short, host_bytes_per_s=1e15, network_bytes_per_s=1e15, swap_share=0.0)
    free = _capacity(replace(storm, preemption="swap", host=PLENTY, pool_dies=False), costless, seconds, seed).run()
    capacity = _capacity(storm, short, seconds, seed)
    if storm.pool_dies:
        capacity.happen(0.5 * seconds, _pool_dies)
        capacity.happen(0.6 * seconds, lambda run: run.tell(run.host_pool(0, 2)))
    outcome = capacity.run()
    capacity.scheduler.check()
    return Weathered(storm, outcome, free)


def _pool_dies(capacity: Capacity) -> None:
    capacity.fleet.lose_pool("h0", capacity.now)
    capacity.tell(HostPoolLost("h0", 1, "its process died"))


def _capacity(storm: Storm, host: Machine, seconds: float, seed: int) -> Capacity:
    trace = TRACES[storm.trace]
    pools = storm.num_workers * host.num_blocks * host.block_size
    load = ArrivingLoad(
        trace,
        1.0,
        min(8192, host.num_blocks * host.block_size // 2),
        seed,
        clients=math.ceil(storm.demand * pools / _mean_tokens(trace)),
    )
    site = PaperSite(storm.num_workers, host, token_budget=2048, host_blocks=int(storm.host * host.num_blocks))
    settings = SchedulerSettings(preemption=storm.preemption, swap_share=host.swap_share)
    return Capacity(site, load, settings, until_s=seconds)


def _mean_tokens(trace: Trace) -> float:
    """What a request of this trace holds when it ends."""
    return sum(math.exp(mu + sigma * sigma / 2) for mu, sigma in (trace.prompt, trace.output))
