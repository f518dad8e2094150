"""Two machines: a request swaps to the host memory of the other one, moves there alive, and its prefix is fetched.

Each node is a network namespace, so that no memory can be shared and no loopback address reaches the other; internal
ports speak TLS. Workers and host pool are processes, and what they did is read from the journal.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cluster import Client, SamplingParams
from cluster.bench.cluster import TOKENIZER
from cluster.bench.processes import Processes
from cluster.settings import SchedulerSettings, WorkerSettings
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from tests.cluster.networks import identity, two_networks
from tests.cluster.test_moves_exact import drain, replayed
from tests.engine.models import build
from worker.model.checkpoint import find_folder

WIDE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 1,
    "vocab_size": 1024,
}
PROMPTS = ([5, 6, 7, 8], list(range(20, 31)), list(range(100, 112)))
ELSEWHERE, FETCHED = (list(range(200, 210)),), list(range(300, 700))
PARAMS = (
    SamplingParams(max_tokens=240, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=240, temperature=0.9, seed=5, ignore_eos=True),
)
# Room for two of the six requests.
NUM_BLOCKS = 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Processes, Path]]:
    folder = tmp_path_factory.mktemp("networks")
    # A model that computes enough for each byte that a prefix is worth fetching over a network.
    model = build(tmp_path_factory.mktemp("model"), "llama", **WIDE)
    for name in TOKENIZER:
        shutil.copy(find_folder("demo") / name, model / name)
    journal = folder / "journal"
    with (
        two_networks() as (host, networks),
        Processes(
            SchedulerSettings(preemption="swap", balance_gap=2.0),
            journal=journal,
            host=host,
            tls=identity(folder),
            networks=networks,
        ) as running,
    ):
        common = {"dtype": "float32", "device": "cpu", "max_batch": 16, "debug": True, "show_progress": False}
        told = running.add_workers({"one": WorkerSettings(str(model), kv_blocks=NUM_BLOCKS, **common)}, node="n0")
        running.add_workers({"two": WorkerSettings(str(model), kv_blocks=400, **common)}, node="n1")
        running.add_host_pool("host-1", "64MiB", told["one"], node="n1")
        running.open_gateway((str(model),))
        yield running, journal


def ask(running: Processes, prompts: tuple[list[int], ...] = PROMPTS) -> list[list[int]]:
    params = [params for params in PARAMS for _ in prompts]
    with Client(running.gateway) as client:
        client.wait_ready(30.0)
        answers = client.generate_many(list(prompts) * len(PARAMS), params, timeout_s=100.0)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def counted(journal: Path, before: Counter[str]) -> Counter[str]:
    return replayed(journal).counters - before


def wait_until_held(running: Processes, pool: str, count: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if any(one.name == pool and one.num_held >= count for one in running.look().pools):
            return
        time.sleep(0.005)
    raise AssertionError(f"{pool} never held {count} blocks")


@pytest.mark.trust
@pytest.mark.timeout(300)
def test_blocks_go_to_another_machine_and_tokens_stay_what_they_are(cluster: tuple[Processes, Path]) -> None:
    running, journal = cluster
    with grpc.insecure_channel(running.admin) as channel:
        admin = AdminServiceStub(channel)
        drain(admin, "one")
        expected = ask(running)
        # Six requests where two have room: the rest waits in the memory of the other machine.
        drain(admin, "one", undo=True)
        drain(admin, "two")
        before = replayed(journal).counters
        assert ask(running) == expected
        seen = counted(journal, before)
        assert seen["transfer write done"] >= 3 and seen["transfer read done"] >= 3, dict(seen)
        assert not seen["transfer write failed"] and not seen["transfer read failed"], dict(seen)
        # Two run here and go on there, where nothing of them is cached.
        before = replayed(journal).counters
        answers: list[list[list[int]]] = []
        asking = threading.Thread(target=lambda: answers.append(ask(running, ELSEWHERE)))
        asking.start()
        wait_until_held(running, "one", 12)
        drain(admin, "two", undo=True)
        drain(admin, "one")
        asking.join(100)
        seen = counted(journal, before)
        assert seen["moved"] == 2 and seen["transfer move done"], dict(seen)
        assert not seen["transfer move failed"], dict(seen)
        assert answers == [ask(running, ELSEWHERE)]
        # What it said is cached there: whoever asks with it here has it fetched.
        drain(admin, "one", undo=True)
        drain(admin, "two")
        before = replayed(journal).counters
        with Client(running.gateway) as client:
            known = client.generate(FETCHED, max_tokens=200, temperature=0.0, ignore_eos=True)
            prompt = FETCHED + known.outputs[0].token_ids
            client.generate(prompt, max_tokens=8, temperature=0.0, ignore_eos=True)
        drain(admin, "two", undo=True)
        drain(admin, "one")
        with Client(running.gateway) as client:
            client.generate(prompt, max_tokens=8, temperature=0.0, ignore_eos=True)
        seen = counted(journal, before)
        assert seen["fetches done"] >= 1 and not seen["fetches failed"], dict(seen)
