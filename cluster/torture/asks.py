"""What the streams of a torture ask, and what must come: the embedded engine says it before anything burns.

Greedy, seeded draws, three sequences, beams and logprobs; lengths differ, prompts begin alike. A draw depends on seed,
sequence, position and token alone, so every answer is known beforehand, whoever dies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from cluster.sampling import SamplingParams

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
KINDS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True),
    "drawn": SamplingParams(temperature=0.9, top_p=0.95, max_tokens=240, ignore_eos=True),
    "three": SamplingParams(n=3, temperature=0.8, max_tokens=160, ignore_eos=True),
    "beams": SamplingParams(beam_width=3, n=2, max_tokens=60, ignore_eos=True),
    "logprobs": SamplingParams(temperature=0.0, logprobs=2, max_tokens=160, ignore_eos=True),
}


@dataclass(frozen=True, slots=True)
class Ask:
    kind: str
    prompt: str
    params: SamplingParams
    answer: tuple[tuple[int, ...], ...]  # the tokens of each sequence


def asks(seed: int, num: int) -> list[Ask]:
    """So many different ones, with their answers. Takes a while: each is computed here."""
    from cluster import LLM

    random = Random(f"asks/{seed}")
    drawn = []
    for at in range(num):
        kind = tuple(KINDS)[at % len(KINDS)]
        params = replace(KINDS[kind], seed=random.getrandbits(60))
        drawn.append((kind, random.choice(PROMPTS), params))
    llm = LLM("demo", dtype="float32", device="cpu", quiet=True, max_batch=32)
    results = llm.generate([prompt for _, prompt, _ in drawn], [params for _, _, params in drawn], use_tqdm=False)
    llm.close()
    return [
        Ask(kind, prompt, params, tuple(tuple(output.token_ids) for output in result.outputs))
        for (kind, prompt, params), result in zip(drawn, results, strict=True)
    ]
