"""Two replicas on the twin, of one rank each or of two: a prefix that one fetches from the other, and requests that
move alive, give the tokens of an engine on the CPU that nobody disturbs. What moved is read from the journal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster import LLM, Client, SamplingParams
from cluster.bench.processes import Processes
from cluster.settings import SchedulerSettings, WorkerSettings
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from tests.cluster.test_moves_exact import drain, replayed, wait_until_running
from tests.engine import models

COMMON: dict[str, Any] = {"dtype": "float32", "block_size": 8, "max_batch": 8, "kv_blocks": 160}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 5, "top_k": 40},
    {"temperature": 0.8, "seed": 8, "n": 2},
)
PROMPTS = models.prompts([9, 30, 17], seed=3)
PARAMS = [SamplingParams(max_tokens=150, ignore_eos=True, **settings) for settings in SETTINGS]
LONG = models.prompts([160], seed=4)
SHORTLY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.build(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=2))


@pytest.fixture(scope="module", params=[1, 2])
def cluster(
    folder: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Processes, Path]]:
    journal = tmp_path_factory.mktemp("moves") / "journal"
    settings = WorkerSettings(
        folder, device="twin@0", kernels="reference", token_budget=48, show_progress=False, **COMMON
    )
    with Processes(SchedulerSettings(balance_gap=2.0), journal=journal, silence_s=10.0) as running:
        running.add_workers({"one": settings, "two": settings}, threads=1, num_ranks=request.param)
        running.open_gateway((folder,))
        yield running, journal


@pytest.mark.timeout(240)
def test_what_moves_and_what_is_fetched_says_what_it_says_undisturbed(
    cluster: tuple[Processes, Path], folder: str
) -> None:
    running, journal = cluster
    llm = LLM(folder, device="cpu", quiet=True, **COMMON)
    wanted = [said(output) for output in llm.generate([*PROMPTS, *LONG], [*PARAMS, SHORTLY])]
    llm.close()
    found: list[list[list[int]]] = []

    def ask() -> None:
        with Client(running.gateway) as client:
            found.extend(said(output) for output in client.generate_many(PROMPTS, PARAMS, timeout_s=100.0))

    with grpc.insecure_channel(running.admin) as channel, Client(running.gateway) as client:
        client.wait_ready(60.0)
        admin = AdminServiceStub(channel)
        # A prompt that only the second has seen is asked of the first.
        drain(admin, "one")
        first = said(client.generate(LONG[0], SHORTLY, timeout_s=60.0))
        drain(admin, "one", undo=True)
        drain(admin, "two")
        second = said(client.generate(LONG[0], SHORTLY, timeout_s=60.0))
        # Everything begins on the first, and has to leave it in the middle.
        asking = threading.Thread(target=ask)
        asking.start()
        wait_until_running(admin, "one", 4)
        drain(admin, "two", undo=True)
        drain(admin, "one")
        asking.join(100)
    assert [*found, first, second] == [*wanted, wanted[-1]]
    counters = replayed(journal).counters
    assert counters["moved"] >= 2 and not counters["transfer move failed"], dict(counters)
    assert counters["fetches done"] >= 1 and not counters["fetches failed"], dict(counters)
    assert not counters["preempted recompute"], dict(counters)


def said(output: Any) -> list[list[int]]:
    return [list(sequence.token_ids) for sequence in output.outputs]
