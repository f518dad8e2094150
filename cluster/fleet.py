"""The workers of a running cluster: adds some, drains and ends some, for a person or for the autoscaler.

A worker that joins takes work as soon as it is ready; one that leaves is drained first, so that its requests go on
elsewhere, and only then ended. Called by the command line and by the autoscaler's actor, in a process that is connected
to Ray. It never decides how many workers there shall be.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.cluster_settings import ClusterSettings
from cluster.errors import ConfigError, NotFound, Unavailable
from cluster.launch import Running, quiet_ray
from cluster.placing import create_worker, end_worker, wait_until_ready, worker_name

if TYPE_CHECKING:
    import grpc

DRAIN_S = 60.0
MAX_WORKERS = 4096
ADMIN_S = 10.0

Say = Callable[[str], None]


class Fleet:
    """The workers behind one admin door. Use as a context manager."""

    def __init__(self, channel: grpc.Channel, namespace: str, settings: ClusterSettings, say: Say) -> None:
        from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

        self._channel = channel
        self.admin = AdminServiceStub(channel)
        self._namespace = namespace
        self._settings = settings
        self._say = say

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def workers(self) -> list[Any]:
        """All that have joined, as the scheduler lists them."""
        from protos.quire.v1 import admin_pb2 as pb

        return list(self.admin.ListWorkers(pb.ListWorkersRequest(), timeout=ADMIN_S).workers)

    def numbers(self, model: str) -> list[int]:
        """The numbers of a model's workers, in order."""
        return sorted(int(one.name.rpartition("-")[2]) for one in self.workers() if one.model == model)

    def set_size(self, model: str, workers: int) -> tuple[int, int]:
        """Adds or drains until there are so many; returns how many there were and are."""
        numbers = self.numbers(model)
        if workers > len(numbers):
            self.add(model, [n for n in range(workers) if n not in numbers][: workers - len(numbers)])
        for number in numbers[workers:]:
            self.retire(worker_name(model, number))
        return len(numbers), workers

    def add(self, model: str, numbers: Sequence[int]) -> None:
        """Starts workers of these numbers and waits until each has joined. Raises `ConfigError` for want of CPUs."""
        import ray

        free, needed = (
            ray.available_resources().get("CPU", 0.0),
            len(numbers) * self._settings.tp * self._settings.cpus_per_worker,
        )
        if needed > free:
            raise ConfigError(f"{len(numbers)} more workers need {needed:g} CPU, and Ray has {free:g} free")
        actors = [create_worker(self._settings, self._namespace, model, number) for number in numbers]
        for number, actor in zip(numbers, actors, strict=True):
            wait_until_ready(actor, f"worker {number}")
            self._say(f"{worker_name(model, number)} has joined")

    def retire(self, name: str) -> None:
        """Drains a worker, waits until nothing runs there, and ends it."""
        import ray

        from protos.quire.v1 import admin_pb2 as pb

        self.admin.Drain(pb.DrainRequest(worker=name), timeout=ADMIN_S)
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until:
            found = [one for one in self.workers() if one.name == name]
            if not found or not found[0].num_sequences:
                break
            time.sleep(0.1)
        actor = ray.get_actor(name, namespace=self._namespace)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(actor.end.remote(), timeout=ADMIN_S)
        end_worker(self._namespace, name)
        self._say(f"{name} has drained and is gone")


def scale(workers: int, model: str | None, say: Say) -> None:
    """Brings a model of this user's cluster to so many workers. Returns when it is so."""
    running = Running.load()
    if running is None:
        raise Unavailable("no cluster of this user is noted; start one with `quire up`")
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers}; give 1 to {MAX_WORKERS:,}")
    settings = ClusterSettings(**{**running.settings, "model": tuple(running.settings["model"])})
    with quiet_ray(running), Fleet(running.admin_channel(), running.namespace, settings, say) as fleet:
        chosen = _choose(model, sorted({one.model for one in fleet.workers()}))
        before, after = fleet.set_size(chosen, workers)
    say(f"{chosen}: {before} workers before, {after} now")


def _choose(model: str | None, models: Sequence[str]) -> str:
    if model is None and len(models) > 1:
        raise ConfigError(f"{len(models)} models are served; say which with --model: {', '.join(models)}")
    if not models:
        raise Unavailable("no worker is here yet; `quire status` shows when one has joined")
    chosen = model or models[0]
    if chosen not in models:
        raise NotFound(f"no model {chosen} is served; there is {', '.join(models)}")
    return chosen
