"""How the workers of a planned fleet obey plans: starts, leases, drops, revokes and copies to host memory.

A copy runs on an engine of its own, one after the other in each direction; it takes its bytes' time, and the steps
beside it lose the share that the machine says. A sequence that is in a step leaves when the step is over, as on a real
worker. Whoever drives the fleet calls `obey` for each plan and `settle` as time goes on.
"""

from __future__ import annotations

import heapq

import numpy as np

from cluster.errors import ConfigError
from cluster.messages import Plan, Reason, Revoke, Revoked, Road, Start, Transfer, Transferred
from cluster.sim.fleet import NEVER, Fleet

WORKERS_PER_NODE = 8


class Obeying:
    """The order side of a fleet. `tells_all`: every plan is acknowledged by a result, as a real worker's next one does;
    else only where the scheduler waits for that, which saves half of all results."""

    def __init__(self, fleet: Fleet, *, tells_all: bool = False) -> None:
        self._fleet = fleet
        self._tells_all = tells_all
        # When each worker's copy engines are free again, and copies under way: end, number, worker.
        self._engine_free_at: dict[tuple[int, Road], float] = {}
        self._under_way: list[tuple[float, int, int]] = []
        self._copies: dict[int, tuple[Transfer, float, float]] = {}  # by number: began, seconds
        self._drop_later: dict[int, list[int]] = {}
        self._revoke_later: dict[int, list[Revoke]] = {}
        # Starts that wait for the blocks of a transfer, by its number.
        self._waiting: dict[int, list[Start]] = {}
        # By request: when it was asked, and when its last token came, for those that move in again.
        self.asked_at: dict[str, float] = {}
        self._last_at: dict[str, float] = {}
        self.cached_tokens = 0
        self.prompt_tokens = 0
        self.copied_bytes = 0

    def obey(self, worker: int, plan: Plan, now: float) -> None:
        fleet = self._fleet
        fleet.plan[worker], fleet.ahead[worker] = plan.number, plan.ahead
        if self._tells_all or plan.copies:
            fleet.tell(worker)
        for number in plan.aborts:
            self._abort(worker, number)
        extends = plan.extends
        for seq, lease_end in zip(extends.seqs, extends.lease_ends, strict=True):
            row = fleet.row_of[worker].get(seq)
            if row is not None:
                fleet.lease_end[worker, row] = lease_end
                fleet.asked[worker, row] = NEVER
        for start in plan.starts:
            if start.after:
                self._waiting.setdefault(start.after, []).append(start)
            else:
                self._enter(worker, start)
        for drop in plan.drops:
            self._drop(worker, drop.seq)
        for revoke in plan.revokes:
            self._revoke(worker, revoke)
        for transfer in plan.transfers:
            self._copy(worker, transfer, now)

    def _enter(self, worker: int, start: Start) -> None:
        fleet = self._fleet
        if start.forks or start.beams is not None:
            raise ConfigError(f"{start.request_id} has several sequences, and capacity is planned with one each")
        row = fleet.free[worker].pop()
        fleet.used = max(fleet.used, row + 1)
        known = len(start.tokens)
        limit = start.num_prompt + (start.sampling.max_tokens or 1) - 1
        fleet.batchers[worker].add(row, start.position, known, start.lease_end, start.precedence, limit=limit)
        fleet.starts[worker][row] = start
        fleet.row_of[worker][start.seq] = row
        fleet.seq[worker, row] = start.seq
        fleet.known[worker, row] = fleet.reported_known[worker, row] = known
        fleet.reported[worker, row] = start.position
        fleet.num_start[worker, row] = known
        fleet.end[worker, row], fleet.reasons[worker][row] = fleet.tokens.end(start)
        fleet.asked[worker, row] = NEVER
        fleet.in_step[worker, row] = fleet.samples[worker, row] = False
        fleet.asked_at[worker, row] = self.asked_at.get(start.request_id, 0.0)
        fleet.last_at[worker, row] = self._last_at.pop(start.request_id, -1.0)
        if start.attempt == 1:
            self.cached_tokens += start.position
            self.prompt_tokens += start.num_prompt

    def _drop(self, worker: int, seq: int) -> None:
        fleet = self._fleet
        row = fleet.row_of[worker].get(seq)
        if row is None:
            return
        if fleet.busy[worker] and fleet.in_step[worker, row]:
            self._drop_later.setdefault(worker, []).append(seq)
            return
        start = fleet.starts[worker][row]
        self._last_at[start.request_id] = float(fleet.last_at[worker, row])
        fleet.move_out(worker, row, Reason.DROPPED)

    def obey_late(self, worker: int) -> None:
        """A step of this worker is over: those drops and revokes are done that came while it ran."""
        for seq in self._drop_later.pop(worker, ()):
            self._drop(worker, seq)
        for revoke in self._revoke_later.pop(worker, ()):
            self._revoke(worker, revoke)

    @property
    def late(self) -> bool:
        return bool(self._drop_later or self._revoke_later)

    def _revoke(self, worker: int, revoke: Revoke) -> None:
        """As a worker does it: what is written stays, and how far the sequence is goes with the answer."""
        fleet = self._fleet
        row = fleet.row_of[worker].get(revoke.seq)
        if row is None:
            return
        if fleet.busy[worker] and fleet.in_step[worker, row]:
            self._revoke_later.setdefault(worker, []).append(revoke)
            fleet.paused[worker, row] = True
            return
        size = fleet.machine.block_size
        block_end = -(-int(fleet.position[worker, row]) // size) * size
        end = min(max(revoke.lease_end, block_end), int(fleet.lease_end[worker, row]))
        fleet.lease_end[worker, row] = end
        fleet.asked[worker, row] = NEVER
        fleet.paused[worker, row] = False
        fleet.advance(worker, np.array([row]))
        fleet.tell(worker).revoked.append(Revoked(revoke.seq, end))

    # -- copies

    def _copy(self, worker: int, transfer: Transfer, now: float) -> None:
        machine, fleet = self._fleet.machine, self._fleet
        size = len(transfer.mine) * machine.block_bytes
        begins = max(now, self._engine_free_at.get((worker, transfer.road), 0.0))
        if transfer.road is Road.WRITE and fleet.busy[worker]:
            begins = max(begins, float(fleet.step_end[worker]))
        seconds = size / self._rate(worker, transfer.peer)
        self._engine_free_at[worker, transfer.road] = begins + seconds
        fleet.stolen_s[worker] += machine.swap_share * seconds
        self.copied_bytes += size
        self._copies[transfer.transfer] = transfer, begins, seconds
        heapq.heappush(self._under_way, (begins + seconds, transfer.transfer, worker))

    def _rate(self, worker: int, peer: str) -> float:
        """Bytes/s to another worker or a host pool, on this node or on another one."""
        node = int(peer[1:]) if peer[0] == "h" else int(peer[1:]) // WORKERS_PER_NODE
        machine = self._fleet.machine
        is_near = node == worker // WORKERS_PER_NODE
        return machine.host_bytes_per_s if is_near else min(machine.host_bytes_per_s, machine.network_bytes_per_s)

    def _abort(self, worker: int, number: int) -> None:
        if number in self._copies:
            self._fail(worker, number, "aborted by the scheduler")

    def _fail(self, worker: int, number: int, why: str) -> None:
        del self._copies[number]
        self._waiting.pop(number, None)
        self._fleet.tell(worker).transferred.append(Transferred(number, False, why, 0, 0.0))

    def lose_pool(self, name: str) -> None:
        """A host pool has died: what is on the way from and to it fails."""
        for _, number, worker in self._under_way:
            if number in self._copies and self._copies[number][0].peer == name:
                self._fail(worker, number, f"pool {name} is gone")

    def settle(self, now: float) -> list[int]:
        """Copies that have ended by now are told; returns the workers on which something starts with them."""
        started = []
        while self._under_way and self._under_way[0][0] <= now:
            _, number, worker = heapq.heappop(self._under_way)
            copy = self._copies.pop(number, None)
            if copy is not None:
                size = len(copy[0].mine) * self._fleet.machine.block_bytes
                self._fleet.tell(worker).transferred.append(Transferred(number, True, "", size, copy[2]))
            for start in self._waiting.pop(number, ()):
                self._enter(worker, start)
                started.append(worker)
        return started
