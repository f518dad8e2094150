"""Parsers of calls and reasoning: what they give is a function of the text, however it was cut, and nothing is lost."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest

from cluster.speech.harmony import MAX_HEADER_CHARS, HarmonyParser
from cluster.speech.hermes import HermesParser
from cluster.speech.llama import LlamaParser
from cluster.speech.parts import Parser, Part, PartKind, joined
from cluster.speech.thinking import ThinkingParser

Make = Callable[[], Parser]
NAMES = frozenset(("weather", "add", "f"))

MAKERS: dict[str, Make] = {
    "hermes": HermesParser,
    "llama": lambda: LlamaParser(NAMES),
    "harmony": HarmonyParser,
    "no tools": lambda: HarmonyParser(may_call=False),
    "thinking": lambda: ThinkingParser(None, False),
    "open": lambda: ThinkingParser(HermesParser(), True),
    "qwen": lambda: ThinkingParser(HermesParser(), False),
}
T, R, C, A = PartKind.TEXT, PartKind.REASONING, PartKind.CALL, PartKind.ARGUMENTS
ARGS = '{"city": "Par}is\\"</tool_call>", "days": [1, {"a": null}]}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGS}}}\n</tool_call>'
DEEP = f'{{"name": {"[" * 1_500 + "]" * 1_500}'
LONG = "k" * 200
CALLED = [(C, "weather"), (A, ARGS)]

SAMPLES: list[tuple[str, str, list[tuple[PartKind, str]]]] = [
    ("hermes", "plain text, <b>bold</b> and a <tool", [(T, "plain text, <b>bold</b> and a <tool")]),
    ("hermes", CALL, [(C, "weather"), (A, ARGS)]),
    ("hermes", f"Let me see.\n\n{CALL}\n{CALL}", [(T, "Let me see."), *CALLED, *CALLED]),
    ("hermes", f"{CALL}\nDone.", [(C, "weather"), (A, ARGS), (T, "\nDone.")]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [(C, "f"), (A, '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, "parameters": {"a": 1}}', [(C, "f"), (A, "{}")]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', [(C, "f"), (A, "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [(C, "f"), (A, '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "half', [(C, "f"), (A, '{"a": "half')]),
    ("hermes", "<tool_call>\nf(1)\n</tool_call>", [(T, "<tool_call>\nf(1)\n</tool_call>")]),
    ("hermes", '<tool_call>{"a": 1}', [(T, '<tool_call>{"a": 1}')]),
    ("hermes", '<tool_call>{"name": 5}', [(T, '<tool_call>{"name": 5}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}; oh', [(C, "f"), (A, "{}"), (T, "; oh")]),
    ("hermes", '<tool_call>{"name": "\\ud800"}', [(T, '<tool_call>{"name": "\\ud800"}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "\\ud800"}', [(C, "f"), (A, '"\\ud800"')]),
    ("hermes", f"<tool_call>{DEEP}}}", [(T, f"<tool_call>{DEEP}}}")]),
    ("llama", f"{DEEP}}}", [(T, f"{DEEP}}}")]),
    ("hermes", f'<tool_call>{{"{LONG}": 1}}', [(T, f'<tool_call>{{"{LONG}": 1}}')]),
    ("hermes", '<tool_call>{"na', [(T, '<tool_call>{"na')]),
    ("hermes", "<tool_call>\n", [(T, "<tool_call>\n")]),
    ("hermes", "text \n", [(T, "text \n")]),
    ("llama", '{"name": "add", "parameters": {"a": 2, "b": "3"}}', [(C, "add"), (A, '{"a": 2, "b": "3"}')]),
    (
        "llama",
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 2}}; {"name": "f", "parameters": {}}',
        [(C, "add"), (A, '{"a": 2}'), (C, "f"), (A, "{}")],
    ),
    ("llama", '{"name": "Bob", "age": 3}', [(T, '{"name": "Bob", "age": 3}')]),
    ("llama", '{"answer": 42}', [(T, '{"answer": 42}')]),
    ("llama", '{"name": "ad', [(T, '{"name": "ad')]),
    ("llama", '  I call <|python_tag|>{"name": "f", "parameters": {}}', [(T, "  I call "), (C, "f"), (A, "{}")]),
    ("llama", "<|python_tag|>print(1)", [(T, "<|python_tag|>print(1)")]),
    ("no tools", "<|channel|>commentary to=functions.f<|message|>{}<|call|>", [(T, "{}")]),
    ("harmony", "<|channel|>final<|message|>Hi <b>.", [(T, "Hi <b>.")]),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a": 1}',
        [(R, "Hm."), (C, "add"), (A, '{"a": 1}')],
    ),
    ("harmony", ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>', [(C, "f"), (A, '{"a": 1}')]),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>So.<|return|>",
        [(T, "I look.So.")],
    ),
    ("harmony", "just text", [(T, "just text")]),
    ("harmony", "<|channel|>fin", []),
    ("harmony", "<|channel|>" + "x" * MAX_HEADER_CHARS + "<|message|>y", [(T, "")]),
    ("thinking", "<think>\nHm.\n\nSo.\n</think>\n\nAnswer.", [(R, "Hm.\n\nSo."), (T, "Answer.")]),
    ("thinking", "<think>\n\n</think>\n\nAnswer.", [(T, "Answer.")]),
    ("thinking", "No <think> here", [(T, "No <think> here")]),
    ("thinking", "<think>never </thi", [(R, "never </thi")]),
    ("thinking", " \n<thi", [(T, " \n<thi")]),
    ("open", f"Hm.\n</think>\n\n{CALL}", [(R, "Hm."), (C, "weather"), (A, ARGS)]),
    ("qwen", f"<think>\nHm.\n</think>\n\nLook:\n{CALL}", [(R, "Hm."), (T, "Look:"), (C, "weather"), (A, ARGS)]),
]  # fmt: skip


def fed(parser: Parser, pieces: list[str]) -> tuple[list[list[Part]], list[Part]]:
    """What had been given after each piece, and in the end."""
    given: list[Part] = []
    after = []
    for piece in pieces:
        given += parser.feed(piece)
        after.append(joined(given))
    return after, joined(given + parser.end())


@pytest.mark.parametrize(("form", "text", "wanted"), SAMPLES)
def test_every_cut_gives_the_same(form: str, text: str, wanted: list[tuple[PartKind, str]]) -> None:
    letters, whole = fed(MAKERS[form](), list(text))
    if form == "harmony" and len(text) > MAX_HEADER_CHARS:
        assert [part.kind for part in whole] == [PartKind.TEXT]
    else:
        assert whole == [Part(kind, said) for kind, said in wanted]
    for at in range(1, len(text), 1 + len(text) // 300):
        after, in_the_end = fed(MAKERS[form](), [text[:at], text[at:]])
        assert in_the_end == whole, f"cut at {at}"
        assert after[0] == letters[at - 1], f"cut at {at}: what is told depends on the cut"
    draw = random.Random(7)
    for _ in range(40):
        cuts = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.randint(1, 6))))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        after, in_the_end = fed(MAKERS[form](), pieces)
        assert in_the_end == whole, pieces
        for cut, given in zip([*cuts, len(text)], after, strict=True):
            assert given == (letters[cut - 1] if cut else []), pieces


ALPHABET = [*'ab {}[]",:\\\n;<>', "<tool_call>", "</tool_call>", '"name"', '"arguments"', '"f"', '{"name": "f", ']
ALPHABET += [
    "<|python_tag|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "to=functions.f",
    "<think>",
    "</think>",
]


@pytest.mark.parametrize("form", MAKERS)
def test_whatever_comes_nothing_breaks_and_cuts_do_not_count(form: str) -> None:
    for seed in range(400):
        draw = random.Random(seed)
        text = "".join(draw.choice(ALPHABET) for _ in range(draw.randint(1, 25)))
        letters, whole = fed(MAKERS[form](), list(text))
        cut = draw.randint(1, len(text))
        after, in_the_end = fed(MAKERS[form](), [text[:cut], text[cut:]])
        assert in_the_end == whole, f"seed {seed}: {text!r} cut at {cut}"
        assert after[0] == letters[cut - 1], f"seed {seed}: {text!r} cut at {cut}"
        for at, part in enumerate(whole):
            assert part.text, f"seed {seed}"
            assert part.kind is not PartKind.ARGUMENTS or whole[at - 1].kind is PartKind.CALL, f"seed {seed}: {whole}"


def test_arguments_come_while_they_are_written() -> None:
    parser = HermesParser()
    told = [parser.feed(letter) for letter in '<tool_call>\n{"name": "f", "arguments": {"text": "abc"}}\n</tool_call>']
    pieces = [part.text for parts in told for part in parts if part.kind is PartKind.ARGUMENTS]
    assert len(pieces) > 10 and json.loads("".join(pieces)) == {"text": "abc"}


@pytest.mark.parametrize("form", ["hermes", "open"])
def test_blanks_that_do_not_end_cost_what_other_text_costs(form: str) -> None:
    """Each of them cost as much as all before it, in the loop that serves every stream."""

    def took(letter: str) -> float:
        parser, began = MAKERS[form](), time.process_time()
        for _ in range(20_000):
            parser.feed(letter * 16)
        parser.end()
        return time.process_time() - began

    assert took(" ") < 5 * took("x")
