"""JSON schemas, keyword by keyword: what the mask lets through is what the standard's own validator calls valid.

Each row has a schema, instances that must get through whole, and instances that must not. Beside them random walks
under the mask: whatever ends is valid.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from cluster.structure import StructuredOutputsParams
from tests.http.scripted import PLAIN, text_model
from worker.sampling.guide import matcher_of, tokenizer_of


def closed(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False, **more}


NUMBER, TEXT, WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer"}
POINT = closed({"x": WHOLE, "y": WHOLE}, "x", "y")
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": closed({"v": WHOLE, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "v", "next")
    },
}
ROWS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "null"}, [None], [0, "", False]),
    ({"type": "boolean"}, [True, False], [0, "true", None]),
    (WHOLE, [0, -7, 123456], [1.5, "1", None]),
    (NUMBER, [0, -1.25, 3e10], ["1", None, []]),
    (TEXT, ["", "a", 'q"uo\\te', "ä€\u2028", "\n"], [1, None, []]),
    ({"type": "array"}, [[], [1, "a", [None]]], [{}, 1]),
    ({"type": "object"}, [{}, {"a": 1, "b": [2]}], [[], 1]),
    ({"type": ["integer", "null"]}, [1, None], ["a", 1.5]),
    ({"type": ["string", "array"]}, ["a", [1]], [1, {}]),
    ({"const": 5}, [5], [6, "5"]),
    ({"const": "a b"}, ["a b"], ["a", "ab"]),
    ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": []}, {}]),
    ({"const": None}, [None], [0]),
    ({"enum": ["red", "green"]}, ["red", "green"], ["blue", "re"]),
    ({"enum": [1, "1", None, True]}, [1, "1", None, True], [2, "2", False]),
    ({"type": "string", "enum": ["x", "y"]}, ["x"], ["z"]),
    ({"type": "integer", "minimum": 3}, [3, 400], [2, -5]),
    ({"type": "integer", "maximum": 3}, [3, -400], [4, 50]),
    ({"type": "integer", "minimum": -5, "maximum": 17}, [-5, 0, 17], [-6, 18]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1], [1.5, -0.5]),
    ({"type": "number", "exclusiveMinimum": 0.5, "maximum": 2.5}, [0.75, 2.5], [0.25, 2.75]),
    ({"type": "integer", "multipleOf": 5}, [0, 5, 40], [3, 41]),
    ({"type": "string", "minLength": 2}, ["ab", "äöü"], ["", "a"]),
    ({"type": "string", "maxLength": 2}, ["", "ab", "äö"], ["abc"]),
    ({"type": "string", "minLength": 1, "maxLength": 3}, ["a", "abc"], ["", "abcd"]),
    ({"type": "string", "pattern": "^[a-z]{2}[0-9]+$"}, ["ab1", "zz99"], ["a1", "ab", "AB1"]),
    ({"type": "string", "pattern": "b"}, ["b", "abc"], ["ac", ""]),
    ({"type": "string", "pattern": "^(yes|no)$"}, ["yes", "no"], ["maybe", "yess"]),
    ({"type": "string", "format": "date"}, ["2026-11-29"], ["2026-13-01", "today"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["300.1.1.1", "a"]),
    ({"type": "array", "items": WHOLE}, [[], [1, 2]], [["a"], [1, "b"]]),
    ({"type": "array", "items": TEXT, "minItems": 1}, [["a"]], [[]]),
    ({"type": "array", "items": WHOLE, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]]),
    ({"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2}, [[1, 2]], [[1], [1, 2, 3]]),
    ({"type": "array", "prefixItems": [WHOLE, TEXT], "items": False, "minItems": 2}, [[1, "a"]], [["a", 1], [1]]),
    ({"type": "array", "prefixItems": [WHOLE], "items": TEXT}, [[1], [1, "a", "b"]], [[1, 2]]),
    ({"type": "array", "items": {"type": "array", "items": WHOLE}}, [[[1], []]], [[1], [["a"]]]),
    ({"type": "array", "items": POINT}, [[{"x": 1, "y": 2}]], [[{"x": 1}]]),
    (closed({"a": WHOLE}, "a"), [{"a": 1}], [{}, {"a": "1"}, {"a": 1, "b": 2}]),
    (closed({"a": WHOLE, "b": TEXT}, "a"), [{"a": 1}, {"a": 1, "b": "x"}], [{"b": "x"}]),
    (closed({"a": WHOLE, "b": TEXT}), [{}, {"a": 1}, {"b": "x"}], [{"c": 1}]),
    ({"type": "object", "properties": {"a": WHOLE}}, [{}, {"a": 1}, {"a": 1, "z": []}], [{"a": "x"}]),
    ({"type": "object", "additionalProperties": WHOLE}, [{}, {"q": 1}], [{"q": "a"}]),
    ({"type": "object", "properties": {"a": TEXT}, "additionalProperties": WHOLE}, [{"a": "x", "b": 1}], [{"a": "x", "b": "y"}]),  # noqa: E501
    ({"type": "object", "required": ["a"]}, [{"a": 1}], [{}, {"b": 1}]),
    ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
    (closed({"p": POINT}, "p"), [{"p": {"x": 1, "y": 2}}], [{"p": {}}, {"p": 1}]),
    (closed({"a": {"const": "k"}, "v": NUMBER}, "a", "v"), [{"a": "k", "v": 1.5}], [{"a": "j", "v": 1}]),
    ({"anyOf": [WHOLE, TEXT]}, [1, "a"], [None, 1.5]),
    ({"anyOf": [{"const": "a"}, {"type": "array", "items": WHOLE}]}, ["a", [1]], ["b", ["a"]]),
    ({"anyOf": [closed({"t": {"const": "i"}, "v": WHOLE}, "t", "v"), closed({"t": {"const": "s"}, "v": TEXT}, "t", "v")]},  # noqa: E501
     [{"t": "i", "v": 1}, {"t": "s", "v": "x"}], [{"t": "i", "v": "x"}, {"t": "x", "v": 1}]),
    ({"oneOf": [{"const": 1}, {"const": "a"}]}, [1, "a"], [2, "b"]),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6, "3"]),
    ({"allOf": [{"type": "object", "properties": {"a": WHOLE}, "required": ["a"]}]}, [{"a": 1}], [{}, {"a": "x"}]),
    ({"$ref": "#/$defs/n", "$defs": {"n": WHOLE}}, [1], ["a"]),
    ({"$defs": {"t": {"enum": ["a", "b"]}}, "type": "array", "items": {"$ref": "#/$defs/t"}}, [["a", "b"], []], [["c"]]),  # noqa: E501
    (TREE, [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}], [{"v": 1}, {"v": 1, "next": {"v": 2}}]),
    ({"definitions": {"k": TEXT}, "properties": {"k": {"$ref": "#/definitions/k"}}, "type": "object"}, [{"k": "a"}], [{"k": 1}]),  # noqa: E501
    ({"title": "T", "description": "d", "default": 1, "examples": [2], "type": "integer"}, [3], ["3"]),
    (closed({"ä": WHOLE, "a b": WHOLE, 'q"': WHOLE}, "ä", "a b", 'q"'), [{"ä": 1, "a b": 2, 'q"': 3}], [{"ä": 1}]),
    (closed({"a": {"type": ["string", "null"], "maxLength": 3}}, "a"), [{"a": None}, {"a": "abc"}], [{"a": "abcd"}]),
    (closed({"tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3}}, "tags"), [{"tags": []}, {"tags": ["x"]}], [{"tags": ["z"]}]),  # noqa: E501
    (closed({"m": {"type": "object", "additionalProperties": {"type": "array", "items": WHOLE}}}, "m"), [{"m": {"a": [1]}}], [{"m": {"a": 1}}]),  # noqa: E501
    ({"type": "object", "patternProperties": {"^n_": WHOLE}, "additionalProperties": False}, [{"n_a": 1}, {}], [{"x": 1}, {"n_a": "s"}]),  # noqa: E501
    ({}, [1, None, {"a": [1]}], []),
]  # fmt: skip
MODEL = text_model(PLAIN)
TOKENIZER = tokenizer_of(MODEL.tokenizer, MODEL.vocab_size, [0])


def matcher(schema: Any) -> Any:
    return matcher_of(StructuredOutputsParams(json=json.dumps(schema)), TOKENIZER)


def gets_through(schema: Any, instance: Any) -> bool:
    tokens = MODEL.encode(json.dumps(instance, ensure_ascii=False))
    one = matcher(schema)
    return (
        all(one.validate_tokens([token]) == 1 and one.consume_token(token) for token in tokens) and one.is_accepting()
    )


def is_valid(schema: Any, instance: Any) -> bool:
    return Draft202012Validator(schema, format_checker=FormatChecker()).is_valid(instance)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: json.dumps(row[0])[:60])
def test_the_mask_is_the_schema(row: tuple[Any, list[Any], list[Any]]) -> None:
    schema, valid, invalid = row
    for instance in valid:
        assert is_valid(schema, instance), "the table is wrong"
        assert gets_through(schema, instance), instance
    for instance in invalid:
        assert not is_valid(schema, instance), "the table is wrong"
        assert not gets_through(schema, instance), instance


def test_whatever_ends_is_valid(seed: int) -> None:
    """Random walks under the mask, which like to end: quotes, brackets and the end token are drawn more often."""
    draw, num_ended = random.Random(seed), 0
    fond = {token for text in '"]}0' for token in MODEL.encode(text)} | {0}
    for schema, *_ in ROWS:
        for _ in range(4):
            one, tokens = matcher(schema), []
            while len(tokens) < 160:
                allowed = [token for token, bias in enumerate(one.compute_logit_bias()) if bias]
                assert allowed, (schema, MODEL.decode(tokens, True))
                liked = [token for token in allowed if token in fond]
                token = draw.choice(liked if liked and draw.random() < 0.7 else allowed)
                if token == 0:
                    break
                tokens.append(token)
                assert one.consume_token(token)
                if one.is_stopped():
                    break
            else:
                continue
            num_ended += 1
            said = MODEL.decode(tokens, True)
            # A format's shape is held to, not the calendar: the year 0000 and the 31st of June get through.
            assert Draft202012Validator(schema).is_valid(json.loads(said)), (schema, said)
    print(f"{num_ended} answers ended")
    assert num_ended > len(ROWS)
