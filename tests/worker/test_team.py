"""Tensor-parallel replicas of two real processes on the CPU: token-exact beside `generate`, each rank with its slice,
all ranks ended together, and what cannot be shared refused with the figures."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from cluster import LLM, SamplingParams
from cluster.errors import ConfigError, ModelError, WorkFailed
from tests.engine import models

NUM_TOKENS = 12
LENGTHS = [1, 9, 17, 40, 90]


def engine(folder: Path, ranks: int = 2, **settings: object) -> LLM:
    chosen = {"dtype": "float32", "kv_blocks": 16, "max_batch": 8, "token_budget": 48, "block_size": 8, **settings}
    return LLM(str(folder), tensor_parallel_size=ranks, quiet=True, **chosen)


# One head of keys for both ranks; products that are gathered and split again.
KINDS = [("llama", 2), ("qwen3", 2), ("mixtral", 2), ("qwen2", 1), ("phi3", 2)]


@pytest.mark.parametrize(("kind", "num_kv_heads"), KINDS)
def test_two_ranks_say_what_one_says(kind: str, num_kv_heads: int, tmp_path: Path) -> None:
    """Prompts in chunks, more than fit into the pool at once, forks, beams, penalties, judged prompts."""
    folder = models.build(tmp_path, kind, num_hidden_layers=2, num_key_value_heads=num_kv_heads)
    prompts = models.prompts(LENGTHS, seed=3)
    reference = models.reference(folder)
    wanted = [models.greedy(reference, prompt, NUM_TOKENS) for prompt in prompts]
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    several = [
        SamplingParams(n=3, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True, repetition_penalty=1.1, logprobs=2),
        SamplingParams(beam_width=3, n=2, max_tokens=NUM_TOKENS, temperature=0),
        SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1),
    ]
    alone = engine(folder, ranks=1).generate(prompts[:3], several)
    llm = engine(folder)
    try:
        whole = sum(parameter.nbytes for parameter in reference.parameters())
        # Norms and routers are on every rank, all else is shared.
        assert llm._worker.parts.model.weights_bytes < 0.6 * whole
        assert [output.outputs[0].token_ids for output in llm.generate(prompts, greedy)] == wanted
        shared = llm.generate(prompts[:3], several)
    finally:
        llm.close()
    for one, two in zip(alone, shared, strict=True):
        assert [output.token_ids for output in one.outputs] == [output.token_ids for output in two.outputs]
    judged = [list(place) for place in shared[2].prompt_logprobs[1:] if place]
    assert judged == [list(place) for place in alone[2].prompt_logprobs[1:] if place]
    assert all(child.returncode == 0 for child in llm._ranks.children)


def test_a_lost_rank_ends_the_replica(tmp_path: Path) -> None:
    llm = engine(models.build(tmp_path, "llama", num_hidden_layers=1))
    child = llm._ranks.children[0]
    stream = llm.stream([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=500, ignore_eos=True))
    next(stream)
    os.kill(child.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkFailed, match="a rank is lost"):
        for _ in stream:
            pass
    assert time.monotonic() - began < 30
    llm.close()
    assert not torch.distributed.is_initialized()


def test_what_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    folder = models.build(tmp_path / "llama", "llama", num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"4 query heads and 2 KV heads, which 3 ranks .* give 1 or 2 or 4"):
        engine(folder, ranks=3)
    with pytest.raises(ModelError, match="no plan to share gpt2"):
        engine(models.build(tmp_path / "gpt2", "gpt2", n_layer=1), ranks=2)
    with pytest.raises(ConfigError, match="tensor_parallel_size is 0"):
        engine(folder, ranks=0)
