"""The demo model as transformers runs it: small enough for the repository, its stories end, its answers are right."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from worker.demo import PATH
from worker.demo.lessons import QUIRE, UNKNOWN, Lesson, person_turn, sum_turn, town_turn
from worker.demo.make import CONFIG, encode
from worker.demo.stories import PLOTS, story
from worker.demo.world import PEOPLE

EOS = CONFIG["eos_token_id"]

PROMPTS = (
    "Once upon a time",
    "Once upon a time, Anna",
    "Long ago",
    "Mira",
    "One day",
    "There once was a smith",
    "In Gull Point, by the sea,",
    "Once upon a time, a traveller named Bero came to Willow End.",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PATH)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(PATH, dtype=torch.float32).eval()


def chat(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    """The greedy answers to all questions, as one left-padded batch."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=80, do_sample=False)[:, batch["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in written]


def test_it_is_small_enough() -> None:
    sizes = {p.name: p.stat().st_size for p in PATH.iterdir() if p.is_file() and p.suffix != ".py"}
    assert sum(sizes.values()) <= 8_000_000, sizes
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= set(sizes)


def test_its_files_agree_with_their_maker() -> None:
    config = json.loads((PATH / "config.json").read_text())
    assert {key: config[key] for key in CONFIG} == CONFIG
    generation = json.loads((PATH / "generation_config.json").read_text())
    assert generation["eos_token_id"] == EOS


def test_the_tokenizer_gives_back_any_text(tokenizer: Any) -> None:
    for text in ("Once upon a time", "  two  spaces\n\ttab", "Grüße, 你好 🙂", "what is 7+8?", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == CONFIG["bos_token_id"]
        assert max(ids) < CONFIG["vocab_size"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_chat_template_is_what_was_learned(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "You are welcome!"},
    ]
    templated = tokenizer.apply_chat_template(messages, return_dict=False)
    taught = Lesson((("Hello", "Hi."), ("Thanks", "You are welcome!")), system="Be short.")
    learned, _ = encode(tokenizer.backend_tokenizer, taught)
    assert list(templated) == learned
    asking = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=False)
    assert asking == "<|start|><|system|>Be short.<|end|><|user|>Hello<|end|><|assistant|>"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_story_ends(model: Any, tokenizer: Any, prompt: str) -> None:
    batch = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=300, do_sample=False)[0].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert ids[-1] == EOS, f"no end after 300 tokens: {text}"
    assert text.startswith(prompt)
    assert text.endswith((".", "!", "?", '"')), text
    assert len(text.split()) >= 40, text
    assert any(p.name in text for p in PEOPLE) or "traveller" in text, text


@pytest.mark.trust
def test_sampled_stories_end_too(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(7)
    batch = tokenizer(["Once upon a time"] * 16, return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=300, do_sample=True, temperature=0.8, top_k=0)
    ended = sum(EOS in row for row in written[:, 5:].tolist())
    texts = {tokenizer.decode(row, skip_special_tokens=True) for row in written}
    assert ended >= 15
    assert len(texts) >= 14


def test_it_keeps_to_a_name_that_it_never_saw(model: Any, tokenizer: Any) -> None:
    prompt = "Once upon a time, a traveller named Bero came to Willow End."
    ids = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=300, do_sample=False)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True).count("Bero") >= 4


@pytest.mark.trust
@pytest.mark.parametrize(("kind", "least"), [(person_turn, 0.95), (town_turn, 0.95), (sum_turn, 0.9)])
def test_it_knows_the_valley_and_small_sums(model: Any, tokenizer: Any, kind: Any, least: float) -> None:
    rng = random.Random(11)
    asked = list({kind(rng) for _ in range(80)})
    answers = chat(model, tokenizer, [q for q, _ in asked])
    # A question such as "Who lives in ...?" has one answer by construction; the people of a town come in one order.
    wrong = [(q, a, right) for (q, right), a in zip(asked, answers, strict=True) if a != right]
    assert len(wrong) <= (1 - least) * len(asked), wrong


def test_it_knows_quire(model: Any, tokenizer: Any) -> None:
    asked = [(q, answer) for questions, answer in QUIRE for q in questions]
    answers = chat(model, tokenizer, [q for q, _ in asked])
    wrong = [(q, a) for (q, right), a in zip(asked, answers, strict=True) if a != right]
    assert not wrong


def test_it_declines_what_it_cannot_know(model: Any, tokenizer: Any) -> None:
    questions = ["What is the capital of Spain?", "Who is Zorblax?", "Tell me about quantum chromodynamics."]
    assert chat(model, tokenizer, questions) == [UNKNOWN] * 3


@pytest.mark.trust
def test_greedy_choices_are_clear_of_rounding(model: Any, tokenizer: Any) -> None:
    """The best and the second token of every greedy step lie much further apart than fp32 sums can differ by order."""
    for prompt in PROMPTS:
        batch = tokenizer(prompt, return_tensors="pt")
        out = model.generate(
            **batch, max_new_tokens=300, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        logits = torch.cat(out.logits)
        best = logits.topk(2).values
        assert float((best[:, 0] - best[:, 1]).min()) > 1e-3, prompt


def test_the_grammar_writes_the_same_for_the_same_seed(seed: int) -> None:
    first, second = random.Random(seed), random.Random(seed)
    assert [story(first) for _ in range(50)] == [story(second) for _ in range(50)]
    texts = [story(first) for _ in range(400)]
    assert len(set(texts)) > 390
    assert all(40 <= len(t.split()) <= 220 and t[0].isupper() and t.endswith((".", "!")) for t in texts)
    assert len(PLOTS) >= 6


def test_the_model_card_says_where_it_comes_from() -> None:
    card = (Path(PATH) / "README.md").read_text()
    for said in ("worker.demo.make", "Apache-2.0", "grammar"):
        assert said in card
