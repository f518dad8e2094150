"""Carries out what the autoscaler decides: looks once a second, adds or drains workers, one change at a time.

Runs on a thread of a Ray actor of its own (`ScalerActor`), started by `quire up --autoscale LEAST:MOST` and by nothing
else. A change that fails (no CPU is free, say) is logged once with its cause and tried again after the next settling.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Never

from cluster.lifecycle.autoscale import Autoscaler, ModelPressure, ScaleBounds
from cluster.lifecycle.fleet import ADMIN_S, WorkerFleet
from protos.quire.v1 import admin_pb2 as pb

log = logging.getLogger(__name__)

EVERY_S = 1.0
WAITING = (pb.REQUEST_STATE_QUEUED, pb.REQUEST_STATE_PARKED, pb.REQUEST_STATE_SWAPPED)


def look(admin: Any) -> dict[str, ModelPressure]:
    """The pressure of each model that is served, by the operators' door."""
    workers = admin.ListWorkers(pb.ListWorkersRequest(), timeout=ADMIN_S).workers
    pools = {pool.name: pool for pool in admin.ListPools(pb.ListPoolsRequest(), timeout=ADMIN_S).pools}
    waiting = admin.ListRequests(pb.ListRequestsRequest(states=WAITING, limit=10_000), timeout=ADMIN_S).requests
    found = {}
    for model in sorted({worker.model for worker in workers}):
        mine = [worker for worker in workers if worker.model == model and not worker.draining]
        blocks = sum(worker.num_blocks for worker in mine)
        held = sum(pools[worker.name].num_held + pools[worker.name].num_moving for worker in mine)
        seats = sum(worker.max_batch for worker in mine)
        used = max(held / max(1, blocks), sum(worker.num_sequences for worker in mine) / max(1, seats))
        queue = [request.queue_s for request in waiting if request.model == model]
        found[model] = ModelPressure(len(mine), len(queue), max(queue, default=0.0), used)
    return found


class ScaleLoop:
    """Decides for every model that is served, as long as its process lives."""

    def __init__(self, fleet: WorkerFleet, bounds: ScaleBounds) -> None:
        self._fleet = fleet
        self._bounds = bounds
        self._scalers: dict[str, Autoscaler] = {}

    def run(self) -> Never:
        while True:
            time.sleep(EVERY_S)
            try:
                self._look_once()
            except Exception as error:
                # The scheduler may be starting again; the next look finds it.
                log.warning("autoscaling could not do its work: %s", " ".join(str(error).split())[:300])

    def _look_once(self) -> None:
        for model, seen in look(self._fleet.admin).items():
            scaler = self._scalers.setdefault(model, Autoscaler(self._bounds))
            decision = scaler.decide(seen, time.monotonic())
            if decision.workers != seen.workers:
                log.info("%s: from %d to %d workers: %s", model, seen.workers, decision.workers, decision.why)
                self._fleet.set_size(model, decision.workers)
