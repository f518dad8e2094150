"""Who is away for longer than any silence is borne, and goes on all the same; who never comes back; models that go.

Whoever is silent for too long is declared lost by the scheduler's link, and nobody ends it. When it wakes up, as after
SIGSTOP, it does all that came to it meanwhile, late writes included; then it hears that its life is over. A worker or
host pool ends by that and is started again; a gateway goes on as its next life.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.messages import CloseModel, Result
from cluster.sim.clock import Process
from cluster.sim.mishaps import Mishaps
from cluster.sim.model import other_weights
from cluster.sim.network import SILENCE_S, SimLink

PATIENCE_S = 1.0
"""What was accepted of a model that is unloaded may end for so long."""


class Absences:
    """Verbs beside those of `Mishaps`."""

    def __init__(self, mishaps: Mishaps) -> None:
        self._mishaps = mishaps
        self._world = mishaps.world

    def freeze_worker(self, number: int, seconds: float) -> None:
        self._freeze(self._world.workers[f"w{number}"], seconds)

    def freeze_pool(self, number: int, seconds: float) -> None:
        pool = self._world.pools.get(f"h{number}")
        if pool is not None:
            self._freeze(pool, seconds)

    def freeze_gateway(self, number: int, seconds: float) -> None:
        self._freeze(self._world.gateways[f"g{number}"], seconds)

    def freeze_scheduler(self, seconds: float) -> None:
        self._freeze(self._world.shell, seconds)

    def _freeze(self, process: Process, seconds: float) -> None:
        if process.alive and not process.stopped:
            process.stop()
            self._world.clock.after(seconds, process.wake)
            self._world.num_frozen += seconds > SILENCE_S

    def outlast_scheduler(self, number: int, seconds: float) -> None:
        """The scheduler gives up a replica that it cannot hear, and dies: the next one hears of attempts that
        have gone on elsewhere since."""
        world, worker = self._world, self._world.workers[f"w{number}"]
        link = world.worker_streams[worker.name].link
        if worker.alive and not link.is_cut and worker.name not in world.lost:
            link.set_cut(True)
            world.clock.after(world.shape.lost_after_s, self._mishaps.lose_worker, worker, "it is silent")
            world.clock.after(world.shape.lost_after_s + seconds, self._begin_anew, link)

    def _begin_anew(self, link: SimLink) -> None:
        self._mishaps.kill_scheduler(0.1)
        link.set_cut(False)
        self._world.num_outlasted += 1

    def replace_weights(self, number: int, seconds: float) -> None:
        """It dies and comes back with other weights under its model's name, and after a while with those of before."""
        world = self._world
        model = world.shapes[number].model
        world.replaced.add(model)
        world.shapes[number] = replace(world.shapes[number], weights=other_weights(model))
        self._mishaps.kill_worker(number)
        world.clock.after(world.shape.restart_s + seconds, self._put_back, number)

    def _put_back(self, number: int) -> None:
        world = self._world
        world.shapes[number] = replace(world.shapes[number], weights="")
        if world.workers[f"w{number}"].shape.weights:
            self._mishaps.kill_worker(number)

    def tell_what_cannot_be(self, number: int) -> None:
        worker = self._world.workers[f"w{number}"]
        self._world.liars.add((worker.name, worker.incarnation))
        worker.tells = _beyond_its_lease

    def bury_worker(self, number: int) -> None:
        """It dies and never comes back, unless no other replica of its model would be left."""
        world = self._world
        model = world.shapes[number].model
        others = [index for index, shape in enumerate(world.shapes) if shape.model == model and index != number]
        if any(f"w{index}" not in world.buried for index in others):
            world.buried.add(f"w{number}")
            self._mishaps.kill_worker(number)

    def unload_model(self, number: int, away_s: float) -> None:
        """As `quire unload` does: it is closed, what was accepted ends if it can in time, and its workers go. After a
        while it is loaded again, as `quire load` does."""
        world = self._world
        model = world.shapes[number].model
        if model not in world.unloaded:
            world.unloaded[model] = float("inf")
            world.notify(CloseModel(model))
            world.clock.after(0.2, self._end_model, model, world.clock.now + PATIENCE_S, away_s)

    def _end_model(self, model: str, until: float, away_s: float) -> None:
        world = self._world
        is_open = any(request.model == model for request in world.shell.scheduler.requests.values())
        if is_open and world.clock.now < until:
            # Said each time, so that a scheduler that was started again knows it too.
            world.notify(CloseModel(model))
            world.clock.after(0.2, self._end_model, model, until, away_s)
            return
        for number in self._workers_of(model):
            world.buried.add(f"w{number}")
            self._mishaps.kill_worker(number)
        world.clock.after(away_s, self._load_model, model)

    def _load_model(self, model: str) -> None:
        world = self._world
        world.unloaded[model] = world.clock.now
        for number in self._workers_of(model):
            world.buried.discard(f"w{number}")
            if not world.workers[f"w{number}"].alive:
                world.start_worker(number)

    def _workers_of(self, model: str) -> list[int]:
        return [number for number, shape in enumerate(self._world.shapes) if shape.model == model]


def _beyond_its_lease(result: Result) -> Result:
    """The last of its sequences has come farther than it may."""
    advances = result.advances
    if not advances.positions:
        return result
    positions = advances.positions[:]
    positions[-1] += 1 << 12
    return replace(result, advances=replace(advances, positions=positions))
