"""Every supported decoder, token by token against transformers' `generate`: prompts of very different lengths in one
batch, chunked prefill, several block sizes, windows crossed, in pools of NaN."""

from pathlib import Path
from typing import Any

import pytest

from cluster import LLM, SamplingParams
from tests.engine import models

NUM_TOKENS = 16
LENGTHS = [1, 6, 15, 17, 18, 33, 40, 71, 150]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.mark.parametrize("kind", list(models.CONFIGS))
def test_token_exact(kind: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path, kind)
    model = models.reference(folder)
    prompts = models.prompts(LENGTHS, seed=11)
    wanted = [models.greedy(model, prompt, NUM_TOKENS) for prompt in prompts]
    # A model that says one thing whatever it is asked would prove nothing.
    assert len({token for output in wanted for token in output}) > 8
    for block_size in (8, 16, 32):
        llm = LLM(
            str(folder),
            dtype="float32",
            debug=True,
            quiet=True,
            block_size=block_size,
            kv_blocks=1024 // block_size,
            max_batch=6,
            token_budget=40,
        )
        outputs = llm.generate(prompts, GREEDY)
        assert [output.outputs[0].token_ids for output in outputs] == wanted, f"block size {block_size}"


_THETA = {"rope_theta": 10000.0}
ROTATIONS: dict[str, dict[str, Any]] = {
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 4.0},
    # Up to the positions that the model was trained with: further ones would change keys that are written.
    "dynamic": {"factor": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_scaled_rotations(rotation: str, tmp_path: Path) -> None:
    rope = {"rope_type": rotation, **_THETA, **ROTATIONS[rotation]}
    folder = models.build(tmp_path, "llama", rope_parameters=rope)
    model = models.reference(folder)
    prompts = models.prompts([1, 40, 150], seed=12)
    wanted = [models.greedy(model, prompt, NUM_TOKENS) for prompt in prompts]
    llm = LLM(str(folder), dtype="float32", debug=True, quiet=True, kv_blocks=64, max_batch=3, token_budget=40)
    assert [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)] == wanted
