"""`quire bench capacity`: the constants of the planning simulator, measured here, and how true it is with them.

The embedded engine runs a calibrating load, from which the constants of a step are fitted. Then it runs another load,
which is repeated in the simulator: every decision must be the same, and the sum of the steps' times within 5 %. Times
are processor time of one thread.
"""

from __future__ import annotations

import argparse
from random import Random
from statistics import median

import torch

from cluster.bench.report import BenchHelp, Report
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from cluster.sim.costs import fit
from cluster.sim.recorded import Divergence, SeenRecord, record, repeat

CLOSE = 0.05


def run_recorded(
    kv_blocks: int, *, seed: int, count: int = 60, prefix_caching: bool = True, model: str = "demo"
) -> SeenRecord:
    """Requests of unequal lengths, half of which share a prefix, some sampled, that come while others run."""
    random = Random(seed)
    llm = LLM(
        model, quiet=True, seed=1, kv_blocks=kv_blocks, max_batch=8, token_budget=64, block_size=8,
        prefix_caching=prefix_caching,
    )  # fmt: skip
    engine = llm._engine
    shared = [random.randrange(3, 400) for _ in range(40)]
    with record(engine) as seen:
        waiting = []
        for number in range(count):
            prefix = shared[: random.randrange(41)] if number % 2 else []
            prompt = prefix + [random.randrange(3, 400) for _ in range(random.randint(1, 60))]
            params = SamplingParams(
                temperature=float(number % 3 == 0), max_tokens=random.randint(1, 80), ignore_eos=number % 4 != 0
            )
            waiting += llm._make([prompt], params, keeps_pieces=False)[1]
        for number, request in enumerate(waiting):
            engine.submit(request)
            for _ in range(number % 5):
                engine.turn(eager=True)
        while engine.live or engine.holds(waiting):
            engine.turn(eager=True)
    return seen


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench capacity", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=60, help="of 8 tokens in the engine's pool")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("capacity", argv)
    torch.set_num_threads(1)
    report.begins("two recorded runs of the engine, and the second again in the simulator", 30)
    run_recorded(arguments.blocks, seed=3, count=8, model=arguments.model)  # compiles, and warms the caches up
    first = run_recorded(arguments.blocks, seed=1, count=arguments.requests, model=arguments.model)
    cost = fit(first.steps)
    report.table(
        "constants of a step",
        [
            {
                "base us": cost.base_s * 1e6,
                "us a token": cost.per_token_s * 1e6,
                "ns a pair": cost.per_pair_s * 1e9,
                "ns a token of context": cost.per_context_s * 1e9,
            }
        ],
    )
    second = run_recorded(arguments.blocks, seed=2, count=arguments.requests, model=arguments.model)
    try:
        repeated = repeat(second, cost)
    except Divergence as error:
        report.check("the same decisions", False, str(error))
        return report.finish(arguments.json)
    report.check("the same decisions", True)
    ratio = repeated.modelled_s / repeated.seen_s
    report.table(
        "another run, repeated in the simulator",
        [
            {
                "turns": repeated.num_turns,
                "orders": repeated.num_orders,
                "steps": repeated.num_steps,
                "seen s": repeated.seen_s,
                "modelled s": repeated.modelled_s,
                "modelled / seen": ratio,
                "step seen, median ms": median(step[3] for step in second.steps) * 1e3,
            }
        ],
    )
    report.check("step times within 5 %", abs(ratio - 1) <= CLOSE, f"{ratio:.3f}")
    return report.finish(arguments.json)
