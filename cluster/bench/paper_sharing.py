"""Blocks saved by sharing, counted in the engine while it runs: parallel sampling, beams, chats whose history grows.

After every step the tables of all sequences and beams are looked at, up to where each of them is: a block that several
share stands in each and is there once. `quire bench paper --parts sharing` prints it. No time is measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cluster import LLM, SamplingParams
from cluster.bench.page import Line, PagePlot
from cluster.bench.paper_memory import Life, drawn
from cluster.bench.report import Report
from cluster.bench.stepping import Stepping
from cluster.settings import SchedulerSettings

TRACES = ("alpaca", "sharegpt")
WIDTHS = (2, 4, 6)
# Percent saved, 2 to 6 sequences or beams.
PAPER = {
    ("sampling", "alpaca"): "6.1-9.8",
    ("sampling", "sharegpt"): "16.2-30.5",
    ("beams", "alpaca"): "37.6-55.2",
    ("beams", "sharegpt"): "44.3-66.3",
}
# The demo model takes 2,048 positions; outputs are cut so that a row takes seconds.
LONGEST_OUTPUT = {"sampling": 600, "beams": 300}
REQUESTS = {"sampling": 48, "beams": 16}
# Chats: rounds, tokens of a question and of an answer.
CHATS, ROUNDS, QUESTION, ANSWER = 4, 6, 40, 60


def sharing(report: Report, seed: int, quick: bool) -> None:
    for kind in ("sampling", "beams"):
        title = f"Blocks saved by sharing, {kind}"
        print(title, flush=True)
        curves = []
        for trace in TRACES:
            saved = [_row(report, title, kind, trace, width, seed, quick) for width in WIDTHS]
            curves.append(Line(trace, [float(width) for width in WIDTHS], saved))
        report.plot(PagePlot(title, "sequences or beams of a request", "% of blocks", curves))
    chat(report, seed)


def _row(report: Report, title: str, kind: str, trace: str, width: int, seed: int, quick: bool) -> float:
    lives = drawn(trace, seed, REQUESTS[kind] // (6 if quick else 1))
    longest = LONGEST_OUTPUT[kind] // (3 if quick else 1)
    params = [_params(kind, width, at, min(life.output, longest)) for at, life in enumerate(lives)]
    saved = saved_share(_prompts(lives, seed), params)
    report.row(title, {"lengths": trace, "n": width, "blocks saved %": saved, "paper %": PAPER[kind, trace]})
    report.check(f"{kind}, {trace}, {width}: sharing saves", saved > 2, f"{saved:.1f} %")
    return saved


def _prompts(lives: Sequence[Life], seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(5, 200) for _ in range(life.prompt)] for life in lives]


def _params(kind: str, width: int, seed: int, num_tokens: int) -> SamplingParams:
    if kind == "beams":
        return SamplingParams(beam_width=width, n=width, max_tokens=num_tokens, ignore_eos=True)
    return SamplingParams(n=width, temperature=1.0, seed=seed, max_tokens=num_tokens, ignore_eos=True)


def saved_share(prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> float:
    """Percent of the blocks that tables name and that are there once only, over all steps."""
    engine = Stepping(
        "demo", SchedulerSettings(prefix_caching=False), kv_blocks=8192, max_batch=72, prefix_caching=False
    )
    asked = [engine.ask(*each) for each in zip(prompts, params, strict=True)]
    named = held = 0
    while not all(live.done for live in asked):
        engine.turn(eager=True)
        tables = engine.tables()
        named += sum(map(len, tables))
        held += len({block for table in tables for block in table})
    return 100 * (1 - held / named)


def chat(report: Report, seed: int) -> None:
    """Each round asks with all that was said before. What was cached of it is not computed again."""
    rng = random.Random(seed)
    llm = LLM("demo", quiet=True, kv_blocks=2048)
    histories: list[list[int]] = [[] for _ in range(CHATS)]
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    title, shares = f"Chat, {CHATS} at once, {QUESTION} tokens asked and {ANSWER} answered a round", []
    print(title, flush=True)
    for number in range(1, ROUNDS + 1):
        for history in histories:
            history += [rng.randrange(5, 200) for _ in range(QUESTION)]
        outputs = llm.generate([{"prompt_token_ids": history} for history in histories], params, use_tqdm=False)
        prompt = sum(map(len, histories))
        cached = sum(output.metrics.cached_tokens for output in outputs)
        shares.append(100 * cached / prompt)
        report.row(
            title, {"round": number, "prompt tokens": prompt, "cached %": shares[-1], "computed": prompt - cached}
        )
        for history, output in zip(histories, outputs, strict=True):
            history += output.outputs[0].token_ids
    report.check("the last round computes little but its question", shares[-1] > 80, f"{shares[-1]:.0f} % cached")
    report.plot(PagePlot(title, "round", "% of the prompt cached", [Line("", range(1, ROUNDS + 1), shares)]))
