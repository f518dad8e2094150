"""The Ray actors that serve: one scheduler, workers and gateways. Host pools are in `host_pool_actor.py`.

Ray starts them, places them and starts them again when they die; nothing else passes through it. Every actor runs its
server on a thread with an event loop of its own and answers `ready()` once it serves. An actor that Ray has started
again comes up by itself: whom to talk to is kept in `RayState`, and its incarnation, which only grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.lifecycle.actor import (
    CONTROL,
    FRONT,
    Observed,
    Serving,
    bound_threads,
    find_scheduler,
    node_and_pid,
)
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.host_pool_actor import Layout, ensure_host_pool
from cluster.lifecycle.meeting import Meeting
from cluster.lifecycle.served import ModelToServe, noted_model

if TYPE_CHECKING:
    from cluster.gateway.front_link import FrontLink


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
        from cluster.lifecycle.roll import Roll
        from cluster.serving.admin import Wanted
        from cluster.serving.inside import inside_of, operators_token
        from cluster.serving.scheduler_server import Addresses, Doors, serve_scheduler
        from cluster.watching.metrics_ray import mirror_to_ray

        settings, state = self._settings, self._state
        journal = Path(settings.journal) if settings.journal else None
        epoch = state.next_epoch()
        inside = inside_of(state)
        admin = settings.admin_door(operators_token(state))
        gateways = {name: inside.reachable(settings.host, port) for name, port in settings.gateway_ports().items()}

        def publish(addresses: Addresses) -> None:
            state.put(CONTROL, addresses.control)
            state.put(FRONT, addresses.front)
            ready(addresses.admin)

        await serve_scheduler(
            settings.scheduler(),
            epoch,
            doors=Doors(inside, admin, replace(admin, port=settings.metrics_port)),
            hash_key=state.key("hash key"),
            silence_s=settings.silence_s,
            journal=journal,
            on_address=publish,
            wanted=Wanted(gateways, Roll(state).workers),
            mirror=mirror_to_ray,
        )

    async def ready(self, timeout_s: float) -> str:
        return await self._serving.wait(timeout_s)

    def end(self) -> None:
        """It is about to be ended by order, and started again."""
        self._observed.end()

    def where(self) -> tuple[str, int]:
        return node_and_pid()


class WorkerActor:
    """One replica on one accelerator, or on some cores; of a tensor-parallel one its rank 0."""

    def __init__(self, settings: ClusterSettings, namespace: str, name: str, model: ModelToServe) -> None:
        from cluster.lifecycle.ray_state import RayState

        bound_threads(settings)
        self._settings = settings
        self._namespace = namespace
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
        from worker.swap import swap_of
        from worker.transfer.server import Listening
        from worker.worker import Worker

        hash_key = self._state.key("hash key")
        node = ray.get_runtime_context().get_node_id()[:12]
        number, tp = self._state.next_life(self._name), self._settings.tp
        self._worker = worker = Worker(
            self._settings.worker(self._model, hash_key),
            replica=self._name,
            incarnation=number,
            node=node,
            say=self.lines.append,
            place=Meeting(self._state, self._name, tp).call(number) if tp > 1 else None,
        )
        await asyncio.to_thread(ensure_host_pool, self._settings, self._namespace, self.layout())
        inside = inside_of(self._state)
        tracer = self._observed.tracer()
        spans = None if tracer is None else AttemptSpans(tracer.begin, self._name)
        server = WorkerServer(
            worker,
            self._find,
            inside.security,
            spans=spans,
            hang_s=self._settings.hang_s,
            swap=swap_of(worker, inside.security, Listening(inside.host)),
        )
        ready(self._name)
        await server.run()

    async def _find(self) -> str:
        return await find_scheduler(self._state, CONTROL)

    async def ready(self, timeout_s: float) -> str:
        return await self._serving.wait(timeout_s)

    def layout(self) -> Layout:
        """What a host pool beside it must have."""
        import ray

        joined = self._worker.joined()
        return Layout(ray.get_runtime_context().get_node_id(), joined.block_bytes, joined.fingerprint)

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
        self._link: FrontLink | None = None
        self._serving = Serving(self._serve)

    async def _serve(self, ready: Callable[[str], None]) -> None:
        from cluster.gateway.process import serve_gateway
        from cluster.gateway.settings import GatewaySettings
        from cluster.serving.inside import inside_of

        door = self._settings.gateway_door(self._port)
        # Clients know by which name they reach this machine.
        doors = tuple((name, f":{port}") for name, port in self._settings.gateway_ports().items())
        settings = GatewaySettings(
            self._name,
            self._state.next_life(self._name),
            door.host,
            door.port,
            self._settings.http_ports()[self._name],
            door.tls,
            door.tokens,
            doors=doors,
            default_model=self._settings.models[0].name,
        )
        inside = inside_of(self._state)
        models = {model.name: model.path for model in self._settings.models}
        tracer = self._observed.tracer()
        await serve_gateway(settings, models, self._where_is, self._find, ready, inside, tracer, self._reach)

    def _reach(self, link: FrontLink) -> None:
        self._link = link

    async def _find(self) -> str:
        return await find_scheduler(self._state, FRONT)

    def _where_is(self, name: str) -> str:
        """The folder of a model that was loaded later."""
        return noted_model(self._state, name).path

    async def ready(self, timeout_s: float) -> str:
        return await self._serving.wait(timeout_s)

    def end(self) -> None:
        """It is about to be ended by order, and started again."""
        self._observed.end()
        if self._link is not None:
            self._link.leave()

    def where(self) -> tuple[str, int]:
        return node_and_pid()
