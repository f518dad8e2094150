"""What goes wrong in a history, and when: drawn from its seed, told to the world at its time.

A fault is plain data (kind, target, seconds), so that the minimiser can leave it out. Everything heals in the end:
what dies starts again, what is cut off is reached again, so that a history must end with nothing open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from cluster.messages import Drain
from cluster.sim.absences import Absences
from cluster.sim.client import SimClient
from cluster.sim.mishaps import Mishaps
from cluster.sim.network import SILENCE_S
from cluster.sim.world import World, WorldShape


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    target: int = 0
    seconds: float = 0.0


# Kind -> how often it is drawn.
KINDS: dict[str, int] = {
    "kill worker": 4,
    "stop worker": 4,
    "cut worker": 4,
    "break worker stream": 3,
    "break token streams": 3,
    "cut node": 2,
    "kill node": 1,
    "kill gateway": 3,
    "stop gateway": 2,
    "cut gateway": 2,
    "lose gateway": 2,
    "stop scheduler": 2,
    "kill scheduler": 4,
    "usurp scheduler": 2,
    "kill host pool": 3,
    "fail transfers": 3,
    "corrupt transfers": 2,
    "stop writer": 5,
    "drain": 3,
    "clock jump": 1,
}
MORE_ONE_IN = 3
MORE: dict[str, int] = {"kill teller": 1, "two schedulers": 1}
"""What every third history meets beside the faults of `KINDS`."""

STILL: dict[str, int] = {
    "freeze worker": 2,
    "freeze gateway": 2,
    "freeze scheduler": 2,
    "freeze host pool": 2,
    "stop host pool": 1,
    "bury worker": 7,
    "kill scheduler at a stop": 4,
}
"""One of these is met where links lose who is silent: who stands still for longer than any silence and goes on, who
never comes back, and a scheduler that dies as a stop string is found."""

BOTH_ONE_IN = 6
"""In these a gateway and the scheduler die at once: what was asked and sent the workers know, and the clients."""

UNLOADS_ONE_IN = 9
"""In these a model is unloaded, and loaded again."""

REPLACES_ONE_IN = 8
"""In these a replica comes back with other weights under its model's name."""

LIES_ONE_IN = 8
"""In these a replica tells what cannot be so."""

FAILS_ONE_IN = 6
"""In these a device refuses a step."""

OUTLASTS_ONE_IN = 8
"""In these a scheduler that has given up a replica dies before that can hear of it."""

RESIZES = (0.02, 0.4, 0.75, 1.5)
"""Not seconds: how much of its first pool a replica comes back with, next to nothing or more."""


def draw_faults(random: Random, shape: WorldShape, span_s: float) -> tuple[Fault, ...]:
    faults = []
    possible = dict(KINDS)
    if shape.workers[0].num_noises > 1:
        # The promise is for the death of any one process: where replicas draw differently, a gateway that dies or is
        # given up together with a replica takes the only knowledge of what was sent with it.
        del possible["kill gateway"], possible["lose gateway"]
    kinds, weights = list(possible), list(possible.values())
    for _ in range(random.randint(3, 6)):
        kind = random.choices(kinds, weights)[0]
        target = random.randrange(1 << 16)
        seconds = random.choice((0.02, 0.1, 0.3, 1.0)) * random.uniform(0.5, 1.5)
        faults.append(Fault(random.uniform(0.05, span_s), kind, target, seconds))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def draw_more(seed: int, shape: WorldShape, span_s: float) -> tuple[Fault, ...]:
    """What only some histories meet, each drawn by itself, so that one more changes no other: see the constants above.
    In every third a gateway cannot hear a replica; in every fourth replicas come back with a pool of another size."""
    more: list[Fault] = []
    random = Random(f"more/{seed}")
    if not random.randrange(MORE_ONE_IN):
        kind = random.choices(list(MORE), list(MORE.values()))[0]
        more.append(Fault(random.uniform(0.05, span_s), kind, random.randrange(1 << 16), random.uniform(0.1, 1.0)))
    random = Random(f"tokens/{seed}")
    if not random.randrange(MORE_ONE_IN):
        at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
        # Long enough that the scheduler hears of it.
        more.append(Fault(at, "cut tokens", target, random.uniform(0.5, 3.0)))
    random = Random(f"resizes/{seed}")
    for _ in range(random.choice((0, 0, 0, 0, 0, 0, 1, 2))):
        at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
        more.append(Fault(at, "resize worker", target, random.choice(RESIZES)))
    if shape.loses:
        random = Random(f"still/{seed}")
        kind = random.choices(list(STILL), list(STILL.values()))[0]
        seconds = random.uniform(0.1, 1.0) if kind == "stop host pool" else random.uniform(1.1, 2.0) * SILENCE_S
        more.append(Fault(random.uniform(0.05, span_s), kind, random.randrange(1 << 16), seconds))
    random = Random(f"both/{seed}")
    # Where replicas draw differently, see `draw_faults`.
    if not random.randrange(BOTH_ONE_IN) and shape.workers[0].num_noises == 1:
        at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
        more.append(Fault(at, "kill gateway and scheduler", target, random.uniform(0.0, 1.0)))
    random = Random(f"unloads/{seed}")
    if not random.randrange(UNLOADS_ONE_IN):
        at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
        more.append(Fault(at, "unload model", target, random.uniform(0.2, 1.5)))
    random = Random(f"fails/{seed}")
    if not random.randrange(FAILS_ONE_IN):
        more.append(Fault(random.uniform(0.05, span_s), "fail step", random.randrange(1 << 16)))
    random = Random(f"outlasts/{seed}")
    if not random.randrange(OUTLASTS_ONE_IN):
        at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
        more.append(Fault(at, "outlast scheduler", target, random.uniform(0.05, 0.6)))
    for kind, one_in in (("replace weights", REPLACES_ONE_IN), ("tell what cannot be", LIES_ONE_IN)):
        random = Random(f"{kind}/{seed}")
        if not random.randrange(one_in):
            at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
            more.append(Fault(at, kind, target, random.uniform(0.2, 2.0)))
    if shape.restart_s > shape.settings.rebuild_s:
        random = Random(f"model/{seed}")
        at, target = random.uniform(0.05, span_s), random.randrange(1 << 16)
        more.append(Fault(at, "kill model and scheduler", target, random.uniform(0.0, 0.5)))
    ranked = [number for number, worker in enumerate(shape.workers) if worker.num_ranks > 1]
    if ranked:
        random = Random(f"ranks lost/{seed}")
        at, target = random.uniform(0.05, span_s), random.choice(ranked)
        more.append(Fault(at, "kill rank", target, random.uniform(0.1, 1.0)))
    return tuple(more)


def strike(mishaps: Mishaps, fault: Fault, clients: list[SimClient], come_back: Callable[[SimClient], None]) -> None:
    """Does it, now. `come_back` is what clients of a dead gateway do."""
    world, absences = mishaps.world, Absences(mishaps)
    worker = fault.target % len(world.workers)
    gateway = fault.target % len(world.gateways)
    node = fault.target % len(world.shape.host_blocks)
    does: dict[str, Callable[[], None]] = {
        "kill worker": lambda: mishaps.kill_worker(worker),
        "stop worker": lambda: mishaps.stop_worker(worker, fault.seconds),
        "cut worker": lambda: mishaps.cut_worker(worker, fault.seconds),
        "break worker stream": lambda: mishaps.break_worker_stream(worker),
        "break token streams": lambda: mishaps.break_token_streams(worker),
        "cut tokens": lambda: mishaps.cut_tokens(worker, f"g{gateway}", fault.seconds),
        "cut node": lambda: mishaps.cut_node(node, fault.seconds),
        "resize worker": lambda: mishaps.resize_worker(worker, fault.seconds),
        "kill node": lambda: mishaps.kill_node(node),
        "kill gateway": lambda: mishaps.kill_gateway(gateway, clients, come_back),
        "kill gateway and scheduler": lambda: _kill_both(mishaps, gateway, fault.seconds, clients, come_back),
        "kill model and scheduler": lambda: _kill_model(mishaps, worker, fault.seconds),
        "stop gateway": lambda: mishaps.stop_gateway(gateway, min(fault.seconds, 0.4)),
        "cut gateway": lambda: mishaps.cut_gateway(gateway, min(fault.seconds, 0.4)),
        "lose gateway": lambda: mishaps.lose_gateway(gateway, fault.seconds),
        "stop scheduler": lambda: mishaps.stop_scheduler(min(fault.seconds, 0.4)),
        "kill host pool": lambda: mishaps.kill_pool(node),
        "fail transfers": lambda: mishaps.spoil_transfers(worker, fail=2, corrupt=0),
        "corrupt transfers": lambda: mishaps.spoil_transfers(worker, fail=0, corrupt=2),
        "kill scheduler": lambda: mishaps.kill_scheduler(0.05 + fault.seconds),
        "usurp scheduler": lambda: mishaps.usurp_scheduler(0.05 + fault.seconds),
        "stop writer": lambda: mishaps.stop_writer(0.4 + fault.seconds),
        "drain": lambda: _drain(world, worker, fault.seconds),
        "clock jump": lambda: mishaps.jump(fault.seconds),
        "kill teller": lambda: mishaps.kill_teller(worker),
        "two schedulers": lambda: mishaps.two_schedulers(0.05 + fault.seconds),
        "freeze worker": lambda: absences.freeze_worker(worker, fault.seconds),
        "freeze gateway": lambda: absences.freeze_gateway(gateway, fault.seconds),
        "freeze scheduler": lambda: absences.freeze_scheduler(fault.seconds),
        "freeze host pool": lambda: absences.freeze_pool(node, fault.seconds),
        "kill rank": lambda: mishaps.kill_rank(worker, 0.3 * fault.seconds),
        "stop host pool": lambda: absences.freeze_pool(node, fault.seconds),
        "unload model": lambda: absences.unload_model(worker, fault.seconds),
        "replace weights": lambda: absences.replace_weights(worker, fault.seconds),
        "tell what cannot be": lambda: absences.tell_what_cannot_be(worker),
        "outlast scheduler": lambda: absences.outlast_scheduler(worker, fault.seconds),
        "fail step": lambda: mishaps.fail_step(worker),
        "bury worker": lambda: absences.bury_worker(worker),
        "kill scheduler at a stop": lambda: mishaps.kill_scheduler_at_a_stop(fault.seconds),
    }
    does[fault.kind]()


def _kill_both(
    mishaps: Mishaps, gateway: int, down_s: float, clients: list[SimClient], come_back: Callable[[SimClient], None]
) -> None:
    mishaps.kill_gateway(gateway, clients, come_back)
    mishaps.kill_scheduler(0.05 + down_s)


def _kill_model(mishaps: Mishaps, worker: int, down_s: float) -> None:
    """All replicas of one model die, and the scheduler that knew it."""
    workers = mishaps.world.shape.workers
    for number, shape in enumerate(workers):
        if shape.model == workers[worker].model:
            mishaps.kill_worker(number)
    mishaps.kill_scheduler(0.05 + down_s)


def _drain(world: World, worker: int, seconds: float) -> None:
    world.notify(Drain(f"w{worker}", on=True))
    world.clock.after(seconds, world.notify, Drain(f"w{worker}", on=False))
