"""The child of `bring_up.py`: creates the actors of a cluster on Ray and waits until each serves.

Settings come in and lines go out as JSON. It imports Ray while the head is still starting, and ends with its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from cluster.errors import QuireError
from cluster.lifecycle.actor import CENTRE
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.host_memory import wait_for_host_pools
from cluster.lifecycle.placing import create_worker, wait_until_joined, worker_name
from cluster.lifecycle.preflight import preflight
from cluster.lifecycle.ray_connection import quiet_ray
from cluster.lifecycle.running import Running
from cluster.lifecycle.stages import wait_for_all, wait_until_ready

SCHEDULER = "the scheduler"

Say = Callable[[str], None]


def import_ray() -> None:
    """What `create` needs, ahead of time."""
    import ray.util.placement_group
    import ray.util.scheduling_strategies  # noqa: F401

    import cluster.lifecycle.actors  # noqa: F401


def _device(device: str) -> str:
    """GPUs where Ray has some and nothing else was asked for: actors see only those that were booked for them."""
    import ray

    if device != "auto":
        return device
    return "cuda" if ray.cluster_resources().get("GPU", 0.0) >= 1 else "cpu"


def create(settings: ClusterSettings, running: Running, say: Say) -> None:
    """All actors, on the Ray that this process is connected to; what they are reached by goes into `running`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.lifecycle.actors import GatewayActor, SchedulerActor
    from cluster.lifecycle.ray_state import RayState
    from cluster.lifecycle.scaler_actor import ScalerActor
    from cluster.serving.admin_client import told_plainly
    from cluster.serving.inside import prepare
    from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

    settings = replace(settings, device=_device(settings.device))
    running.settings = settings.as_dict()
    preflight(settings)
    # A Ray of our own is never joined by other machines.
    running.admin_token = prepare(RayState(running.namespace), is_one_machine=not settings.address)
    # The doors are where `up` was typed: their files are there, and their addresses are known and stay. Not `soft`, for
    # then Ray puts a detached actor that books nothing on any node.
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    options = {**CENTRE, "scheduling_strategy": here}
    scheduler = ray.remote(SchedulerActor).options(name="scheduler", **options).remote(settings, running.namespace)
    workers = {
        worker_name(model.name, number): create_worker(settings, running.namespace, model, number)
        for model in settings.models
        for number in range(settings.workers)
    }
    gateways = {
        name: ray.remote(GatewayActor).options(name=name, **options).remote(settings, running.namespace, name, port)
        for name, port in settings.gateway_ports().items()
    }
    found = wait_for_all({SCHEDULER: scheduler, **workers, **gateways}, say, follow=next(iter(workers)))
    running.admin = found[SCHEDULER]
    with running.admin_channel() as channel, told_plainly(running.admin, has_tls=bool(settings.tls_certificate)):
        wait_until_joined(AdminServiceStub(channel), list(workers))
    say(f"{len(workers)} workers are ready" if len(workers) > 1 else "1 worker is ready")
    wait_for_host_pools(settings, running.namespace, list(workers.values()), say)
    running.gateways = [found[name] for name in gateways]
    running.gateway = running.gateways[0]
    if settings.autoscale:
        scaler = ray.remote(ScalerActor).options(name="scaler", **options)
        say(f"autoscaling: {wait_until_ready(scaler.remote(settings, running.namespace, running.admin), 'the scaler')}")


def _own_stdout() -> Callable[..., None]:
    """What tells the parent something. Nothing else may write there: Ray prints what it has to say of a dead actor."""
    pipe = os.dup(1)
    os.dup2(2, 1)

    def tell(**told: Any) -> None:
        os.write(pipe, json.dumps(told).encode() + b"\n")

    return tell


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    tell = _own_stdout()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    values = json.loads(sys.stdin.readline())
    settings = ClusterSettings(**{**values, "model": tuple(values["model"])})
    # While Ray's head is starting: what takes a second to import.
    import_ray()
    line = sys.stdin.readline()
    if not line:
        return
    running = Running(**json.loads(line))
    try:
        with quiet_ray(running):
            create(settings, running, lambda text: tell(say=text))
    except QuireError as error:
        tell(error=type(error).__name__, detail=str(error))
    except Exception as error:
        tell(error="Unavailable", detail=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    else:
        tell(running=asdict(running))


if __name__ == "__main__":
    main()
