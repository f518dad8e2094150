"""What a campaign of histories found, in lines for people: figures, what was met, failures made small.

`quire simulate --histories` and the tests print it. It runs a failing history again to make it small; the seed alone is
enough to do the same anywhere.
"""

from __future__ import annotations

from cluster.sim.campaign import Summary
from cluster.sim.coverage import WANTED
from cluster.sim.history import History, Judgement
from cluster.sim.minimise import minimise
from cluster.sim.story import Story
from cluster.sim.workload import draw_scenario


def figures(summary: Summary) -> list[str]:
    """How much was run, and how many of the histories met each rare thing."""
    count = max(1, summary.num_histories)
    lines = [
        f"{summary.num_histories:,} histories in {summary.wall_s:.1f} s, {summary.virtual_s:,.0f} s of virtual time",
        f"{summary.num_events / count:,.0f} events each at the scheduler (fewest {summary.fewest_events:,}) "
        f"in {summary.num_turns / count:,.0f} turns",
    ]
    others = sorted(what for what in summary.met if what not in WANTED)
    for what in (*WANTED, *others):
        too_few = "  too few" if what in WANTED and summary.share(what) < 0.05 else ""
        lines.append(f"  {100 * summary.share(what):5.1f} %  {what}{too_few}")
    return lines


def failure(verdict: Judgement, with_faults: bool) -> list[str]:
    """A failing history, made small and told from its beginning to its end."""
    scenario = draw_scenario(verdict.seed, with_faults)
    small, found = minimise(scenario, verdict)
    flag = " --faults" if with_faults else ""
    lines = [
        f"seed {verdict.seed} fails: {verdict.failure}",
        f"again with: quire simulate --histories 1 --seed {verdict.seed}{flag}",
        f"made small: {len(small.asks)} of {len(scenario.asks)} requests, "
        f"{len(small.faults)} of {len(scenario.faults)} faults: {found.failure}",
    ]
    History(small, Story(lines.append)).run()
    return [*lines, found.where.rstrip()]
