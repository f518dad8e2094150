"""A simulated replica: the desk of a real worker beside made-up blocks, in virtual time.

What is obeyed, reported and told is decided by the desk (`cluster/desk/`); blocks, tokens and durations are made up
(`steps.py`), transfers take their time and go wrong (`transfers.py`). Here its words go where the cluster lays streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings
from cluster.messages import Plan, ReplicaJoined, ReplicaState, Result, Tokens, Transfer, Transferred
from cluster.register.states import layout_of
from cluster.sim.clock import Clock, Process
from cluster.sim.device import StackedBlocks
from cluster.sim.model import END_TOKEN, SLOT_BYTES, VOCAB_SIZE, digest_of
from cluster.sim.network import Weather
from cluster.sim.pool_end import Mover, Pool, register_of
from cluster.sim.shape import WorkerShape
from cluster.sim.steps import SimSteps
from cluster.sim.transfers import SimTransfers

__all__ = ["Outlets", "SimWorker", "WorkerShape"]


@dataclass(slots=True)
class Outlets:
    """Where a worker's words go; the cluster lays the streams."""

    result: Callable[[int, Result], None]
    tokens: Callable[[str, list[Tokens]], None]
    pool: Callable[[str], Pool | None]
    reaches: Callable[[str, str], bool]  # nodes that can talk to each other now
    unreached: Callable[[], tuple[str, ...]] = tuple  # gateways that take no tokens from it
    # Bytes are written into a block of a peer's pool.
    landed: Callable[[Transfer, int, bytes], None] = lambda transfer, block, content: None
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
        self.desk = Desk(
            ReplicaJoined(
                replica=name,
                incarnation=incarnation,
                node=shape.node,
                model=shape.model,
                num_blocks=shape.num_blocks,
                block_size=shape.block_size,
                block_bytes=shape.num_ranks * shape.block_size * SLOT_BYTES,
                fingerprint=shape.fingerprint,
                max_batch=shape.max_batch,
                max_model_len=shape.max_model_len,
                prefill_tokens_per_s=1.0 / shape.per_token_s,
                bytes_per_s=shape.num_ranks * shape.block_size * SLOT_BYTES / SimTransfers.PIECE_S,
                digest=digest_of(shape.content),
            ),
            DeskSettings(shape.token_budget, VOCAB_SIZE, shape.key),
        )
        self.steps = SimSteps(self, self.desk, shape, self.random, self._tell)
        self.blocks = self.steps.blocks
        self.outlets = outlets
        # What it makes of what it tells the scheduler.
        self.tells: Callable[[Result], Result] = lambda result: result
        # What befalls it behind the tokens with which a sequence ends.
        self.at_an_end: Callable[[], None] | None = None
        self.stacked = StackedBlocks((self.blocks, *self.steps.others))
        layout = layout_of(shape.fingerprint, self.stacked.num_bytes)
        self.register = register_of(layout, shape.num_blocks, incarnation, own_content=True)
        self.transfers = SimTransfers(self, self.steps.stream, outlets, self._on_settled)
        self.steps.move_with(self.transfers)

    @property
    def joined(self) -> ReplicaJoined:
        return self.desk.joined

    @property
    def epoch(self) -> int:
        return self.desk.epoch

    @property
    def residents(self) -> list[int]:
        """Sequences that live here."""
        return list(self.desk.rows.row_of)

    def meet(self, epoch: int) -> ReplicaJoined | ReplicaState:
        """A scheduler has opened its stream. A new one (a higher epoch) is told all that is held here."""
        # What is still under way is told, and on its way out: that it has ended is told after the state.
        self.after(0.0, self.transfers.adopt_epoch, epoch)
        if self.desk.epoch:
            return self.desk.hold_for(epoch)
        self.desk.begin_epoch(epoch)
        return self.desk.joined

    def when_written(self, then: Callable[[], None]) -> None:
        """A peer wants to read: what was issued before, copies of blocks included, comes first."""
        self.run(self.steps.stream.issue, 0.0, then)

    def session_of(self, caller: Mover) -> int:
        """Blocks of a device are reached by nobody else."""
        return 0

    def look(self) -> None:
        """Its own transfers look at deadlines."""

    def take_plan(self, plan: Plan) -> None:
        self.desk.obey(plan)
        self._go_on()

    def _on_settled(self, transferred: Transferred) -> None:
        # Never in the middle of an order.
        self.after(0.0, self._take_settled, transferred)

    def _take_settled(self, transferred: Transferred) -> None:
        self.desk.transferred(transferred)
        self._go_on()

    def _go_on(self) -> None:
        self.steps.carry_out()
        self.steps.issue()
        self._tell()

    def _tell(self) -> None:
        has_ended = False
        for gateway, tokens in self.desk.take_tokens().items():
            self.outlets.tokens(gateway, tokens)
            has_ended = has_ended or any(one.ids and one.ids[-1] == END_TOKEN for one in tokens)
        if has_ended and self.at_an_end is not None:
            self.at_an_end()
            if not self.alive:
                return
        self.desk.cannot_reach(self.outlets.unreached())
        result = self.desk.take_result(self.steps.step_seconds)
        if result is not None:
            self.outlets.result(result.number, self.tells(result))
