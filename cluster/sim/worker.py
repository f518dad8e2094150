"""A simulated replica: it obeys plans and tells results as a real one does, on blocks that really hold something.

The real batcher picks its steps; up to `depth` steps are issued at once, so a sequence that stops is found out one step
late while the step under way still writes into its blocks: `Stopped` goes out only once that step has retired. It never
decides anything that the protocol leaves to the scheduler, and touches no block that no plan named.

What it takes the protocol to say, beyond the words of cluster/messages.py:
- A sequence reports once when it comes near the end of a lease, and once more when it stands still at that end; then
  it is silent until the lease is extended.
- A plan of an older epoch or another incarnation, or one seen before, is refused and counted; one behind a gap is left
  to be sent again.
- Extends, revokes and drops of sequences that have ended already are passed over.
- Ids that were drawn by steps under way when a Drop arrived are sent and reported all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from cluster.batcher import Batch, Batcher
from cluster.hashing import BlockHasher
from cluster.messages import (
    Drop,
    Extends,
    Ids,
    Plan,
    Reason,
    ReplicaJoined,
    ReplicaState,
    Reroute,
    Resident,
    Result,
    Revoke,
    Revoked,
    Road,
    Start,
    Tokens,
    ids,
)
from cluster.sim.clock import Clock, Process
from cluster.sim.device import Blocks, Stream
from cluster.sim.filled import Filled
from cluster.sim.model import draw
from cluster.sim.reports import Report
from cluster.sim.running import Running
from cluster.sim.transfers import Pool, Transfers


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """What a simulated replica is like; times in seconds."""

    node: str
    num_blocks: int
    block_size: int
    max_batch: int
    max_model_len: int
    token_budget: int
    depth: int = 2  # steps that are issued before the first of them has retired
    step_base_s: float = 0.008
    per_token_s: float = 0.0002
    end_one_in: int = 40
    model: str = "m"
    key: bytes = b"simulated"
    num_noises: int = 1  # 1: all replicas draw the same tokens; else a replica has one of so many noises of its own


@dataclass(slots=True)
class Part:
    """A sequence's share of a step: `count` tokens from `start` on, on its table as it was when the step was issued."""

    running: Running
    start: int
    count: int
    draws: bool
    table: list[int]
    forks: list[Running]


@dataclass(slots=True)
class Outlets:
    """Where a worker's words go; the cluster lays the streams."""

    result: Callable[[int, Result], None]
    tokens: Callable[[str, list[Tokens]], None]
    pool: Callable[[str], Pool | None]
    reaches: Callable[[str, str], bool]  # nodes that can talk to each other now


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
        self.blocks = Blocks(shape.num_blocks, shape.block_size, self.random)
        self.stream = Stream(self)
        self.batcher = Batcher(shape.max_batch, shape.token_budget)
        self.outlets = outlets
        self.transfers = Transfers(self, self.stream, outlets, self._on_transferred)
        self.residents: dict[int, Running] = {}
        self.filled = Filled()
        self.epoch = 0
        self.num_stale = 0
        self.num_steps = 0
        self._noise = self.random.randrange(shape.num_noises)
        self._rows: list[Running | None] = [None] * shape.max_batch
        self._plan = 0
        self._result = 0
        self._num_issued = 0
        self._ahead = 0
        self._hashers: dict[bytes, BlockHasher] = {}
        self._report = Report()
        self._step_seconds = 0.0

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
        )

    def meet(self, epoch: int) -> ReplicaJoined | ReplicaState:
        """A scheduler has opened its stream. A new one (a higher epoch) is told all that is held here."""
        known, self.epoch = self.epoch, epoch
        self._plan = self._result = 0
        if not known:
            return self.joined
        self._report = Report()
        residents = tuple(
            Resident(
                running.seq,
                running.index,
                running.start,
                running.tokens[:],
                running.position,
                ids(running.table),
                running.lease_end,
            )
            for running in self.residents.values()
        )
        for running in self.residents.values():
            running.news()  # the state tells it
        under_way = tuple(moving.order for moving in self.transfers.under_way.values())
        return ReplicaState(self.joined, residents, self.filled.names(), under_way)

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
        for drop in plan.drops:
            self._drop(drop)
        for revoke in plan.revokes:
            self._revoke(revoke)
        for reroute in plan.reroutes:
            self._reroute(reroute)
        for copy in plan.copies:
            self.filled.forget(copy.target)
            self.stream.issue(0.0, partial(self.blocks.copy, copy.source, copy.target, copy.num_slots))
        self._extend(plan.extends)
        for start in plan.starts:
            self._start(start)
        for transfer in plan.transfers:
            if transfer.road is Road.READ:
                self.filled.forget(*transfer.mine)
            self.transfers.begin(transfer)
        self._issue_steps()
        self._tell()

    def _drop(self, drop: Drop) -> None:
        running = self.residents.get(drop.seq)
        if running is not None and running.reason is Reason.NONE:
            self._end(running, Reason.DROPPED)

    def _revoke(self, revoke: Revoke) -> None:
        """Positions of steps that are issued cannot be taken back; from there on the lease ends."""
        running = self.residents.get(revoke.seq)
        if running is None or running.reason is not Reason.NONE:
            return
        running.lease_end = min(running.lease_end, max(revoke.lease_end, int(self.batcher.position[running.row])))
        self.batcher.lease_end[running.row] = running.lease_end
        size = self.shape.block_size
        del running.table[-(-running.lease_end // size) :]
        self._report.revoked.append(Revoked(running.seq, running.lease_end))

    def _reroute(self, reroute: Reroute) -> None:
        running = self.residents.get(reroute.seq)
        if running is not None:
            running.gateway, running.route = reroute.gateway, reroute.route
            self._send(running.gateway, [self._tokens(running, 0, running.outputs)])

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
            assert first <= len(running.table), f"{self.name}: blocks from {first} on, table has {len(running.table)}"
            running.table[first:] = blocks
            running.lease_end = lease_end
            self.batcher.lease_end[running.row] = lease_end

    def _start(self, start: Start) -> None:
        hasher = self._hashers.get(start.salt)
        if hasher is None:
            hasher = self._hashers[start.salt] = BlockHasher(self.shape.key, start.salt, self.shape.block_size)
        parent = self._enter(Running(start, self._free_row(), hasher), start.precedence, paused=False)
        for fork in start.forks:
            running = Running(start, self._free_row(), hasher, fork)
            parent.forks.append(self._enter(running, start.precedence, paused=True))

    def _free_row(self) -> int:
        return self._rows.index(None)

    def _enter(self, running: Running, precedence: int, paused: bool) -> Running:
        self._rows[running.row] = running
        self.residents[running.seq] = running
        # A fork without outputs draws its first token from its parent's step, so that token counts as known.
        length = max(len(running.tokens), running.position + 1)
        self.batcher.add(running.row, running.position, length, running.lease_end, precedence, paused)
        self.filled.note(running, running.table, 0, running.position)
        if running.outputs:
            self._send(running.gateway, [self._tokens(running, 0, running.outputs)])
        return running

    # -- steps

    def _issue_steps(self) -> None:
        while self._num_issued < self.shape.depth:
            batch = self.batcher.next()
            self._report.num_dry += batch.num_dry
            if not batch.num_tokens:
                return
            parts = self._parts(batch)
            seconds = self.shape.step_base_s + self.shape.per_token_s * batch.num_tokens
            seconds *= 0.9 + 0.2 * self.random.random()
            self._num_issued += 1
            self.stream.issue(seconds, partial(self._retire, parts, seconds))

    def _parts(self, batch: Batch) -> list[Part]:
        batcher = self.batcher
        batcher.retire(batch)
        parts = []
        for row, start, count in zip(batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True):
            running = self._rows[row]
            assert running is not None
            end = start + count
            draws = end == int(batcher.length[row])
            forks: list[Running] = []
            if running.forks and end >= running.num_prompt:
                forks = [fork for fork in running.forks if fork.reason is Reason.NONE]
                running.forks = []
                for fork in forks:
                    fork.num_in_flight += 1
                    # With one token to draw there is no step of its own.
                    batcher.paused[fork.row] = fork.max_tokens == 1
            running.num_in_flight += 1
            if draws:
                if end + 1 - running.num_prompt >= running.max_tokens:
                    batcher.paused[row] = True
                batcher.length[row] = end + 1
            parts.append(Part(running, start, count, draws, list(running.table), forks))
        return parts

    def _retire(self, parts: list[Part], seconds: float) -> None:
        """The step is over: its slots are written, its tokens drawn."""
        self._num_issued -= 1
        self.num_steps += 1
        self._step_seconds += 0.1 * (seconds - self._step_seconds)
        sent: dict[str, list[Tokens]] = {}
        for part in parts:
            running = part.running
            running.num_in_flight -= 1
            self.blocks.write(part.table, part.start, running.tokens[part.start : part.start + part.count])
            self.filled.note(running, part.table, part.start, part.start + part.count)
            running.position = min(max(running.position, part.start + part.count), running.last_position)
            for fork in part.forks:
                self._begin_fork(part, fork, sent)
            if part.draws:
                self._draw(running, part.table, sent)
            self._advance(running, part)
        self._issue_steps()
        for gateway, tokens in sent.items():
            self.outlets.tokens(gateway, tokens)
        self._tell()

    def _begin_fork(self, part: Part, fork: Running, sent: dict[str, list[Tokens]]) -> None:
        """The parent's prompt is written: its part-filled block is copied, and the fork draws from the same slots."""
        size, num_prompt = self.shape.block_size, fork.num_prompt
        fork.num_in_flight -= 1
        if num_prompt % size:
            last = num_prompt // size
            self.blocks.copy(part.table[last], fork.table[last], num_prompt % size)
        if not fork.outputs:
            self._draw(fork, fork.table, sent)
        self._advance(fork, None)

    def _draw(self, running: Running, table: list[int], sent: dict[str, list[Tokens]]) -> None:
        if running.reason not in (Reason.NONE, Reason.DROPPED):
            return  # it ended a step ago; what this step drew never existed
        last = len(running.tokens)
        read = self.blocks.read(table, last)
        sampling = running.start.sampling
        token = draw(read, (sampling.seed or 0) + self._noise, running.index, last - 1, self.shape.end_one_in)
        running.tokens.append(token)
        num_outputs = last + 1 - running.num_prompt
        reason = Reason.NONE
        if token in sampling.eos_token_ids:
            reason = Reason.STOP
        elif num_outputs == running.max_tokens:
            reason = Reason.LENGTH
        if reason is not Reason.NONE:
            if running.reason is Reason.NONE:
                self.batcher.remove(running.row)
            running.reason = reason
            # A step under way may write one slot more, of a token that never existed.
            running.last_position = last
        sent.setdefault(running.gateway, []).append(self._tokens(running, num_outputs - 1, ids((token,)), reason))

    def _advance(self, running: Running, part: Part | None) -> None:
        if running.reason is not Reason.NONE:
            self._leave_if_quiet(running)
            return
        filled_prompt = part is not None and part.start < running.num_known - 1 and running.filled_blocks() > 0
        if running.near_lease_end(self._ahead) or filled_prompt:
            self._report.advance(running)

    def _end(self, running: Running, reason: Reason) -> None:
        running.reason = reason
        self.batcher.remove(running.row)
        self._leave_if_quiet(running)

    def _leave_if_quiet(self, running: Running) -> None:
        """Only when no step under way holds its table is an attempt over."""
        if running.num_in_flight or running.seq not in self.residents:
            return
        del self.residents[running.seq]
        self._rows[running.row] = None
        self._report.stop(running, running.reason)

    # -- words

    def _tokens(self, running: Running, position: int, new: Ids, reason: Reason = Reason.NONE) -> Tokens:
        return Tokens(running.route, running.index, running.attempt, position, new, reason)

    def _send(self, gateway: str, tokens: list[Tokens]) -> None:
        self.outlets.tokens(gateway, tokens)

    def _on_transferred(self, transferred: object) -> None:
        self._report.transferred.append(transferred)  # type: ignore[arg-type]
        self._tell()

    def _tell(self) -> None:
        if not self._report:
            return
        report, self._report = self._report, Report()
        self._result += 1
        waiting = int((self.batcher.length - self.batcher.position)[self.batcher.resident].sum())
        result = report.result(
            (self.name, self.incarnation, self.epoch),
            (self._result, self._plan, self.num_steps),
            waiting,
            self._step_seconds,
        )
        self.outlets.result(self._result, result)
