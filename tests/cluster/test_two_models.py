"""Two models of one layout in one cluster, asked the same at once: each answers as `generate` of its own weights does.

Their blocks are alike, and so are the prompts: only the names keep them apart, in the index, while a prefix is
computed, when it is fetched from the other's pool, and in the host memory that both write behind to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Client
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from tests.cluster.clusters import up
from tests.engine import models

NUM_TOKENS = 24
# Long enough that a fetch costs less than to compute, and to fill the pools several times over.
PROMPTS = models.prompts([200, 333, 64, 480, 129, 250], seed=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    parent = tmp_path_factory.mktemp("models")
    first, second = (models.build(parent / f"weights{seed}", "llama", seed=seed) for seed in (1, 2))
    return first, second


@pytest.fixture(scope="module")
def running(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = ClusterSettings(
        model=tuple(map(str, folders)),
        workers=1,
        kv_blocks=80,
        cpus_per_worker=0.5,
        port=0,
        admin_port=0,
        metrics_port=0,
        max_batch=16,
    )
    with up(settings, tmp_path_factory.mktemp("quire")) as running:
        yield running


@pytest.mark.timeout(300)
def test_two_models_of_one_layout_never_share_a_block(running: Running, folders: tuple[Path, Path]) -> None:
    wanted = {}
    for folder in folders:
        reference = models.reference(folder)
        for number, prompt in enumerate(PROMPTS):
            wanted[str(folder), number] = models.greedy(reference, prompt, NUM_TOKENS)
    assert all(wanted[str(folders[0]), n] != wanted[str(folders[1]), n] for n in range(len(PROMPTS)))
    answers: list[tuple[str, int, list[int]]] = []

    def ask(model: str, number: int) -> None:
        with Client(running.gateway) as client:
            answer = client.generate(
                PROMPTS[number], model=model, max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, timeout_s=60.0
            )
            answers.append((model, number, list(answer.outputs[0].token_ids)))

    for _ in range(3):
        threads = [threading.Thread(target=ask, args=asked) for asked in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    wrong = [f"{Path(model).name} {number}" for model, number, tokens in answers if tokens != wanted[model, number]]
    assert len(answers) == 3 * len(wanted)
    assert not wrong, f"{len(wrong)} of {len(answers)} answers are another model's: {wrong}"
