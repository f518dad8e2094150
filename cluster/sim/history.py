"""One history from its scenario to its verdict: the world is built, clients come, faults strike, the judge looks.

The same scenario runs in the same way every time. A verdict says what was broken, or that nothing was, and what the
history met on its way.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field

from cluster.centre.scheduler import Scheduler
from cluster.messages import Event, Order
from cluster.sim.client import SimClient, Violation, Warm
from cluster.sim.coverage import Coverage
from cluster.sim.door_bounds import check_bounds
from cluster.sim.edges import check_edges
from cluster.sim.faults import Fault, strike
from cluster.sim.judge import Judge
from cluster.sim.mishaps import Mishaps
from cluster.sim.story import Story
from cluster.sim.workload import Scenario
from cluster.sim.world import World

LIMIT_S = 60.0
"""Virtual seconds behind the last arrival and fault in which everything must have ended."""

MAX_CLOCK_EVENTS = 200_000

NOTICED_S = (0.0, 0.05, 0.7)
"""So long a broken connection is not noticed."""


@dataclass(slots=True)
class Judgement:
    seed: int
    failure: str = ""  # one line; empty: all promises were kept
    where: str = ""  # the traceback of the failure
    num_events: int = 0
    num_turns: int = 0
    num_clock_events: int = 0
    virtual_s: float = 0.0
    met: Counter[str] = field(default_factory=Counter)


class History:
    """A scenario on its way."""

    def __init__(self, scenario: Scenario, story: Story | None = None) -> None:
        self.scenario = scenario
        self.story = story
        self.judge = Judge(scenario.full_check)
        self.coverage = Coverage(scenario.world)
        self.world = World(scenario.world, f"{scenario.seed}", self._look)
        self.mishaps = Mishaps(self.world)
        shape = scenario.world.workers[0]
        self.clients = [SimClient(ask, shape.end_one_in, shape.num_noises) for ask in scenario.asks]
        # Those behind the last one that has no outcome have one.
        self._open = self.clients[::-1]
        self._last_s = 0.0
        for client in self.clients:
            self._last_s = max(self._last_s, client.ask.at)
            self.world.clock.at(client.ask.at, self._arrive, client)
        for number, warm in enumerate(scenario.warms):
            self._last_s = max(self._last_s, warm.at + warm.keeps_s)
            self.world.clock.at(warm.at, self._warm, warm, f"warm{number}")
        for fault in scenario.faults:
            self._last_s = max(self._last_s, fault.at + fault.seconds)
            self.world.clock.at(fault.at, self._strike, fault)

    def run(self) -> Judgement:
        verdict = Judgement(self.scenario.seed)
        if self.story is not None:
            self.story.scenario(self.scenario)
        try:
            if self.judge.full_check:
                check_edges()
                check_bounds()
            self.world.clock.run(self._last_s + LIMIT_S, self._is_over)
            self.judge.end(self.world, self.clients)
        except Exception as error:  # whatever breaks is this history's verdict
            verdict.failure = f"{type(error).__name__}: {error}"
            verdict.where = traceback.format_exc()
        verdict.num_events = self.judge.num_events
        verdict.num_turns = self.judge.num_turns
        verdict.num_clock_events = self.world.clock.num_events
        verdict.virtual_s = self.world.clock.now
        verdict.met = self.coverage.met(self.world)
        return verdict

    def _strike(self, fault: Fault) -> None:
        if self.story is not None:
            self.story.note(self.world.clock.now, str(fault))
        strike(self.mishaps, fault, self.clients, self._come_back)

    def _look(self, scheduler: Scheduler, events: list[Event], orders: list[Order]) -> None:
        if self.story is not None:
            self.story.turn(self.world.clock.now, events, orders)
        self.coverage.look(events, orders)
        # One that another has followed may stand still with what it believes to run.
        is_last = scheduler is self.world.shell.scheduler
        self.judge.look(scheduler, events, self.world.clock.now if is_last else None)
        if self.judge.full_check:
            for worker in self.world.workers.values():
                worker.desk.check()

    def _is_over(self) -> bool:
        """Nothing can happen any more that the judge would want to see."""
        world = self.world
        if world.clock.num_events > MAX_CLOCK_EVENTS:
            raise Violation(f"more than {MAX_CLOCK_EVENTS:,} things happened: somebody goes round in circles")
        while self._open and self._open[-1].outcome:
            self._open.pop()
        if self._open or world.clock.now < self._last_s:
            return False
        scheduler, doors = world.shell.scheduler, [gateway.door for gateway in world.gateways.values()]
        return not (
            scheduler.requests
            or scheduler.unclosed
            or scheduler.books.pinned
            or scheduler.host_memory.quarantined
            or scheduler.transfers
            or any(replica.residents for replica in scheduler.replicas.values())
            or any(door.entries or door.closing or door.pins for door in doors)
            or any(
                worker.alive and (worker.residents or worker.transfers.under_way) for worker in world.workers.values()
            )
        )

    def _gateways(self) -> list[str]:
        return [name for name, gateway in self.world.gateways.items() if gateway.alive]

    def _arrive(self, client: SimClient) -> None:
        gateways = self._gateways()
        if not gateways or not self.world.serves(client.ask.model):
            self.world.clock.after(0.1, self._arrive, client)
            return
        gateway = self.world.gateways[gateways[client.ask.gateway % len(gateways)]]
        client.gateway = gateway.name
        gateway.run(gateway.submit, client)
        if client.ask.leaves_after_s is not None:
            self.world.clock.after(client.ask.leaves_after_s, self._leave, client)
        for after_s, number in client.ask.moves:
            self.world.clock.after(after_s, self._move, client, number)
        if client.ask.errs_after_s is not None:
            self.world.clock.after(client.ask.errs_after_s, self._err, client)

    def _warm(self, warm: Warm, name: str) -> None:
        gateways = self._gateways()
        if gateways and self.world.serves(warm.model):
            gateway = self.world.gateways[gateways[warm.gateway % len(gateways)]]
            gateway.run(gateway.warm, warm, name)

    def _move(self, client: SimClient, number: int) -> None:
        """The connection of a client broke, and it comes back, mostly through another gateway though that one lives."""
        gateways = self._gateways()
        if client.outcome or not client.gateway or not client.accepted or not gateways:
            return
        self._let_go(client)
        gateway = self.world.gateways[gateways[number % len(gateways)]]
        client.gateway, client.stream = gateway.name, None
        gateway.run(gateway.resume, client)

    def _leave(self, client: SimClient) -> None:
        """The connection of a client broke for good."""
        if not client.outcome and client.gateway:
            client.outcome = "left"
            self._let_go(client)

    def _let_go(self, client: SimClient) -> None:
        """Until a connection is noticed to be broken, what is written there is lost."""
        gateway = self.world.gateways[client.gateway]
        noticed_s = NOTICED_S[(client.ask.seed + client.num_sent) % len(NOTICED_S)]
        gateway.after(noticed_s, gateway.leave, client.stream)

    def _err(self, client: SimClient) -> None:
        gateways = self._gateways()
        if not client.outcome and client.gateway and client.accepted and gateways:
            gateway = self.world.gateways[gateways[client.ask.seed % len(gateways)]]
            gateway.run(gateway.err, client)

    def _come_back(self, client: SimClient) -> None:
        gateways = self._gateways()
        if not gateways:
            self.world.clock.after(0.1, self._come_back, client)
            return
        gateway = self.world.gateways[gateways[client.ask.seed % len(gateways)]]
        client.gateway = gateway.name
        gateway.run(gateway.resume, client)
