"""`quire bench structures`: what masks of structured answers cost a batch, and whether answers are of their schemas.

Cost: the same prompts and number of tokens, plain and with a structure in every row, in turn. It is judged by the
processor time that a step takes on its own thread, in the lower quartile, so that other work on the machine counts
little; masks are made on a thread beside it. Answers (`--answers`): drawn from a model that has learnt to write, such
as `--model smollm2`, for schemas of several kinds; each that ends by itself is held against its schema by a validator
that is not ours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from timeit import timeit
from typing import Any

from cluster.bench.cluster import with_tokenizer
from cluster.bench.report import BenchHelp, Cell, Report
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from cluster.structure import StructuredOutputsParams

MAX_COST, MAX_UNUSED = 1.05, 0.001
PROMPT_TOKENS, AT_ONCE = 64, 64


def record(properties: dict[str, Any], *, optional: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def text(most: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": most}


# Kinds that clients ask for: flat, nested, lists, alternatives, formats, references, bounds.
PERSON = record({"name": text(30), "age": {"type": "integer", "minimum": 0, "maximum": 120}})
SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "flat": ("Describe a person.", PERSON),
    "enum and optional": (
        "Judge this review: the film was long, but the music was lovely.",
        record(
            {
                "mood": {"enum": ["good", "bad", "mixed"]},
                "score": {"type": "number", "minimum": 0, "maximum": 10},
                "why": text(60),
                "is_sure": {"type": "boolean"},
            },
            optional=["is_sure"],
        ),
    ),
    "nested": (
        "Write an address book entry.",
        record({"person": PERSON, "home": record({"street": text(30), "number": {"type": "integer"}})}),
    ),
    "list": (
        "Name three cities and their countries.",
        {
            "type": "array",
            "minItems": 2,
            "maxItems": 4,
            "items": record({"city": text(20), "country": text(20)}),
        },
    ),
    "alternatives": (
        "Where is the Eiffel tower? Give a place by name, or by its coordinates.",
        {
            "anyOf": [
                record({"place": text(30)}),
                record({"north": {"type": "number"}, "east": {"type": "number"}}),
                {"type": "null"},
            ]
        },
    ),
    "formats": (
        "Make an appointment at the dentist.",
        record(
            {
                "day": {"type": "string", "format": "date"},
                "time": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
                "mail": {"type": "string", "format": "email", "maxLength": 40},
            }
        ),
    ),
    "reference": (
        "Draw a small tree of topics about animals.",
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": record(
                    {
                        "name": text(15),
                        "children": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}},
                    },
                    optional=["children"],
                )
            },
        },
    ),
    "constants": (
        "Order a pizza.",
        record(
            {
                "kind": {"const": "order"},
                "size": {"type": "integer", "enum": [20, 26, 32]},
                "on_it": {"type": "array", "items": {"enum": ["ham", "olives", "cheese"]}, "maxItems": 3},
            }
        ),
    ),
}  # fmt: skip
# Of no end before the tokens are used up, so that all kinds write as many.
TAGS = {"type": "array", "items": {"type": "string"}}
ENDLESS = {"type": "array", "minItems": 500, "items": record({"person": PERSON, "tags": TAGS})}
KINDS = {
    "plain": None,
    "JSON schema": StructuredOutputsParams(json=ENDLESS),
    "regex": StructuredOutputsParams(regex="[a-z ,.]{3000}"),
}


@dataclass
class Took:
    seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)  # processor seconds of each, on its thread

    @property
    def step_s(self) -> float:
        return quantiles(self.steps, n=4)[0]


class StructureSteps:
    """Notes what each step of an engine's worker costs this thread, with all that is done between it and the next."""

    def __init__(self, llm: LLM) -> None:
        self._step = llm._worker.step
        self._since = 0.0
        self.seconds: list[float] = []
        llm._worker.step = self  # type: ignore[method-assign]

    def __call__(self, max_steps: int = 1) -> int:
        num_steps = self._step(max_steps)
        now = time.thread_time()
        self.seconds += [(now - self._since) / max(1, num_steps)] * num_steps
        self._since = now
        return num_steps


def cost(report: Report, llm: LLM, batch: int, tokens: int, rounds: int) -> None:
    """Plain and structured in turn; the first round warms up."""
    prompts = [[3 + (number * 37 + at * 11) % 900 for at in range(PROMPT_TOKENS)] for number in range(batch)]
    took = {kind: Took() for kind in KINDS}
    steps = StructureSteps(llm)
    for number in range(rounds + 1):
        for kind, structure in KINDS.items():
            params = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=structure is None, structured_outputs=structure
            )
            steps.seconds = []
            began = time.perf_counter()
            results = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
            seconds = time.perf_counter() - began
            assert all(len(result.outputs[0].token_ids) == tokens for result in results), kind
            if number:
                took[kind].seconds.append(seconds)
                # The last are decodes of the whole batch.
                took[kind].steps += steps.seconds[-(tokens - 2) :]
    plain = took["plain"]
    rows: list[dict[str, Cell]] = []
    for kind, each in took.items():
        # Of each round by itself: what the machine does beside it changes from one to the next.
        by_clock = median(mine / theirs for mine, theirs in zip(each.seconds, plain.seconds, strict=True))
        by_step = each.step_s / plain.step_s
        rows.append(
            {
                "answers": kind,
                "tokens/s": batch * tokens / median(each.seconds),
                "ms of its thread a step": 1e3 * each.step_s,
                "time / plain": by_clock,
                "step / plain": by_step,
            }
        )
        if kind != "plain":
            what = f"{kind}: a step costs at most {MAX_COST:g}x of one of plain answers"
            report.check(what, by_step <= MAX_COST, f"{by_step:.3f}x")
    report.table(f"{batch} rows at once, {tokens} tokens each", rows)
    unused_s = timeit(lambda: ask_nobody(llm), number=1_000) / 1_000
    detail = f"{1e6 * unused_s:.1f} us of {1e3 * plain.step_s:.1f} ms"
    what = f"where no answer has a structure, a step spends at most {MAX_UNUSED:g} of its time on them"
    report.check(what, unused_s <= MAX_UNUSED * plain.step_s, detail)


def ask_nobody(llm: LLM) -> None:
    """What every step asks of structures, whether there are any or none."""
    structures = llm._worker.sampler.structures
    assert not structures.num_rows and not structures.has_long and not structures.late()


def asked(num: int, seed: int) -> Iterator[tuple[str, list[dict[str, str]], SamplingParams]]:
    """Kind, conversation and settings of so many answers, drawn and greedy."""
    for at in range(num):
        kind = tuple(SCHEMAS)[at % len(SCHEMAS)]
        wish, schema = SCHEMAS[kind]
        params = SamplingParams(
            temperature=(0.0, 0.7, 1.0, 1.3)[at // len(SCHEMAS) % 4],
            seed=seed + at,
            max_tokens=160,
            structured_outputs=StructuredOutputsParams(json=schema),
        )
        yield kind, [{"role": "user", "content": f"{wish} Answer in JSON. ({at})"}], params


def answers(report: Report, llm: LLM, num: int, seed: int) -> None:
    """All that end by themselves must be of their schema; the rest was cut."""
    import jsonschema  # type: ignore[import-untyped]

    checks = {kind: jsonschema.Draft202012Validator(schema) for kind, (_, schema) in SCHEMAS.items()}
    ended, cut, wrong = Counter[str](), Counter[str](), list[str]()
    left = list(asked(num, seed))
    for first in range(0, num, AT_ONCE):
        part = left[first : first + AT_ONCE]
        results = llm.chat([messages for _, messages, _ in part], [params for _, _, params in part], use_tqdm=False)
        for (kind, _, _), result in zip(part, results, strict=True):
            output = result.outputs[0]
            if output.finish_reason != "stop":
                cut[kind] += 1
                continue
            ended[kind] += 1
            problem = _problem(checks[kind], output.text)
            if problem:
                wrong.append(f"{kind}: {output.text[:200]!r}: {problem}")
    rows: list[dict[str, Cell]] = [
        {"schema": kind, "answers": ended[kind] + cut[kind], "ended by themselves": ended[kind], "cut": cut[kind]}
        for kind in SCHEMAS
    ]
    report.table(f"{num} answers", rows)
    report.check("all that end by themselves are of their schema", not wrong, "; ".join(wrong[:5]))
    report.check("of each schema some end", all(ended[kind] for kind in SCHEMAS), str(dict(ended)))
    report.note(f"{ended.total():,} of {num:,} ended by themselves, {len(wrong)} of them are not of their schema")


def _problem(check: Any, text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError as error:
        return str(error)
    return next((str(error.message) for error in check.iter_errors(found)), "")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench structures", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--model", default="125m", help="14m or 125m, of random weights, or any model (default: 125m)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5, help="of the cost; 0: only answers")
    parser.add_argument("--answers", type=int, default=0, help="so many answers are held against their schemas")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    report = Report("structures", argv)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as made:
        about_s = 60 * options.rounds + 0.3 * options.answers
        report.begins(f"masks of {options.batch} rows, {options.answers} answers of {options.model}", about_s)
        shape = options.model in ("14m", "125m")
        model = str(with_tokenizer(options.model, Path(made))) if shape else options.model
        llm = LLM(model, dtype="float32", quiet=True, kv_blocks=1024, max_batch=max(options.batch, 32))
        if options.rounds:
            cost(report, llm, options.batch, options.tokens, options.rounds)
        if options.answers:
            answers(report, llm, options.answers, options.seed)
        llm.close()
    return report.finish(options.json)
