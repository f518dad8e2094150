"""The paper's throughput experiment on this processor: a small model, the real engine, the four policies of its pool.

Requests come by a clock that counts this process's processor time, and jumps where nobody is served: what else the
machine does does not count. A step of a processor grows with its batch far more than a GPU's, so that memory for a
larger batch gains less here: weak evidence for the paper's claim, but nothing in it is made up.
"""

from __future__ import annotations

import random
import time

import torch

from cluster.bench.offline_models import folder_of
from cluster.bench.paper_load import compare, settings
from cluster.bench.paper_memory import drawn
from cluster.bench.report import Report
from cluster.bench.stepping import Stepping
from cluster.offline.embedded import Live
from cluster.sampling import SamplingParams
from cluster.settings import ReserveName

MAX_LEN, NUM_BLOCKS = 1024, 256
REQUESTS, QUICK_REQUESTS = 64, 24
# Rates beside what is served in runs of the longest when all come at once. So few requests cannot wait for long: the
# limit is lower than on the simulated machines.
SHARES, LIMIT = (0.25, 0.6, 0.9, 1.2, 1.6, 2.2), 2.0


def engine(report: Report, seed: int, quick: bool) -> None:
    torch.set_num_threads(1)
    num = QUICK_REQUESTS if quick else REQUESTS
    title = f"a 14M model in {NUM_BLOCKS * 16:,} slots on this processor: requests a processor second"
    print(title, flush=True)
    served("none", 1e9, seed, 4)
    alone = num / served("longest", 1e9, seed, num)[1]
    rates = [alone * share for share in SHARES]
    compare(report, title, lambda reserve, rate: served(reserve, rate, seed, num)[0], rates, {}, LIMIT)


def served(reserve: ReserveName, rate: float, seed: int, num: int) -> tuple[float, float]:
    """Seconds of latency for an output token, and seconds until all were done, at so many requests a second."""
    engine = Stepping(
        str(folder_of("14m")), settings(reserve), dtype="float32", device="cpu", kv_blocks=NUM_BLOCKS, max_batch=64,
        max_model_len=MAX_LEN, prefix_caching=False,
    )  # fmt: skip
    rng = random.Random(seed)
    coming, at = list[tuple[float, list[int], int]](), 0.0
    for life in drawn("sharegpt", seed, num):
        at += rng.expovariate(rate)
        prompt = [rng.randrange(5, 200) for _ in range(-(-life.prompt // 2))]
        coming.append((at, prompt, -(-life.output // 2)))
    coming.reverse()
    began, skipped, took, tokens = time.process_time(), 0.0, 0.0, 0
    open_ = list[tuple[float, Live]]()
    while coming or open_:
        now = time.process_time() - began + skipped
        if not open_ and coming[-1][0] > now:
            skipped += coming[-1][0] - now
            now = coming[-1][0]
        while coming and coming[-1][0] <= now:
            came, prompt, count = coming.pop()
            params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
            open_.append((came, engine.ask(prompt, params)))
        engine.turn(eager=False)
        now = time.process_time() - began + skipped
        took += sum(now - came for came, live in open_ if live.done)
        tokens += sum(live.log.num_tokens for _, live in open_ if live.done)
        open_ = [(came, live) for came, live in open_ if not live.done]
    assert tokens, "nothing was served"
    return took / tokens, time.process_time() - began + skipped
