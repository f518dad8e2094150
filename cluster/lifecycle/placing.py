"""Puts the actors of a cluster where they belong: placement groups, resources, and the wait until each serves.

`cluster/lifecycle/launch.py` and `fleet.py` beside it call it in a process that is connected to Ray. Whatever does not
come up within its time is one line that says what it waited for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import Unavailable
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.served import ModelToServe, note_model

END_S = 10.0
JOIN_S = 30.0


def worker_name(model: str, number: int) -> str:
    return f"{Path(model).name}-{number}"


def bundle(settings: ClusterSettings) -> dict[str, float]:
    """What Ray books for one rank."""
    return {"CPU": settings.booked_cpus} | ({"GPU": 1.0} if settings.device == "cuda" else {})


def create_worker(settings: ClusterSettings, namespace: str, model: ModelToServe, number: int) -> Any:
    """A replica: its worker actor and, tensor parallel, those of its further ranks, in a placement group of its own on
    one machine. Its name says what it serves and which one it is. Returns the actor that serves."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from cluster.lifecycle.actors import WorkerActor
    from cluster.lifecycle.member_actor import MemberActor
    from cluster.lifecycle.ray_state import RayState
    from cluster.lifecycle.roll import enrol

    name, needs, state = worker_name(model.name, number), bundle(settings), RayState(namespace)
    note_model(state, model)
    enrol(state, name, model.name)
    group = placement_group([needs] * settings.tp, strategy="STRICT_PACK", name=name, lifetime="detached")

    def place(actor: type, name: str, rank: int) -> Any:
        return ray.remote(actor).options(
            name=name,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0.0),
            max_concurrency=4,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=rank
            ),
        )

    worker = place(WorkerActor, name, 0).remote(settings, namespace, name, model)
    for rank in range(1, settings.tp):
        place(MemberActor, f"{name}.{rank}", rank).remote(settings, namespace, name, model, rank)
    return worker


def actor_names(namespace: str) -> list[str]:
    from ray.util import list_named_actors

    return [entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == namespace]


def end_actors(namespace: str, names: Sequence[str]) -> None:
    """Ends these for good. Each notes first that it ends by order, so that nobody takes it for a failure."""
    import ray

    actors = [ray.get_actor(name, namespace=namespace) for name in names]
    # One that does not answer any more is ended all the same.
    ray.wait([actor.end.remote() for actor in actors], num_returns=len(actors), timeout=END_S)
    for actor in actors:
        ray.kill(actor, no_restart=True)


def end_worker(namespace: str, name: str) -> None:
    """Ends a replica, all ranks of it, and gives back what was booked."""
    from ray.util import remove_placement_group
    from ray.util.placement_group import get_placement_group

    from cluster.lifecycle.ray_state import RayState
    from cluster.lifecycle.roll import strike_off

    strike_off(RayState(namespace), name)
    end_actors(namespace, [one for one in actor_names(namespace) if one == name or one.startswith(f"{name}.")])
    remove_placement_group(get_placement_group(name))


def wait_until_joined(admin: Any, names: Sequence[str]) -> None:
    """Until the scheduler behind this operators' door lists all of these workers. Raises `Unavailable`."""
    from protos.quire.v1 import admin_pb2 as pb

    until = time.monotonic() + JOIN_S
    while True:
        there = {worker.name for worker in admin.ListWorkers(pb.ListWorkersRequest(), timeout=JOIN_S).workers}
        missing = [name for name in names if name not in there]
        if not missing:
            return
        if time.monotonic() > until:
            why = f"`quire logs --process {missing[0]}` says why"
            raise Unavailable(f"{', '.join(missing)} did not reach the scheduler within {JOIN_S:g} s; {why}")
        time.sleep(0.05)
