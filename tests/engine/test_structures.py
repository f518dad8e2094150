"""Answers of a given structure: valid whatever the model would rather say, the same after a move, beside others."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from cluster import LLM, InvalidRequest, SamplingParams, StructuredOutputsParams

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


@pytest.mark.parametrize(
    "structure, more, field",
    [
        ({"regex": "("}, {}, "structured_outputs.regex"),
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
