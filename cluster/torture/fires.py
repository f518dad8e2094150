"""Kills and stops of the processes of a cluster, drawn from a seed: which, when, how many at once, for how long.

Processes are children of the cluster's own raylets and are ended by their ids. Between two fires everybody who died is
waited for, so that a stream is never without all of its workers or gateways for longer than a start takes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc

from cluster.lifecycle.running import Running
from protos.quire.v1 import admin_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

ACTORS = {
    "worker": "WorkerActor",
    "gateway": "GatewayActor",
    "scheduler": "SchedulerActor",
    "host pool": "HostPoolActor",
}
BACK_S = 90.0
"""Everybody who was killed is back within this, or the torture has failed."""
STOPS_S = (0.5, 1.5, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Fire:
    """What befell whom, and when (`time.monotonic`). `stopped_s` 0: killed."""

    at: float
    victims: tuple[str, ...]
    stopped_s: float

    @property
    def name(self) -> str:
        how = f"stopped for {self.stopped_s:g} s" if self.stopped_s else "killed"
        return f"{' and '.join(self.victims)} {how}"


class Fires:
    """Burns one cluster, on a thread of its own."""

    def __init__(self, running: Running, seed: int, every_s: float, say: Callable[[str], None]) -> None:
        self.fires: list[Fire] = []
        self.failure = ""
        self._running = running
        self._random = Random(f"fires/{seed}")
        self._every_s = every_s
        self._say = say
        self._settings = running.settings
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._burn, name="fires", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(BACK_S + 60)

    def _burn(self) -> None:
        for kinds, stopped_s in self._plan():
            if self._is_over.wait(self._every_s):
                break
            try:
                self._strike(kinds, stopped_s)
                self.wait_for_all()
            except (AssertionError, OSError) as error:
                self.failure = str(error)
                return

    def _plan(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Every kind in turn, killed and stopped, then two at once, in a new order each time."""
        kinds, random = list(ACTORS), self._random
        while True:
            round_: list[tuple[tuple[str, ...], float]] = [((kind,), 0.0) for kind in kinds]
            round_ += [((kind,), random.choice(STOPS_S)) for kind in random.sample(kinds, 2)]
            round_ += [(tuple(random.sample(kinds, 2)), 0.0)]
            random.shuffle(round_)
            yield from round_

    def _strike(self, kinds: tuple[str, ...], stopped_s: float) -> None:
        victims = []
        for kind in kinds:
            pids = processes(self._running, ACTORS[kind])
            assert pids, f"no process of a {kind} is there"
            victims.append(self._random.choice(pids))
        fire = Fire(time.monotonic(), kinds, stopped_s)
        for pid in victims:
            os.kill(pid, signal.SIGSTOP if stopped_s else signal.SIGKILL)
        self.fires.append(fire)
        self._say(fire.name)
        if stopped_s:
            time.sleep(stopped_s)
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass  # it was given up and ended meanwhile

    def wait_for_all(self) -> None:
        """Returns when every worker, gateway and host pool of the settings is there; AssertionError if not in time."""
        until, missing = time.monotonic() + BACK_S, "the scheduler does not answer"
        while time.monotonic() < until:
            try:
                missing = self._missing()
            except grpc.RpcError:
                missing = "the scheduler does not answer"
            if not missing:
                return
            time.sleep(0.1)
        raise AssertionError(f"after {BACK_S:g} s {missing}")

    def _missing(self) -> str:
        settings = self._settings
        host_pools = int(settings["host_memory"] != "0")
        wanted = {
            "worker": settings["workers"],
            "gateway": settings["gateways"],
            "scheduler": 1,
            "host pool": host_pools,
        }
        # A death is seen here before the scheduler is told of it.
        for kind, count in wanted.items():
            there = len(processes(self._running, ACTORS[kind]))
            if there < count:
                return f"{there} of {count} processes of a {kind} are there"
        with self._running.admin_channel() as channel:
            admin = AdminServiceStub(channel)
            workers = len(admin.ListWorkers(pb.ListWorkersRequest(), timeout=5).workers)
            gateways = admin.GetCluster(pb.GetClusterRequest(), timeout=5).num_gateways
            pools = admin.ListPools(pb.ListPoolsRequest(), timeout=5).pools
        hosts = sum(pool.kind == pb.POOL_KIND_HOST for pool in pools)
        for kind, there in (("worker", workers), ("gateway", gateways), ("host pool", hosts)):
            if there < wanted[kind]:
                return f"the scheduler knows {there} of {wanted[kind]} {kind}s"
        return ""


def processes(running: Running, actor: str) -> list[int]:
    """The processes of this kind: children of the cluster's raylets, by what Ray calls them; oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "stat").read_text().rpartition(") ")[2].split()
            if int(words[1]) not in running.ray_pids or words[0] == "Z":
                continue
            if f"ray::{actor}" in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append((int(words[19]), int(entry.name)))
        except OSError:
            continue
    return [pid for _, pid in sorted(found)]
