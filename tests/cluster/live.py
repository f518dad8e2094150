"""Simulated workers in real time, around the real scheduler: a cluster in one event loop to hold gateways against.

Tests of the front door start one. The workers are those of the simulator, their blocks hold what decides
the next token, so that `cluster/sim/model.py` says what each request must answer; only the clock is the event loop's.
No network and no fault is simulated here: killing and stopping is up to whoever holds the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from cluster.gateway.front import LocalLink
from cluster.messages import ReplicaLost, Result, Tokens
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from cluster.sim.clock import Action, Clock
from cluster.sim.model import digest_of
from cluster.sim.worker import Outlets, SimWorker, WorkerShape
from cluster.wire.gateways import ServedModel, ServedModels

SHAPE = WorkerShape(
    node="n0",
    num_blocks=256,
    block_size=16,
    max_batch=64,
    max_model_len=2048,
    token_budget=512,
    step_base_s=0.002,
    per_token_s=0.00001,
)


class LoopClock(Clock):
    """The clock of the running event loop under the interface of the simulated one."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()

    @property
    def now(self) -> float:
        return self._loop.time()

    @now.setter
    def now(self, value: float) -> None:
        assert value == 0.0, "real time can't be set"

    def at(self, when: float, action: Action, *args: Any) -> None:
        self._loop.call_at(when, action, *args)


class LiveCluster:
    """A scheduler and its simulated workers. Tokens go to `feeds[gateway]`."""

    def __init__(self, settings: SchedulerSettings | None = None, epoch: int = 1) -> None:
        self.host = SchedulerShell(settings or SchedulerSettings(), epoch)
        self.feeds: dict[str, Callable[[Sequence[Tokens]], None]] = {}
        self.workers: dict[str, SimWorker] = {}
        self._clock = LoopClock()
        self._links: list[LocalLink] = []
        self._incarnations: dict[str, int] = {}
        self._task = asyncio.get_running_loop().create_task(self.host.run())

    async def close(self) -> None:
        for worker in self.workers.values():
            worker.die()
        await self._end_host()

    async def _end_host(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def replace_scheduler(self) -> SchedulerShell:
        """The scheduler dies and one of the next epoch takes over; workers tell it what they hold. Gateways have to be
        linked to it anew."""
        await self._end_host()
        settings, epoch = self.host.scheduler.settings, self.host.scheduler.epoch + 1
        self.host = SchedulerShell(settings, epoch)
        for name, worker in self.workers.items():
            self._connect(name, worker)
        self._task = asyncio.get_running_loop().create_task(self.host.run())
        return self.host

    def _connect(self, name: str, worker: SimWorker) -> None:
        self.host.replica_links[name] = lambda plan: worker.run(worker.take_plan, plan)
        self.host.post(worker.meet(self.host.scheduler.epoch))

    def add_worker(self, name: str, shape: WorkerShape = SHAPE) -> SimWorker:
        """A replica joins, with its next incarnation if it was here before."""
        incarnation = self._incarnations[name] = self._incarnations.get(name, 0) + 1
        outlets = Outlets(
            result=lambda number, result: self._post(worker, result),
            tokens=self._deliver,
            pool=lambda pool: None,
            reaches=lambda one, other: True,
        )
        worker = SimWorker(name, incarnation, shape, self._clock, "live", outlets)
        self.workers[name] = worker
        self._connect(name, worker)
        self._tell_models()
        return worker

    def kill_worker(self, name: str) -> None:
        """It dies at once, with whatever it had not told; the scheduler hears of it."""
        worker = self.workers.pop(name)
        worker.die()
        del self.host.replica_links[name]
        self.host.post(ReplicaLost(name, worker.incarnation, "killed"))
        self._tell_models()

    def _post(self, worker: SimWorker, result: Result) -> None:
        if worker.alive:
            self.host.post(result)

    def _deliver(self, gateway: str, tokens: list[Tokens]) -> None:
        feed = self.feeds.get(gateway)
        if feed is not None:
            feed(tokens)

    # -- gateways in this process

    def link(self, gateway: str, hash_key: bytes = b"") -> LocalLink:
        """A gateway's link to this scheduler."""
        link = LocalLink(self.host.post, hash_key)
        self.host.gateway_links[gateway] = link.push
        self._links.append(link)
        link.push(ServedModels(self.served()))
        return link

    def served(self) -> tuple[ServedModel, ...]:
        """What is served now."""
        models: dict[str, list[SimWorker]] = {}
        for worker in self.workers.values():
            models.setdefault(worker.shape.model, []).append(worker)
        return tuple(
            ServedModel(
                name,
                True,
                "",
                len(workers),
                workers[0].shape.block_size,
                min(w.shape.max_model_len for w in workers),
                digest_of(name),
            )
            for name, workers in models.items()
        )

    def _tell_models(self) -> None:
        for link in self._links:
            link.push(ServedModels(self.served()))
