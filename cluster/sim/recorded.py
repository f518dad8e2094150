"""A run of the embedded engine, recorded, and the same run in the simulator: it must take the same decisions.

`record` watches an engine: what it was asked, what its worker told, what its scheduler ordered, how long steps took.
`repeat` lets the planning simulator run from the same questions: a fleet of one worker in place of the real one, with
the recorded tokens and the cost model's times. Every result and every order is compared with the record; any difference
is a `Divergence`. It holds one sequence a request; the engine must take every step alone (eager turns).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.centre.scheduler import Scheduler
from cluster.desk.batcher import Batch
from cluster.desk.rows import Int32, Rows
from cluster.desk.words import DeskSettings
from cluster.messages import Closed, Done, Event, Ids, Order, Plan, ReplicaJoined, Result, Start, ids
from cluster.settings import SchedulerSettings
from cluster.sim.costs import Machine, StepCost, figures
from cluster.sim.fleet import Fleet

if TYPE_CHECKING:
    from cluster.offline.embedded import Embedded


@dataclass(slots=True)
class RecordedTurn:
    """One turn of the scheduler, and after how many calls of the worker's step it came."""

    after: int
    events: list[Event]
    orders: list[Order]


@dataclass(slots=True)
class SeenRecord:
    """What was seen. A step is tokens, pairs of prefill attention, context that decodes read, and seconds."""

    settings: SchedulerSettings
    token_budget: int
    vocab_size: int
    hash_key: bytes
    turns: list[RecordedTurn] = field(default_factory=list)
    steps: list[tuple[float, float, float, float]] = field(default_factory=list)
    num_calls: int = 0


@contextmanager
def record(engine: Embedded) -> Iterator[SeenRecord]:
    """Records a fresh engine for as long as the context is open. Steps are timed in processor time of this thread."""
    worker, scheduler = engine.worker, engine.scheduler
    batcher, bounds = worker.desk.batcher, worker.desk.books.bounds
    seen = SeenRecord(scheduler.settings, bounds.token_budget, bounds.vocab_size, worker.settings.hash_key)
    turn, step, next_batch = scheduler.turn, worker.step, batcher.next
    batches: list[Batch] = []

    def watched_turn(events: Sequence[Event], now: float) -> list[Order]:
        orders = turn(events, now)
        seen.turns.append(RecordedTurn(seen.num_calls, list(events), list(orders)))
        return orders

    def watched_next() -> Batch:
        batches.append(next_batch())
        return batches[-1]

    def watched_step(max_steps: int = 1) -> int:
        assert max_steps == 1, "several steps at once can't be told apart; record eager turns"
        seen.num_calls += 1
        began = time.thread_time()
        ran = step(max_steps)
        seconds = time.thread_time() - began
        if ran:
            seen.steps.append((*figures(batches[-1]), seconds))
        return ran

    watched: list[tuple[Any, str, Any]] = [
        (scheduler, "turn", watched_turn),
        (worker, "step", watched_step),
        (batcher, "next", watched_next),
    ]
    for owner, name, stand_in in watched:
        setattr(owner, name, stand_in)
    try:
        yield seen
    finally:
        for owner, name, _ in watched:
            delattr(owner, name)


class Said:
    """The recorded tokens of each sequence, as a fleet draws them."""

    # What a step under way drew behind the last token that anybody was told.
    UNHEARD = (1 << 31) - 1

    def __init__(self, seen: SeenRecord) -> None:
        self._tokens: dict[tuple[str, int], Ids] = {}
        owners: dict[int, tuple[str, int]] = {}
        for turn in seen.turns:
            for event in turn.events:
                if isinstance(event, Result):
                    self._take(event, owners)
            for order in turn.orders:
                for start in order.starts if isinstance(order, Plan) else ():
                    self._begin(start, owners)

    def _begin(self, start: Start, owners: dict[int, tuple[str, int]]) -> None:
        owners[start.seq] = start.request_id, start.index
        self._tokens[owners[start.seq]] = ids(start.tokens)
        for fork in start.forks:
            owners[fork.seq] = start.request_id, fork.index
            self._tokens[owners[fork.seq]] = ids([*start.tokens[: start.num_prompt], *fork.outputs])

    def _take(self, result: Result, owners: dict[int, tuple[str, int]]) -> None:
        advances, at = result.advances, 0
        for seq, count in zip(advances.seqs, advances.num_ids, strict=True):
            self._tokens[owners[seq]].extend(advances.ids[at : at + count])
            at += count
        for stopped in result.stopped:
            self._tokens[owners[stopped.seq]].extend(stopped.ids)

    def draw(self, rows: Rows, which: Int32, num_steps: int) -> NDArray[np.int64]:
        assert num_steps == 1, "a token may end its sequence"
        found = []
        for row in which.tolist():
            said = self._tokens[rows.at(row).request_id, rows.at(row).index]
            known = int(rows.known[row])
            found.append(said[known] if known < len(said) else self.UNHEARD)
        return np.array([found], np.int64)


class Divergence(AssertionError):
    """The simulator did something else than the engine had done."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A run that took the same decisions, and how long its steps took: as seen, and as the cost model says."""

    num_turns: int
    num_orders: int
    num_steps: int
    seen_s: float
    modelled_s: float


class _Repeat:
    def __init__(self, seen: SeenRecord, cost: StepCost) -> None:
        (joined,) = [event for event in seen.turns[0].events if isinstance(event, ReplicaJoined)]
        machine = Machine(cost, joined.num_blocks, joined.block_size, joined.block_bytes, 0.0)
        self.seen, self.joined = seen, joined
        settings = DeskSettings(seen.token_budget, seen.vocab_size, seen.hash_key, seen.settings.prefix_caching)
        self.fleet = Fleet([joined], settings, machine, Said(seen), most_steps=1)
        self.worker = self.fleet.workers[0]
        self.scheduler = Scheduler(seen.settings)
        self.turns = iter(seen.turns)
        self.turn = next(self.turns, None)
        self.events: list[Event] = []
        self.now = self.modelled_s = 0.0
        self.num_turns = self.num_orders = 0
        self.steps_alone, self.steps_ahead = 0, max(1, seen.settings.ahead - 1)

    def run(self) -> Repeated:
        """The embedded engine's loop, with the fleet in its worker's place."""
        for call in range(self.seen.num_calls + 1):
            if self.turn is not None and self.turn.after == call:
                self.decide(self.turn)
                self.turn = next(self.turns, None)
            elif self.events:
                raise Divergence(f"call {call}: {self.events} are to be decided on, and the engine had nothing")
            if call < self.seen.num_calls:
                self.step()
        steps = self.fleet.num_steps
        if steps != len(self.seen.steps):
            raise Divergence(f"{steps} steps, and the engine took {len(self.seen.steps)}")
        seen_s = sum(step[3] for step in self.seen.steps)
        return Repeated(self.num_turns, self.num_orders, steps, seen_s, self.modelled_s)

    def decide(self, turn: RecordedTurn) -> None:
        outside = [event for event in turn.events if not isinstance(event, Result | Closed)]
        mine, theirs = [_plain(event) for event in self.events], [_plain(e) for e in turn.events if e not in outside]
        if mine != theirs:
            raise Divergence(f"turn {self.num_turns}: told {mine}, and the engine {theirs}")
        orders = self.scheduler.turn([*self.events, *outside], self.now)
        self.events = []
        if list(map(_plain, orders)) != list(map(_plain, turn.orders)):
            raise Divergence(f"turn {self.num_turns}: ordered {orders}, and the engine {turn.orders}")
        for order in orders:
            if isinstance(order, Plan):
                self.worker.obey(order, self.now)
            elif isinstance(order, Done):
                self.events.append(Closed(order.request_id, order.gateway, order.route))
        self.num_turns += 1
        self.num_orders += len(orders)

    def step(self) -> None:
        worker = self.worker
        worker.launch(self.now)
        ran = worker.is_busy
        if ran:
            self.modelled_s += worker.step_s
            self.now = worker.ends_at
            worker.finish()
        self.steps_alone = self.steps_alone + 1 if ran else self.steps_ahead
        if self.steps_alone >= self.steps_ahead or worker.desk.reporter.has_ends:
            self.steps_alone = 0
            result = worker.desk.take_result(worker.step_s)
            if result is not None:
                self.events.append(result)


def _plain(message: Event | Order) -> Event | Order:
    """Without what depends on how long things took."""
    if isinstance(message, Result):
        return replace(message, step_seconds=0.0, prefill_tokens_per_s=0.0)
    if isinstance(message, Done):
        return replace(message, queue_seconds=0.0, device_block_seconds=0.0, host_block_seconds=0.0)
    return message


def repeat(seen: SeenRecord, cost: StepCost) -> Repeated:
    """The recorded run in the simulator. Raises Divergence at the first difference."""
    return _Repeat(seen, cost).run()
