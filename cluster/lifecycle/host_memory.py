"""The host pools of a cluster: one on each node for each block layout of the workers there.

Workers create them (`host_pool_actor.py`); whoever starts, loads or unloads waits for them or ends them here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.host_pool_actor import wants_host_pools
from cluster.lifecycle.placing import actor_names, end_actors
from cluster.lifecycle.stages import START_S, wait_until_ready

Say = Callable[[str], None]


def wait_for_host_pools(
    settings: ClusterSettings, namespace: str, workers: Sequence[Any], say: Say, known: Collection[str] = ()
) -> None:
    """Until those of these workers serve. `known`: actors that were there before, of which nothing is said."""
    import ray

    if not wants_host_pools(settings):
        return
    for name in host_pools_of(workers):
        told = wait_until_ready(ray.get_actor(name, namespace=namespace), name)
        if name not in known:
            say(f"{name} serves: {told} of host memory")


def host_pools_of(workers: Sequence[Any]) -> list[str]:
    import ray

    layouts = ray.get([worker.layout.remote() for worker in workers], timeout=START_S)
    return list(dict.fromkeys(layout.host_pool for layout in layouts))


def remove_host_pools(namespace: str, names: Sequence[str], say: Say) -> None:
    """Ends pools that no worker needs any more."""
    known = actor_names(namespace)
    there = [name for name in names if name in known]
    end_actors(namespace, there)
    for name in there:
        say(f"host memory {name} is given back")
