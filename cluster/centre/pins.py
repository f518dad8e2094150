"""Pinned prefixes: a prompt is computed once and its full blocks are kept until a time (CachePrefix).

Pins are bounded, counted, and give way to running work: the oldest goes first when a replica has nothing else to give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, Sequence
from cluster.hashing import HASH_BYTES
from cluster.messages import Pin

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler


class Pins:
    """Which prefixes are kept, and where they lie is known to their replicas."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.held: dict[str, Request] = {}

    def on_pin(self, pin: Pin) -> None:
        scheduler = self._scheduler
        if pin.request_id in scheduler.requests or pin.request_id in self.held:
            scheduler.refuse(pin, "ALREADY_EXISTS", f"a request {pin.request_id} is under way")
            return
        if scheduler.rebuild.ends_at is not None and not scheduler.admission.replicas_of(pin.model):
            detail = f"the scheduler has just started, and no replica of {pin.model} has reported yet; try again"
            scheduler.refuse(pin, "UNAVAILABLE", detail, scheduler.rebuild.ends_at - scheduler.now)
            return
        limit = scheduler.admission.pin_limit(pin.model)
        pinned = sum(len(other.names) // HASH_BYTES for other in self.held.values() if other.model == pin.model)
        if pinned + len(pin.hashes) > limit:
            detail = f"{len(pin.hashes)} blocks beside the {pinned} pinned now pass the bound of {limit} on pins"
            scheduler.refuse(pin, "RESOURCE_EXHAUSTED", detail)
            return
        request = scheduler.enter(pin)
        refusal = scheduler.admission.refusal(request)
        if refusal is not None:
            scheduler.forget(request)
            scheduler.refuse(pin, *refusal)
            return
        scheduler.admission.queue(request)

    def hold(self, replica: Replica, sequence: Sequence) -> None:
        """The prefix has been computed: its blocks stay although the sequence goes."""
        request = sequence.request
        assert request.pin_until is not None
        if request.is_cacheable and request.names:
            replica.pin(request.request_id, list(sequence.table[: len(request.names) // HASH_BYTES]))
            self.held[request.request_id] = request
            self._scheduler.deadlines.wake_at(request.pin_until, request)

    def release(self, request: Request) -> None:
        del self.held[request.request_id]
        for replica in self._scheduler.replicas.values():
            replica.unpin(request.request_id)

    def release_all(self, replica: Replica) -> None:
        for request_id in list(replica.pins):
            replica.unpin(request_id)
            del self.held[request_id]

    def give_up_one(self, replica: Replica) -> bool:
        """Memory for running work goes before pins: the oldest one gives way."""
        for request_id in replica.pins:
            self.release(self.held[request_id])
            self._scheduler.counters["pins given up"] += 1
            return True
        return False
