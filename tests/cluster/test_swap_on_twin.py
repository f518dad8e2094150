"""A replica on the twin, of one rank or of two, that has too few blocks swaps to a real host pool and back, its copies
as late as can be: its tokens are those of a worker on the CPU with room for all."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import LLM, Client, SamplingParams
from cluster.bench.processes import Processes
from cluster.centre.journal import read
from cluster.centre.scheduler import Scheduler
from cluster.centre.swap import Swap
from cluster.messages import Road
from cluster.offline.outputs import RequestOutput
from cluster.settings import SchedulerSettings, WorkerSettings
from tests.engine import models

SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 5, "top_k": 40},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 0.8, "seed": 8, "n": 2},
)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_was_swapped_goes_on_as_if_it_had_stayed(num_ranks: int, tmp_path: Path) -> None:
    folders = [models.build(tmp_path / name, "llama", num_hidden_layers=2) for name in ("small", "large")]
    small, large = map(str, folders)
    prompts = models.prompts([9, 17, 30, 12, 25, 8, 40, 5], seed=3)
    params = [SamplingParams(max_tokens=40, ignore_eos=True, **SETTINGS[i % len(SETTINGS)]) for i in range(8)]
    common: dict[str, Any] = {"dtype": "float32", "block_size": 8, "max_batch": 10, "show_progress": False}
    journal = tmp_path / "journal"
    with Processes(SchedulerSettings(preemption="swap"), journal=journal, silence_s=10.0) as running:
        tight = WorkerSettings(small, device="twin@0", kernels="reference", kv_blocks=24, token_budget=24, **common)
        told = running.add_workers({"small": tight}, num_ranks=num_ranks)
        running.add_workers({"large": WorkerSettings(large, device="cpu", kv_blocks=400, **common)})
        running.add_host_pool("host-0", "64MiB", told["small"])
        running.open_gateway((small, large))
        with Client(running.gateway) as client:
            until = time.monotonic() + 60.0
            while len(client.models()) < 2 and time.monotonic() < until:
                time.sleep(0.1)
            client.wait_ready(60.0)
            found, wanted = (
                client.generate_many(prompts, params, model=model, timeout_s=120.0) for model in (small, large)
            )
    for number, (own, other) in enumerate(zip(found, wanted, strict=True)):
        said, expected = ([one.token_ids for one in result.outputs] for result in (own, other))
        assert said == expected, f"request {number} says something else"
    _check_swaps(journal)


@pytest.mark.timeout(240)
def test_a_rank_that_dies_while_blocks_are_swapped_costs_no_token(tmp_path: Path) -> None:
    """Its replica ends with it, and what was swapped or on its way is computed again elsewhere."""
    model = str(models.build(tmp_path / "model", "llama", num_hidden_layers=2))
    prompts = models.prompts([9, 17, 30, 12], seed=3)
    params = [SamplingParams(max_tokens=60, ignore_eos=True, **SETTINGS[i % len(SETTINGS)]) for i in range(4)]
    common: dict[str, Any] = {"device": "cpu", "dtype": "float32", "block_size": 8, "max_batch": 10}
    found: list[RequestOutput] = []

    def ask() -> None:
        found.extend(client.generate_many(prompts, params, timeout_s=120.0))

    with Processes(SchedulerSettings(preemption="swap")) as running:
        tight = WorkerSettings(model, kv_blocks=20, token_budget=24, show_progress=False, **common)
        told = running.add_workers({"tight": tight}, num_ranks=2)
        running.add_host_pool("host-0", "64MiB", told["tight"])
        running.open_gateway((model,))
        with Client(running.gateway) as client:
            client.wait_ready(60.0)
            asking = threading.Thread(target=ask)
            asking.start()
            until = time.monotonic() + 60.0
            while not running.look().counters.get("preempted swap") and time.monotonic() < until:
                time.sleep(0.002)
            assert asking.is_alive()
            os.kill(told["tight"]["ranks"][0], signal.SIGKILL)
            running.add_workers({"spare": WorkerSettings(model, kv_blocks=400, show_progress=False, **common)})
            asking.join(120.0)
            counters = running.look().counters
    assert counters["replicas lost"] == 1 and counters["preempted swap"], counters
    llm = LLM(model, kv_blocks=400, quiet=True, **common)
    wanted = llm.generate(prompts, params)
    llm.close()
    said, expected = ([[one.token_ids for one in result.outputs] for result in results] for results in (found, wanted))
    assert said == expected


def _check_swaps(journal: Path) -> None:
    """That enough came back from host memory, by replaying what the scheduler did."""
    recorded = read(journal)
    scheduler, back = Scheduler(recorded.settings, recorded.epoch), set[str]()
    for turn in recorded.turns:
        scheduler.turn(turn.events, turn.now)
        reads = [moving for _, moving in scheduler.transfers.all(Swap) if moving.road is Road.READ]
        back.update(moving.request.request_id for moving in reads)
    scheduler.check()
    counters = dict(scheduler.counters)
    assert len(back) >= 3, f"{len(back)} requests were swapped: {counters}"
    assert not counters.get("transfer read failed") and not counters.get("transfer write failed"), counters
