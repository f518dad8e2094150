"""Every causal language model that transformers has: token-exact beside `generate`, or refused in one line that names
it. A model that runs and says something else is the one outcome that must not be."""

from pathlib import Path

import pytest

from cluster import LLM, ModelError, SamplingParams
from tests.engine import models, tiny

NUM_TOKENS = 16
LENGTHS = [1, 6, 18, 33, 71, 150]
PROMPTS = models.prompts(LENGTHS, seed=11)

# What an everyday run looks at: each goes another way through loading and probing, or was once wrong.
EXACT = ["gemma3", "gemma4_text", "gpt_oss, mixed layers", "phimoe", "qwen2_moe", "stablelm", "deepseek_v3"]
REFUSED = {
    "bart": "BartForCausalLM takes no position_ids",
    "bert": "BertLMHeadModel attends to both sides",
    "deepseek_v32, every layer full": "DeepseekV32ForCausalLM does not run with",
    "diffllama": "DiffLlamaForCausalLM attends 2 times in layer 0",
    "doge": "DogeForCausalLM builds a mask of its own",
    "falcon": "FalconForCausalLM of transformers has no exchangeable attention",
    "jamba": "JambaForCausalLM called attention in 0 of 4 layers",
    "lfm2, convolutions": "lfm2 has 2 of 4 layers of type conv",
    "mamba": "MambaForCausalLM called attention in 0 of 4 layers",
    "moshi": "MoshiForCausalLM does not tell attention the sliding window",
    "qwen3_next": "qwen3_next has 3 of 4 layers of type linear_attention",
}


def engine(folder: Path, block_size: int = 16) -> LLM:
    sizes = {"block_size": block_size, "kv_blocks": 1024 // block_size, "max_batch": 6, "token_budget": 40}
    return LLM(str(folder), dtype="float32", debug=True, quiet=True, **sizes)


def wrong(name: str, folder: Path, block_size: int = 16) -> str:
    """Nothing where the engine says what `generate` says; why it was not tried; or what differs."""
    model = tiny.build(name)
    if isinstance(model, str):
        return f"not built: {model}"
    model.save_pretrained(folder)  # type: ignore[operator]
    llm = engine(folder, block_size)
    plain = models.reference(folder)
    wanted = [models.greedy(plain, prompt, NUM_TOKENS) for prompt in PROMPTS]
    settings = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    found = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, settings)]
    return "" if found == wanted else f"WRONG: {found} instead of {wanted}"


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str, tmp_path: Path) -> None:
    assert wrong(name, tmp_path) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]) as caught:
        wrong(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixtral", "falcon_h1"])
def test_rounding_to_16_bits_is_no_mistake_and_a_state_is(name: str, tmp_path: Path) -> None:
    """Rounding sends tokens to other experts, which changes some logits by a lot."""
    model = tiny.build(name)
    assert not isinstance(model, str), model
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    if name == "mixtral":
        llm = LLM(str(tmp_path), dtype="float16", quiet=True, kv_blocks=20)
        assert len(llm.generate(PROMPTS[2], SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids) == 3
    else:
        with pytest.raises(ModelError, match="FalconH1ForCausalLM says other things"):
            LLM(str(tmp_path), dtype="bfloat16", quiet=True, kv_blocks=20)


@pytest.mark.trust
@pytest.mark.parametrize("name", tiny.names())
def test_exact_or_refused(name: str, tmp_path: Path) -> None:
    try:
        said = wrong(name, tmp_path, 8)
    except ModelError as error:
        said = f"refused: {error}"
    assert not said.startswith("WRONG"), said
    assert "\n" not in said
    if said:
        pytest.skip(said)
