"""A simulated replica: it obeys plans and tells results as a real one does, on blocks that really hold something.

It never decides anything that the protocol leaves to the scheduler, and touches no block that no plan named.

What it takes the protocol to say, beyond the words of cluster/messages/:
- A sequence reports once when it comes near the end of a lease, and once more when it stands still at that end; then
  it is silent until the lease is extended. A beam group reports its tables instead, from its first beams on.
- A plan of an older epoch or another incarnation, or one seen before, is refused; one behind a gap is sent again.
- Extends, revokes and drops of sequences that have ended already are passed over.
- Ids that were drawn by steps under way when a Drop arrived are sent and reported all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from cluster.hashing import BlockHasher
from cluster.messages import (
    Drop,
    Extends,
    Plan,
    Reason,
    ReplicaJoined,
    ReplicaState,
    Reroute,
    Result,
    Revoke,
    Revoked,
    Road,
    Start,
    Tokens,
    Transfer,
    Transferred,
)
from cluster.sim.clock import Clock, Process
from cluster.sim.model import digest_of
from cluster.sim.network import Weather
from cluster.sim.reports import Report
from cluster.sim.running import Running
from cluster.sim.shape import WorkerShape
from cluster.sim.steps import Steps
from cluster.sim.transfers import Mover, Pool, Transfers, register_of

__all__ = ["Outlets", "SimWorker", "WorkerShape"]


@dataclass(slots=True)
class Outlets:
    """Where a worker's words go; the cluster lays the streams."""

    result: Callable[[int, Result], None]
    tokens: Callable[[str, list[Tokens]], None]
    pool: Callable[[str], Pool | None]
    reaches: Callable[[str, str], bool]  # nodes that can talk to each other now
    landed: Callable[[Transfer, int], None] = lambda transfer, block: None  # a block was written into a peer's pool
    weather: Weather = field(default_factory=Weather)  # of calls and chunks between pools


class SimWorker(Process):
    """One replica, from its start to its death; a replica that starts again is a new one."""

    def __init__(
        self, name: str, incarnation: int, shape: WorkerShape, clock: Clock, seed: str, outlets: Outlets
    ) -> None:
        super().__init__(name, clock)
        self.incarnation = incarnation
        self.shape = shape
        self.node = shape.node
        self.random = Random(f"{seed}/{name}/{incarnation}")
        self.steps = Steps(self, shape, self.random, self._on_advance, self._on_retire)
        self.blocks = self.steps.blocks
        self.outlets = outlets
        self.register = register_of(shape.num_blocks, self.blocks.num_bytes, incarnation, own_content=True)
        self.transfers = Transfers(self, self.steps.stream, outlets, self._on_transferred)
        self.residents: dict[int, Running] = {}
        # Starts that wait for the blocks of a transfer, by its number.
        self._waiting: dict[int, list[Start]] = {}
        self.epoch = 0
        self.num_stale = 0
        self._plan = 0
        self._result = 0
        self._ahead = 0
        self._hashers: dict[bytes, BlockHasher] = {}
        self._report = Report()

    @property
    def joined(self) -> ReplicaJoined:
        shape = self.shape
        return ReplicaJoined(
            replica=self.name,
            incarnation=self.incarnation,
            node=shape.node,
            model=shape.model,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            block_bytes=self.blocks.num_bytes,
            fingerprint="simulated",
            max_batch=shape.max_batch,
            max_model_len=shape.max_model_len,
            prefill_tokens_per_s=1.0 / shape.per_token_s,
            bytes_per_s=self.blocks.num_bytes / self.transfers.PIECE_S,
            digest=digest_of(shape.model),
        )

    def meet(self, epoch: int) -> ReplicaJoined | ReplicaState:
        """A scheduler has opened its stream. A new one (a higher epoch) is told all that is held here."""
        known, self.epoch = self.epoch, epoch
        # Told before: these are still under way, and on their way out.
        under_way = tuple(self.transfers.under_way)
        self.transfers.adopt_epoch(epoch)
        self._plan = self._result = 0
        self._waiting.clear()
        if not known:
            return self.joined
        self._report = Report()
        residents = tuple(running.as_resident() for running in self.residents.values())
        for running in self.residents.values():
            running.news()  # the state tells it
        return ReplicaState(self.joined, residents, self.steps.filled.names(), under_way)

    def when_written(self, then: Callable[[], None]) -> None:
        """A peer wants to read: what was issued before, copies of blocks included, comes first."""
        self.run(self.steps.stream.issue, 0.0, then)

    def session_of(self, caller: Mover) -> int:
        """Blocks of a device are reached by nobody else."""
        return 0

    def look(self) -> None:
        """Its own transfers look at deadlines."""

    # -- plans

    def take_plan(self, plan: Plan) -> None:
        if plan.incarnation != self.incarnation or plan.epoch != self.epoch:
            self.num_stale += 1
            return
        if plan.number != self._plan + 1:
            return  # seen before, or behind a gap
        self._plan = plan.number
        self._ahead = plan.ahead
        for number in plan.aborts:
            self.transfers.abort(number)
        for copy in plan.copies:
            self.steps.filled.forget(copy.target)
            self.steps.stream.issue(0.0, partial(self.blocks.copy, copy.source, copy.target, copy.num_slots))
        self._extend(plan.extends)
        for start in plan.starts:
            if start.after:
                self._waiting.setdefault(start.after, []).append(start)
            else:
                self._start(start)
        for drop in plan.drops:
            self._drop(drop)
        for revoke in plan.revokes:
            self._revoke(revoke)
        for reroute in plan.reroutes:
            self._reroute(reroute)
        for transfer in plan.transfers:
            if transfer.road is Road.READ:
                self.steps.filled.forget(*transfer.mine)
            self.transfers.begin(transfer, plan.epoch)
        self.steps.issue()
        self._tell()

    def _drop(self, drop: Drop) -> None:
        running = self.residents.get(drop.seq)
        if running is not None and running.reason is Reason.NONE:
            self.steps.end(running, Reason.DROPPED)
            self._leave_if_quiet(running)

    def _revoke(self, revoke: Revoke) -> None:
        """Positions of steps that are issued cannot be taken back: the lease ends with the block of the last one."""
        running = self.residents.get(revoke.seq)
        if running is None or running.reason is not Reason.NONE:
            return
        size = self.shape.block_size
        held = max(revoke.lease_end, -(-self.steps.issued_position(running) // size) * size)
        self.steps.set_lease(running, min(running.lease_end, held))
        del running.table[-(-running.lease_end // size) :]
        running.lease_told = running.dry_told = -1
        self._report.advance(running)
        self._report.revoked.append(Revoked(running.seq, running.lease_end))

    def _reroute(self, reroute: Reroute) -> None:
        for starts in self._waiting.values():
            for at, start in enumerate(starts):
                if start.seq == reroute.seq:
                    starts[at] = replace(start, gateway=reroute.gateway, route=reroute.route)
        running = self.residents.get(reroute.seq)
        if running is not None:
            running.gateway, running.route = reroute.gateway, reroute.route
            if running.group is None:
                self.outlets.tokens(running.gateway, [running.say(0, running.outputs)])

    def _extend(self, extends: Extends) -> None:
        at = 0
        for seq, lease_end, first, count in zip(
            extends.seqs, extends.lease_ends, extends.firsts, extends.counts, strict=True
        ):
            blocks = extends.blocks[at : at + count]
            at += count
            running = self.residents.get(seq)
            if running is None or running.reason is not Reason.NONE:
                continue
            if running.group is not None:
                running.group.take(first, blocks)
            else:
                assert first <= len(running.table), f"{self.name}: blocks from {first} on behind {running.table}"
                running.table[first:] = blocks
            self.steps.set_lease(running, lease_end)

    def _start(self, start: Start) -> None:
        hasher, shape = self._hashers.get(start.salt), self.shape
        if hasher is None:
            hasher = BlockHasher(shape.key, digest_of(shape.model), start.salt, shape.block_size)
            self._hashers[start.salt] = hasher
        parent = Running(start, self.steps.free_row(), hasher)
        self._enter(parent, start.precedence, paused=False)
        for fork in start.forks:
            running = Running(start, self.steps.free_row(), hasher, fork)
            self._enter(running, start.precedence, paused=True)
            parent.forks.append(running)

    def _enter(self, running: Running, precedence: int, paused: bool) -> None:
        self.residents[running.seq] = running
        self.steps.add(running, precedence, paused)
        if running.outputs:
            self.outlets.tokens(running.gateway, [running.say(0, running.outputs)])

    # -- what steps bring

    def _on_advance(self, running: Running, filled_prompt: bool) -> None:
        if running.reason is not Reason.NONE:
            self._leave_if_quiet(running)
        elif running.group is not None and running.group.beams:
            if running.near_lease_end(self._ahead):
                self._report.groups.append(running.group.tables(running.seq, running.position))
        elif filled_prompt or (running.group is None and running.near_lease_end(self._ahead)):
            self._report.advance(running)

    def _on_retire(self, sent: dict[str, list[Tokens]]) -> None:
        for gateway, tokens in sent.items():
            self.outlets.tokens(gateway, tokens)
        self._tell()

    def _leave_if_quiet(self, running: Running) -> None:
        """Only when no step under way holds its table is an attempt over."""
        if running.num_in_flight or running.seq not in self.residents:
            return
        del self.residents[running.seq]
        self.steps.leave(running)
        self._report.stop(running, running.reason)
        for fork in running.forks:
            # Nobody will write their prompt any more.
            self.steps.end(fork, running.reason)
            self._leave_if_quiet(fork)

    def _on_transferred(self, transferred: Transferred) -> None:
        self._report.transferred.append(transferred)
        starts = self._waiting.pop(transferred.transfer, [])
        if transferred.ok:
            for start in starts:
                self._start(start)
            self.steps.issue()
        self._tell()

    # -- results

    def _tell(self) -> None:
        if not self._report:
            return
        report, self._report = self._report, Report()
        self._result += 1
        steps = self.steps
        report.num_dry, steps.num_dry = steps.num_dry, 0
        result = report.result(
            (self.name, self.incarnation, self.epoch),
            (self._result, self._plan, steps.num_retired),
            steps.prefill_waiting,
            steps.step_seconds,
        )
        self.outlets.result(self._result, result)
