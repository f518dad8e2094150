"""A tensor-parallel replica on the twin, each rank a process with a card of its own: tokens are those of one rank on
the CPU, through graphs and steps that are issued ahead, and what one rank is not told is seen."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster import LLM
from cluster.errors import ConfigError
from kernels.device.seam import device_of
from kernels.device.twin.device import ORDER, TwinDevice
from tests.engine import models
from tests.engine.test_engine_on_twin import WORK, Written, engine, written
from worker.batch import Step, StepBuilder
from worker.state import Int32, Int64

NUM_SCHEDULES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("team"), "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, Written]:
    return written(engine(folder, "cpu"), WORK)


def test_ranks_take_the_cards_from_the_one_that_is_named(folder: Path, wanted: dict[str, Written]) -> None:
    """Before the others: a process has one world of ranks, and theirs lasts until the end."""
    made = engine(folder, "twin:2@0", tensor_parallel_size=2)
    try:
        assert made._worker.parts.device.index == 2 and made._ranks._on_rank(1).device == "twin:3@0"
        assert written(made, WORK[:2]) == {name: wanted[name] for name, _ in WORK[:2]}
    finally:
        made.close()


def test_more_ranks_than_cards_are_refused_before_any_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device is 'cuda:2', and this machine has 2 GPUs"):
        engine(folder, "cuda:1", tensor_parallel_size=2)


@pytest.fixture(scope="module", params=[0, 3])
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    """The other rank's card is as late as the same dice say."""
    made = engine(folder, f"twin@{request.param}", tensor_parallel_size=2)
    yield made
    made.close()
    assert [child.returncode for child in made._ranks.children] == [0], "it was not ended, or something was in its way"


def schedule(llm: LLM, number: int) -> None:
    # What the ranks have begun they end together: a sum that one of them gives up never comes.
    device_of(llm._worker.parts.device).wait()
    ORDER.schedule(number)


def test_tokens_are_those_of_one_rank_on_the_cpu(llm: LLM, wanted: dict[str, Written], seed: int) -> None:
    parts, launcher = llm._worker.parts, llm._worker._launcher
    assert launcher.graphs is not None and launcher.lead is not None and launcher.lead.shares
    seam = device_of(parts.device)
    assert isinstance(seam, TwinDevice)
    ways = set(seam.ways)
    assert parts.model.device.index == 0 and parts.pool.layout.layers[0].num_kv_heads == 1
    for number in range(NUM_SCHEDULES):
        schedule(llm, seed * NUM_SCHEDULES + number)
        work = WORK if not number else [WORK[(3 * number + place) % len(WORK)] for place in range(3)]
        found = written(llm, work)
        wrong = [name for name in found if found[name] != wanted[name]]
        assert not wrong, f"schedule {seed * NUM_SCHEDULES + number}: {wrong} differ"
    assert seam.ways == ways, "the first requests had the driver take memory that was the pool's by then"
    assert llm._worker.prove(), "as one that has been idle for long"


@pytest.mark.parametrize("untold", ["tokens", "broadcast", "tables"])
def test_what_the_other_rank_is_not_told_is_seen(
    llm: LLM, wanted: dict[str, Written], untold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule(llm, 0)
    lead, words, none = llm._worker._launcher.lead, StepBuilder.words, np.zeros(0, np.int64)
    assert lead is not None

    def known(self: StepBuilder, step: Step) -> list[Int32 | Int64]:
        told = words(self, step)
        return [*told[:-1], np.full_like(told[-1], -1)]

    if untold == "tokens":
        monkeypatch.setattr(StepBuilder, "words", known)
    elif untold == "broadcast":
        monkeypatch.setattr(lead, "shares", False)
    else:
        # The last of these: the other rank will never know.
        monkeypatch.setattr(lead._changes, "take", lambda: (none, none.astype(np.int32)))
    names = ["greedy", "long", "drawn", "penalties"]
    work = [one for one in WORK if one[0] in names]
    assert written(llm, work) != {name: wanted[name] for name in names}


LEFT = """
import os, signal, sys
from cluster import LLM, SamplingParams
settings = {"dtype": "float32", "kv_blocks": 16, "max_batch": 4, "block_size": 8, "token_budget": 24}
llm = LLM(sys.argv[1], device="twin@0", kernels="reference", tensor_parallel_size=2, quiet=True, **settings)
stream = llm.stream([[3, 4, 5]] * 3, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
next(stream)
os.kill(llm._ranks.children[0].pid, signal.SIGKILL)
"""


def test_a_process_that_ends_in_the_middle_of_a_stream_ends_well(folder: Path) -> None:
    """Whatever has become of its other ranks: what is left in the middle was settled while the interpreter went."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT, str(folder)], check=False, timeout=120, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
