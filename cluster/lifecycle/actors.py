"""The Ray actors: one scheduler, workers, gateways and host pools, each a process that serves by gRPC.

Ray starts them, places them and starts them again when they die; nothing else passes through it. Every actor runs its
server on a thread with an event loop of its own and answers `ready()` once it serves. An actor that Ray has started
again comes up by itself: whom to talk to is kept in `RayState`, and its incarnation is the time, so it only grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.lifecycle.actor import Observed, Serving, bound_threads, incarnation, node_and_pid
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.meeting import Meeting

if TYPE_CHECKING:
    from cluster.lifecycle.ray_state import RayState

CONTROL, FRONT = "control address", "front address"


async def find_scheduler(state: RayState, port: str) -> str:
    """Where this port of the scheduler is now; OSError while there is none."""
    address = await asyncio.to_thread(state.get, port)
    if not address:
        raise OSError("no scheduler has said where it is")
    return address


class SchedulerActor:
    """The one owner of all tables."""

    def __init__(self, settings: ClusterSettings, namespace: str) -> None:
        from cluster.lifecycle.ray_state import RayState

        self._settings = settings
        self._namespace = namespace
        self._state = RayState(namespace)
        self._observed = Observed(settings, self._state, "scheduler")
        self._serving = Serving(self._serve)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        from cluster.serving.inside import inside_of
        from cluster.serving.scheduler_server import Addresses, Doors, serve_scheduler
        from cluster.watching.metrics_ray import mirror_to_ray

        settings, state = self._settings, self._state
        journal = Path(settings.journal) if settings.journal else None
        epoch = state.next_epoch()
        inside = inside_of(state)

        def publish(addresses: Addresses) -> None:
            state.put(CONTROL, addresses.control)
            state.put(FRONT, addresses.front)
            ready(addresses.admin)

        await serve_scheduler(
            settings.scheduler(),
            epoch,
            doors=Doors(inside, settings.admin_door(inside.security.secret), settings.host, settings.metrics_port),
            hash_key=state.key("hash key"),
            silence_s=settings.silence_s,
            journal=journal,
            on_address=publish,
            mirror=mirror_to_ray,
        )

    def ready(self, timeout_s: float) -> str:
        return self._serving.wait(timeout_s)

    def where(self) -> tuple[str, int]:
        return node_and_pid()


class WorkerActor:
    """One replica on one accelerator, or on some cores; of a tensor-parallel one its rank 0."""

    def __init__(self, settings: ClusterSettings, namespace: str, name: str, model: str) -> None:
        from cluster.lifecycle.ray_state import RayState

        bound_threads(settings)
        self._settings = settings
        self._state = RayState(namespace)
        self._name = name
        self._model = model
        self._observed = Observed(settings, self._state, name)
        self.lines: list[str] = []
        self._serving = Serving(self._serve)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        import ray

        from cluster.serving.inside import inside_of
        from worker.serve import WorkerServer
        from worker.spans import AttemptSpans
        from worker.transfer.server import Listening
        from worker.worker import Worker

        hash_key = self._state.key("hash key")
        node = ray.get_runtime_context().get_node_id()[:12]
        number, tp = incarnation(), self._settings.tp
        self._worker = worker = Worker(
            self._settings.worker(self._model, hash_key),
            replica=self._name,
            incarnation=number,
            node=node,
            say=self.lines.append,
            place=Meeting(self._state, self._name, tp).call(number) if tp > 1 else None,
        )
        inside = inside_of(self._state)
        tracer = self._observed.tracer()
        spans = None if tracer is None else AttemptSpans(tracer.begin, self._name)
        server = WorkerServer(
            worker,
            self._find,
            inside.security,
            spans=spans,
            hang_s=self._settings.hang_s,
            listening=Listening(inside.host),
        )
        ready(self._name)
        await server.run()

    async def _find(self) -> str:
        return await find_scheduler(self._state, CONTROL)

    def ready(self, timeout_s: float) -> str:
        return self._serving.wait(timeout_s)

    def layout(self) -> tuple[str, int, str]:
        """The node it is on, and the bytes and the layout of its blocks: what a host pool beside it must have."""
        import ray

        layout = self._worker.parts.layout
        return ray.get_runtime_context().get_node_id(), layout.block_bytes, layout.fingerprint()

    def end(self) -> None:
        """It has drained, and is about to be ended."""
        self._observed.end()

    def report(self) -> list[str]:
        """What the start said, line by line."""
        return self.lines

    def where(self) -> tuple[str, int]:
        return node_and_pid()


class GatewayActor:
    """One front door."""

    def __init__(self, settings: ClusterSettings, namespace: str, name: str, port: int) -> None:
        from cluster.lifecycle.ray_state import RayState

        self._settings = settings
        self._state = RayState(namespace)
        self._name = name
        self._port = port
        self._observed = Observed(settings, self._state, name)
        self._serving = Serving(self._serve)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        from cluster.gateway.host import serve_gateway
        from cluster.gateway.settings import GatewaySettings
        from cluster.serving.inside import inside_of

        door = self._settings.gateway_door(self._port)
        settings = GatewaySettings(self._name, incarnation(), door.host, door.port, door.tls, door.tokens)
        inside = inside_of(self._state)
        await serve_gateway(settings, self._settings.model, self._find, ready, inside, self._observed.tracer())

    async def _find(self) -> str:
        return await find_scheduler(self._state, FRONT)

    def ready(self, timeout_s: float) -> str:
        return self._serving.wait(timeout_s)

    def where(self) -> tuple[str, int]:
        return node_and_pid()


class HostPoolActor:
    """The host memory of one node that blocks are swapped to."""

    def __init__(
        self, settings: ClusterSettings, namespace: str, name: str, block_bytes: int, fingerprint: str
    ) -> None:
        from cluster.lifecycle.ray_state import RayState

        self._settings = settings
        self._state = RayState(namespace)
        self._name = name
        self._block_bytes = block_bytes
        self._fingerprint = fingerprint
        self._observed = Observed(settings, self._state, name)
        self._serving = Serving(self._serve)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        import ray

        from cluster.serving.inside import inside_of
        from worker.host_pool import HostPool, HostPoolSettings
        from worker.host_pool_serve import serve_host_pool
        from worker.transfer.server import Listening

        inside = inside_of(self._state)
        settings = HostPoolSettings(
            name=self._name,
            node=ray.get_runtime_context().get_node_id()[:12],
            size=self._settings.host_memory,
            block_bytes=self._block_bytes,
            fingerprint=self._fingerprint,
            listening=Listening(inside.host),
        )
        pool = HostPool(settings, inside.security)
        ready(f"{pool.num_blocks} blocks")
        try:
            await serve_host_pool(pool, self._find, inside.security)
        finally:
            pool.close()

    async def _find(self) -> str:
        return await find_scheduler(self._state, CONTROL)

    def end(self) -> None:
        """No worker needs it any more, and it is about to be ended."""
        self._observed.end()

    def ready(self, timeout_s: float) -> str:
        return self._serving.wait(timeout_s)

    def where(self) -> tuple[str, int]:
        return node_and_pid()
