"""Requests that are moved alive from one worker to another say what they say undisturbed, and compute nothing twice.

Two workers serve one model, each in a process of its own. While requests of several decoding modes run on one of them
it is drained; what was moved, and how long it stood still, is read from the journal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import pytest

from cluster import Client, SamplingParams, StructuredOutputsParams
from cluster.bench.processes import Processes
from cluster.centre.journal import read
from cluster.centre.scheduler import Scheduler
from cluster.settings import SchedulerSettings, WorkerSettings
from protos.quire.v1 import admin_pb2
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "seed": 5, "top_p": 0.9},
    "several": {"temperature": 0.9, "seed": 8, "n": 3},
    "beams": {"beam_width": 4, "length_penalty": 0.8, "repetition_penalty": 1.1},
    "penalties": {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.7, "repetition_penalty": 1.1},
    "structure": {
        "temperature": 0.0,
        "ignore_eos": False,
        "structured_outputs": StructuredOutputsParams(regex="[A-Z ,]{9000}"),
    },
    "several of a structure": {
        "temperature": 0.9,
        "seed": 9,
        "n": 2,
        "ignore_eos": False,
        "structured_outputs": StructuredOutputsParams(
            json={"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 800}
        ),
    },
}
PROMPTS = ("Once upon a time", "In Alder Bridge there was a baker who", "Mira and Otto went to the river, because")
MAX_TOKENS = 400
NUM_SEQUENCES = len(PROMPTS) * sum(settings.get("n", 1) for settings in MODES.values())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Processes, Path]]:
    journal = tmp_path_factory.mktemp("moves") / "journal"
    with Processes(SchedulerSettings(balance_gap=2.0), journal=journal, silence_s=10.0) as running:
        settings = WorkerSettings(
            "demo", dtype="float32", device="cpu", kv_blocks=900, max_batch=48, debug=True, show_progress=False,
            share_pool=True,
        )  # fmt: skip
        running.add_workers({"one": settings, "two": settings})
        running.open_gateway(("demo",))
        yield running, journal


def ask(running: Processes) -> list[list[list[int]]]:
    """The tokens of every sequence of each request."""
    params = [
        SamplingParams(**{"max_tokens": MAX_TOKENS, "ignore_eos": True, **settings})
        for settings in MODES.values()
        for _ in PROMPTS
    ]
    with Client(running.gateway) as client:
        client.wait_ready(30.0)
        answers = client.generate_many(list(PROMPTS) * len(MODES), params, model="demo", timeout_s=100.0)
    return [[list(sequence.token_ids) for sequence in answer.outputs] for answer in answers]


def drain(admin: AdminServiceStub, worker: str, undo: bool = False) -> None:
    admin.Drain(admin_pb2.DrainRequest(worker=worker, undo=undo), timeout=10)


def replayed(journal: Path) -> Scheduler:
    """The scheduler as it stands now, by replaying its journal."""
    recorded = read(journal)
    scheduler = Scheduler(recorded.settings, recorded.epoch)
    for turn in recorded.turns:
        scheduler.turn(turn.events, turn.now)
    scheduler.check()
    return scheduler


@pytest.mark.timeout(170)
def test_a_drained_worker_hands_its_requests_on_and_they_say_the_same(cluster: tuple[Processes, Path]) -> None:
    running, journal = cluster
    expected = ask(running)
    with grpc.insecure_channel(running.admin) as channel:
        admin = AdminServiceStub(channel)
        # Everything begins on the first worker, and has to leave it in the middle.
        drain(admin, "two")
        answers: list[list[list[list[int]]]] = []
        asking = threading.Thread(target=lambda: answers.append(ask(running)))
        asking.start()
        wait_until_running(admin, "one", NUM_SEQUENCES)
        drain(admin, "two", undo=True)
        drain(admin, "one")
        asking.join(100)
        drain(admin, "one", undo=True)
    assert answers == [expected]
    scheduler = replayed(journal)
    counters = scheduler.counters
    assert counters["moved"] >= len(MODES) * len(PROMPTS) / 2, dict(counters)
    assert not counters["transfer move failed"] and not counters["preempted recompute"], dict(counters)
    pauses = scheduler.pauses.last
    step_ms = scheduler.replicas["one"].step_seconds * 1e3
    print(
        f"a step takes {step_ms:.2f} ms; {len(pauses)} moves stood still for {median(pauses):.1f} steps in the "
        f"median, {max(pauses):.1f} at most"
    )


def wait_until_running(admin: AdminServiceStub, worker: str, count: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        workers = admin.ListWorkers(admin_pb2.ListWorkersRequest(), timeout=5).workers
        if any(one.name == worker and one.num_sequences >= count for one in workers):
            return
        time.sleep(0.01)
    raise AssertionError(f"{worker} never ran {count} requests")
