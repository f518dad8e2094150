"""Many histories on all cores: seeds handed out in runs, verdicts gathered, what they met counted.

`quire simulate --histories` and the tests call it. Each history depends on its seed alone, so it does not matter which
process runs it or in which order they come back.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cluster.sim.coverage import WANTED
from cluster.sim.history import History, Judgement
from cluster.sim.workload import draw_scenario

SEEDS_AT_ONCE = 8
"""Histories that a process takes at a time."""


@dataclass(slots=True)
class Summary:
    """What a campaign found."""

    num_histories: int = 0
    met: Counter[str] = field(default_factory=Counter)
    failures: list[Judgement] = field(default_factory=list)
    fewest_events: int = 1 << 30
    num_events: int = 0
    num_turns: int = 0
    virtual_s: float = 0.0
    wall_s: float = 0.0

    def add(self, verdict: Judgement) -> None:
        self.num_histories += 1
        self.num_events += verdict.num_events
        self.num_turns += verdict.num_turns
        self.virtual_s += verdict.virtual_s
        self.fewest_events = min(self.fewest_events, verdict.num_events)
        self.met.update({what: 1 for what, count in verdict.met.items() if count})
        if verdict.failure:
            self.failures.append(verdict)

    def share(self, what: str) -> float:
        return self.met[what] / max(1, self.num_histories)

    @property
    def missed(self) -> list[str]:
        """What too few histories met for the campaign to say much about it."""
        return [what for what in WANTED if self.share(what) < 0.05]


def run_seed(seed: int, with_faults: bool) -> Judgement:
    return History(draw_scenario(seed, with_faults)).run()


def _run_some(task: tuple[range, bool]) -> list[Judgement]:
    seeds, with_faults = task
    return [run_seed(seed, with_faults) for seed in seeds]


def run_campaign(
    first_seed: int,
    num_histories: int,
    with_faults: bool,
    jobs: int,
    on_progress: Callable[[Summary], bool] = lambda summary: True,
) -> Summary:
    """Runs the histories of consecutive seeds. `on_progress` is called now and then; False from it ends the run."""
    summary = Summary()
    began = time.perf_counter()
    end = first_seed + num_histories
    tasks = [
        (range(seed, min(seed + SEEDS_AT_ONCE, end)), with_faults) for seed in range(first_seed, end, SEEDS_AT_ONCE)
    ]
    for verdicts in _spread(tasks, jobs):
        for verdict in verdicts:
            summary.add(verdict)
        summary.wall_s = time.perf_counter() - began
        if not on_progress(summary):
            break
    summary.failures.sort(key=lambda verdict: verdict.seed)
    return summary


def _spread(tasks: list[tuple[range, bool]], jobs: int) -> Iterator[list[Judgement]]:
    if jobs == 1 or len(tasks) == 1:
        yield from map(_run_some, tasks)
        return
    # A fork would copy the locks of whatever threads the caller has; a spawned process starts clean.
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
        yield from pool.imap_unordered(_run_some, tasks)
