"""Planning capacity: the real scheduler on a fleet that is made up. What comes out must add up."""

from pathlib import Path

import numpy as np
import pytest

from cluster.cli import exits, main
from cluster.settings import PreemptionName, SchedulerSettings
from cluster.sim.capacity import Capacity, CapacityOutcome, PaperSite
from cluster.sim.costs import StepCost, fit, machine
from cluster.sim.figures import compared
from cluster.sim.gaps import Times
from cluster.sim.load import ArrivingLoad, requests
from cluster.sim.traces import TRACES

SMALL = machine("h100", "8b", 16, kv_bytes=3e9)


def run(
    settings: SchedulerSettings, *, rate: float = 20.0, count: int = 150, host_blocks: int = 0, seed: int = 1
) -> tuple[Capacity, CapacityOutcome]:
    """Two workers whose pools are short of the load's demand; ends when every request has."""
    site = PaperSite(2, SMALL, token_budget=2048, max_batch=64, host_blocks=host_blocks)
    load = ArrivingLoad(TRACES["azure-conv"], rate, 4096, seed)
    capacity = Capacity(site, load, settings, until_s=None, num_requests=count)
    return capacity, capacity.run()


@pytest.mark.parametrize("preemption", ["cheapest", "recompute", "swap"])
def test_every_request_ends_and_every_block_comes_back(preemption: PreemptionName) -> None:
    capacity, outcome = run(SchedulerSettings(preemption=preemption), host_blocks=4000)
    capacity.scheduler.check()
    assert outcome.finished == outcome.asked == 150
    assert not capacity.fleet.num_running
    for replica in capacity.scheduler.replicas.values():
        assert replica.ledger.num_available == replica.ledger.num_blocks
    # What was asked for was made, whatever was preempted on the way.
    source = requests(capacity.outcome.load, SMALL.block_size)
    wanted = sum(next(source)[1].sampling.max_tokens or 0 for _ in range(150))
    assert outcome.num_tokens == wanted
    preempted = {kind for kind, times in outcome.counters.items() if kind.startswith("preempted") and times}
    assert preempted, "the pools were meant to be short"
    assert preempted <= {"preempted recompute", "preempted swap", "preempted migrate"}
    if preemption == "swap":
        assert outcome.copied_bytes > 0


@pytest.mark.parametrize("seconds", [0.02, 0.6, 1.7, 3.0])
def test_what_runs_and_waits_at_the_end_is_what_has_not_ended(seconds: float) -> None:
    """However short the run is, and whatever second it ends in."""
    site = PaperSite(1, SMALL, max_batch=4)
    load = ArrivingLoad(TRACES["azure-conv"], 20.0, 2_000)
    planned = Capacity(site, load, SchedulerSettings(), until_s=seconds)
    outcome = planned.run()
    assert outcome.samples and outcome.running <= 4
    assert outcome.asked == outcome.finished + outcome.refused + outcome.running + outcome.waiting
    assert (outcome.running, outcome.waiting) == (planned.fleet.num_running, planned.scheduler.waiting.num_waiting("m"))
    shown = {row["figure"]: row["run"] for row in compared({"run": outcome})}
    assert shown["running, waiting at the end"] == f"{outcome.running:,}, {outcome.waiting:,}"
    if seconds > 0.5:
        assert outcome.waiting > 0 and outcome.gaps.first.percentile(0.5) > 0


def test_the_same_seed_gives_the_same_run() -> None:
    first, again, other = (run(SchedulerSettings(), count=40, seed=seed)[1] for seed in (1, 1, 2))
    assert first.latencies == again.latencies
    assert (first.gaps.between.counts == again.gaps.between.counts).all()
    assert first.latencies != other.latencies


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_steps_that_are_counted_at_once_are_those_that_are_taken_one_by_one(preemption: PreemptionName) -> None:
    outcomes = []
    for most_steps in (64, 1):
        capacity = Capacity(
            PaperSite(2, SMALL, token_budget=2048, max_batch=64, host_blocks=4000),
            ArrivingLoad(TRACES["azure-conv"], 6.0, 4096, 3),
            SchedulerSettings(preemption=preemption),
            until_s=None,
            num_requests=60,
        )
        capacity.fleet.most_steps = most_steps
        outcomes.append(capacity.run())
    together, alone = outcomes
    assert together.latencies == alone.latencies and together.counters == alone.counters
    assert (together.num_steps, together.num_tokens) == (alone.num_steps, alone.num_tokens)
    assert together.gaps.between.total_s == pytest.approx(alone.gaps.between.total_s, rel=1e-9)


def test_times_of_a_lone_request_are_those_of_the_cost_model() -> None:
    site = PaperSite(1, SMALL, turn_s=0.0001)
    load = ArrivingLoad(TRACES["azure-conv"], 1.0, 4096, prompt=1000, output=101)
    outcome = Capacity(site, load, SchedulerSettings(), until_s=None, num_requests=1).run()
    cost = SMALL.cost
    prefill = float(cost.seconds(np.array([1000.0]), np.array([500_000.0]), np.zeros(1))[0])
    decodes = [float(cost.seconds(np.ones(1), np.zeros(1), np.array([1000.0 + at]))[0]) for at in range(1, 101)]
    assert outcome.gaps.first.longest_s == pytest.approx(prefill, abs=0.0003)
    assert outcome.gaps.between.num == 100
    assert outcome.gaps.between.total_s == pytest.approx(sum(decodes), rel=0.02)


def test_a_fit_finds_the_constants_that_made_the_steps() -> None:
    random = np.random.default_rng(1)
    true = StepCost(0.002, 0.0, 3e-5, 2e-9, 4e-8)
    tokens, pairs, context = random.integers(1, 500, (3, 200)) * np.array([[1.0], [1000.0], [100.0]])
    seconds = true.seconds(tokens, pairs, context)
    noisy = seconds * (1 + 0.02 * random.standard_normal(200))
    found = fit(list(zip(tokens, pairs, context, noisy, strict=True)))
    assert float(found.seconds(tokens, pairs, context).sum()) == pytest.approx(float(seconds.sum()), rel=0.01)


def test_percentiles_are_those_of_what_was_added() -> None:
    times, values = Times(), np.exp(np.random.default_rng(2).normal(-4, 1, 20_000))
    for part in np.split(values, 10):
        times.add(part)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert times.percentile(share) == pytest.approx(float(np.quantile(values, share)), rel=0.012)
    assert times.num == len(values)


def test_the_command_compares_policies_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.png"
    words = "simulate --workers 8 --minutes 0.1 --rate 30 --prefix 512 --compare placement --plot"
    assert main([*words.split(), str(picture)]) == exits.DONE
    output = capsys.readouterr().out
    head = next(line for line in output.splitlines() if line.startswith("figure"))
    assert head.split() == ["figure", "scored", "round_robin", "least_loaded"]
    for figure in (
        "first token p50",
        "between tokens p50",
        "memory held",
        "preempted",
        "found in a cache",
        "scheduler",
    ):
        assert figure in output
    assert "█" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--workers 2 --trace gpt", "azure-code"),
        ("--workers 2 --gpu tpu", "a100-40, h100, h200"),
        ("--workers 2 --model 70b", "give more"),
        ("--workers 2 --compare weather", "placement, preemption"),
        ("", "--workers 8"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *words.split()]) == exits.WRONG_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
