"""The paper's experiments: what they count is what they say, at a size that takes seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cluster import SamplingParams
from cluster.bench import __main__ as bench
from cluster.bench.paper_load import POLICIES, cases, compare, crossing, settings
from cluster.bench.paper_memory import MAX_LEN
from cluster.bench.report import Report
from cluster.bench.stepping import Stepping
from cluster.settings import SchedulerSettings
from cluster.sim.capacity import Capacity, PaperSite


def test_memory_is_held_as_in_the_paper(tmp_path: Path) -> None:
    argv = ["paper", "--parts", "memory", "--requests", "1500", "--json", str(tmp_path / "out.json")]
    assert bench.run(argv) == 0
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    (table,) = (table for title, table in tables.items() if title.startswith("KV memory, sharegpt"))
    rows = {row["memory"]: row for row in table}
    shares = [rows[name]["holds tokens %"] for name in ("longest", "power of two", "oracle", "pages of 16")]
    assert shares == sorted(shares) and shares[-1] > 95 > 45 > shares[-2]
    assert (tmp_path / "out.svg").read_text().startswith("<svg")


def test_a_block_that_sequences_share_stands_in_each_of_their_tables() -> None:
    prompt, seen = list(range(5, 45)), []
    for params in (
        SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=4, ignore_eos=True),
        SamplingParams(beam_width=3, n=3, max_tokens=4, ignore_eos=True),
    ):
        engine = Stepping("demo", SchedulerSettings(prefix_caching=False), kv_blocks=64, max_batch=8)
        asked, most = engine.ask(prompt, params), list[list[int]]()
        while not asked.done:
            engine.turn(eager=True)
            most = max(most, engine.tables(), key=len)
        assert not engine.tables()
        seen.append((len(most), {table[0] for table in most}, len({block for table in most for block in table})))
    # Two full blocks of the prompt for all three, and a third one for each.
    assert all((count, len(first), distinct) == (3, 1, 5) for count, first, distinct in seen), seen


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_the_simulated_load_that_it_can_hold(policy: str) -> None:
    (case,) = cases(1, quick=True)
    site = PaperSite(1, case.machine, max_model_len=MAX_LEN, token_budget=2048, turn_s=0.01)
    run = Capacity(site, case.load, settings(POLICIES[policy]), until_s=None, num_requests=20)
    outcome = run.run()
    run.scheduler.check()
    assert outcome.finished == 20 and not outcome.refused and not any(outcome.preemptions)


def test_the_rate_at_equal_latency_lies_where_the_curve_crosses_the_limit() -> None:
    assert crossing([1.0, 2.0], [0.1, 0.4], 0.2) == pytest.approx(math.sqrt(2))
    assert crossing([1.0, 2.0], [0.1, math.inf], 0.2) == 1.0 and crossing([1.0, 2.0], [0.1, 0.1], 0.2) == 2.0
    # A policy that bears `most` requests a second, and pages which bear three times as many.
    most = {"longest": 1.0, "power_of_two": 1.5, "oracle": 2.0, "none": 3.0}
    report = Report("paper", [], quiet=True)
    rates = [0.5 * 1.1**power for power in range(30)]
    compare(report, "made up", lambda reserve, rate: 0.02 * math.exp(rate / most[reserve]), rates, {})
    gains = {row["memory"]: row["pages sustain x"] for row in report.tables["made up"]}
    assert gains["longest"] == pytest.approx(3.0, rel=0.1) and gains["oracle"] == pytest.approx(1.5, rel=0.1)
    assert not report.failed and len(report.plots[0].lines) == 4
