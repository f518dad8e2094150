"""Greedy tokens are those of transformers' `generate`, whatever else is in the batch and however often a request was
preempted: 40 prompts of 1 to 700 tokens at once, through chunked prefill, in pools of NaN."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import LLM, SamplingParams
from cluster.settings import SchedulerSettings
from tests.engine import models

NUM_TOKENS = 20
LENGTHS = [1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 31, 32, 33, 40, 47, 48, 49, 63]
LENGTHS += [64, 65, 80, 97, 100, 127, 128, 129, 150, 177, 200, 255, 256, 300, 333, 400, 511, 512, 640, 700]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


@dataclass(frozen=True)
class Reference:
    folder: Path
    prompts: list[list[int]]
    outputs: list[list[int]]


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Reference:
    prompts = models.prompts(LENGTHS, seed=7)
    model = models.reference(tiny_llama)
    return Reference(tiny_llama, prompts, [models.greedy(model, prompt, NUM_TOKENS) for prompt in prompts])


def engine(folder: Path, **settings: Any) -> LLM:
    chosen = {"dtype": "float32", "debug": True, "quiet": True, "max_batch": 24, "token_budget": 160, **settings}
    return LLM(str(folder), **chosen)


@pytest.mark.parametrize("block_size", [1, 8, 16, 64])
def test_forty_prompts_at_once(reference: Reference, block_size: int) -> None:
    llm = engine(reference.folder, block_size=block_size, kv_blocks=12_000 // block_size)
    outputs = llm.generate(reference.prompts, GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == reference.outputs
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    stats = llm.load_stats()
    # More went on at once than fits into one step, so prompts were cut into chunks.
    assert stats["steps"] < sum(LENGTHS) + 40 * NUM_TOKENS
    assert stats["output tokens"] == 40 * NUM_TOKENS


@pytest.mark.parametrize("block_size", [8, 16])
def test_pool_so_small_that_requests_wait_and_are_preempted(reference: Reference, block_size: int) -> None:
    """Room for the longest request and little more. Short leases, so that running ones outgrow the pool."""
    settings = {"kv_blocks": 736 // block_size, "token_budget": 48, "scheduler": SchedulerSettings(ahead=4)}
    llm = engine(reference.folder, block_size=block_size, **settings)
    outputs = llm.generate(reference.prompts, GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == reference.outputs
    assert llm.load_stats()["preempted recompute"] > 0


def test_blocks_leased_ahead_come_back_under_pressure(reference: Reference) -> None:
    """Leases of up to two blocks ahead in a pool that runs full: what was leased and not used goes to others."""
    scheduler = SchedulerSettings(ahead=8, admit_reserve=0.0)
    llm = engine(reference.folder, block_size=4, kv_blocks=184, token_budget=48, scheduler=scheduler)
    outputs = llm.generate(reference.prompts, GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == reference.outputs
    stats = llm.load_stats()
    assert stats["blocks revoked"] > 3, stats
    assert stats["leases revoked"] > stats.get("preempted recompute", 0), stats


def test_same_tokens_again_from_the_prefix_cache(reference: Reference) -> None:
    llm = engine(reference.folder, block_size=8, kv_blocks=3000)
    for _ in range(2):
        outputs = llm.generate(reference.prompts, GREEDY)
        assert [output.outputs[0].token_ids for output in outputs] == reference.outputs
    cached = {len(output.prompt_token_ids): output.num_cached_tokens for output in outputs}
    # All but the last token of a prompt can be cached; a hit that ends inside a block is a copy.
    assert cached[700] >= 696
    assert cached[64] == 63


def test_prefixes_of_each_other(reference: Reference) -> None:
    """Requests that arrive together and share a prefix compute it once and still get their own tokens."""
    longest = reference.prompts[-1]
    model = models.reference(reference.folder)
    prompts = [longest[:length] for length in (100, 101, 104, 300, 301)]
    wanted = [models.greedy(model, prompt, 8) for prompt in prompts]
    llm = engine(reference.folder, block_size=8, kv_blocks=400)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    assert [output.outputs[0].token_ids for output in outputs] == wanted
    assert sum(output.num_cached_tokens for output in outputs) >= 96 + 96 + 96 + 296


@pytest.mark.parametrize("block_size", [8, 16])
def test_prefixes_that_end_inside_a_block(reference: Reference, block_size: int) -> None:
    """Prompts that leave a cached one at any place: what agrees is shared or copied, and nobody's tokens change."""
    longest = reference.prompts[-1]
    model = models.reference(reference.folder)
    # Each goes on with another token than the cached one does.
    same = [3, 4, 15, 21, 100, 103, 107, 204, 300, 303]
    prompts = [[*longest[:length], (longest[length] + 1) % models.VOCAB or 3, 7, 9] for length in same]
    wanted = [models.greedy(model, prompt, 8) for prompt in prompts]
    llm = engine(reference.folder, block_size=block_size, kv_blocks=4000 // block_size)
    settings = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    llm.generate([longest], settings)
    outputs = llm.generate(prompts, settings)
    assert [output.outputs[0].token_ids for output in outputs] == wanted
    cached = [length if length % block_size >= 2 else length - length % block_size for length in same]
    assert [output.num_cached_tokens for output in outputs] == cached


def test_the_reference_kernels_agree(reference: Reference) -> None:
    few = [3, 11, 19, 25]
    llm = engine(reference.folder, block_size=16, kv_blocks=200, kernels="reference")
    outputs = llm.generate([reference.prompts[i] for i in few], GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == [reference.outputs[i] for i in few]


@pytest.mark.parametrize("block_size", [8, 16])
def test_steps_that_overlap(reference: Reference, block_size: int) -> None:
    """The next step is issued before the last one is looked at, as on a GPU: ends and stop ids come one step late, and
    forks, waits for room and ends meet steps under way."""
    stops = [[output[7]] if i % 3 == 0 else [] for i, output in enumerate(reference.outputs)]
    params = [
        SamplingParams(
            temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, stop_token_ids=stop, logprobs=0, n=1 + i % 2
        )
        for i, stop in enumerate(stops)
    ]
    settings = {"kv_blocks": {8: 93, 16: 47}[block_size], "token_budget": 48, "scheduler": SchedulerSettings(ahead=4)}
    llm = engine(reference.folder, block_size=block_size, fuse=False, overlap=True, **settings)
    outputs = llm.generate(reference.prompts, params)
    for output, wanted, stop in zip(outputs, reference.outputs, stops, strict=True):
        end = next((at + 1 for at, token in enumerate(wanted) if token in stop), NUM_TOKENS)
        for one in output.outputs:
            assert one.token_ids == wanted[:end]
            assert one.logprobs is not None and [list(at) for at in one.logprobs] == [[t] for t in wanted[:end]]
    llm._worker.desk.check()
    assert not llm._worker.desk.residence.leaving
