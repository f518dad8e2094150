"""What a load generator sends and when: arrivals, lengths and shared prefixes, all drawn from one seed.

Plain data, so that the same load can be sent again and split over client processes. Lengths and gaps are those of the
simulator's traces. Nothing here knows gRPC or the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from cluster.errors import ConfigError
from cluster.sim.traces import TRACES, gap, length

ARRIVALS = ("fixed", "poisson", "bursts", "closed")


@dataclass(frozen=True, slots=True)
class LoadShape:
    """What was asked for. `prompt` and `output`: one length for all, in tokens; None: those of the trace."""

    arrival: str
    rate: float  # requests a second; of a closed loop unused
    cv: float  # how bursty `bursts` are: the gaps' standard deviation over their mean
    trace: str
    prompt: int | None
    output: int | None
    scale: float
    max_prompt: int
    max_output: int
    shared_prefix: int
    num_prefixes: int
    seed: int

    def __post_init__(self) -> None:
        if self.arrival not in ARRIVALS:
            raise ConfigError(f"arrival is {self.arrival!r}; give one of {', '.join(ARRIVALS)}")
        if self.trace not in TRACES:
            raise ConfigError(f"trace is {self.trace!r}; give one of {', '.join(TRACES)}")
        if self.arrival != "closed" and self.rate <= 0:
            raise ConfigError(f"rate is {self.rate:g}; give more than 0 requests a second")
        if self.shared_prefix >= self.max_prompt:
            raise ConfigError(f"shared_prefix is {self.shared_prefix}, and prompts end at {self.max_prompt}; give less")


@dataclass(frozen=True, slots=True)
class Shot:
    """One request: when it is due after the start (0 in a closed loop), its prompt, and how many tokens it wants."""

    number: int
    at: float
    prompt: tuple[int, ...]
    num_output: int


def shots(shape: LoadShape, count: int, vocabulary: int) -> Iterator[Shot]:
    """The load, request by request. Token ids are drawn below `vocabulary`; the first few are left to special uses."""
    random = Random(f"serve/{shape.seed}")
    low = min(16, vocabulary // 2)
    prefixes = [_draw(random, shape.shared_prefix, low, vocabulary) for _ in range(max(1, shape.num_prefixes))]
    at = 0.0
    for number in range(count):
        yield Shot(number, at, _prompt(random, shape, prefixes, low, vocabulary), _output(random, shape))
        at += _gap(random, shape)


def _gap(random: Random, shape: LoadShape) -> float:
    if shape.arrival == "closed":
        return 0.0
    if shape.arrival == "fixed":
        return 1.0 / shape.rate
    return gap(random, shape.rate, 1.0 if shape.arrival == "poisson" else shape.cv)


def _prompt(
    random: Random, shape: LoadShape, prefixes: list[tuple[int, ...]], low: int, vocabulary: int
) -> tuple[int, ...]:
    wanted = shape.prompt or length(random, TRACES[shape.trace].prompt, shape.scale, 1, shape.max_prompt)
    # Behind a shared prefix every prompt has a token of its own at least.
    own = max(1, min(wanted, shape.max_prompt) - shape.shared_prefix)
    return random.choice(prefixes) + _draw(random, own, low, vocabulary)


def _output(random: Random, shape: LoadShape) -> int:
    return min(
        shape.max_output, shape.output or length(random, TRACES[shape.trace].output, shape.scale, 1, shape.max_output)
    )


def _draw(random: Random, count: int, low: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(random.randrange(low, vocabulary) for _ in range(count))
