"""The host pools of a cluster: one on each node for each block layout of the workers there.

Workers of one layout share a pool; another model's blocks need one of their own, as large as `--host-memory` says. Used
when a cluster starts and when a model is loaded or unloaded while it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.placing import CENTRE, START_S, actor_names, end_actors, wait_until_ready

Say = Callable[[str], None]


def host_pool_name(node: str, fingerprint: str) -> str:
    return f"host-{node[:8]}-{sha256(fingerprint.encode()).hexdigest()[:4]}"


def create_host_pools(settings: ClusterSettings, namespace: str, workers: Sequence[Any], say: Say) -> None:
    """Those that these workers need and that are not there yet. Slices of blocks have no use for one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.lifecycle.actors import HostPoolActor

    if settings.host_memory == "0" or settings.tp > 1:
        return
    known = actor_names(namespace)
    layouts = ray.get([worker.layout.remote() for worker in workers], timeout=START_S)
    for node, block_bytes, fingerprint in dict.fromkeys(layouts):
        name = host_pool_name(node, fingerprint)
        if name in known:
            continue
        affinity = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        make = ray.remote(HostPoolActor).options(name=name, scheduling_strategy=affinity, **CENTRE)
        actor = make.remote(settings, namespace, name, block_bytes, fingerprint)
        say(f"host memory {name}: {wait_until_ready(actor, name)}")


def remove_host_pools(namespace: str, names: Sequence[str], say: Say) -> None:
    """Ends pools that no worker needs any more."""
    known = actor_names(namespace)
    there = [name for name in names if name in known]
    end_actors(namespace, there)
    for name in there:
        say(f"host memory {name} is given back")
