"""Whatever is wrong with a model or a request is one clear line that says what, why and what to change; and everything
else goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertLMHeadModel

from cluster import LLM, ConfigError, InvalidRequest, ModelError, NeverFits, QuireError, SamplingParams
from cluster.offline.prompts import conversations
from tests.engine import models

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def load(model: object, **settings: Any) -> LLM:
    return LLM(str(model), **{"dtype": "float32", "quiet": True, "kv_blocks": 20, **settings})


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)


def lose_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "can't be read as JSON"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights, none at all"),
    "pickled weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "only pickled ones",
    ),
    "cut short": (cut_short, "broken or cut short"),
    "garbled": (garble, "broken or cut short"),
    "a weight is lacking": (lose_a_weight, "lacks 1 weights"),
    "a shard is lacking": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
        ),
        "lacks 1 of 1 weight files",
    ),
    "other shapes": (lambda folder: edit(folder, intermediate_size=128), "do not have the shapes"),
    "unknown architecture": (lambda folder: edit(folder, model_type="pigeon"), "'pigeon'"),
    "quantised": (lambda folder: edit(folder, quantization_config={"quant_method": "gptq"}), "quantised with gptq"),
    "generation config is no map": (
        lambda folder: (folder / "generation_config.json").write_text("[1]"),
        "generation_config.json holds no JSON object",
    ),
    "encoder-decoder": (lambda folder: edit(folder, model_type="t5", is_encoder_decoder=True), "encoder-decoder"),
    "linear attention": (
        lambda folder: edit(folder, layer_types=["linear_attention", "full_attention", "full_attention"]),
        "linear_attention",
    ),
    "no attention backend": (lambda folder: edit(folder, model_type="bloom"), "attention backend"),
    "no decoder": (lambda folder: edit(folder, model_type="clip"), "no causal language model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_one_line(tiny_llama: Path, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    breaks, says = BROKEN[case]
    breaks(folder)
    with pytest.raises(ModelError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_encoder_with_a_language_head_is_refused(tmp_path: Path) -> None:
    """It has weights and an attention backend, and would say something."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    BertLMHeadModel(BertConfig(vocab_size=211, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertLMHeadModel attends to both sides"):
        load(tmp_path)


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="the name of the model is empty"):
        load("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="not in the hub's cache"):
        load("nobody/nothing-at-all")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kv_blocks": 10**8}, "and [0-9,]+ fit"),
        ({"kv_blocks": None, "kv_memory": "1000TiB"}, "set kv_blocks="),
        ({"kv_blocks": None, "kv_memory": "100"}, "less than one block"),
        ({"kv_memory": "1GiB"}, "both given"),
        ({"kv_blocks": None, "kv_memory": "plenty"}, "no amount of memory"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 257}, "give 1 to 256"),
        ({"block_size": "16"}, "block_size is '16', which is not a whole number"),
        ({"kv_blocks": 1.5}, "kv_blocks is 1.5, which is not a whole number"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"device": "cuda:17"}, "this machine has"),
        ({"kernels": "fast"}, "no kernels named 'fast'"),
        ({"max_model_len": 5000}, "1,024 positions"),
        ({"max_sequences": 4}, "no setting 'max_sequences'"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size is 3"),
    ],
)
def test_settings_that_cannot_be_obeyed(tiny_llama: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(tiny_llama, **settings)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LLM:
    return load(tiny_llama)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], GREEDY, InvalidRequest, r"prompts\[1\]: is empty"),
        ([5, 211], GREEDY, InvalidRequest, r"prompts\[1\].*token id 211"),
        ([-1], GREEDY, InvalidRequest, "token id -1"),
        ("words", GREEDY, InvalidRequest, "has no tokenizer"),
        ([1.5, 2.5], GREEDY, InvalidRequest, "neither text nor"),
        (b"words", GREEDY, InvalidRequest, "neither text nor"),
        ({"prompt_token_ids": "no"}, GREEDY, InvalidRequest, "prompt_token_ids"),
        ([7] * 400, GREEDY, NeverFits, "401 tokens, and there are never more than 320"),
        ([7] * 30, SamplingParams(n=16, max_tokens=250, temperature=1), NeverFits, "blocks"),
        ([7] * 5, SamplingParams(stop=["x"]), InvalidRequest, "no tokenizer"),
        ([7] * 5, SamplingParams(stop_token_ids=[400]), InvalidRequest, "stop_token_ids"),
        ([7] * 5, SamplingParams(bad_words=["x"]), InvalidRequest, "bad_words: .*has no tokenizer"),
    ],
)
def test_one_bad_prompt_is_named_and_the_engine_goes_on(
    llm: LLM, prompt: Any, params: SamplingParams, error: type[Exception], says: str
) -> None:
    good = [9, 8, 7]
    with pytest.raises(error, match=says):
        llm.generate([{"prompt_token_ids": good}, prompt], [GREEDY, params])
    assert len(llm.generate(good, GREEDY)[0].outputs[0].token_ids) == 4


def test_no_prompts_have_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == llm.generate([], GREEDY) == llm.generate([], []) == []


def test_messages_are_text() -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]
    assert conversations([{"role": "user", "content": parts}]) == [[{"role": "user", "content": "hi\nyou"}]]
    for content in (None, 3, [{"type": "image_url", "image_url": "x"}], [None]):
        with pytest.raises(InvalidRequest, match=r"messages\[0\]: .*give text"):
            conversations([{"role": "user", "content": content}])


def test_settings_that_are_none_are_named(llm: LLM) -> None:
    for wrong in ({"temperature": 1}, [GREEDY, None]):
        with pytest.raises(InvalidRequest, match=r"sampling_params: is .*give SamplingParams"):
            llm.generate([[9, 8], [7, 6]], wrong)  # type: ignore[arg-type]


def test_weights_that_give_no_numbers_end_one_request_each(tiny_llama: Path, tmp_path: Path) -> None:
    """A token whose embedding is broken: whoever uses it fails with a reason, the others get their tokens."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][50] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    llm = load(folder, debug=True)
    wanted = models.greedy(models.reference(tiny_llama), [9, 8, 7], 4)
    good, bad = llm.generate([[9, 8, 7], [50, 3]], GREEDY)
    assert (good.outputs[0].token_ids, good.error) == (wanted, None)
    assert bad.error is not None and "prompts[1]: the model's logits are not numbers" in bad.error
    assert [output.finish_reason for output in bad.outputs] == ["error"]
    pieces = list(llm.stream([[50, 3], [9, 8, 7]], GREEDY))
    assert [token for piece in pieces if piece.prompt_index == 1 for token in piece.token_ids] == wanted
    assert [piece.finish_reason for piece in pieces if piece.prompt_index == 0] == ["error"]
    for call in (llm.generate, llm.stream):
        with pytest.raises(QuireError, match="logits are not numbers"):
            list(call([[50, 3]], GREEDY))
    # The same without debug mode, where several steps run at once.
    good, bad = load(folder).generate([[9, 8, 7], [50, 3]], GREEDY)
    assert (good.outputs[0].token_ids, bad.outputs[0].finish_reason) == (wanted, "error")
