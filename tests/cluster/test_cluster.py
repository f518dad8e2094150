"""The real thing: Ray, actors, gRPC, processes that are killed. Streams are compared token by token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import SamplingParams
from cluster.errors import ConfigError
from cluster.lifecycle import launch, ray_head
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.ray_connection import quiet_ray
from cluster.lifecycle.ray_state import RayState
from cluster.lifecycle.running import Running
from cluster.serving import inside
from protos.quire.v1 import admin_pb2
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from tests.cluster.clusters import (
    BEAMS,
    GREEDY,
    SAMPLED,
    ask_all,
    kill_soon,
    pid_of,
    soon,
    up,
    wait_for,
    wait_for_all,
    wait_for_workers,
)

# Pools so small that requests are swapped to host memory and back.
SETTINGS = ClusterSettings(
    workers=2,
    gateways=2,
    kv_blocks=56,
    cpus_per_worker=0.5,
    port=0,
    admin_port=0,
    metrics_port=0,
    max_batch=16,
    preemption="swap",
    hang_s=15.0,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with up(SETTINGS, tmp_path_factory.mktemp("quire")) as running:
        yield running


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("params", "actors"),
    [
        pytest.param(GREEDY, ("WorkerActor", "HostPoolActor", "GatewayActor"), id="greedy"),
        pytest.param(SAMPLED, ("WorkerActor", "SchedulerActor"), id="two samples each"),
        pytest.param(BEAMS, ("WorkerActor", "SchedulerActor"), id="beams"),
    ],
)
def test_streams_survive_the_death_of_any_one_process(
    running: Running, params: SamplingParams, actors: tuple[str, ...]
) -> None:
    wait_for_all(running, 2, 1)
    expected = ask_all(running, params)
    for outputs in expected:
        assert outputs is not None and [len(output) for output in outputs] == [params.max_tokens] * params.n
    for actor in actors:
        wait_for_all(running, 2, 1)
        timer, killed = kill_soon(running, actor)
        assert ask_all(running, params) == expected, f"{actor} killed"
        timer.join()
        assert killed, f"{actor} was not killed"


@pytest.mark.timeout(150)
def test_the_small_pools_made_requests_swap(running: Running) -> None:
    wait_for_all(running, 2, 1)
    # A scheduler that was killed has begun its counts anew.
    ask_all(running, SAMPLED)
    with running.admin_channel() as channel:
        counters = AdminServiceStub(channel).GetCluster(admin_pb2.GetClusterRequest(), timeout=5).counters
    assert counters["preempted swap"] and counters["transfer read done"], dict(counters)


@pytest.mark.timeout(240)
def test_a_worker_that_stands_still_for_longer_than_its_leases_changes_nothing(running: Running) -> None:
    wait_for_workers(running, 2)
    expected = ask_all(running, SAMPLED)
    pid = pid_of(running, "WorkerActor")
    soon(0.3, lambda: os.kill(pid, signal.SIGSTOP))
    go_on = soon(6.0, lambda: os.kill(pid, signal.SIGCONT))
    assert ask_all(running, SAMPLED) == expected
    go_on.join()
    # It finds itself declared lost, ends, and comes back with an incarnation of its own.
    wait_for_workers(running, 2)


@pytest.mark.timeout(240)
def test_a_worker_whose_step_hangs_ends_and_is_started_again(running: Running) -> None:
    import ray

    wait_for_workers(running, 2)

    def hang(actor: Any) -> int:
        actor._worker.parts.model.forward = lambda *step: time.sleep(1_000)
        return os.getpid()

    with running.admin_channel() as channel, quiet_ray(running):
        admin = AdminServiceStub(channel)
        (before,) = {one.incarnation for one in _workers(admin) if one.name == "demo-0"}
        actor = ray.get_actor("demo-0", namespace=running.namespace)
        pid = ray.get(actor.__ray_call__.remote(hang), timeout=30)
        # Nobody asks anything: its own canary runs into it.
        wait_for("the hung process has ended", lambda: not ray_head.alive(pid), 90)
        wait_for(
            "its successor has joined",
            lambda: any(one.name == "demo-0" and one.incarnation > before for one in _workers(admin)),
        )


@pytest.mark.timeout(240)
def test_a_clock_that_goes_back_locks_nobody_out(running: Running) -> None:
    """Earlier lives were numbered by clocks that ran an hour ahead; those who start now must be let in all the same."""
    wait_for_workers(running, 2)
    ahead = (time.time_ns() // 1_000_000) + 3_600_000
    with running.admin_channel() as channel, quiet_ray(running):
        admin, state = AdminServiceStub(channel), RayState(running.namespace)
        for name in ("demo-0", "demo-1", "gateway-0", "gateway-1"):
            state.put(f"life of {name}", str(ahead))
        for number in (1, 2):
            for actor in ("WorkerActor", "WorkerActor", "GatewayActor"):
                os.kill(pid_of(running, actor), signal.SIGKILL)
                time.sleep(0.5)
            wait_for("both have come back", lambda number=number: _lives(admin, ahead) >= number)
            assert ask_all(running, GREEDY)
    wait_for_all(running, 2, 1)


@pytest.mark.timeout(60)
def test_operators_show_another_credential_than_the_clusters_own(running: Running) -> None:
    with quiet_ray(running):
        state = RayState(running.namespace)
        assert running.admin_token == inside.operators_token(state) != state.key(inside.SECRET).hex()


def _lives(admin: AdminServiceStub, ahead: int) -> int:
    """How often all workers have started since their clocks ran ahead."""
    workers = _workers(admin)
    return min(one.incarnation - ahead for one in workers) if len(workers) == 2 else 0


def _workers(admin: AdminServiceStub) -> list[admin_pb2.Worker]:
    return list(admin.ListWorkers(admin_pb2.ListWorkersRequest(), timeout=5).workers)


@pytest.mark.timeout(150)
def test_nothing_is_held_once_all_is_answered(running: Running) -> None:
    wait_for_workers(running, 2)
    ask_all(running, GREEDY)
    with running.admin_channel() as channel:
        admin = AdminServiceStub(channel)

        def is_idle() -> bool:
            pools = admin.ListPools(admin_pb2.ListPoolsRequest(), timeout=5).pools
            assert all(pool.num_quarantined == 0 for pool in pools)
            return all(pool.num_free + pool.num_cached == pool.num_blocks for pool in pools)

        # What is written behind may still be on its way.
        wait_for("nothing is held or moves", is_idle)


@pytest.mark.timeout(150)
def test_a_second_cluster_of_the_same_user_is_refused(running: Running) -> None:
    with pytest.raises(ConfigError, match="a cluster runs already"):
        launch.up(SETTINGS, print)


OTHER_RAY = """
import sys
import ray
from cluster.errors import ConfigError
from cluster.lifecycle.ray_connection import connect_ray

ray.__version__ = "2.99.0"
try:
    connect_ray(*sys.argv[1:])
except ConfigError as error:
    print(error)
"""


@pytest.mark.timeout(90)
def test_a_process_with_another_ray_is_told_so_in_one_line(running: Running) -> None:
    """Only what it says of its version is another one: a second Ray would have to be installed."""
    asked = [sys.executable, "-c", OTHER_RAY, running.ray_address, running.ray_token]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    assert "\n" not in said and said.startswith(f"Ray at {running.ray_address} is of another version"), said
    assert "2.99.0" in said and said.endswith("install the same on all machines")
