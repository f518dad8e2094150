"""A history written down: the cluster, what clients ask and what goes wrong, all drawn from one seed.

A scenario is plain data, so that the minimiser can leave parts out and a person can read it. The figures are small on
purpose: small pools and blocks make pressure, sharing and evictions frequent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from cluster.settings import AllocatorName, PlacementName, PreemptionName, SchedulerSettings
from cluster.sim.client import Ask, Warm
from cluster.sim.faults import Fault, draw_faults, draw_more
from cluster.sim.kinds import vary
from cluster.sim.network import Weather
from cluster.sim.shape import WorkerShape
from cluster.sim.traces import TRACES, gap, length
from cluster.sim.world import WorldShape, node_name

MIN_ASKS, MAX_ASKS = 12, 120
MOVES_ONE_IN = 3
"""These histories have clients that change gateways while both live."""
EVENTS_WANTED = (330, 520)
"""Requests are drawn until they should make so many events at the scheduler."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a history needs to run, again and again in the same way."""

    seed: int
    world: WorldShape
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    full_check: bool  # the ledgers are proven after every turn, not only now and then
    warms: tuple[Warm, ...] = ()


def draw_scenario(seed: int, with_faults: bool, *, always_moves: bool = False) -> Scenario:
    """`always_moves`: whatever the seed, some clients change gateways."""
    random = Random(f"scenario/{seed}")
    world = _draw_world(random, with_faults, Random(f"at once/{seed}").choice((1, 1, 3)))
    asks = _draw_asks(random, world)
    world, asks = _share_among_models(Random(f"models/{seed}"), world, asks)
    if always_moves or seed % MOVES_ONE_IN == 0:
        asks = _draw_moves(Random(f"moves/{seed}"), world, asks)
    world, asks = vary(seed, world, asks)
    span = max(ask.at for ask in asks) + 1.0
    faults = draw_faults(random, world, span) + draw_more(seed, world, span) if with_faults else ()
    warms = _draw_warms(Random(f"warms/{seed}"), world, asks, span)
    return Scenario(seed, world, asks, faults, seed % 10 == 0, warms)


def _draw_world(random: Random, with_faults: bool, at_once: int) -> WorldShape:
    num_nodes = random.randint(1, 3)
    num_workers = random.randint(2, 6)
    block_size = random.choice((2, 4, 4, 8))
    tokens = random.choice((60, 90, 140))
    first = WorkerShape(
        node=node_name(0),
        num_blocks=0,
        block_size=block_size,
        max_batch=random.randint(3, 10),
        max_model_len=random.choice((96, 160)),
        token_budget=random.choice((8, 16, 32, 64)),
        depth=random.choice((1, 2, 2)),
        at_once=at_once,
        end_one_in=random.choice((25, 60, 1000)),
        num_noises=random.choice((1, 1, 3)),
    )
    workers = tuple(
        replace(
            first,
            node=node_name(number % num_nodes),
            num_blocks=max(4, tokens * random.randint(80, 120) // 100 // block_size),
        )
        for number in range(num_workers)
    )
    host_blocks = tuple(random.choice((0, 1, 1, 2)) * tokens // block_size for _ in range(num_nodes))
    return WorldShape(
        workers=workers,
        host_blocks=host_blocks,
        num_gateways=random.randint(2, 3),
        settings=_draw_settings(random, block_size),
        weather=_draw_weather(random, with_faults),
        # A new life that is quick meets messages of the old one.
        restart_s=random.choice((0.04, 0.3)),
    )


def _share_among_models(random: Random, world: WorldShape, asks: tuple[Ask, ...]) -> tuple[WorldShape, tuple[Ask, ...]]:
    """Every third cluster serves two models of one layout, which are asked the same things and share host memory."""
    if random.random() < 0.67:
        return world, asks
    models = ["m", "m2", *random.choices(("m", "m2"), k=len(world.workers) - 2)]
    workers = tuple(replace(shape, model=model) for shape, model in zip(world.workers, models, strict=True))
    asked = tuple(replace(ask, model=random.choice(("m", "m2"))) for ask in asks)
    return replace(world, workers=workers), asked


def _draw_moves(random: Random, world: WorldShape, asks: tuple[Ask, ...]) -> tuple[Ask, ...]:
    """Clients whose connections break while their gateways live, and those that come back with another request."""

    def moved(ask: Ask) -> Ask:
        moves: tuple[tuple[float, int], ...] = ()
        if random.random() < 0.15:
            count = random.choice((1, 1, 2, 3))
            moves = tuple((random.uniform(0.02, 1.0), random.randrange(world.num_gateways)) for _ in range(count))
        errs_after_s = random.uniform(0.02, 0.6) if random.random() < 0.05 else None
        return replace(ask, moves=moves, errs_after_s=errs_after_s)

    return tuple(moved(ask) for ask in asks)


def _draw_warms(random: Random, world: WorldShape, asks: tuple[Ask, ...], span_s: float) -> tuple[Warm, ...]:
    """In every third history prompts are kept before, while and after they are asked."""
    if random.random() < 0.67:
        return ()
    size = world.workers[0].block_size
    prompts = [ask for ask in asks if len(ask.prompt) >= size]

    def warm(ask: Ask) -> Warm:
        at, gateway = random.uniform(0.02, span_s), random.randrange(world.num_gateways)
        keeps_s, waits_s = random.choice((0.1, 0.5, 3.0)), random.choice((0.1, 5.0, 30.0))
        return Warm(at, gateway, ask.tenant, ask.model, ask.prompt, keeps_s, waits_s, ask.salt)

    return tuple(warm(random.choice(prompts)) for _ in range(random.randint(1, 8))) if prompts else ()


def _draw_settings(random: Random, block_size: int) -> SchedulerSettings:
    allocators: tuple[AllocatorName, ...] = ("lru", "lru", "fifo", "buddy")
    placements: tuple[PlacementName, ...] = ("scored", "scored", "round_robin", "least_loaded")
    preemptions: tuple[PreemptionName, ...] = ("cheapest", "swap", "swap", "recompute")
    return SchedulerSettings(
        ahead=random.randint(0, 2 * block_size),
        prefix_caching=random.random() < 0.9,
        allocator=random.choice(allocators),
        placement=random.choice(placements),
        preemption=random.choice(preemptions),
        admit_reserve=random.choice((0.0, 0.02, 0.1)),
        pressure=random.choice((0.0, 0.05, 0.2)),
        max_queue=1000,
        seal_timeout_s=0.5,
        rebuild_s=0.5,
        orphan_grace_s=3.0,
        tenant_weights={"t0": 2.0},
    )


def _draw_weather(random: Random, with_faults: bool) -> Weather:
    if not with_faults or random.random() < 0.2:
        return Weather()
    return Weather(
        delay_s=random.choice((0.0005, 0.002, 0.01)),
        slow=random.choice((0.0, 0.02, 0.1)),
        slow_s=random.choice((0.1, 0.5)),
        loss=random.choice((0.0, 0.001, 0.005)),
        double=random.choice((0.0, 0.002, 0.01)),
    )


def _draw_asks(random: Random, world: WorldShape) -> tuple[Ask, ...]:
    trace = TRACES[random.choice(("azure-conv", "sharegpt", "alpaca", "azure-code"))]
    shape = world.workers[0]
    room = min(shape.max_model_len, min(w.num_blocks for w in world.workers) * shape.block_size)
    prompt_scale = math.exp(trace.prompt[0]) / random.choice((6.0, 14.0, 24.0))
    output_scale = math.exp(trace.output[0]) / random.choice((8.0, 16.0, 24.0))
    shared = [
        tuple(random.randrange(1, 1000) for _ in range(random.randint(2, max(3, room // 3))))
        for _ in range(random.randint(1, 3))
    ]
    rate = random.choice((10.0, 40.0, 120.0))
    asks: list[Ask] = []
    now = 0.02
    wanted = random.randint(*EVENTS_WANTED)
    estimate = 0.0
    while (len(asks) < MIN_ASKS or estimate < wanted) and len(asks) < MAX_ASKS:
        now += gap(random, rate, random.choice((1.0, trace.cv)))
        prompt: tuple[int, ...] = ()
        if random.random() < 0.6:
            prompt = random.choice(shared)
        if not prompt or random.random() < 0.6:
            own = length(random, trace.prompt, prompt_scale, 1, max(1, room // 2))
            prompt += tuple(random.randrange(1, 1000) for _ in range(own))
        max_tokens = length(random, trace.output, output_scale, 1, 60)
        if random.random() < 0.98:
            # All but a few fit into every pool.
            prompt = prompt[: room - 2]
            max_tokens = max(1, min(max_tokens, room - len(prompt)))
        asks.append(_draw_ask(random, world, len(asks), (min(now, 8.0), prompt, max_tokens)))
        estimate += 3 + len(prompt) / shape.token_budget + 0.7 * max_tokens / shape.block_size
    return tuple(asks)


def _draw_ask(random: Random, world: WorldShape, number: int, drawn: tuple[float, tuple[int, ...], int]) -> Ask:
    at, prompt, max_tokens = drawn
    shape = world.workers[0]
    room = min(w.num_blocks for w in world.workers)
    n = random.choice((2, 2, 3, 4)) if random.random() < 0.25 else 1
    own = -(-(len(prompt) + max_tokens) // shape.block_size) - len(prompt) // shape.block_size
    never_fits = random.random() < 0.01
    while n > 1 and not never_fits and (len(prompt) // shape.block_size + n * own > room or n > shape.max_batch):
        n -= 1
    if never_fits:
        n = shape.max_batch + 1
    beam_width = 0
    if n <= 1 and random.random() < 0.15 and max_tokens > 1:
        width = random.randint(2, min(4, shape.max_batch))
        whole = len(prompt) // shape.block_size
        if whole + width * (-(-(len(prompt) + max_tokens) // shape.block_size) - whole) <= room:
            beam_width, n = width, random.randint(1, width)
    stop_at = None
    if not beam_width and random.random() < 0.1:
        stop_at = (random.randrange(n), random.randint(1, max(1, max_tokens - 1)))
    return Ask(
        request_id=f"r{number}",
        at=at,
        gateway=random.randrange(world.num_gateways),
        tenant=f"t{random.randrange(3)}",
        prompt=prompt,
        max_tokens=max_tokens,
        seed=random.randrange(1 << 31),
        n=n,
        beam_width=beam_width,
        priority=random.choice((0, 0, 0, 1, 2)),
        salt=random.choice((b"", b"", b"salt")),
        deadline_s=random.uniform(0.05, 2.0) if random.random() < 0.06 else None,
        cancel_after_s=random.uniform(0.0, 1.0) if random.random() < 0.08 else None,
        stop_at=stop_at,
        resumes=random.random() < 0.8,
    )
