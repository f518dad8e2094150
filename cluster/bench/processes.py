"""A cluster without Ray for benchmarks and tests: workers and host pools are processes, and the centre too if wanted.

Else scheduler, admin door and gateway share an event loop on a thread of the caller. Everything speaks over loopback
as in a cluster that `quire up` starts. Whoever holds it may kill and stop its processes by their ids, and start them
again. With a journal the caller can see afterwards, decision by decision, what the scheduler did. A node can be given a
network namespace of its own: its processes run there, behind an address that the others reach them by.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from cluster.gateway.process import serve_gateway
from cluster.gateway.settings import GatewaySettings
from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.serving.inside import Inside
from cluster.serving.public_port import PublicPort
from cluster.serving.scheduler_server import Addresses, Doors, serve_scheduler
from cluster.settings import SchedulerSettings, WorkerSettings
from protos.quire.v1 import admin_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

START_S = 120.0
JOIN_S = 30.0


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """The scheduler's counters, and every pool by state."""

    counters: dict[str, int]
    pools: list[pb.Pool]


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """Where a node is: a network namespace that exists, and its address there."""

    namespace: str
    host: str


class ProcessMember:
    """One process: its id, and what it said when it served."""

    def __init__(self, about: dict[str, Any], threads: int | None = None, network: NodeNetwork | None = None) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self.name: str = about["name"]
        # It becomes what it runs: the process id is the member's own.
        within = ["ip", "netns", "exec", network.namespace] if network is not None else []
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "cluster.bench.processes_child", json.dumps(about)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        # What it said when it served; empty before that.
        self.said: dict[str, Any] = {}

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def told(self) -> dict[str, Any]:
        """Waits until it serves."""
        assert self._process.stdout is not None
        timer = threading.Timer(START_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise RuntimeError(f"{self.name} did not start: exit code {self._process.wait(10)}")
        self.said = json.loads(line)
        return self.said

    def kill(self) -> None:
        """SIGKILL, which reaches a stopped process too."""
        self._process.kill()
        self._process.communicate(timeout=10)


class Processes:
    """Use it in a `with`: at its end all processes are gone."""

    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        journal: Path | None = None,
        silence_s: float = 2.0,
        serves: bool = True,
        host: str = "127.0.0.1",
        tls: TlsFiles | None = None,
        networks: Mapping[str, NodeNetwork] | None = None,
    ) -> None:
        """Not `serves`: without a scheduler; the caller has its own, and says where (`direct`), or adds one as a
        process. `host`: where the centre listens inside; `networks`: nodes that are not on this one."""
        self._serves = serves
        self._settings = settings
        self._journal = journal
        self._silence_s = silence_s
        self._folder = tempfile.TemporaryDirectory(prefix="quire-")
        self._address_file = Path(self._folder.name) / "scheduler"
        self._front_file = Path(self._folder.name) / "front"
        # Of schedulers and gateways, by name.
        self._lives: dict[str, int] = {}
        self._secret, self._hash_key = secrets.token_hex(16), secrets.token_bytes(32)
        self.inside = Inside(host, ClusterSecurity(self._secret, tls))
        self._networks = networks or {}
        self.members: dict[str, ProcessMember] = {}
        self._front = self.admin = ""
        self.gateway = ""
        self._centre = _Loop()

    def __enter__(self) -> Processes:
        if not self._serves:
            return self
        ready = threading.Event()

        def publish(addresses: Addresses) -> None:
            self.direct(addresses.control)
            self._front, self.admin = addresses.front, addresses.admin
            ready.set()

        self._centre.start(
            serve_scheduler(
                self._settings,
                1,
                doors=Doors(self.inside, PublicPort("127.0.0.1", 0), PublicPort("127.0.0.1", 0)),
                hash_key=self._hash_key,
                silence_s=self._silence_s,
                journal=self._journal,
                on_address=publish,
            ),
            ready,
        )
        return self

    def __exit__(self, *problem: object) -> None:
        for member in self.members.values():
            member.kill()
        self._centre.close()
        self._folder.cleanup()

    def direct(self, address: str) -> None:
        """Members find the scheduler's control port there from now on."""
        self._address_file.write_text(address)

    def add_workers(
        self, workers: dict[str, WorkerSettings], node: str = "n0", threads: int | None = None, num_ranks: int = 1
    ) -> dict[str, dict[str, Any]]:
        """Starts them side by side, with so many threads and ranks each; what each said, once all serve, and the
        scheduler knows them if it is here."""
        for name, settings in workers.items():
            known = {key: value for key, value in asdict(settings).items() if key != "hash_key"}
            about = {"settings": known, "num_ranks": num_ranks}
            self._add({"role": "worker", "name": name, "node": node, **about}, threads)
        told = {name: self.members[name].told() for name in workers}
        if self.admin:
            self._wait_joined(set(workers))
        return told

    def _wait_joined(self, names: set[str]) -> None:
        deadline = time.monotonic() + JOIN_S
        with grpc.insecure_channel(self.admin) as channel:
            admin, request = AdminServiceStub(channel), pb.ListWorkersRequest()
            while missing := names - {worker.name for worker in admin.ListWorkers(request, timeout=5).workers}:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the scheduler does not know {sorted(missing)} after {JOIN_S:g} s")
                time.sleep(0.05)

    def add_host_pool(self, name: str, size: str, layout: dict[str, Any], node: str = "n0") -> ProcessMember:
        """`layout`: what a worker with the same blocks said."""
        about = {key: layout[key] for key in ("block_bytes", "fingerprint")}
        member = self._add({"role": "host pool", "name": name, "node": node, "size": size, **about})
        member.told()
        return member

    def add_made_up_worker(self, name: str, node: str = "n0", **made_up: Any) -> ProcessMember:
        """One of `cluster/torture/made_up.py`, whose further arguments these are. Does not wait until it serves."""
        return self._add({"role": "made-up worker", "name": name, "node": node, "made_up": made_up}, 1)

    def add_scheduler(self, node: str = "n0", journal: Path | None = None) -> ProcessMember:
        """As a process: its first life, or its next. Does not wait until it serves."""
        about = {"settings": asdict(self._settings), "silence_s": self._silence_s, "journal": str(journal or "")}
        return self._add({"role": "scheduler", "name": "scheduler", "node": node, **about, **self._life("scheduler")})

    def add_gateway(
        self, name: str, models: Mapping[str, str], doors: Mapping[str, str], http_port: int = 0, node: str = "n0"
    ) -> ProcessMember:
        """As a process: its first life, or its next. `doors`: the public address of each gateway, its own among them.
        Does not wait until it serves."""
        about = {"models": dict(models), "doors": list(doors.items()), "http_port": http_port}
        port = int(doors[name].rpartition(":")[2])
        return self._add({"role": "gateway", "name": name, "node": node, "port": port, **about, **self._life(name)})

    def _life(self, name: str) -> dict[str, int]:
        self._lives[name] = self._lives.get(name, 0) + 1
        return {"life": self._lives[name]}

    def open_gateway(self, models: Sequence[str]) -> str:
        """Of models that are named as their paths are; its public address, once it serves."""
        ready = threading.Event()

        def publish(address: str) -> None:
            self.gateway = address
            ready.set()

        paths = {model: model for model in models}
        self._centre.start(serve_gateway(GatewaySettings(port=0), paths, str, self._find, publish, self.inside), ready)
        return self.gateway

    def look(self) -> ClusterSeen:
        """What the operators' door says now."""
        with grpc.insecure_channel(self.admin) as channel:
            stub = AdminServiceStub(channel)
            counters = stub.GetCluster(pb.GetClusterRequest(), timeout=5).counters
            pools = stub.ListPools(pb.ListPoolsRequest(), timeout=5).pools
        return ClusterSeen(dict(counters), list(pools))

    def open_admin(self, address: str) -> grpc.Channel:
        """To the operators' door of a scheduler that is a process."""
        tls = self.inside.security.tls
        if tls is None:
            return grpc.insecure_channel(address)
        token = grpc.access_token_call_credentials(self._secret)
        trusted = grpc.ssl_channel_credentials(tls.authority.read_bytes())
        options = [("grpc.ssl_target_name_override", tls.name)]
        return grpc.secure_channel(address, grpc.composite_channel_credentials(trusted, token), options)

    async def _find(self) -> str:
        return self._front

    def _add(self, about: dict[str, Any], threads: int | None = None) -> ProcessMember:
        network, tls = self._networks.get(about["node"]), self.inside.security.tls
        common = {
            "address_file": str(self._address_file),
            "front_file": str(self._front_file),
            "secret": self._secret,
            "hash_key": self._hash_key.hex(),
            "host": network.host if network is not None else "127.0.0.1",
            "tls": [str(path) for path in (tls.certificate, tls.key, tls.authority)] if tls is not None else [],
        }
        known = self.members.get(about["name"])
        if known is not None:
            known.kill()
        member = self.members[about["name"]] = ProcessMember({**common, **about}, threads, network)
        return member


class _Loop:
    """An event loop on a thread of its own, and what runs there until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire-centre", daemon=True)
        self._thread.start()

    def start(self, serve: Any, ready: threading.Event) -> None:
        """Runs `serve` and returns once `ready` is set; raises what it ended with."""

        def begin() -> None:
            task = self._loop.create_task(serve)
            self._tasks.append(task)
            task.add_done_callback(lambda ended: self._ended(ended, ready.set))

        self._loop.call_soon_threadsafe(begin)
        if not ready.wait(START_S):
            raise RuntimeError(f"not ready after {START_S:g} s")
        if self._error is not None:
            raise self._error

    def _ended(self, task: asyncio.Task[None], tell: Callable[[], None]) -> None:
        if not task.cancelled():
            self._error = task.exception()
        tell()

    def close(self) -> None:
        done = threading.Event()

        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            done.set()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        done.wait(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()
        if self._error is not None:
            raise self._error
