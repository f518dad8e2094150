"""What `launch.down` does with a cluster that still runs: lets requests end, and takes what is ours off a foreign Ray.

`remove_all` is called in a process that is connected to that Ray: actors, placement groups and what Ray keeps by name
go, nothing outside our namespace is touched, and what could not be removed is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.lifecycle.ray_head import alive
from cluster.sizes import counted

if TYPE_CHECKING:
    import grpc


def let_finish(channel: grpc.Channel, grace_s: float, say: Callable[[str], None]) -> None:
    """Waits while requests run, as long as the scheduler behind this operators' door answers."""
    import grpc

    from protos.quire.v1 import admin_pb2 as pb
    from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

    until, told = time.monotonic() + grace_s, False
    while time.monotonic() < until:
        try:
            cluster = AdminServiceStub(channel).GetCluster(pb.GetClusterRequest(), timeout=2.0)
        except grpc.RpcError:
            return
        count = cluster.num_running + cluster.num_waiting
        if not count:
            return
        if not told:
            say(f"{counted(count, 'request')} under way, with {grace_s:g} s to end")
            told = True
        time.sleep(0.1)


def remove_all(namespace: str, patience_s: float) -> list[str]:
    """Ends the actors of this namespace, with all that Ray keeps of them. Returns what is still there."""
    import ray
    from ray.util import list_named_actors, placement_group_table, remove_placement_group
    from ray.util.placement_group import get_placement_group

    from cluster.lifecycle.ray_state import RayState

    def named() -> list[str]:
        return [entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == namespace]

    def groups() -> list[str]:
        # Worker groups carry the names of their workers; others on this cluster are none of ours.
        table = placement_group_table().values()
        return [group["name"] for group in table if group["name"] in names and group["state"] != "REMOVED"]

    names = named()
    pids = _local_pids(names, namespace)
    for name in names:
        ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
        try:
            remove_placement_group(get_placement_group(name))
        except ValueError:
            continue
    RayState(namespace).remove_all()
    until = time.monotonic() + patience_s
    while time.monotonic() < until and (named() or groups() or any(map(alive, pids))):
        time.sleep(0.05)
    left = [f"actor {name}" for name in named()] + [f"placement group {name}" for name in groups()]
    return left + [f"process {pid}" for pid in pids if alive(pid)]


def _local_pids(names: Sequence[str], namespace: str) -> list[int]:
    """The processes of these actors, of those that are on this machine and answer."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    asked = [ray.get_actor(name, namespace=namespace).where.remote() for name in names]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=2.0) if asked else ([], [])
    found = []
    for one in answered:
        try:
            node, pid = ray.get(one)
        except ray.exceptions.RayError:
            continue
        if node == here:
            found.append(int(pid))
    return found
