"""Requests that are swapped out and back say what they say with plenty of memory, in every decoding mode.

Two workers serve the same weights under two names: one has so few blocks that most requests go to host memory and come
back, the other has room for all. Both are processes, as is the host pool; what was swapped is read from the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import Client, SamplingParams, StructuredOutputsParams
from cluster.bench.processes import Processes
from cluster.centre.journal import read
from cluster.centre.scheduler import Scheduler
from cluster.centre.swap import Swap
from cluster.messages import Road
from cluster.offline.outputs import RequestOutput
from cluster.settings import SchedulerSettings, WorkerSettings
from worker.model.checkpoint import find_folder

SMALL, LARGE = "demo", str(find_folder("demo"))
NUM_BLOCKS = 44
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "seed": 5},
    "filters": {"temperature": 1.1, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "sampled penalties": {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.7, "logit_bias": {20: 2.0, 30: -5.0}},
    "several": {"temperature": 0.9, "seed": 8, "n": 3},
    "several greedy": {"temperature": 0.0, "n": 2},
    "logprobs": {"temperature": 0.7, "seed": 9, "logprobs": 3},
    "prompt logprobs": {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 2},
    "stop string": {"temperature": 0.8, "seed": 10, "stop": [" river", " bread"], "ignore_eos": False},
    "bans": {"temperature": 0.8, "seed": 12, "bad_words": ["the", "Mira"], "forced_tokens": {3: 40, -1: 41}},
    "beams": {"beam_width": 3, "length_penalty": 0.8},
    "structure": {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(regex="[A-Z ,]{9000}")},
    "several of a structure": {
        "temperature": 0.9,
        "seed": 13,
        "n": 2,
        "structured_outputs": StructuredOutputsParams(
            json={"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 800}
        ),
    },
}

PROMPTS = ("Once upon a time", "In Alder Bridge there was a baker who", "Mira and Otto went to the river, because")


def requests() -> list[tuple[str, str, SamplingParams]]:
    """Mode, prompt and settings of each; long enough to outgrow the small pool together."""
    made = []
    for prompt in PROMPTS:
        for mode, settings in MODES.items():
            length = 60 if mode == "beams" else 120
            chosen = {
                "max_tokens": length,
                "ignore_eos": mode != "beams" and "structured_outputs" not in settings,
                **settings,
            }
            made.append((mode, prompt, SamplingParams(**chosen)))
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Processes, Path]]:
    journal = tmp_path_factory.mktemp("swap") / "journal"
    with Processes(SchedulerSettings(preemption="swap"), journal=journal, silence_s=10.0) as running:
        common = {"dtype": "float32", "device": "cpu", "max_batch": 24, "show_progress": False}
        told = running.add_workers(
            {
                "small": WorkerSettings(SMALL, kv_blocks=NUM_BLOCKS, debug=True, **common),
                "large": WorkerSettings(LARGE, kv_blocks=1500, **common),
            }
        )
        running.add_host_pool("host-0", "64MiB", told["small"])
        running.open_gateway((SMALL, LARGE))
        yield running, journal


def ask(running: Processes, model: str) -> list[RequestOutput]:
    asked = requests()
    with Client(running.gateway) as client:
        client.wait_ready(30.0)
        params = [settings for _, _, settings in asked]
        return client.generate_many([prompt for _, prompt, _ in asked], params, model=model, timeout_s=100.0)


def swapped(journal: Path, model: str) -> tuple[dict[str, bool], Counter[str]]:
    """Requests whose content was read back from host memory, and whether beams in the midst of their search were among
    it; and the scheduler's counters: by replaying its journal."""
    recorded = read(journal)
    scheduler, found = Scheduler(recorded.settings, recorded.epoch), dict[str, bool]()
    for turn in recorded.turns:
        scheduler.turn(turn.events, turn.now)
        for _, moving in scheduler.transfers.all(Swap):
            if moving.road is Road.READ and moving.request.model == model:
                found[moving.request.request_id] = moving.request.sequences[0].group is not None
    scheduler.check()
    return found, scheduler.counters


@pytest.mark.timeout(170)
def test_every_mode_says_the_same_swapped_or_not(cluster: tuple[Processes, Path]) -> None:
    running, journal = cluster
    outputs, expected = ask(running, SMALL), ask(running, LARGE)
    for (mode, prompt, _), output, wanted in zip(requests(), outputs, expected, strict=True):
        where = f"{mode}: {prompt!r}"
        for sequence, other in zip(output.outputs, wanted.outputs, strict=True):
            assert sequence.token_ids == other.token_ids, where
            assert (sequence.text, sequence.finish_reason, sequence.stop_reason) == (
                other.text,
                other.finish_reason,
                other.stop_reason,
            ), where
            assert (sequence.score or 0.0) == pytest.approx(other.score or 0.0, rel=1e-5), where
            same_logprobs(sequence.logprobs, other.logprobs, where)
        same_logprobs(output.prompt_logprobs, wanted.prompt_logprobs, where)
    assert any(one.stop_reason == " river" for output in expected for one in output.outputs)
    went, counters = swapped(journal, SMALL)
    assert len(went) >= len(outputs) / 2, f"{len(went)} of {len(outputs)} requests were swapped: {dict(counters)}"
    assert any(went.values()), "no beams were swapped"
    assert not counters["transfer read failed"] and not counters["transfer write failed"], dict(counters)
    assert not swapped(journal, LARGE)[0]


def same_logprobs(here: list[Any] | None, there: list[Any] | None, where: str) -> None:
    """The same candidates, and figures that differ no more than the order of a sum lets them."""
    assert (here is None) == (there is None), where
    for one, other in zip(here or [], there or [], strict=True):
        assert (one or {}).keys() == (other or {}).keys(), where
        for token, figure in (one or {}).items():
            assert figure.logprob == pytest.approx(other[token].logprob, abs=1e-4), where
