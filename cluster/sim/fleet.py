"""All replicas of a planned cluster: the desk of a real worker each, beside tokens and durations that are made up.

What is obeyed, batched and told is decided by the desks; steps take what the cost model says, one after the other on
each worker, and copies run beside them (`copies.py`). Steps in which nothing comes to be told, which are nearly all,
are not taken one by one: a run of them is counted when something happens to its worker. It has no clock and no
scheduler.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.desk.batcher import Batch
from cluster.desk.desk import Desk
from cluster.desk.words import Abort, DeskSettings, Drawn, Enter, EnterGroup, Flight, HandOverBeams, Leave
from cluster.errors import ConfigError
from cluster.messages import Plan, ReplicaJoined, Result, Road, Transfer, Transferred
from cluster.sim.copies import FleetCopies
from cluster.sim.costs import Machine, figures
from cluster.sim.gaps import Gaps
from cluster.sim.quiet import quiet_steps
from cluster.sim.tokens import MadeUpTokens

NEVER = float("inf")
Float64 = NDArray[np.float64]


class Fleet:
    """Workers of one shape. `obey` and `launch` are called at the present, `advance` when time has gone on."""

    def __init__(
        self,
        joins: Sequence[ReplicaJoined],
        settings: DeskSettings,
        machine: Machine,
        tokens: MadeUpTokens,
        most_steps: int = 64,
    ) -> None:
        """`most_steps` of a worker are counted at once; 1 where a token may end its sequence."""
        self.machine = machine
        self.tokens = tokens
        self.most_steps = most_steps
        self.copies = FleetCopies(machine)
        self.gaps = Gaps()
        # By request: when it was asked, and when its last token came, for those that move in again.
        self.asked_at: dict[str, float] = {}
        self.last_at: dict[tuple[str, int], float] = {}
        self.cached_tokens = self.prompt_tokens = 0
        self.workers = [PlannedWorker(self, number, Desk(join, settings)) for number, join in enumerate(joins)]
        # Ends of steps and runs with their workers; one that was cut short is passed over.
        self._ends: list[tuple[float, int]] = []
        # Workers that may have something to tell.
        self._heard: set[int] = set()

    @property
    def num_steps(self) -> int:
        return sum(worker.desk.steps.num_steps for worker in self.workers)

    @property
    def num_tokens(self) -> int:
        return sum(worker.desk.steps.num_sampled for worker in self.workers)

    @property
    def num_running(self) -> int:
        return sum(len(worker.desk.rows.row_of) for worker in self.workers)

    def obey(self, number: int, plan: Plan, now: float) -> None:
        self._heard.add(number)
        self.workers[number].obey(plan, now)
        self._due(number)

    def launch(self, number: int, begin: float) -> None:
        """A worker that stands still looks whether there is something to do now."""
        worker = self.workers[number]
        if not worker.is_busy:
            worker.launch(begin)
            self._due(number)

    def _due(self, number: int) -> None:
        if self.workers[number].is_busy:
            heapq.heappush(self._ends, (self.workers[number].ends_at, number))

    def advance(self, now: float) -> None:
        """All steps and copies up to now; a step that ends begins the next at once."""
        while True:
            step_end = self._ends[0][0] if self._ends else NEVER
            if min(step_end, self.copies.next_end) > now:
                return
            if self.copies.next_end < step_end:
                at, ended = self.copies.next_end, self.copies.end_next()
                if ended is not None:
                    self.transferred(*ended, at)
                continue
            _, number = heapq.heappop(self._ends)
            worker = self.workers[number]
            if worker.ends_at == step_end:
                self._heard.add(number)
                worker.finish()
                worker.launch(step_end)
                self._due(number)

    def transferred(self, number: int, outcome: Transferred, now: float) -> None:
        self._heard.add(number)
        self.workers[number].transferred(outcome, now)
        self.launch(number, now)
        self._due(number)

    def lose_pool(self, name: str, now: float) -> None:
        """A host pool has died."""
        for number, outcome in self.copies.lose_pool(name):
            self.transferred(number, outcome, now)

    def results(self) -> list[Result]:
        """What the workers have to tell the scheduler."""
        heard, self._heard = sorted(self._heard), set()
        found = [worker.desk.take_result(worker.step_s) for worker in map(self.workers.__getitem__, heard)]
        return [result for result in found if result is not None]

    def send_tokens(self) -> None:
        """The gateways, which are not there, get what was not sent yet."""
        for worker in self.workers:
            worker.desk.take_tokens()


class PlannedWorker:
    """One desk, and the step or the run of steps that is under way beside it."""

    def __init__(self, fleet: Fleet, number: int, desk: Desk) -> None:
        self.desk = desk
        self.ends_at = NEVER
        self.step_s = 0.0
        self._fleet = fleet
        self._number = number
        # A step that the desk knows of; or a batch, and when each of the steps is over that it will have run.
        self._flight: Flight | None = None
        self._run: tuple[Batch, Float64] | None = None
        # What copies take from the next step.
        self._stolen_s = 0.0
        # When the last token came; less than 0: none yet, and the request was asked that long before time 0.
        self._last_at = np.full(desk.rows.max_batch, -1.0)
        self._asked_at = np.zeros(desk.rows.max_batch)
        self._owners: dict[int, tuple[str, int]] = {}

    @property
    def is_busy(self) -> bool:
        return self.ends_at != NEVER

    # -- what befalls it

    def obey(self, plan: Plan, now: float) -> None:
        self._cut_run(now)
        self.desk.obey(plan)
        self._carry_out(now)

    def transferred(self, outcome: Transferred, now: float) -> None:
        self._cut_run(now)
        self.desk.transferred(outcome)
        self._carry_out(now)

    def _carry_out(self, now: float) -> None:
        """Orders to the device: blocks hold nothing here, so that only copies and people who come and go count."""
        for order in self.desk.take_orders():
            if isinstance(order, Enter):
                self._enter(order.row)
            elif isinstance(order, Leave):
                for row in order.rows:
                    self._fleet.last_at[self._owners.pop(row)] = float(self._last_at[row])
            elif isinstance(order, Transfer):
                # What a step under way writes is copied behind it.
                waits = order.road is Road.WRITE and self.is_busy
                begin = self.ends_at if waits else now
                self._stolen_s += self._fleet.copies.begin(self._number, order, begin)
            elif isinstance(order, Abort):
                ended = self._fleet.copies.abort(order.transfer)
                if ended is not None:
                    self.desk.transferred(ended)
            elif isinstance(order, EnterGroup | HandOverBeams):
                raise ConfigError("capacity is planned without beams")

    def _enter(self, row: int) -> None:
        fleet, resident = self._fleet, self.desk.rows.at(row)
        start = resident.start
        self._asked_at[row] = fleet.asked_at.get(start.request_id, 0.0)
        self._last_at[row] = fleet.last_at.pop((start.request_id, resident.index), -1.0)
        if start.attempt == 1 and resident.seq == start.seq:
            fleet.cached_tokens += start.position
            fleet.prompt_tokens += start.num_prompt
        self._owners[row] = start.request_id, resident.index

    # -- steps

    def launch(self, begin: float) -> None:
        """The next step begins, or a run of them; nothing where there is nothing to run."""
        batch = self.desk.next()
        if not batch.num_tokens:
            return
        cost = self._fleet.machine.cost
        tokens, pairs, context = figures(batch)
        num_steps = quiet_steps(self.desk, batch, self._fleet.most_steps)
        stolen, self._stolen_s = self._stolen_s, 0.0
        if num_steps == 1:
            self.step_s = float(cost.seconds(tokens, pairs, context)) + stolen
            self.ends_at = begin + self.step_s
            self._flight = self.desk.launched(batch)
            return
        seconds = cost.seconds(tokens, pairs, context + tokens * np.arange(num_steps, dtype=np.float64))
        seconds[0] += stolen
        self.step_s = float(seconds[-1])
        ends = begin + np.cumsum(seconds)
        self._run = batch, ends
        self.ends_at = float(ends[-1])

    def finish(self) -> None:
        """What is under way is over."""
        if self._run is not None:
            batch, ends = self._run
            self._run = None
            self._retire(self.desk.launched(batch, len(ends)), ends)
        else:
            assert self._flight is not None
            self._retire(self._flight, np.array([self.ends_at]))
        at, self._flight, self.ends_at = self.ends_at, None, NEVER
        self._carry_out(at)

    def _cut_run(self, now: float) -> None:
        """Something happens: the steps of a run that are over by now are, and one goes on."""
        if self._run is None:
            return
        batch, ends = self._run
        self._run = None
        num_over = int(np.searchsorted(ends, now, side="right"))
        if num_over:
            self._retire(self.desk.launched(batch, num_over), ends[:num_over])
            batch = self.desk.next()
        self._flight, self.ends_at = self.desk.launched(batch), float(ends[num_over])

    def _retire(self, flight: Flight, ends: Float64) -> None:
        """So many steps of a flight are over at these times."""
        rows = flight.rows
        last = self._last_at[rows]
        is_first = last < 0
        gaps, num_rows = self._fleet.gaps, len(rows)
        gaps.between.add(ends[0] - last[~is_first])
        if is_first.any():
            gaps.first.add(ends[0] - self._asked_at[rows[is_first]])
        if len(ends) > 1:
            gaps.between.add(np.repeat(np.diff(ends), num_rows))
        self._last_at[rows] = ends[-1]
        ids = self._fleet.tokens.draw(self.desk.rows, rows, len(ends))
        self.desk.retire(flight, Drawn.of(ids))
