"""What the streams of a torture ask, and what must come: the embedded engine says it before anything burns.

Greedy, seeded draws, three sequences, beams, logprobs and answers of a given structure; lengths differ, prompts begin
alike. A draw depends on seed, sequence, position and token alone, so every answer is known beforehand, whoever dies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from cluster.sampling import SamplingParams
from cluster.structure import StructuredOutputsParams

PROMPTS = (
    "Once upon a time",
    "The river",
    "A cold morning",
    "Otto the baker",
    "In Alder Bridge",
    "Mira had",
    "Once upon a time, in Alder Bridge, there was a baker who had a dog",
    "The river was wide, and nobody in the town had ever been on the other side of it. One day Mira",
)
_TALE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "age", "friends"],
    "additionalProperties": False,
}
KINDS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True),
    "drawn": SamplingParams(temperature=0.9, top_p=0.95, max_tokens=240, ignore_eos=True),
    "three": SamplingParams(n=3, temperature=0.8, max_tokens=160, ignore_eos=True),
    "beams": SamplingParams(beam_width=3, n=2, max_tokens=60, ignore_eos=True),
    "logprobs": SamplingParams(temperature=0.0, logprobs=2, max_tokens=160, ignore_eos=True),
    "schema": SamplingParams(temperature=0.9, max_tokens=200, structured_outputs=StructuredOutputsParams(json=_TALE)),
    "expression": SamplingParams(
        n=2,
        temperature=1.0,
        max_tokens=150,
        structured_outputs=StructuredOutputsParams(regex="([a-z]{2,9} ){20,30}end"),
    ),
}


@dataclass(frozen=True, slots=True)
class StreamAsk:
    kind: str
    prompt: str | list[int]
    params: SamplingParams
    answer: tuple[tuple[int, ...], ...]  # the tokens of each sequence


def model_asks(seed: int, num: int) -> list[StreamAsk]:
    """So many different ones of the demo model, with their answers. Takes a while: each is computed here."""
    from cluster import LLM

    random = Random(f"asks/{seed}")
    drawn: list[tuple[str, str, SamplingParams]] = []
    for at in range(num):
        kind = tuple(KINDS)[at % len(KINDS)]
        params = replace(KINDS[kind], seed=random.getrandbits(60))
        drawn.append((kind, random.choice(PROMPTS), params))
    llm = LLM("demo", dtype="float32", device="cpu", quiet=True, max_batch=32)
    results = llm.generate([prompt for _, prompt, _ in drawn], [params for _, _, params in drawn], use_tqdm=False)
    llm.close()
    return [
        StreamAsk(kind, prompt, params, tuple(tuple(output.token_ids) for output in result.outputs))
        for (kind, prompt, params), result in zip(drawn, results, strict=True)
    ]
