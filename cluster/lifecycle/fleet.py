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
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.host_memory import host_pools_of, remove_host_pools, wait_for_host_pools
from cluster.lifecycle.placing import (
    actor_names,
    bundle,
    create_worker,
    end_worker,
    wait_until_joined,
    worker_name,
)
from cluster.lifecycle.preflight import check_model
from cluster.lifecycle.ray_connection import quiet_ray
from cluster.lifecycle.running import Running
from cluster.lifecycle.served import ModelToServe, noted_model, read_models
from cluster.lifecycle.stages import wait_for_all
from cluster.sizes import counted

if TYPE_CHECKING:
    import grpc

DRAIN_S = 60.0
# By then the scheduler has noticed that a process has ended.
GONE_S = 10.0
MAX_WORKERS = 4096
ADMIN_S = 10.0
REMEDIES = {
    "CPU": "take some from another model with `quire scale`, join more nodes, or start with a lower --cpus-per-worker",
    "GPU": "join nodes with more GPUs, or drain a worker of another model",
}

Say = Callable[[str], None]


class WorkerFleet:
    """The workers behind one admin door. Use as a context manager."""

    def __init__(self, channel: grpc.Channel, namespace: str, settings: ClusterSettings, say: Say) -> None:
        from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

        self._channel = channel
        self.admin = AdminServiceStub(channel)
        self._namespace = namespace
        self._settings = settings
        self._say = say

    def __enter__(self) -> WorkerFleet:
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
        from cluster.lifecycle.ray_state import RayState

        numbers = self.numbers(model)
        if workers > len(numbers):
            new = [n for n in range(workers) if n not in numbers][: workers - len(numbers)]
            self.add(noted_model(RayState(self._namespace), model), new)
        for number in numbers[workers:]:
            self.retire(worker_name(model, number))
        return len(numbers), workers

    def add(self, model: ModelToServe, numbers: Sequence[int]) -> None:
        """Starts workers of these numbers and waits until each has joined. Raises `ConfigError` for want of room, and
        leaves nothing behind where one does not come up."""
        import ray

        available = ray.available_resources()
        for resource, each in bundle(self._settings).items():
            free, needed = available.get(resource, 0.0), len(numbers) * self._settings.tp * each
            if needed > free:
                raise ConfigError(
                    f"{_more(len(numbers))} {needed:g} {resource}, and Ray has {free:g} free; {REMEDIES[resource]}"
                )
        known, actors = actor_names(self._namespace), {}
        try:
            for number in numbers:
                name = worker_name(model.name, number)
                actors[name] = create_worker(self._settings, self._namespace, model, number)
            wait_for_all(actors, self._say)
            wait_until_joined(self.admin, list(actors))
        except BaseException:
            # Ray would start for ever what cannot start, and keep what was booked for it.
            for name in actors:
                end_worker(self._namespace, name)
            raise
        wait_for_host_pools(self._settings, self._namespace, list(actors.values()), self._say, known)

    def load(self, model: ModelToServe, workers: int) -> None:
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
        self.is_empty_within(name, DRAIN_S)
        self._end(name)

    def is_empty_within(self, name: str, seconds: float) -> bool:
        """Waits until nothing runs on a worker that drains; False: something still does."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = [one for one in self.workers() if one.name == name]
            if not found or not found[0].num_sequences:
                return True
            time.sleep(0.1)
        return False

    def _end(self, name: str) -> None:
        end_worker(self._namespace, name)
        until = time.monotonic() + GONE_S
        while any(one.name == name for one in self.workers()) and time.monotonic() < until:
            time.sleep(0.05)
        self._say(f"{name} is gone")


def _more(number: int) -> str:
    return f"{number} more workers need" if number > 1 else "1 more worker needs"


@contextmanager
def own_fleet(say: Say) -> Iterator[tuple[Running, WorkerFleet]]:
    """The workers of the cluster that this user has up. Raises `QuireError`."""
    from cluster.serving.admin_client import told_plainly

    running = Running.load()
    if running is None:
        raise Unavailable("no cluster of this user is noted; start one with `quire up`")
    # Where all were unloaded, there is none.
    settings = ClusterSettings(**{**running.settings, "model": tuple(running.settings["model"]) or ("demo",)})
    with (
        quiet_ray(running),
        WorkerFleet(running.admin_channel(), running.namespace, settings, say) as fleet,
        told_plainly(running.admin, has_tls=bool(settings.tls_certificate)),
    ):
        yield running, fleet


def scale(workers: int, model: str | None, say: Say) -> None:
    """Brings a model of this user's cluster to so many workers. Returns when it is so."""
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers}; give 1 to {MAX_WORKERS:,}, or unload the model")
    with own_fleet(say) as (_, fleet):
        chosen = _choose(model, sorted({one.model for one in fleet.workers()}))
        before, after = fleet.set_size(chosen, workers)
    say(f"{chosen}: {counted(after, 'worker')} now, {before} before")


def load(model: ModelToServe, workers: int, say: Say) -> None:
    """Brings a further model into this user's cluster."""
    if not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"workers is {workers}; give 1 to {MAX_WORKERS:,}")
    with own_fleet(say) as (running, fleet):
        if model.name in {one.model for one in fleet.workers()}:
            raise ConfigError(
                f"{model.name} is served already; `quire scale` changes the number of its workers, and "
                f"`quire load NAME={model.path}` serves it under another name too"
            )
        known = [*running.settings["model"], str(model)]
        read_models(known)
        if not running.settings["address"]:
            check_model(model.path, running.settings["tp"])
        fleet.load(model, workers)
        running.settings["model"] = known
        running.save()
    say(f"{model.name}: {workers} workers serve" if workers > 1 else f"{model.name}: 1 worker serves")


def unload(model: str, patience_s: float, say: Say) -> None:
    """Takes a model out of this user's cluster, once what was accepted has ended or `patience_s` is over."""
    with own_fleet(say) as (running, fleet):
        fleet.unload(model, patience_s)
        running.settings["model"] = [one for one in running.settings["model"] if ModelToServe.read(one).name != model]
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
