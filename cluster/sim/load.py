"""The requests of a planned load, one after the other: lengths and arrivals of a public trace, prefixes shared or not.

Prompts of which nobody shares a part come without names for their blocks: such names could never be found, and would
only fill the memory of the simulating machine.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cluster.hashing import BlockHasher
from cluster.messages import Ids, Submit
from cluster.sampling import SamplingParams
from cluster.sim.traces import Trace, gap, length

VOCAB_SIZE = 1 << 16


@dataclass(frozen=True, slots=True)
class ArrivingLoad:
    """What is asked of a cluster. `rate`: requests/s; lengths in tokens."""

    trace: Trace
    rate: float
    longest: int
    seed: int = 1
    # Of all requests this share begins with one of `num_prefixes` prefixes of `prefix` tokens.
    prefix: int = 0
    prefix_share: float = 0.0
    num_prefixes: int = 16
    # Fixed lengths in place of the trace's, where given.
    prompt: int | None = None
    output: int | None = None
    # So many requests are open all the time: who is served asks again. `rate` and the trace's bursts say nothing then.
    clients: int = 0

    @property
    def most_tokens(self) -> int:
        """Of one request, prompt and output."""
        return max(self.prompt or self.longest // 2, self.prefix + 1) + (self.output or self.longest // 2)


def requests(load: ArrivingLoad, block_size: int) -> Iterator[tuple[float, Submit]]:
    """Time and Submit of one request after the other, without end."""
    random = Random(f"load/{load.seed}")
    prefixes = [_tokens(random, load.prefix) for _ in range(load.num_prefixes)]
    hasher = BlockHasher(b"", b"", b"", block_size)
    sampling: dict[int, SamplingParams] = {}
    now, number = 0.0, 0
    while True:
        now += gap(random, load.rate, load.trace.cv)
        number += 1
        shares = load.prefix > 0 and random.random() < load.prefix_share
        least = load.prefix + 1 if shares else 1
        num_prompt = load.prompt or length(random, load.trace.prompt, 1.0, 1, load.longest // 2)
        num_prompt = max(num_prompt, least)
        max_tokens = load.output or length(random, load.trace.output, 1.0, 1, load.longest // 2)
        names: tuple[bytes, ...] = ()
        if shares:
            prompt = random.choice(prefixes)
            prompt = prompt + _tokens(random, num_prompt - len(prompt))
            names = hasher.prompt(prompt)
        else:
            prompt = array("i", bytes(4 * num_prompt))
        params = sampling.get(max_tokens)
        if params is None:
            params = sampling[max_tokens] = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        yield now, Submit(f"q{number}", "g", number, "m", f"t{number % 4}", prompt, names, params)


def _tokens(random: Random, count: int) -> Ids:
    """Ids below `VOCAB_SIZE`."""
    return array("i", array("H", random.randbytes(2 * count)))
