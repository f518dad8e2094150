"""Plans capacity: the real scheduler and real desks, whose tokens and durations alone are made up, in virtual time.

A run goes in turns of a few milliseconds, as the scheduler's own loop does under load: steps that ended since the last
turn report, what arrived is submitted, the scheduler decides, workers obey. `run` returns what came of it; nothing is
printed here. How to read and use the figures: cluster/sim/README.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from cluster.centre.scheduler import Scheduler
from cluster.desk.words import DeskSettings
from cluster.messages import Closed, Done, Event, HostPoolJoined, Plan, Refused, ReplicaJoined, Tick
from cluster.settings import SchedulerSettings
from cluster.sim.copies import WORKERS_PER_NODE
from cluster.sim.costs import Machine
from cluster.sim.fleet import Fleet
from cluster.sim.gaps import Gaps
from cluster.sim.load import VOCAB_SIZE, ArrivingLoad, requests
from cluster.sim.tokens import MadeUp

PREFILL_CHUNK = 2048
"""Tokens of the prompt with which a worker measures its rate at start."""


@dataclass(frozen=True, slots=True)
class PaperSite:
    """A cluster on paper. `host_blocks`: of each node's host pool, 0: none."""

    num_workers: int
    machine: Machine
    max_batch: int = 256
    token_budget: int = 8192
    max_model_len: int = 131_072
    host_blocks: int = 0
    turn_s: float = 0.004


@dataclass(slots=True)
class CapacitySample:
    """The cluster at one moment; rates are those of the time since the last sample."""

    at: float
    tokens_per_s: float
    running: int
    waiting: int
    held: float  # share of all blocks
    scheduler_load: float  # processor seconds per second


@dataclass(slots=True)
class CapacityOutcome:
    """What came of a run. Times in seconds."""

    site: PaperSite
    load: ArrivingLoad
    seconds: float = 0.0
    asked: int = 0
    finished: int = 0
    refused: int = 0
    # Of those that are neither finished nor refused when it ends.
    waiting: int = 0
    num_tokens: int = 0
    num_steps: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    samples: list[CapacitySample] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    preemptions: list[int] = field(default_factory=list)  # of each finished request
    # How long each finished request took from its arrival.
    latencies: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    copied_bytes: int = 0
    scheduler_s: float = 0.0
    wall_s: float = 0.0

    @property
    def running(self) -> int:
        """When it ends."""
        return self.asked - self.finished - self.refused - self.waiting

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def held(self) -> float:
        return sum(sample.held for sample in self.samples) / max(1, len(self.samples))

    @property
    def scheduler_load(self) -> float:
        return self.scheduler_s / self.seconds if self.seconds else 0.0


Watch = Callable[[float, float, Sequence[Event], Sequence[object]], None]


class Capacity:
    """One run. `until_s`: arrivals stop and the run ends there; None: it ends when `num_requests` have ended."""

    def __init__(
        self,
        site: PaperSite,
        load: ArrivingLoad,
        settings: SchedulerSettings,
        *,
        until_s: float | None,
        num_requests: int = 0,
        watch: Watch = lambda now, seconds, events, orders: None,
    ) -> None:
        """`watch` is told of each turn, when it was and what it took; what it does itself is not counted."""
        assert until_s is not None or num_requests
        self._watch = watch
        self.site, self.until_s, self.num_requests = site, until_s, num_requests
        self.scheduler = Scheduler(settings)
        joins = list(self._joins())
        # A row has room for the longest request of the load, which is less than a model may take.
        longest = min(site.max_model_len, load.most_tokens)
        desks = [replace(join, max_model_len=longest) for join in joins if isinstance(join, ReplicaJoined)]
        asked = DeskSettings(site.token_budget, VOCAB_SIZE, names_blocks=settings.prefix_caching)
        self.fleet = Fleet(desks, asked, site.machine, MadeUp())
        self.outcome = CapacityOutcome(site, load, gaps=self.fleet.gaps)
        self.now = 0.0
        self._arrivals = requests(load, site.machine.block_size)
        self._next = next(self._arrivals)
        self._events: list[Event] = joins
        self._sampled_at, self._sampled_tokens, self._sampled_s = 0.0, 0, 0.0
        # Events of processes that come and go, by their time; see `happen`.
        self._happenings: list[tuple[float, Callable[[Capacity], None]]] = []

    def _joins(self) -> Iterator[Event]:
        site, machine = self.site, self.site.machine
        rate = machine.cost.prefill_tokens_per_s(PREFILL_CHUNK)
        for worker in range(site.num_workers):
            node = f"n{worker // WORKERS_PER_NODE}"
            yield ReplicaJoined(
                replica=f"w{worker}",
                incarnation=1,
                node=node,
                model="m",
                num_blocks=machine.num_blocks,
                block_size=machine.block_size,
                block_bytes=machine.block_bytes,
                fingerprint="planned",
                max_batch=site.max_batch,
                max_model_len=site.max_model_len,
                prefill_tokens_per_s=rate,
                bytes_per_s=machine.host_bytes_per_s,
            )
            if site.host_blocks and worker % WORKERS_PER_NODE == 0:
                yield self.host_pool(worker // WORKERS_PER_NODE, 1)

    def host_pool(self, node: int, incarnation: int) -> HostPoolJoined:
        machine = self.site.machine
        return HostPoolJoined(
            f"h{node}", incarnation, f"n{node}", self.site.host_blocks, machine.block_bytes, "planned",
            machine.host_bytes_per_s,
        )  # fmt: skip

    def happen(self, at: float, what: Callable[[Capacity], None]) -> None:
        """Something that befalls the cluster at a time, told in order of time."""
        self._happenings.append((at, what))

    def tell(self, event: Event) -> None:
        self._events.append(event)

    # -- the run

    def run(self, on_progress: Callable[[float], None] = lambda share: None) -> CapacityOutcome:
        began, fleet, outcome = time.perf_counter(), self.fleet, self.outcome
        while not self._is_over():
            self.now += self.site.turn_s
            self._arrive()
            fleet.advance(self.now)
            self._decide()
            if self.now - self._sampled_at >= 1.0:
                self._sample()
                on_progress(self.now / self.until_s if self.until_s else outcome.finished / self.num_requests)
        # What came since the last second began counts too; a run that is shorter has this sample alone.
        if outcome.samples:
            fleet.send_tokens()
        else:
            self._sample()
        outcome.seconds = self.now
        outcome.waiting = self.scheduler.waiting.num_waiting("m")
        outcome.num_tokens, outcome.num_steps = fleet.num_tokens, fleet.num_steps
        outcome.counters = self.scheduler.counters
        outcome.prompt_tokens, outcome.cached_tokens = fleet.prompt_tokens, fleet.cached_tokens
        outcome.copied_bytes = fleet.copies.num_bytes
        outcome.wall_s = time.perf_counter() - began
        return outcome

    def _is_over(self) -> bool:
        if self.until_s is not None:
            return self.now >= self.until_s
        return self.outcome.finished + self.outcome.refused >= self.num_requests

    def _arrive(self) -> None:
        while self._happenings and self._happenings[0][0] <= self.now:
            self._happenings.pop(0)[1](self)
        while self._is_due() and (not self.num_requests or self.outcome.asked < self.num_requests):
            at, submit = self._next
            self.fleet.asked_at[submit.request_id] = self.now if self.outcome.load.clients else at
            self._events.append(submit)
            self.outcome.asked += 1
            self._next = next(self._arrivals)

    def _is_due(self) -> bool:
        clients, outcome = self.outcome.load.clients, self.outcome
        if clients:
            return outcome.asked - outcome.finished - outcome.refused < clients
        return self._next[0] <= self.now

    def _decide(self) -> None:
        fleet, scheduler = self.fleet, self.scheduler
        events = self._events
        events += fleet.results()
        deadline = scheduler.next_deadline
        if not events and (deadline is None or deadline > self.now):
            return
        self._events = []
        began = time.thread_time()
        orders = scheduler.turn(events or [Tick()], self.now)
        took = time.thread_time() - began
        self.outcome.scheduler_s += took
        self._watch(self.now, took, events, orders)
        obeyed = []
        for order in orders:
            if isinstance(order, Plan):
                worker = int(order.replica[1:])
                fleet.obey(worker, order, self.now)
                obeyed.append(worker)
            elif isinstance(order, Done):
                self._done(order)
            elif isinstance(order, Refused):
                self.outcome.refused += 1
        for worker in obeyed:
            fleet.launch(worker, self.now)

    def _done(self, done: Done) -> None:
        self._events.append(Closed(done.request_id, done.gateway, done.route))
        self.outcome.finished += 1
        self.outcome.preemptions.append(done.preemptions)
        self.outcome.latencies.append(self.now - self.fleet.asked_at.pop(done.request_id))

    def _sample(self) -> None:
        outcome, scheduler = self.outcome, self.scheduler
        seconds = self.now - self._sampled_at
        replicas = scheduler.replicas.values()
        blocks = sum(replica.ledger.num_blocks for replica in replicas)
        available = sum(replica.ledger.num_available for replica in replicas)
        outcome.samples.append(
            CapacitySample(
                self.now,
                (self.fleet.num_tokens - self._sampled_tokens) / seconds,
                self.fleet.num_running,
                scheduler.waiting.num_waiting("m"),
                1 - available / max(1, blocks),
                (outcome.scheduler_s - self._sampled_s) / seconds,
            )
        )
        self.fleet.send_tokens()
        self._sampled_at, self._sampled_tokens = self.now, self.fleet.num_tokens
        self._sampled_s = outcome.scheduler_s


def plan(
    site: PaperSite,
    load: ArrivingLoad,
    settings: SchedulerSettings,
    seconds: float,
    on_progress: Callable[[float], None],
) -> CapacityOutcome:
    """A run of so many simulated seconds."""
    return Capacity(site, load, settings, until_s=seconds).run(on_progress)
