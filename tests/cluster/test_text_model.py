"""What a gateway knows of a model's text from its folder alone: also without a tokenizer, and where config.json leaves
things to its class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig

from cluster.errors import InvalidRequest, ModelError
from cluster.gateway.models import TextModel
from cluster.sampling import SamplingParams
from cluster.wire.chat import chat_of


def load(folder: Path, config: dict[str, object]) -> TextModel:
    (folder / "config.json").write_text(json.dumps(config))
    return TextModel.load("plain", folder)


def test_without_a_tokenizer_token_ids_go_in_and_out(tmp_path: Path) -> None:
    model = load(tmp_path, json.loads(LlamaConfig(vocab_size=211, eos_token_id=[5, 7]).to_json_string()))
    model.check_ids("prompt.token_ids", [0, 210])
    resolved = model.resolve(SamplingParams(max_tokens=4), 3, 64, seed=1)
    assert resolved.stop_ids == (5, 7)
    assert model.cutters(resolved)() is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: model.encode("words"), "prompt.text: is text, and model plain has no tokenizer; send token_ids"),
        (
            lambda model: model.encode_chat(chat_of([{"role": "user", "content": "a"}], "x")),
            "prompt.chat: .*no chat template",
        ),
        (lambda model: model.decode([1], True), "ids: shall become text, and model plain has no tokenizer"),
        (lambda model: model.resolve(SamplingParams(stop=["x"]), 3, 64, seed=1), "sampling.stop: .*stop_token_ids"),
        (lambda model: model.resolve(SamplingParams(bad_words=["x"]), 3, 64, seed=1), "bad_words: .*has no tokenizer"),
    ],
)
def test_what_needs_text_is_refused_by_field(call: object, says: str, tmp_path: Path) -> None:
    model = load(tmp_path, json.loads(LlamaConfig().to_json_string()))
    with pytest.raises(InvalidRequest, match=says):
        call(model)  # type: ignore[operator]


def test_what_config_json_leaves_out_is_its_class_default(tmp_path: Path) -> None:
    model = load(tmp_path, {"model_type": "gpt2", "n_positions": 333})
    assert (model.vocab_size, model.max_model_len) == (GPT2Config().vocab_size, 333)
    assert model.defaults["eos_token_id"] == GPT2Config().eos_token_id


@pytest.mark.parametrize("config", [{}, {"model_type": "no such"}, {"model_type": "vit"}])
def test_what_is_no_language_model_is_one_line(config: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        load(tmp_path, config)
    assert "\n" not in str(caught.value)


def test_a_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer of .* can't be loaded") as caught:
        load(tmp_path, json.loads(LlamaConfig().to_json_string()))
    assert "\n" not in str(caught.value)
