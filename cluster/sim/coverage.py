"""What a history met: the rare things that make it worth running, counted from what was said, not from intentions."""

from __future__ import annotations

from collections import Counter

from cluster.messages import (
    Adopt,
    Cancel,
    Event,
    Find,
    GatewayLost,
    GatewayState,
    Order,
    Pin,
    Plan,
    Reason,
    Refused,
    ReplicaLost,
    Result,
    Seal,
)
from cluster.sim.world import World, WorldShape

WANTED = (
    "swap",
    "remote swap",
    "migrate",
    "fetch",
    "write behind",
    "recompute",
    "fork",
    "beam swap of parents",
    "beams go on",
    "revoke in flight",
    "wait on a prefix",
    "full-prompt hit",
    "hit inside a block",
    "two models",
    "scheduler rebuild",
    "transfer abort",
    "gateway loss",
    "pin",
    "replica of another size",
    "stale tokens",
    "frozen beyond silence",
    "replica that never comes back",
    "queue full",
    "blocks cleared",
    "logprobs go on",
    "rank lost",
    "model unloaded",
    "steps at once",
    "outlasted scheduler",
    "failed step",
    "replica turned away",
    "replica expelled",
)
"""Each must be met by at least 5 % of the histories of a run."""


class Coverage:
    """Counts of one history."""

    def __init__(self, shape: WorldShape) -> None:
        self.counts: Counter[str] = Counter()
        self.counts["two models"] = len({worker.model for worker in shape.workers}) - 1
        self._block_size = shape.workers[0].block_size

    def look(self, events: list[Event], orders: list[Order]) -> None:
        counts = self.counts
        for event in events:
            kind = type(event)
            if kind is Result:
                assert isinstance(event, Result)
                self._result(event)
            elif kind is GatewayLost:
                counts["gateway loss"] += 1
            elif kind is ReplicaLost:
                counts["replica loss"] += 1
            elif kind is GatewayState:
                counts["scheduler rebuild"] += 1
            elif kind is Adopt:
                counts["resume"] += 1
            elif kind is Pin:
                counts["pin"] += 1
            elif kind is Find:
                counts["named"] += 1
            elif kind is Cancel:
                assert isinstance(event, Cancel)
                counts["too much unread"] += event.code == "RESOURCE_EXHAUSTED"
                counts["given up"] += not event.code and bool(event.gateway)
        for order in orders:
            if isinstance(order, Plan):
                self._plan(order)
            elif isinstance(order, Seal):
                counts["seal"] += 1
            elif isinstance(order, Refused):
                counts["queue full"] += order.code == "RESOURCE_EXHAUSTED" and "requests wait" in order.detail

    def _result(self, result: Result) -> None:
        self.counts["failed step"] += any(stopped.reason is Reason.FAILED for stopped in result.stopped)
        for transferred in result.transferred:
            if not transferred.ok:
                self.counts["transfer abort"] += 1
            else:
                self.counts["transfer"] += 1

    def _plan(self, plan: Plan) -> None:
        counts = self.counts
        for start in plan.starts:
            if start.forks:
                counts["fork"] += 1
            if start.beams is not None:
                counts["beams"] += 1
                # From host memory or from another replica, in the midst of their search.
                counts["beams go on"] += bool(start.beams.tables)
            if start.attempt > 1:
                counts["restart"] += 1
            if start.sampling.logprobs is not None:
                counts["logprobs"] += 1
                # By another worker than the one that drew what it begins with, or after a swap.
                counts["logprobs go on"] += len(start.tokens) > start.num_prompt
            if start.position and start.position == start.num_prompt - 1 and len(start.tokens) == start.num_prompt:
                counts["full-prompt hit"] += 1
            elif start.position:
                counts["prefix hit"] += 1
                counts["hit inside a block"] += start.position % self._block_size > 0
        counts["blocks cleared"] += len(plan.clears)
        if plan.copies:
            counts["copy"] += 1
        if plan.revokes:
            counts["revoke in flight"] += 1
        if plan.reroutes:
            counts["reroute"] += 1

    def met(self, world: World) -> Counter[str]:
        """All counts, those of the scheduler and of stale messages included."""
        counts = self.counts
        scheduler = world.shell.scheduler
        counts["recompute"] = scheduler.counters["preempted recompute"]
        # Transfers to a host pool alone do not say whether a request or a cache went there.
        counts["swap"] = scheduler.counters["preempted swap"]
        counts["remote swap"] = scheduler.counters["preempted remote swap"]
        counts["migrate"] = scheduler.counters["moved"]
        counts["replica of another size"] = world.fewest is not None
        counts["frozen beyond silence"] = world.num_frozen
        counts["replica turned away"] = world.num_turned_away
        counts["replica expelled"] = world.num_expelled
        counts["outlasted scheduler"] = world.num_outlasted
        counts["model unloaded"] = len(world.unloaded)
        counts["rank lost"] = world.num_ranks_lost
        counts["replica that never comes back"] = len(world.buried)
        counts["stop string without a scheduler"] = world.num_silent_stops
        counts["fetch"] = scheduler.counters["fetches done"]
        counts["write behind"] = scheduler.counters["blocks written behind"]
        counts["wait on a prefix"] = scheduler.counters["parked on a prefix"]
        counts["wait on a fetch"] = scheduler.counters["parked on a fetch"]
        counts["stale tokens"] = sum(gateway.door.num_stale for gateway in world.gateways.values())
        counts["steps at once"] = sum(worker.steps.num_ahead for worker in world.workers.values())
        counts["beam swap of parents"] = sum(worker.steps.num_beam_swaps for worker in world.workers.values())
        counts["broken streams"] = world.network.num_breaks
        return counts
