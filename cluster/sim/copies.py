"""The copy engines of a planned fleet: how long blocks are on their way to and from host memory and other workers.

A copy runs on an engine of its own, one after the other in each direction; it takes its bytes' time, and the steps
beside it lose the share that the machine says. Nothing here knows what the blocks hold or who waits for them.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from cluster.messages import Road, Transfer, Transferred
from cluster.sim.costs import Machine

WORKERS_PER_NODE = 8


@dataclass(frozen=True, slots=True)
class _Copy:
    worker: int
    transfer: Transfer
    seconds: float


class FleetCopies:
    """All copies of a fleet. Outcomes go with the worker that they are told to."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # When each worker's engines are free again; copies under way by number, and when they end.
        self._free_at: dict[tuple[int, Road], float] = {}
        self._copies: dict[int, _Copy] = {}
        self._ends: list[tuple[float, int]] = []
        self.num_bytes = 0

    def begin(self, worker: int, transfer: Transfer, now: float) -> float:
        """A transfer begins as soon as its engine is free; returns the seconds that the worker's steps lose by it."""
        machine = self._machine
        size = len(transfer.mine) * machine.block_bytes
        begins = max(now, self._free_at.get((worker, transfer.road), 0.0))
        seconds = size / self._rate(worker, transfer.peer)
        self._free_at[worker, transfer.road] = begins + seconds
        self.num_bytes += size
        self._copies[transfer.transfer] = _Copy(worker, transfer, seconds)
        heapq.heappush(self._ends, (begins + seconds, transfer.transfer))
        return machine.swap_share * seconds

    def _rate(self, worker: int, peer: str) -> float:
        """Bytes/s to another worker or a host pool, on this node or on another one."""
        node = int(peer[1:]) if peer[0] == "h" else int(peer[1:]) // WORKERS_PER_NODE
        machine = self._machine
        is_near = node == worker // WORKERS_PER_NODE
        return machine.host_bytes_per_s if is_near else min(machine.host_bytes_per_s, machine.network_bytes_per_s)

    @property
    def next_end(self) -> float:
        return self._ends[0][0] if self._ends else float("inf")

    def end_next(self) -> tuple[int, Transferred] | None:
        """The copy that ends next is over; None: it was given up before."""
        _, number = heapq.heappop(self._ends)
        copy = self._copies.pop(number, None)
        if copy is None:
            return None
        size = len(copy.transfer.mine) * self._machine.block_bytes
        return copy.worker, Transferred(number, True, "", size, copy.seconds)

    def abort(self, number: int) -> Transferred | None:
        """None: it is over."""
        if self._copies.pop(number, None) is None:
            return None
        return Transferred(number, False, "aborted by the scheduler", 0, 0.0)

    def lose_pool(self, name: str) -> list[tuple[int, Transferred]]:
        """A host pool has died: what is on the way from and to it fails."""
        lost = [(number, copy.worker) for number, copy in self._copies.items() if copy.transfer.peer == name]
        for number, _ in lost:
            del self._copies[number]
        return [(worker, Transferred(number, False, f"pool {name} is gone", 0, 0.0)) for number, worker in lost]
