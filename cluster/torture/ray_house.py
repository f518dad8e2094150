"""A cluster of `quire up` that burns: its processes are children of Ray's raylets, and Ray brings them back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.lifecycle import launch, ray_head
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.ports import HAS_HTTP, free_row
from cluster.lifecycle.running import Running
from cluster.torture.asks import StreamAsk, model_asks
from cluster.torture.nodes import RayNodes
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

NODE = "node"
_ACTORS = {
    "worker": "WorkerActor",
    "gateway": "GatewayActor",
    "scheduler": "SchedulerActor",
    "host pool": "HostPoolActor",
    "rank": "MemberActor",
}
SETTINGS = ClusterSettings(
    workers=2,
    gateways=2,
    dtype="float32",
    device="cpu",
    kv_blocks=512,
    host_memory="64MiB",
    cpus_per_worker=0.5,
    max_batch=32,
    port=0,
    admin_port=0,
    metrics_port=0,
)


class RayHouse:
    """Use it in a `with`: at its end nothing is left, or `left` says what."""

    def __init__(self, settings: ClusterSettings, num_nodes: int, say: Callable[[str], None]) -> None:
        """`num_nodes` 1: on a Ray of its own, as `quire up` starts it; more: it joins one that is made for it."""
        self.left: list[str] = []
        self.token = self.tls = None
        self._settings = settings
        self._num_nodes = num_nodes
        self._say = say
        self._stack = ExitStack()
        self._nodes: RayNodes | None = None

    def __enter__(self) -> RayHouse:
        with ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="quire-torture-"))
            # Nobody else's cluster burns.
            stack.enter_context(_environment(QUIRE_HOME=home))
            settings = self._settings
            if HAS_HTTP:
                # Not where everybody looks for one first: another cluster may begin at this moment.
                settings = replace(settings, http_port=free_row(settings.host, settings.gateways))
            if self._num_nodes > 1:
                self._nodes = nodes = stack.enter_context(RayNodes(self._num_nodes, cpus=1))
                self._say(f"{nodes.address}: Ray serves with {self._num_nodes} nodes")
                stack.enter_context(_environment(**ray_head.token_variables(nodes.token)))
                # So many that a node's workers find no room beside those of another.
                settings = replace(settings, address=nodes.address, cpus_per_worker=1 / settings.tp)
            self._running: Running = launch.up(settings, self._say)
            stack.callback(self._down)
            self._stack = stack.pop_all()
        self.wanted = {
            "worker": settings.workers,
            "gateway": settings.gateways,
            "scheduler": 1,
            # Each node with a worker has one; where nodes come and go, one at least is there.
            "host pool": int(settings.host_memory != "0"),
            "rank": settings.workers * (settings.tp - 1),
            NODE: self._num_nodes - 1,
        }
        self.gateways: Sequence[str] = self._running.gateways
        first = int(self._running.settings["http_port"] or 0)
        self.http = [f"{settings.host}:{first + at}" for at in range(len(self.gateways)) if first]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _down(self) -> None:
        self.left = launch.down(self._say)

    def asks(self, seed: int, num: int) -> list[StreamAsk]:
        return model_asks(seed, num)

    def pids(self, kind: str) -> list[int]:
        if self._nodes is None:
            return _actors(self._running.ray_pids, _ACTORS[kind]) if kind != NODE else []
        self._nodes.fill()
        return self._nodes.others() if kind == NODE else _actors(self._nodes.raylets(), _ACTORS[kind])

    def admin(self) -> AdminServiceStub:
        return AdminServiceStub(self._running.admin_channel())


def _actors(raylets: Sequence[int], actor: str) -> list[int]:
    """The processes of this kind: children of these raylets, by what Ray calls them; oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "stat").read_text().rpartition(") ")[2].split()
            if int(words[1]) not in raylets or words[0] == "Z":
                continue
            if f"ray::{actor}" in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append((int(words[19]), int(entry.name)))
        except OSError:
            continue
    return [pid for _, pid in sorted(found)]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
