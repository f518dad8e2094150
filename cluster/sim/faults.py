"""What goes wrong in a history, and when: drawn from its seed, told to the world at its time.

A fault is plain data (kind, target, seconds), so that the minimiser can leave it out. Everything heals in the end:
what dies starts again, what is cut off is reached again, so that a history must end with nothing open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from cluster.messages import Drain
from cluster.sim.client import Client
from cluster.sim.mishaps import Mishaps
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


def draw_faults(random: Random, shape: WorldShape, span_s: float) -> tuple[Fault, ...]:
    faults = []
    possible = dict(KINDS)
    if shape.workers[0].num_noises > 1:
        # The promise is for the death of any one process: where replicas draw differently, a gateway that dies together
        # with a replica takes the only knowledge of what was sent with it.
        del possible["kill gateway"]
    kinds, weights = list(possible), list(possible.values())
    for _ in range(random.randint(3, 6)):
        kind = random.choices(kinds, weights)[0]
        target = random.randrange(1 << 16)
        seconds = random.choice((0.02, 0.1, 0.3, 1.0)) * random.uniform(0.5, 1.5)
        faults.append(Fault(random.uniform(0.05, span_s), kind, target, seconds))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def strike(mishaps: Mishaps, fault: Fault, clients: list[Client], come_back: Callable[[Client], None]) -> None:
    """Does it, now. `come_back` is what clients of a dead gateway do."""
    world = mishaps.world
    worker = fault.target % len(world.workers)
    gateway = fault.target % len(world.gateways)
    node = fault.target % len(world.shape.host_blocks)
    does: dict[str, Callable[[], None]] = {
        "kill worker": lambda: mishaps.kill_worker(worker),
        "stop worker": lambda: mishaps.stop_worker(worker, fault.seconds),
        "cut worker": lambda: mishaps.cut_worker(worker, fault.seconds),
        "break worker stream": lambda: mishaps.break_worker_stream(worker),
        "break token streams": lambda: mishaps.break_token_streams(worker),
        "cut node": lambda: mishaps.cut_node(node, fault.seconds),
        "kill node": lambda: mishaps.kill_node(node),
        "kill gateway": lambda: mishaps.kill_gateway(gateway, clients, come_back),
        "stop gateway": lambda: mishaps.stop_gateway(gateway, min(fault.seconds, 0.4)),
        "cut gateway": lambda: mishaps.cut_gateway(gateway, min(fault.seconds, 0.4)),
        "stop scheduler": lambda: mishaps.stop_scheduler(min(fault.seconds, 0.4)),
        "kill host pool": lambda: mishaps.kill_pool(node),
        "fail transfers": lambda: mishaps.spoil_transfers(worker, fail=2, corrupt=0),
        "corrupt transfers": lambda: mishaps.spoil_transfers(worker, fail=0, corrupt=2),
        "kill scheduler": lambda: mishaps.kill_scheduler(0.05 + fault.seconds),
        "usurp scheduler": lambda: mishaps.usurp_scheduler(0.05 + fault.seconds),
        "stop writer": lambda: mishaps.stop_writer(0.4 + fault.seconds),
        "drain": lambda: _drain(world, worker, fault.seconds),
        "clock jump": lambda: mishaps.jump(fault.seconds),
    }
    does[fault.kind]()


def _drain(world: World, worker: int, seconds: float) -> None:
    world.notify(Drain(f"w{worker}", on=True))
    world.clock.after(seconds, world.notify, Drain(f"w{worker}", on=False))
