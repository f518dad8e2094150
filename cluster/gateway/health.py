"""grpc.health.v1 for a gateway: ready means that each model has a worker which finished a step lately.

The service "" and the front door's own name speak for all models, "model/NAME" for one. `follow` runs beside the
gateway and passes on what has changed; watchers are told at once. A gateway that is stopping is not ready.
"""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2 as pb

from cluster.errors import NotFound, QueueFull
from cluster.gateway.calls import Call, Method
from cluster.gateway.gateway import Gateway

SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN

FRONT_DOOR = "quire.v1.InferenceService"
MAX_WATCHERS = 1_000
"""In all; for one more, the oldest of the machine that has most is ended."""


class Watcher:
    """A call that is told of changes."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.must_go = False


class Health:
    """The states of all services by name."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._states: dict[str, int] = {"": NOT_SERVING, FRONT_DOOR: NOT_SERVING}
        # By the machine that they come from, oldest first.
        self._watchers: dict[str, list[Watcher]] = {}

    @property
    def methods(self) -> dict[str, Method]:
        return {"Check": self.check, "List": self.list, "Watch": self.watch}

    @property
    def is_ready(self) -> bool:
        return bool(self._states[""] == SERVING)

    async def follow(self) -> None:
        """Runs until cancelled."""
        changed = self._gateway.readiness_changed
        while True:
            changed.clear()
            self._refresh()
            await changed.wait()

    def _refresh(self) -> None:
        gateway = self._gateway
        served = gateway.catalogue.served.values()
        is_open = gateway.is_connected and not gateway.is_stopping
        states = {f"model/{model.name}": SERVING if is_open and model.is_ready else NOT_SERVING for model in served}
        all_ready = bool(states) and all(state == SERVING for state in states.values())
        states[""] = states[FRONT_DOOR] = SERVING if all_ready else NOT_SERVING
        if states != self._states:
            self._states = states
            for watchers in self._watchers.values():
                for watcher in watchers:
                    watcher.changed.set()

    async def check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:
        state = self._states.get(request.service)
        if state is None:
            raise NotFound(f"no service {request.service!r} here; there is {', '.join(sorted(self._states))}")
        return pb.HealthCheckResponse(status=state)

    async def list(self, request: pb.HealthListRequest, call: Call) -> pb.HealthListResponse:
        response = pb.HealthListResponse()
        for name, state in self._states.items():
            response.statuses[name].status = state
        return response

    async def watch(self, request: pb.HealthCheckRequest, call: Call) -> None:
        if sum(map(len, self._watchers.values())) >= MAX_WATCHERS:
            self._make_room()
        watcher, mine = Watcher(), self._watchers.setdefault(call.machine, [])
        mine.append(watcher)
        told: int | None = None
        try:
            while not watcher.must_go:
                watcher.changed.clear()
                # A name that is not known yet may become known.
                state = self._states.get(request.service, SERVICE_UNKNOWN)
                if state != told:
                    told = state
                    await call.write(pb.HealthCheckResponse(status=state))
                await watcher.changed.wait()
            raise QueueFull(f"{MAX_WATCHERS:,} calls watch the health of this gateway; ask with Check", 10.0)
        finally:
            if watcher in mine:
                mine.remove(watcher)
            if not mine and self._watchers.get(call.machine) is mine:
                del self._watchers[call.machine]

    def _make_room(self) -> None:
        watchers = max(self._watchers.values(), key=len)
        oldest = watchers.pop(0)
        oldest.must_go = True
        oldest.changed.set()
