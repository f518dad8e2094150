"""The workers of a running cluster: adds some, drains and ends some, for a person or for the autoscaler.

A worker that joins takes work as soon as it is ready; one that leaves is drained first, so that its requests go on
elsewhere, and only then ended. Called by the command line and by the autoscaler's actor, in a process that is connected
to Ray. It never decides how many workers there shall be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.errors import ConfigError, NotFound, Unavailable
from cluster.lifecycle.cluster_settings import ClusterSettings, check_names
from cluster.lifecycle.host_memory import host_pools_of, remove_host_pools, wait_for_host_pools
from cluster.lifecycle.placing import (
    bundle,
    create_worker,
    end_worker,
    wait_until_joined,
    wait_until_ready,
    worker_name,
)
from cluster.lifecycle.ray_connection import quiet_ray
from cluster.lifecycle.running import Running

if TYPE_CHECKING:
    import grpc

DRAIN_S = 60.0
# By then the scheduler has noticed that a process has ended.
GONE_S = 10.0
MAX_WORKERS = 4096
ADMIN_S = 10.0
REMEDIES = {
    "CPU": "join more nodes, or start with a lower --cpus-per-worker",
    "GPU": "join nodes with more GPUs, or drain a worker of another model",
}

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
        """Starts workers of these numbers and waits until each has joined. Raises `ConfigError` for want of room."""
        import ray

        available = ray.available_resources()
        for resource, each in bundle(self._settings).items():
            free, needed = available.get(resource, 0.0), len(numbers) * self._settings.tp * each
            if needed > free:
                raise ConfigError(
                    f"{len(numbers)} more workers need {needed:g} {resource}, and Ray has {free:g} free; "
                    f"{REMEDIES[resource]}"
                )
        actors = [create_worker(self._settings, self._namespace, model, number) for number in numbers]
        for number, actor in zip(numbers, actors, strict=True):
            wait_until_ready(actor, f"worker {number}")
            wait_until_joined(self.admin, [worker_name(model, number)])
            self._say(f"{worker_name(model, number)} has joined")
        wait_for_host_pools(self._settings, self._namespace, actors, self._say)

    def load(self, model: str, workers: int) -> None:
        """Brings a model that is not served yet; its first worker takes requests as soon as it is ready."""
        self.add(model, range(workers))

    def unload(self, model: str, patience_s: float) -> None:
        """Closes a model, lets what was accepted end for so long, and ends its workers. Raises `NotFound`."""
        import ray

        from protos.quire.v1 import admin_pb2 as pb

        until, told = time.monotonic() + patience_s, -1
        while True:
            # Said each time, so that a scheduler that was started again knows it too.
            num_open = self._close(pb.CloseModelRequest(model=model))
            if not num_open or time.monotonic() > until:
                break
            if num_open != told:
                self._say(f"{model}: {num_open} requests are still under way")
                told = num_open
            time.sleep(0.2)
        names = [worker_name(model, number) for number in self.numbers(model)]
        pools = host_pools_of([ray.get_actor(name, namespace=self._namespace) for name in names])
        for name in names:
            self._end(name)
        others = [ray.get_actor(one.name, namespace=self._namespace) for one in self.workers() if one.model != model]
        remove_host_pools(self._namespace, [name for name in pools if name not in host_pools_of(others)], self._say)

    def _close(self, request: Any) -> int:
        import grpc

        try:
            return int(self.admin.CloseModel(request, timeout=ADMIN_S).num_open)
        except grpc.RpcError as error:
            raise NotFound(error.details()) if error.code() is grpc.StatusCode.NOT_FOUND else error from error

    def retire(self, name: str) -> None:
        """Drains a worker, waits until nothing runs there, and ends it."""
        from protos.quire.v1 import admin_pb2 as pb

        self.admin.Drain(pb.DrainRequest(worker=name), timeout=ADMIN_S)
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until:
            found = [one for one in self.workers() if one.name == name]
            if not found or not found[0].num_sequences:
                break
            time.sleep(0.1)
        self._end(name)

    def _end(self, name: str) -> None:
        end_worker(self._namespace, name)
        until = time.monotonic() + GONE_S
        while any(one.name == name for one in self.workers()) and time.monotonic() < until:
            time.sleep(0.05)
        self._say(f"{name} is gone")


@contextmanager
def own_fleet(say: Say) -> Iterator[tuple[Running, Fleet]]:
    """The workers of the cluster that this user has up. Raises `Unavailable`."""
    running = Running.load()
    if running is None:
        raise Unavailable("no cluster of this user is noted; start one with `quire up`")
    settings = ClusterSettings(**{**running.settings, "model": tuple(running.settings["model"])})
    with quiet_ray(running), Fleet(running.admin_channel(), running.namespace, settings, say) as fleet:
        yield running, fleet


def scale(workers: int, model: str | None, say: Say) -> None:
    """Brings a model of this user's cluster to so many workers. Returns when it is so."""
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers}; give 1 to {MAX_WORKERS:,}, or unload the model")
    with own_fleet(say) as (_, fleet):
        chosen = _choose(model, sorted({one.model for one in fleet.workers()}))
        before, after = fleet.set_size(chosen, workers)
    say(f"{chosen}: {before} workers before, {after} now")


def load(model: str, workers: int, say: Say) -> None:
    """Brings a further model into this user's cluster."""
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers}; give 1 to {MAX_WORKERS:,}")
    with own_fleet(say) as (running, fleet):
        served = sorted({one.model for one in fleet.workers()})
        if model in served:
            raise ConfigError(f"{model} is served already; `quire scale` changes the number of its workers")
        check_names((*served, model))
        fleet.load(model, workers)
        running.settings["model"] = [*served, model]
        running.save()
    say(f"{model}: {workers} workers serve")


def unload(model: str, patience_s: float, say: Say) -> None:
    """Takes a model out of this user's cluster, once what was accepted has ended or `patience_s` is over."""
    with own_fleet(say) as (running, fleet):
        served = sorted({one.model for one in fleet.workers()})
        fleet.unload(model, patience_s)
        running.settings["model"] = [one for one in served if one != model]
        running.save()
    say(f"{model} is unloaded")


def _choose(model: str | None, models: Sequence[str]) -> str:
    if model is None and len(models) > 1:
        raise ConfigError(f"{len(models)} models are served; say which with --model: {', '.join(models)}")
    if not models:
        raise Unavailable("no worker is here yet; `quire status` shows when one has joined")
    chosen = model or models[0]
    if chosen not in models:
        raise NotFound(f"no model {chosen} is served; there is {', '.join(models)}")
    return chosen
