"""The worker: obeys plans, runs steps by itself as long as it holds leases, and tells what came of it.

A shell (the embedded engine, the Ray actor) calls `obey`, `step`, `take_result` and `take_tokens` from one thread. A
step is prepared, launched and retired; between launch and retire the next plan may be obeyed. The worker allocates no
block, chooses no request and talks to nobody.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from cluster.batcher import Batch, Batcher
from cluster.errors import ProtocolError
from cluster.messages import (
    Plan,
    Reason,
    ReplicaJoined,
    ReplicaState,
    Reroute,
    Result,
    Revoke,
    Start,
    Tokens,
    Transfer,
    Transferred,
)
from cluster.settings import WorkerSettings
from kernels.cpu.host_loops import NEVER, append_tokens, find_reports, take_tokens, warm_up
from kernels.device.seam import device_of
from worker.beams import BeamGroups, Ranked
from worker.canary import Canary
from worker.holdings import holdings
from worker.launch import Flight, Launcher
from worker.model.startup import Say, start
from worker.outbox import Outbox
from worker.ranks.team import Place, lost
from worker.report import Reporter
from worker.residence import Residence
from worker.sampling.sampler import NOT_NUMBERS, Sampler
from worker.state import BatchState, Int32

# What `take_tokens` says of a row that ends.
_BROKEN = 3
_REASONS = {1: Reason.STOP, 2: Reason.LENGTH, _BROKEN: Reason.FAILED}


class Worker:
    """One replica's rank 0."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        replica: str = "local",
        incarnation: int = 1,
        node: str = "",
        say: Say = lambda line: None,
        place: Place | None = None,
    ) -> None:
        """`place`: this is rank 0 of a tensor-parallel replica, whose other ranks start at the same time."""
        self.settings = settings
        self.replica = replica
        self.incarnation = incarnation
        self.node = node
        self.parts = start(settings, say, place)
        parts = self.parts
        self.state = BatchState(settings.max_batch, parts.max_model_len, settings.block_size, parts.device)
        self.batcher = Batcher(settings.max_batch, parts.token_budget)
        self.sampler = Sampler(settings.max_batch, parts.model.vocab_size, parts.device, kernels=parts.backend.name)
        began = time.perf_counter()
        self.sampler.warm_up(parts.layout.dtype)
        warm_up()
        say(f"sampling and the host's loops: compiled or found in the cache, {time.perf_counter() - began:.1f} s")
        self.reporter = Reporter(self.state, replica, incarnation)
        self.outbox = Outbox(self.state)
        self.beams = BeamGroups(self.state, self.batcher, self.sampler, parts)
        self.residence = Residence(self)
        self._launcher = Launcher(parts, self.state, self.batcher, self.sampler, self.beams)
        self.prompt_logprobs = self._launcher.prompt_logprobs
        self.seconds = self._launcher.seconds
        self._canary = Canary(parts, self.state, self._launcher.builder, self._launcher.lead)
        self._flight: Flight | None = None
        # Whether a step is retired only when the next one has been issued, so that the device never waits for the host.
        # A step of ours is over when its call returns on a CPU.
        self._overlaps = device_of(parts.device).is_apart if settings.overlap is None else settings.overlap
        if self._launcher.lead is not None:
            self._launcher.lead.shares = self._overlaps
        # Rows that end once the step that is under way has retired.
        self._ending: dict[int, tuple[Reason, str]] = {}
        self._launcher.capture(say)
        # Sequences whose drop or revoke came while a step with them was under way.
        self._drop_later: list[int] = []
        # Starts that wait for the blocks of a transfer, by its number.
        self._waiting: dict[int, list[Start]] = {}
        self._revoke_later: list[Revoke] = []
        self._transfers: list[Transfer] = []
        self.transfers_under_way: dict[int, Transfer] = {}
        self._aborts: list[int] = []
        # Of copies out of the pool; 0: no peer can read it. Set by whoever serves it to them.
        self.bytes_per_s = 0.0
        self._epoch = 0
        self._plan = 0
        self._ahead = 0
        self.num_steps = 0
        self.num_sampled = 0
        self.num_stale_plans = 0
        self._step_seconds = 0.0
        # Rows that end, with the reason, and rows to report: filled anew in every step.
        self._ended = np.zeros(settings.max_batch, np.int32)
        self._reasons = np.zeros(settings.max_batch, np.int32)

    def joined(self) -> ReplicaJoined:
        """How this worker introduces itself to a scheduler."""
        parts = self.parts
        return ReplicaJoined(
            replica=self.replica,
            incarnation=self.incarnation,
            node=self.node,
            model=self.settings.model,
            num_blocks=parts.pool.num_blocks,
            block_size=self.settings.block_size,
            block_bytes=parts.layout.block_bytes,
            fingerprint=self.fingerprint,
            max_batch=self.settings.max_batch,
            max_model_len=parts.max_model_len,
            prefill_tokens_per_s=parts.prefill_tokens_per_s,
            bytes_per_s=self.bytes_per_s,
            digest=parts.digest,
        )

    @property
    def num_launches(self) -> int:
        """Calls of the model; one can run several steps."""
        return self._launcher.num_launches

    @property
    def fingerprint(self) -> str:
        """Names the bytes of a block: pools whose names are equal can exchange them. Slices go nowhere."""
        layout = self.parts.layout.fingerprint()
        return layout if self.parts.team is None else f"{layout}-slice of {self.replica}"

    def close(self) -> None:
        """Ends the other ranks, if there are any. Nothing may be called afterwards."""
        if self.parts.team is not None:
            self.parts.team.close()

    def begin_epoch(self, epoch: int) -> None:
        """Another scheduler: only its plans count from now on, and numbers start again."""
        self._epoch = epoch
        self._plan = 0
        # What the old scheduler wanted to begin here is begun anew by the next one.
        self._waiting.clear()
        self.reporter.begin_epoch(epoch)

    def hold_for(self, epoch: int) -> ReplicaState:
        """A new scheduler asks what is held here."""
        self.settle()
        self.begin_epoch(epoch)
        return holdings(self)

    # -- plans

    def obey(self, plan: Plan) -> None:
        """Does what the scheduler says. Plans of the past are counted and left alone; a gap is a ProtocolError."""
        if plan.incarnation != self.incarnation or plan.epoch < self._epoch:
            self.num_stale_plans += 1
            return
        if plan.epoch > self._epoch:
            self.begin_epoch(plan.epoch)
        if plan.number <= self._plan:
            self.num_stale_plans += 1
            return
        if plan.number != self._plan + 1:
            raise ProtocolError(f"{self.replica} got plan {plan.number} after plan {self._plan}; send those between")
        self._plan = plan.number
        self._ahead = plan.ahead
        self._aborts.extend(plan.aborts)
        if plan.clears:
            self.parts.clear_blocks(plan.clears)
        if plan.copies:
            sources = [copy.source for copy in plan.copies]
            targets = [copy.target for copy in plan.copies]
            self.parts.copy_blocks(sources, targets)
        self._extend(plan)
        for start_ in plan.starts:
            if start_.after:
                self._waiting.setdefault(start_.after, []).append(start_)
            else:
                self.residence.move_in(start_)
        # Behind the starts: what this turn started it may have thought better of.
        for drop in plan.drops:
            self._drop(drop.seq)
        for revoke in plan.revokes:
            self._revoke(revoke)
        for reroute in plan.reroutes:
            self._reroute(reroute)
        self._transfers.extend(plan.transfers)
        self.transfers_under_way.update((transfer.transfer, transfer) for transfer in plan.transfers)
        self.reporter.obeyed(plan.number)

    def _drop(self, seq: int) -> None:
        row = self.state.row_of.get(seq)
        if row is None:
            # It ended by itself before the order came; the scheduler learns so from its Stopped.
            return
        if self._is_under_way(row):
            self._drop_later.append(seq)
            self.batcher.paused[row] = True
            return
        self.residence.move_out(row, Reason.DROPPED)

    def _revoke(self, revoke: Revoke) -> None:
        state, row, size = self.state, self.state.row_of.get(revoke.seq), self.state.block_size
        if row is None:
            return
        if self._is_under_way(row):
            self._revoke_later.append(revoke)
            self.batcher.paused[row] = True
            return
        # What is written stays: the lease ends with the block of the last position at the earliest.
        position = int(self.batcher.position[row])
        end = min(max(revoke.lease_end, -(-position // size) * size), int(self.batcher.lease_end[row]))
        self.batcher.lease_end[row] = end
        state.shorten(row, -(-end // size))
        state.asked[row] = NEVER
        self.reporter.advance(state.at(row), max(position, int(state.write_from[row])))
        self.reporter.revoke(revoke.seq, end)

    def _reroute(self, reroute: Reroute) -> None:
        for starts in self._waiting.values():
            for at, start_ in enumerate(starts):
                if start_.seq == reroute.seq:
                    starts[at] = replace(start_, gateway=reroute.gateway, route=reroute.route)
        row = self.state.row_of.get(reroute.seq)
        if row is not None:
            resident = self.state.at(row)
            resident.gateway, resident.route = reroute.gateway, reroute.route
            self.state.sent[row] = self.state.num_prompt[row]

    def _extend(self, plan: Plan) -> None:
        extends, state, at = plan.extends, self.state, 0
        for i, seq in enumerate(extends.seqs):
            count = extends.counts[i]
            row = state.row_of.get(seq)
            if row is not None:
                blocks = extends.blocks[at : at + count]
                self.parts.pool.forget(blocks)
                if row in self.beams.groups:
                    self.beams.extend(row, extends.firsts[i], blocks)
                else:
                    state.extend(row, extends.firsts[i], blocks)
                self.batcher.lease_end[row] = extends.lease_ends[i]
                state.asked[row] = NEVER
            at += count

    # -- steps

    def step(self, max_steps: int = 1) -> int:
        """Runs one step, or up to `max_steps` where nothing can come in between; returns how many. 0: nothing can run,
        for there are no residents, or every lease is dry."""
        if not self.state.row_of and self._flight is None:
            return 0
        began = time.perf_counter()
        overlaps = self._overlaps and not self.beams.groups
        if not overlaps:
            self.settle()
        batch = self.batcher.next()
        self.reporter.num_dry += batch.num_dry
        if batch.num_tokens == 0:
            return int(self.settle())
        before = self.num_steps
        # A launch that failed has retired what was under way.
        flight = self._launch(batch, max_steps, began)
        previous, self._flight = self._flight, flight
        if previous is not None:
            self._retire(previous)
        if not overlaps:
            self.settle()
        num_steps = max(1, self.num_steps - before)
        seconds = (time.perf_counter() - began) / num_steps
        self._step_seconds = seconds if not self._step_seconds else 0.9 * self._step_seconds + 0.1 * seconds
        return num_steps

    def settle(self) -> bool:
        """Retires the step that is under way; False if there is none."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._retire(flight)
        return flight is not None

    def prove(self) -> bool:
        """A step that serves nobody, to see that the device still computes; False if all rows are taken by work."""
        self.settle()
        proved = self._canary.run()
        self.num_steps += proved
        return proved

    def _launch(self, batch: Batch, allowed: int, began: float) -> Flight | None:
        try:
            flight = self._launcher.launch(batch, allowed, began, self._flight)
        except RuntimeError as error:
            if self.parts.team is not None:
                raise lost(error) from error
            # One step is lost with those that were in it; the worker goes on.
            self.settle()
            detail = f"the step failed: {' '.join(str(error).split())}"
            for row in batch.rows[self.batcher.resident[batch.rows]].tolist():
                self.residence.move_out(row, Reason.FAILED, detail)
            return None
        self.residence.wake_forks(batch)
        return flight

    def _retire(self, flight: Flight) -> None:
        """The step is done: its tokens are known, some sequences end, some report."""
        began = time.perf_counter()
        state, rows = self.state, flight.rows
        self.num_steps += flight.num_steps
        self.num_sampled += flight.num_steps * len(rows)
        if flight.num_steps > 1:
            append_tokens(rows, flight.earlier, state.tokens, state.known)
        # The first to wait for the device; what else came with these tokens is here then.
        ids, broken = flight.sampled.ids(), flight.sampled.broken()
        flight.sampled.note_logprobs(state.residents, self._ending)
        if flight.judged is not None:
            flight.judged.note()
        if self._ending:
            # They ended while this step was under way: what it says of them means nothing.
            going = ~np.isin(rows, list(self._ending))
            rows, ids, broken = rows[going], ids[going], broken[going]
        num_ended = take_tokens(
            rows,
            ids,
            broken,
            (state.tokens, state.known, state.end, state.stops),
            self._ended,
            self._reasons,
        )
        for row, reason in zip(self._ended[:num_ended].tolist(), self._reasons[:num_ended].tolist(), strict=True):
            detail = NOT_NUMBERS if reason == _BROKEN else ""
            self._end(row, _REASONS[reason], detail)
        for row in [row for row in self._ending if not self._is_under_way(row)]:
            self.residence.move_out(row, *self._ending.pop(row))
        if flight.ranked is not None:
            self._retire_beams(flight.ranked)
        self._report(flight.batch.rows)
        drops, self._drop_later = self._drop_later, []
        for seq in drops:
            self._drop(seq)
        revokes, self._revoke_later = self._revoke_later, []
        for revoke in revokes:
            row = state.row_of.get(revoke.seq, -1)
            if row >= 0 and row not in self._ending and not self._is_under_way(row):
                self.batcher.paused[row] = False
            self._revoke(revoke)
        self.seconds["retire"] += time.perf_counter() - began

    def _is_under_way(self, row: int) -> bool:
        return self._flight is not None and row in self._flight.batch.rows

    def _end(self, row: int, reason: Reason, detail: str) -> None:
        """A sequence ends; it leaves once no step can touch its blocks any more."""
        if self._is_under_way(row):
            self._ending[row] = reason, detail
            self.batcher.paused[row] = True
        else:
            self.residence.move_out(row, reason, detail)

    def _retire_beams(self, ranked: Ranked) -> None:
        """Groups go on or end; those that go on ask for themselves before their lease ends."""
        self.num_sampled += len(ranked.best)
        for row, reason, detail in self.beams.retire(ranked):
            self.residence.move_out(row, reason, detail)
        for tables in self.beams.near_lease_end(ranked, self._ahead):
            self.reporter.group(tables)

    def _report(self, rows: Int32) -> None:
        """Notes for the next result those rows that come near their lease's end or filled blocks of their prompt."""
        state, batcher = self.state, self.batcher
        count = find_reports(
            rows,
            (batcher.resident, batcher.position, batcher.lease_end),
            (state.limit, state.asked, state.reported, state.num_prompt),
            self._ahead,
            state.block_size,
            self._ended,
        )
        for row in self._ended[:count].tolist():
            written = max(int(batcher.position[row]), int(state.write_from[row]))
            self.reporter.advance(state.at(row), written)

    # -- what came of it

    def take_result(self) -> Result | None:
        """All news for the scheduler since the last call; None if there is none."""
        if not self.reporter.has_news:
            return None
        batcher, waiting = self.batcher, 0
        if self.state.row_of:
            waiting = int(np.maximum(batcher.length - batcher.position - 1, 0)[batcher.resident].sum())
        return self.reporter.take(step=self.num_steps, prefill_waiting=waiting, step_seconds=self._step_seconds)

    def take_tokens(self) -> dict[str, list[Tokens]]:
        """Tokens that were not sent yet, by gateway."""
        return self.outbox.take()

    def take_transfers(self) -> tuple[list[Transfer], list[int]]:
        """Transfers to begin and transfers to abort, for the transfer service beside this worker."""
        transfers, self._transfers = self._transfers, []
        aborts, self._aborts = self._aborts, []
        return transfers, aborts

    def transferred(self, outcome: Transferred) -> None:
        """The transfer service has ended a transfer, one way or the other; Starts that waited for it begin."""
        self.transfers_under_way.pop(outcome.transfer, None)
        self.reporter.transferred(outcome)
        starts = self._waiting.pop(outcome.transfer, [])
        if outcome.ok:
            for start_ in starts:
                self.residence.move_in(start_)
