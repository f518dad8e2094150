"""Clusters of other shapes and larger accidents: ranks of one replica, a whole node, the Ray head; and the times.

Behind the `trust` marker: each test starts a cluster of its own. Times are asserted here and not in the everyday run.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import Client
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.ports import free_port
from cluster.lifecycle.running import Running
from tests.cluster.clusters import (
    BEAMS,
    GREEDY,
    SAMPLED,
    Times,
    ask,
    ask_all,
    children,
    kill_soon,
    pid_of,
    processes_with,
    soon,
    up,
    wait_for_all,
    wait_for_workers,
)

pytestmark = pytest.mark.trust

SETTINGS = ClusterSettings(
    workers=2, gateways=2, kv_blocks=256, cpus_per_worker=0.5, port=0, admin_port=0, metrics_port=0, max_batch=16
)
MAX_PAUSE_S, MAX_ADMISSION_S = 2.0, 5.0


@pytest.mark.timeout(900)
def test_every_kind_of_stream_survives_every_kind_of_death_in_time(tmp_path: Path) -> None:
    pauses: list[float] = []
    with up(SETTINGS, tmp_path) as running:
        for params in (GREEDY, SAMPLED, BEAMS):
            expected = ask_all(running, params)
            for actor in ("WorkerActor", "SchedulerActor", "GatewayActor", "HostPoolActor"):
                wait_for_all(running, 2, 1)
                times = Times()
                timer, killed = kill_soon(running, actor)
                assert ask_all(running, params, times) == expected, f"{actor} killed, {params}"
                timer.join()
                assert killed
                if actor == "WorkerActor" and params is not BEAMS:
                    # Text of beams comes at the end anyway.
                    pauses.append(times.longest)
        wait_for_all(running, 2, 1)
        os.kill(pid_of(running, "SchedulerActor"), signal.SIGKILL)
        began = time.monotonic()
        with Client(running.gateways) as client:
            next(iter(client.stream("The river", GREEDY, timeout_s=60.0)))
        admitted_s = time.monotonic() - began
    print(f"longest pauses after a worker's death {pauses}, admission after the scheduler's {admitted_s:.1f} s")
    assert max(pauses) <= MAX_PAUSE_S
    assert admitted_s <= MAX_ADMISSION_S


@pytest.mark.timeout(400)
def test_a_replica_of_two_ranks_is_lost_with_one_of_them_and_comes_back_whole(tmp_path: Path) -> None:
    settings = ClusterSettings(
        workers=2, gateways=2, tp=2, kv_blocks=256, cpus_per_worker=0.5, port=0, admin_port=0, metrics_port=0
    )
    with up(settings, tmp_path) as running:
        for params in (GREEDY, SAMPLED):
            expected = ask_all(running, params)
            for actor in ("MemberActor", "WorkerActor"):
                wait_for_workers(running, 2)
                timer, killed = kill_soon(running, actor)
                assert ask_all(running, params) == expected, f"{actor} killed"
                timer.join()
                assert killed
        wait_for_workers(running, 2)


# -- Ray nodes of a test's own


class Nodes:
    """A Ray head and further nodes on this machine, each of one CPU, with a token of their own."""

    def __init__(self, folder: Path, **head: str) -> None:
        self.token = secrets.token_hex(32)
        self.folder = folder
        # Ray puts sockets there, whose path must be short.
        self.temp = f"/tmp/quire-test-{secrets.token_hex(3)}"
        self.port = free_port()
        self._environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            **head,
        }
        self.raylets: list[int] = []

    def start_head(self) -> None:
        self._start("--head", f"--port={self.port}", f"--temp-dir={self.temp}", "--include-dashboard=false")

    def start_node(self) -> int:
        """Returns its raylet."""
        return self._start(f"--address=127.0.0.1:{self.port}")

    def _start(self, *words: str) -> int:
        known = set(self.processes("raylet/raylet"))
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--disable-usage-stats", *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120, check=False)
        assert not done.returncode, done.stdout + done.stderr
        (raylet,) = set(self.processes("raylet/raylet")) - known
        self.raylets.append(raylet)
        return raylet

    def processes(self, text: str) -> list[int]:
        return [pid for pid, words in processes_with(self.temp).items() if text in words]

    def kill_node(self, raylet: int) -> None:
        """The raylet and everything that it has started, at once."""
        family = [raylet, *children([raylet])]
        for pid in family:
            os.kill(pid, signal.SIGKILL)

    def kill_store(self) -> Callable[[], object]:
        """SIGKILL for Ray's head process; returns what starts it again, as whoever supervises it would."""
        (server,) = self.processes("gcs_server")
        folder = Path("/proc") / str(server)
        words = (folder / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
        environment = dict(
            line.split("=", 1) for line in (folder / "environ").read_bytes().decode().split("\0") if "=" in line
        )
        os.kill(server, signal.SIGKILL)
        return lambda: subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        for pid in [*children(self.raylets), *processes_with(self.temp)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(self.temp, ignore_errors=True)


@contextmanager
def up_on(nodes: Nodes, settings: ClusterSettings, home: Path) -> Iterator[Running]:
    before = os.environ.get("RAY_AUTH_TOKEN")
    os.environ["RAY_AUTH_TOKEN"] = nodes.token
    try:
        with up(settings, home) as running:
            running.ray_pids = nodes.raylets
            yield running
    finally:
        os.environ.pop("RAY_AUTH_TOKEN") if before is None else os.environ.update(RAY_AUTH_TOKEN=before)
        nodes.stop()


@pytest.mark.timeout(400)
def test_the_whole_node_of_a_worker_dies(tmp_path: Path) -> None:
    """Two Ray nodes with internal ports that speak TLS; one of them goes with all its processes, and comes back."""
    nodes = Nodes(tmp_path)
    nodes.start_head()
    nodes.start_node()
    settings = ClusterSettings(
        workers=2, gateways=2, kv_blocks=256, port=0, admin_port=0, metrics_port=0, address=f"127.0.0.1:{nodes.port}"
    )
    with up_on(nodes, settings, tmp_path) as running:
        expected = ask_all(running, SAMPLED)
        # The one that holds a worker and not the doors, which are where `up` was typed.
        (victim,) = [one for one in nodes.raylets if "ray::SchedulerActor" not in str(children([one]))]
        assert "ray::WorkerActor" in str(children([victim]))
        timer = soon(0.4, lambda: nodes.kill_node(victim))
        assert ask_all(running, SAMPLED) == expected
        timer.join()
        nodes.raylets.remove(victim)
        nodes.start_node()
        wait_for_workers(running, 2)
        assert ask_all(running, SAMPLED) == expected


@pytest.mark.timeout(400)
def test_the_ray_head_dies_and_comes_back(tmp_path: Path) -> None:
    """With Ray's own state on a disk streams run on while its head is away, and actors are started again afterwards."""
    store = tmp_path / "gcs"
    store.mkdir()
    nodes = Nodes(tmp_path, RAY_gcs_storage="rocksdb", RAY_gcs_storage_path=str(store))
    nodes.start_head()
    settings = ClusterSettings(
        workers=1, gateways=1, kv_blocks=256, port=0, admin_port=0, metrics_port=0, address=f"127.0.0.1:{nodes.port}"
    )
    with up_on(nodes, settings, tmp_path) as running:
        expected = ask(running, "The river", GREEDY)
        again = nodes.kill_store()
        # Nothing per request goes through Ray.
        assert ask(running, "The river", GREEDY) == expected
        again()
        os.kill(pid_of(running, "WorkerActor"), signal.SIGKILL)
        assert ask(running, "The river", GREEDY) == expected
