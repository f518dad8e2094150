"""What only a share of histories has: queues that fill, tenants whose blocks are cleared, and the like.

Each kind is drawn with a random source of its own, so that a new one changes nothing of the histories without it.
`workload.py` asks for all of them once the world and what it is asked are drawn.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from cluster.gateway.door.unread import UnreadBounds
from cluster.settings import ReserveName
from cluster.sim.client import Ask
from cluster.sim.world import WorldShape

FULL_ONE_IN = 8
CLEARS_ONE_IN = 6
BEHIND_ONE_IN = 6
LOSES_ONE_IN = 4
LOGPROBS_ONE_IN = 5
RANKS_ONE_IN = 8
LEAVES_ONE_IN = 5
UNREAD_ONE_IN = 8
RESERVES_ONE_IN = 12
HOLDS_ONE_IN = 16
NARROW_ONE_IN = 12
SLOW_ONE_IN = 6


def vary(seed: int, world: WorldShape, asks: tuple[Ask, ...]) -> tuple[WorldShape, tuple[Ask, ...]]:
    """The world and the asks, with the kinds of this seed."""
    # A replica that is lost is waited for at most so long, so that one which never comes back ends a history soon.
    settings = replace(world.settings, replica_return_s=5.0)
    random = Random(f"queue/{seed}")
    if not random.randrange(FULL_ONE_IN):
        settings = replace(settings, max_queue=random.randint(1, 5))
    random = Random(f"clears/{seed}")
    if not random.randrange(CLEARS_ONE_IN):
        settings = replace(settings, clear_tenants=tuple(random.sample(("t0", "t1", "t2"), random.choice((1, 1, 2)))))
    random = Random(f"behind/{seed}")
    if not random.randrange(BEHIND_ONE_IN):
        # One write behind follows upon the other, and there is less host memory than one pool has: they must come to an
        # end.
        settings = replace(settings, host_cache_every_s=0.0)
        world = replace(world, host_blocks=tuple([-(-num_blocks // 2) for num_blocks in world.host_blocks]))
    world = replace(world, settings=settings)
    random = Random(f"loses/{seed}")
    if not random.randrange(LOSES_ONE_IN):
        world, asks = _one_is_larger(random, replace(world, loses=True), asks)
    random = Random(f"ranks/{seed}")
    if not random.randrange(RANKS_ONE_IN):
        # At least the first one has several.
        ranks = (2, *random.choices((1, 2, 3), k=len(world.workers) - 1))
        pairs = zip(world.workers, ranks, strict=True)
        world = replace(world, workers=tuple(replace(shape, num_ranks=num) for shape, num in pairs))
    random = Random(f"logprobs/{seed}")
    if not random.randrange(LOGPROBS_ONE_IN):
        asks = tuple(_with_logprobs(random, ask) for ask in asks)
    random = Random(f"leaves/{seed}")
    if not random.randrange(LEAVES_ONE_IN):
        asks = tuple(_leaving(random, ask) if random.random() < 0.15 else ask for ask in asks)
    random = Random(f"unread/{seed}")
    if not random.randrange(UNREAD_ONE_IN):
        most = random.choice((800, 2_000, 5_000))
        world = replace(world, unread=UnreadBounds(most, 2 * most, 4 * most))
    random = Random(f"holds/{seed}")
    if not random.randrange(HOLDS_ONE_IN):
        holds = random.choice((0.1, 0.3))
        world = replace(world, workers=tuple(replace(shape, holds=holds) for shape in world.workers))
    random = Random(f"tokens of a step/{seed}")
    if not random.randrange(NARROW_ONE_IN):
        # A step takes fewer tokens than there are sequences.
        world = replace(world, workers=tuple(replace(shape, token_budget=4) for shape in world.workers))
    random = Random(f"slow/{seed}")
    if not random.randrange(SLOW_ONE_IN):
        # A worker starts for longer than a new scheduler listens.
        world = replace(world, restart_s=random.uniform(2.0, 4.0) * world.settings.rebuild_s)
    random = Random(f"reserves/{seed}")
    if not random.randrange(RESERVES_ONE_IN):
        reserves: tuple[ReserveName, ...] = ("oracle", "power_of_two", "longest")
        settings = replace(world.settings, reserve=random.choice(reserves), allocator="buddy", prefix_caching=False)
        world = replace(world, settings=settings)
        # A run holds one sequence.
        asks = tuple(replace(ask, n=1, beam_width=0, stop_at=ask.stop_at and (0, ask.stop_at[1])) for ask in asks)
    return world, asks


def _leaving(random: Random, ask: Ask) -> Ask:
    """It goes to no other gateway before: with so little grace it could come too late there."""
    grace_s = random.choice((0.0, 0.3, ask.grace_s))
    return replace(ask, moves=(), leaves_after_s=random.uniform(0.0, 1.0), grace_s=grace_s)


def _with_logprobs(random: Random, ask: Ask) -> Ask:
    of_tokens, of_prompt = random.random() < 0.5, random.random() < 0.15
    return replace(ask, logprobs=of_tokens and not ask.beam_width, prompt_logprobs=of_prompt)


def _one_is_larger(random: Random, world: WorldShape, asks: tuple[Ask, ...]) -> tuple[WorldShape, tuple[Ask, ...]]:
    """One replica has a pool of twice the size, and some ask for what fits only there."""
    number = random.randrange(len(world.workers))
    most = max(shape.num_blocks for shape in world.workers)
    large = replace(world.workers[number], num_blocks=2 * most)
    workers = (*world.workers[:number], large, *world.workers[number + 1 :])

    def grown(ask: Ask) -> Ask:
        if ask.beam_width or ask.stop_at is not None or random.random() >= 0.08:
            return ask
        shared, last = len(ask.prompt) // large.block_size, len(ask.prompt) + ask.max_tokens - 1
        own = -(-last // large.block_size) - shared
        n = min((2 * most - shared) // max(1, own), large.max_batch)
        return replace(ask, n=n, model=large.model) if shared + n * own > most else ask

    return replace(world, workers=workers), tuple(grown(ask) for ask in asks)
