"""The two processes of the shell part of `quire bench limits`: the scheduler's own, and the one with all other ends.

The scheduler is the product's, with its links to workers and gateways on local sockets. The other process holds any
number of workers, each a real desk at its own link whose tokens are made up at a fixed pace, and gateways at theirs,
which put a new request in the place of each that has ended. Both are asked for their figures line by line, and end when
their input is closed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench.made_up_workers import LONGEST, MEAN_OUTPUT, MEAN_PROMPT, TOKEN_BUDGET, VOCAB_SIZE, submits
from cluster.desk import loops
from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings, Drawn
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd, attend
from cluster.links.security import ClusterSecurity
from cluster.links.terms import Heard, Met, Order
from cluster.messages import Closed, Done, Event, Plan, ReplicaJoined
from cluster.serving.control_server import ControlServer
from cluster.serving.front_server import FrontServer
from cluster.serving.inside import Inside
from cluster.serving.shell import SchedulerShell, tune_collector
from cluster.settings import SchedulerSettings
from cluster.sim.quiet import quiet_steps
from cluster.wire import control as wire
from cluster.wire.gateways import ServedModel

MODEL, BLOCK_SIZE = "m", 16
SILENCE_S = 60.0
"""A machine that does other things as well lets a process stand for a while: nobody is lost for that here."""
RUN = 8
"""Steps that a worker takes at once while nothing is to be told of them."""


def spent() -> dict[str, float]:
    """Processor seconds of this process so far, and its memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"cpu_s": time.process_time(), "mb": pages * 4096 / 1e6, "at": time.perf_counter()}


# -- the scheduler


class _Shell(SchedulerShell):
    """Keeps what each turn took, as processor time; its orders are on their way then."""

    def __init__(self, settings: SchedulerSettings, epoch: int) -> None:
        super().__init__(settings, epoch)
        self.turns_s: list[float] = []

    def _turn(self, events: list[Event]) -> None:
        began = time.thread_time()
        super()._turn(events)
        self.turns_s.append(time.thread_time() - began)


async def _decide(secret: str) -> None:
    shell = _Shell(SchedulerSettings(prefix_caching=True, max_queue=1_000_000), 1)
    tune_collector()
    served = (ServedModel(MODEL, True, "", 1, BLOCK_SIZE, 2 * LONGEST),)
    control = ControlServer(shell, SILENCE_S)
    front = FrontServer(shell, lambda: served, control.announce, silence_s=SILENCE_S)
    inside = Inside("127.0.0.1", ClusterSecurity(secret))
    addresses = {"control": await control.listen(inside), "front": await front.listen(inside)}
    tasks = [asyncio.create_task(each) for each in (shell.run(), control.watch(), front.watch())]
    _say(addresses)
    while await _asked() is not None:
        for task in tasks:
            if task.done():
                task.result()
        turns, shell.turns_s = sorted(shell.turns_s), []
        joined = sum(peer.is_replica for peer in control.peers.values())
        _say({**spent(), "turns": turns, "workers": joined, "gateways": len(front.sessions)})


# -- all others


class _Worker:
    """A desk at its link, which takes `step_s` for a step."""

    def __init__(self, number: int, max_batch: int, step_s: float) -> None:
        num_blocks = max_batch * (MEAN_PROMPT + MEAN_OUTPUT) * 3 // BLOCK_SIZE
        self._desk = Desk(
            ReplicaJoined(
                f"r{number}", 1, f"n{number}", MODEL, num_blocks, BLOCK_SIZE, 1 << 21, "f", max_batch, 2 * LONGEST
            ),
            DeskSettings(TOKEN_BUDGET, VOCAB_SIZE),
        )
        name, terms = self._desk.joined.replica, wire.terms(SILENCE_S)
        self.end = DialingEnd(Dialer(name, 1, wire.SCHEDULER, terms, wire.read_down, has_state=True))
        # Where its transfer service would be: others are told so.
        self.card = wire.joining_to(self._desk.joined, f"127.0.0.1:{10_000 + number}")
        self.num_made = 0
        self._step_s = step_s
        self._is_stepping = False

    def take(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if isinstance(order, Heard) and isinstance(order.message, Plan):
                self._desk.obey(order.message)
            elif isinstance(order, Met) and order.is_new:
                self._desk.begin_epoch(order.life)
        if orders:
            self._go_on()

    def _go_on(self) -> None:
        # There are no bytes: nothing is to be done for the desk.
        self._desk.take_orders()
        if not self._is_stepping:
            self._begin()
        self._tell()

    def _begin(self) -> None:
        desk = self._desk
        batch = desk.next()
        if not batch.num_tokens:
            return
        num_steps = quiet_steps(desk, batch, RUN)
        flight = desk.launched(batch, num_steps)
        self._is_stepping = True
        asyncio.get_running_loop().call_later(num_steps * self._step_s, self._retire, flight, num_steps)

    def _retire(self, flight: Any, num_steps: int) -> None:
        self._is_stepping = False
        self._desk.retire(flight, Drawn.of(np.zeros((num_steps, len(flight.rows)), np.int64)))
        self.num_made += num_steps * len(flight.rows)
        self._go_on()

    def _tell(self) -> None:
        # Tokens would go past the scheduler, to gateways.
        self._desk.take_tokens()
        result = self._desk.take_result(self._step_s)
        if result is not None:
            self.end.say(wire.result_to(result))


class _Gateway:
    """A gateway's link, and requests without end: one for each that has ended."""

    def __init__(self, number: int, link: FrontLink, seed: int) -> None:
        self.num_done = 0
        self._name = f"gateway-{number}"
        self._link = link
        self._source = submits(random.Random(f"{seed}/{number}"), BLOCK_SIZE)

    def ask(self) -> None:
        asked = next(self._source)
        self._link.send(replace(asked, gateway=self._name, request_id=f"{self._name}/{asked.request_id}"))

    async def run(self) -> None:
        async for orders in self._link.orders():
            for order in orders:
                if isinstance(order, Done):
                    self.num_done += 1
                    self._link.send(Closed(order.request_id, order.gateway, order.route))
                    self.ask()


async def _surround(secret: str, told: dict[str, Any]) -> None:
    security = ClusterSecurity(secret)

    async def control() -> str:
        return str(told["control"])

    async def front() -> str:
        return str(told["front"])

    loops.warm_up()
    sequences = int(told["sequences"])
    workers = [_Worker(number, 2 * sequences, told["step_s"]) for number in range(told["workers"])]
    tasks = [
        asyncio.create_task(attend(one.end, one.take, wire.GREETING, control, security, lambda one=one: one.card))  # type: ignore[misc]
        for one in workers
    ]
    gateways = []
    for number in range(told["gateways"]):
        link = FrontLink(LinkSettings(f"gateway-{number}", 1, f"127.0.0.1:{9_000 + number}", front, security))
        gateways.append(_Gateway(number, link, told["seed"]))
        tasks.append(asyncio.create_task(gateways[-1].run()))
    gc.collect()
    gc.freeze()
    _say({})
    while (line := await _asked()) is not None:
        for task in tasks:
            if task.done():
                task.result()
        if line == "load":
            for number in range(sequences * len(workers)):
                gateways[number % len(gateways)].ask()
        num_done, num_made = sum(one.num_done for one in gateways), sum(one.num_made for one in workers)
        _say({**spent(), "tokens": num_made, "done": num_done})


# -- what both share


def _say(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


async def _asked() -> str | None:
    """The next line of the input, None at its end."""
    line = await asyncio.to_thread(sys.stdin.readline)
    return line.strip() if line else None


def serve() -> None:
    told = json.loads(sys.stdin.readline())
    secret = told["secret"]
    asyncio.run(_decide(secret) if told["role"] == "scheduler" else _surround(secret, told))


if __name__ == "__main__":
    serve()
