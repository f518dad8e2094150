"""The worker: a desk, which obeys plans and picks steps, and the device beside it, which computes them.

A shell (the embedded engine, the Ray actor) calls `obey`, `step`, `take_result` and `take_tokens` from one thread. A
step is prepared, launched and retired; between launch and retire the next plan may be obeyed. What is obeyed, reported
and told is decided in `cluster/desk/`; here it is done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster.desk import loops
from cluster.desk.batcher import Batch
from cluster.desk.desk import Desk
from cluster.desk.words import (
    Abort,
    Clear,
    Copies,
    DeskSettings,
    Enter,
    EnterGroup,
    Flight,
    Forget,
    HandOverBeams,
    Leave,
)
from cluster.messages import Plan, ReplicaJoined, ReplicaState, Result, Tokens, Transfer, Transferred
from cluster.settings import WorkerSettings
from kernels.device.seam import device_of
from worker.beams import Searches
from worker.canary import Canary
from worker.launch import Launcher, Pending
from worker.model.startup import Say, start
from worker.ranks.team import RankPlace, lost
from worker.sampling.sampler import Sampler
from worker.state import BatchState


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
        place: RankPlace | None = None,
    ) -> None:
        """`place`: this is rank 0 of a tensor-parallel replica, whose other ranks start at the same time."""
        self.settings = settings
        self.parts = start(settings, say, place)
        parts = self.parts
        self.desk = Desk(
            self._introduction(replica, incarnation, node),
            DeskSettings(parts.token_budget, parts.model.vocab_size, settings.hash_key, settings.prefix_caching),
        )
        self.state = BatchState(self.desk.rows, parts.device)
        self.sampler = Sampler(settings.max_batch, parts.model.vocab_size, parts.device, kernels=parts.backend.name)
        began = time.perf_counter()
        self.sampler.warm_up(parts.layout.dtype)
        loops.warm_up()
        say(f"sampling and the host's loops: compiled or found in the cache, {time.perf_counter() - began:.1f} s")
        self.searches = Searches(self.desk.beams, self.sampler, parts.device)
        # Whether a step is retired only when the next one has been issued, so that the device never waits for the host.
        # A step of ours is over when its call returns on a CPU.
        self._overlaps = device_of(parts.device).is_apart if settings.overlap is None else settings.overlap
        self._launcher = Launcher(parts, self.desk, self.state, self.sampler, self.searches, overlaps=self._overlaps)
        self.seconds = self._launcher.seconds
        self._canary = Canary(parts, self.state, self._launcher.builder, self._launcher.lead)
        # Flights that are under way, and what the device draws in them.
        self._flights: deque[tuple[Flight, Pending]] = deque()
        self._launcher.capture(say)
        self._transfers: list[Transfer] = []
        self._aborts: list[int] = []
        self._proofs = 0
        self._step_seconds = 0.0
        self._do: dict[type, Callable[[Any], None]] = {
            Enter: self._enter,
            EnterGroup: self._enter_group,
            Leave: self._leave,
            HandOverBeams: lambda order: self.desk.handed_over(order.row, self.searches.dump(order.row)),
            Clear: lambda order: parts.clear_blocks(order.blocks),
            Copies: self._copy,
            Forget: lambda order: parts.pool.forget_from(order.blocks, order.first),
            Transfer: self._transfers.append,
            Abort: lambda order: self._aborts.append(order.transfer),
        }

    def _introduction(self, replica: str, incarnation: int, node: str) -> ReplicaJoined:
        parts, layout, team = self.parts, self.parts.layout, self.parts.team
        # Names the bytes of a block, which are those of all ranks one behind the other: pools whose names are equal can
        # exchange them.
        form = layout.fingerprint()
        if team is not None:
            # Where ranks do not share memory their slices go nowhere.
            form += f"-{team.size} slices" if team.shares_memory else f"-slice of {replica}"
        return ReplicaJoined(
            replica=replica,
            incarnation=incarnation,
            node=node,
            model=self.settings.name,
            num_blocks=parts.pool.num_blocks,
            block_size=self.settings.block_size,
            block_bytes=layout.block_bytes * (1 if team is None else team.size),
            fingerprint=form,
            max_batch=self.settings.max_batch,
            max_model_len=parts.max_model_len,
            prefill_tokens_per_s=parts.prefill_tokens_per_s,
            digest=parts.digest,
        )

    def joined(self) -> ReplicaJoined:
        """How this worker introduces itself to a scheduler."""
        return self.desk.joined

    def serve_peers(self, bytes_per_s: float) -> None:
        """Peers can read this worker's pool, so fast within its node."""
        self.desk.joined = replace(self.desk.joined, bytes_per_s=bytes_per_s)

    @property
    def replica(self) -> str:
        return self.desk.joined.replica

    @property
    def incarnation(self) -> int:
        return self.desk.joined.incarnation

    @property
    def num_steps(self) -> int:
        """Steps that have retired, those that served nobody included."""
        return self.desk.steps.num_steps + self._proofs

    @property
    def num_sampled(self) -> int:
        """Tokens that were drawn."""
        return self.desk.steps.num_sampled

    @property
    def num_launches(self) -> int:
        """Calls of the model; one can run several steps."""
        return self._launcher.num_launches

    def close(self) -> None:
        """Ends the other ranks, if there are any. Nothing may be called afterwards."""
        if self.parts.team is not None:
            self._launcher.graphs = None
            self.parts.team.close()

    def wake_by(self, wake: Callable[[], None]) -> None:
        """See `Served`."""
        self.sampler.structures.wake = wake

    def watch(self, descriptor: int) -> None:
        """See `Served`."""
        self.parts.model.watch(descriptor)

    # -- schedulers and plans

    def begin_epoch(self, epoch: int) -> None:
        """Another scheduler: only its plans count from now on, and numbers start again."""
        self.desk.begin_epoch(epoch)

    def hold_for(self, epoch: int) -> ReplicaState:
        """A new scheduler asks what is held here."""
        return self.desk.hold_for(epoch)

    def obey(self, plan: Plan) -> None:
        """Does what the scheduler says (see `Desk.obey`)."""
        self.desk.obey(plan)
        self._carry_out()

    def transferred(self, outcome: Transferred) -> None:
        """The transfer service has ended a transfer, one way or the other."""
        self.desk.transferred(outcome)
        self._carry_out()

    def take_transfers(self) -> tuple[list[Transfer], list[int]]:
        """Transfers to begin and transfers to abort, for the transfer service beside this worker."""
        transfers, aborts = self._transfers[:], self._aborts[:]
        self._transfers.clear()
        self._aborts.clear()
        return transfers, aborts

    # -- the device's orders

    def _carry_out(self) -> None:
        while orders := self.desk.take_orders():
            for order in orders:
                self._do[type(order)](order)

    def _enter(self, order: Enter) -> None:
        row, rows = order.row, self.desk.rows
        resident = rows.at(row)
        self._enter_rows([row], row, int(rows.known[row]))
        if resident.prompt_logprobs is not None:
            self._launcher.prompt_logprobs.enter(row, resident.sampling.prompt_logprobs or 0)

    def _enter_group(self, order: EnterGroup) -> None:
        row, desk = order.row, self.desk
        group = desk.beams.groups[row]
        try:
            outputs = self.searches.enter(row)
        except ValueError as error:
            desk.fail(row, str(error))
            return
        if outputs:
            desk.resumed(row, outputs)
        if row not in desk.beams.groups:
            return
        self._enter_rows(group.rows.tolist(), row, int(desk.batcher.length[row]), own=bool(outputs))
        resident = desk.rows.at(row)
        if resident.prompt_logprobs is not None:
            self._launcher.prompt_logprobs.enter(row, resident.sampling.prompt_logprobs or 0)

    def _enter_rows(self, rows: list[int], leader: int, length: int, own: bool = True) -> None:
        """`own`: each row knows its tokens, else the leader knows them for all."""
        resident, tokens = self.desk.rows.at(leader), self.desk.rows.tokens
        for row in rows:
            known = tokens[row if own else leader, :length]
            self.sampler.enter(row, resident.sampling, resident.index, known, resident.start.num_prompt)

    def _leave(self, order: Leave) -> None:
        self.searches.leave(order.rows[0])
        self._launcher.prompt_logprobs.leave(order.rows[0])
        for row in order.rows:
            self.sampler.leave(row)

    def _copy(self, order: Copies) -> None:
        sources = [copy.source for copy in order.copies]
        self.parts.copy_blocks(sources, [copy.target for copy in order.copies])

    # -- steps

    def step(self, max_steps: int = 1) -> int:
        """Runs one step, or up to `max_steps` where nothing can come in between; returns how many. 0: nothing can run,
        for there are no residents, every lease is dry, or structures are being compiled (see `Structures.wake`)."""
        desk = self.desk
        if desk.is_idle and not self._flights:
            return 0
        began = time.perf_counter()
        overlaps = self._overlaps and not self.searches
        structures = self.sampler.structures
        if not overlaps or structures.has_long:
            self.settle()
        desk.hold(structures.late())
        batch = desk.next()
        self._carry_out()
        if batch.num_tokens == 0:
            return int(self.settle())
        before = self.num_steps
        previous = len(self._flights)
        self._launch(batch, max_steps, began)
        # A launch that failed has retired what was under way.
        for _ in range(min(previous, len(self._flights) - 1)):
            self._retire()
        if not overlaps:
            self.settle()
        num_steps = max(1, self.num_steps - before)
        seconds = (time.perf_counter() - began) / num_steps
        self._step_seconds = seconds if not self._step_seconds else 0.9 * self._step_seconds + 0.1 * seconds
        return num_steps

    def step_within(self, seconds: float) -> int:
        """`step`, and several at once where they take no longer than this and leave time to renew their leases."""
        fitting = int(seconds / self._step_seconds) if self._step_seconds else 1
        return self.step(min(max(1, fitting), self.desk.most_at_once))

    def settle(self) -> bool:
        """Retires what is under way; False if there is nothing."""
        settled = bool(self._flights)
        while self._flights:
            self._retire()
        return settled

    def prove(self) -> bool:
        """A step that serves nobody, to see that the device still computes; False if all rows are taken by work."""
        self.settle()
        proved = self._canary.run()
        self._proofs += proved
        return proved

    def _launch(self, batch: Batch, allowed: int, began: float) -> None:
        previous = self._flights[-1][1] if self._flights else None
        try:
            pending = self._launcher.launch(batch, allowed, began, previous)
        except RuntimeError as error:
            if self.parts.team is not None:
                raise lost(error) from error
            # One step is lost with those that were in it; the worker goes on.
            self.state.doubt_tables()
            self.settle()
            self.desk.fail_batch(batch, f"the step failed: {' '.join(str(error).split())}")
        else:
            self._flights.append((self.desk.launched(batch, pending.num_steps), pending))
        self._carry_out()

    def _retire(self) -> None:
        """The oldest step is done: its tokens are known, some sequences end, some report."""
        began = time.perf_counter()
        flight, pending = self._flights.popleft()
        # The first to wait for the device; what else came with these tokens is here then.
        try:
            drawn = pending.drawn(self.searches)
        except RuntimeError as error:
            if self.parts.team is not None:
                raise lost(error) from error
            raise
        self.desk.retire(flight, drawn)
        self._carry_out()
        self.seconds["retire"] += time.perf_counter() - began

    # -- what came of it

    @property
    def has_ends(self) -> bool:
        """Whether the next result tells of a sequence that has ended."""
        return self.desk.reporter.has_ends

    def take_result(self) -> Result | None:
        """All news for the scheduler since the last call; None if there is none."""
        return self.desk.take_result(self._step_seconds)

    def cannot_reach(self, gateways: tuple[str, ...]) -> None:
        """These take no tokens from here at the moment."""
        self.desk.cannot_reach(gateways)

    def take_tokens(self) -> dict[str, list[Tokens]]:
        """Tokens that were not sent yet, by gateway."""
        return self.desk.take_tokens()
