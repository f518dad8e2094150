"""`quire bench control`: what the stream between scheduler and worker costs, beside a Ray actor call in the same run.

The scheduler's end of the control streams is in this process, real workers are in processes of their own; nobody
decides anything, plans are made up here. Measured: the round trip of a plan and its result with both ends idle, in turn
with calls of a Ray actor that gets as many bytes; the same while two workers run sequences; the processor time of a
plan at both ends together; and what idle processes take.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cluster.bench.processes import Processes
from cluster.bench.report import BenchHelp, Cell, Report
from cluster.messages import Event, Extends, Plan, ReplicaJoined, Result, Start, Stopped, ids
from cluster.sampling import SamplingParams
from cluster.serving.control_server import ControlServer
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings, WorkerSettings
from cluster.wire.plans import fill_plan
from protos.quire.v1 import control_pb2 as pb

MODEL, BLOCK_SIZE = "demo", 16
PLAN_SEQUENCES = 16
# Of each worker under load: sequences that run on long leases, a block table of their own each.
LOAD_SEQUENCES, LOAD_TOKENS = 8, 1_500
GAP_S = 0.004

IDLE_SHARE, LOAD_P99_S, PLAN_CPU_S, IDLE_CPU = 0.4, 5e-3, 60e-6, 0.02


class Centre(SchedulerShell):
    """The scheduler's shell without a scheduler: results end the wait for them, ended sequences begin anew."""

    def __init__(self) -> None:
        super().__init__(SchedulerSettings(), 1)
        self.joined: dict[str, ReplicaJoined] = {}
        self.keeps_busy = False
        self._numbers: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._waiting: dict[tuple[str, int], asyncio.Future[float]] = {}
        # Of a replica that is sent plan after plan: how many are left, what each orders, and who waits for the last.
        self._runs: dict[str, tuple[int, Extends, asyncio.Future[None]]] = {}
        self._next_seq = 1

    def post(self, event: Event) -> None:
        if isinstance(event, ReplicaJoined):
            self.joined[event.replica] = event
        elif isinstance(event, Result):
            self._taken[event.replica] = event.number
            now = time.perf_counter()
            for key in [key for key in self._waiting if key[0] == event.replica and key[1] <= event.plan]:
                self._waiting.pop(key).set_result(now)
            if event.replica in self._runs:
                self._go_on(event.replica)
            if event.stopped and self.keeps_busy:
                self.send(event.replica, starts=tuple(self._start(stopped) for stopped in event.stopped))

    def send(self, replica: str, **orders: Any) -> int:
        """Sends a plan; returns its number."""
        number = self._numbers[replica] = self._numbers.get(replica, 0) + 1
        joined = self.joined[replica]
        self.replica_links[replica](
            Plan(replica, joined.incarnation, 1, number, 4, self._taken.get(replica, 0), **orders)
        )
        return number

    async def round_trip(self, replica: str) -> float:
        """Seconds from a plan to the result that says it was obeyed."""
        answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        number = self.send(replica, extends=some_extends())
        self._waiting[replica, number] = answered
        return await asyncio.wait_for(answered, 10) - began

    async def run_plans(self, replica: str, num_plans: int, extends: Extends) -> None:
        """So many plans, one at a time: each is sent by the turn that the result of the one before calls for."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runs[replica] = num_plans, extends, done
        self._go_on(replica)
        await asyncio.wait_for(done, 60)

    def _go_on(self, replica: str) -> None:
        left, extends, done = self._runs.pop(replica)
        if left:
            self._runs[replica] = left - 1, extends, done
            self.send(replica, extends=extends)
        else:
            done.set_result(None)

    def load(self, replica: str) -> None:
        """Sequences that keep this worker stepping, each on a lease to its end."""
        self.keeps_busy = True
        self.send(replica, starts=tuple(self._start(None, place) for place in range(LOAD_SEQUENCES)))

    def _start(self, ended: Stopped | None, place: int = 0) -> Start:
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        # Whoever comes next takes the blocks of who has ended.
        place = place if ended is None else (ended.seq - 1) % LOAD_SEQUENCES
        num_blocks = -(-(LOAD_TOKENS + 1) // BLOCK_SIZE)
        sampling = SamplingParams(max_tokens=LOAD_TOKENS, temperature=0.0, ignore_eos=True).resolve(
            {}, vocab_size=1_000, max_model_len=2_048, num_prompt_tokens=1, seed=1
        )
        return Start(
            seq=seq,
            request_id=str(seq),
            index=0,
            attempt=1,
            gateway="",
            route=seq,
            tokens=ids([5]),
            num_prompt=1,
            position=0,
            table=ids(range(place * num_blocks, (place + 1) * num_blocks)),
            lease_end=LOAD_TOKENS + 1,
            precedence=seq,
            sampling=sampling,
            salt=b"",
            chain=b"",
        )


def some_extends() -> Extends:
    """As long as those of so many sequences; the workers hold none of these, so that nothing else changes."""
    extends = Extends()
    for number in range(PLAN_SEQUENCES):
        extends.add(1_000_000_000 + number, 160, 9, ids([number]))
    return extends


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, of all its threads that live."""
    spent = 0
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        try:
            spent += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return spent / 1e9


class Control:
    """The scheduler's end, and two workers."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.centre = Centre()
        self.names = ["w0", "w1"]

    async def start(self) -> None:
        self._server = ControlServer(self.centre, silence_s=10.0)
        self._processes.direct(await self._server.listen(self._processes.inside))
        self._watch = asyncio.create_task(self._server.watch())
        settings = WorkerSettings(model=MODEL, kv_blocks=1_024, max_batch=16, show_progress=False)
        # A share of the cores each, as workers of a cluster on one machine have.
        threads = max(1, (os.cpu_count() or 1) // len(self.names))
        await asyncio.to_thread(self._processes.add_workers, dict.fromkeys(self.names, settings), threads=threads)
        async with asyncio.timeout(30):
            while len(self.centre.joined) < len(self.names):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._watch.cancel()
        self._server.close()

    def pid(self, name: str) -> int:
        return self._processes.members[name].pid


def start_ray(size: int) -> Any:
    """A Ray of its own with one actor; returns what calls it once with so many bytes."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    class Echo:
        def call(self, plan: bytes) -> bytes:
            return plan

    actor = ray.remote(Echo).options(num_cpus=0).remote()
    plan = bytes(size)

    def call() -> float:
        began = time.perf_counter()
        ray.get(actor.call.remote(plan), timeout=10)
        return time.perf_counter() - began

    return call


async def idle_round_trips(control: Control, call_ray: Any, rounds: int) -> dict[str, list[float]]:
    """A plan and a Ray call in turn, with pauses in which both ends fall asleep."""
    times: dict[str, list[float]] = {"plan": [], "ray": []}
    for number in range(rounds + 20):
        plan_s = await control.centre.round_trip("w0")
        await asyncio.sleep(GAP_S)
        ray_s = call_ray()
        await asyncio.sleep(GAP_S)
        if number >= 20:
            times["plan"].append(plan_s)
            times["ray"].append(ray_s)
    return times


async def loaded_round_trips(control: Control, seconds: float) -> list[float]:
    for name in control.names:
        control.centre.load(name)
    await asyncio.sleep(1.0)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name in control.names:
            times.append(await control.centre.round_trip(name))
            await asyncio.sleep(GAP_S)
    control.centre.keeps_busy = False
    async with asyncio.timeout(60):
        await asyncio.sleep(LOAD_TOKENS * 0.004)
    return times


async def cost_of_plans(control: Control, num: int) -> float:
    """Processor seconds of a plan and its result at both ends together, one at a time, from the dataclass at one end to
    the dataclass at the other and back. What the plan orders is decided before."""
    pids = (os.getpid(), control.pid("w0"))
    before = sum(map(cpu_s, pids))
    await control.centre.run_plans("w0", num, some_extends())
    return (sum(map(cpu_s, pids)) - before) / num


async def idle_shares(control: Control, seconds: float) -> dict[str, float]:
    pids = {"scheduler's end": os.getpid(), "worker": control.pid("w0")}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    await asyncio.sleep(seconds)
    return {name: (cpu_s(pid) - before[name]) / seconds for name, pid in pids.items()}


async def measure(scale: float, report: Report) -> None:
    message = pb.FromScheduler()
    fill_plan(message.plan, Plan("w0", 1, 1, 1, 4, 0, extends=some_extends()))
    with Processes(SchedulerSettings(), serves=False) as processes:
        control = Control(processes)
        await control.start()
        try:
            call_ray = await asyncio.to_thread(start_ray, message.ByteSize())
            idle = await idle_shares(control, 10 * scale)
            times = await idle_round_trips(control, call_ray, int(500 * scale))
            plan_cpu_s = await cost_of_plans(control, int(3_000 * scale))
            loaded = await loaded_round_trips(control, 10 * scale)
        finally:
            control.stop()
    _report(report, times, loaded, plan_cpu_s, idle)


def _report(
    report: Report, times: dict[str, list[float]], loaded: list[float], plan_cpu_s: float, idle: dict[str, float]
) -> None:
    rows: list[dict[str, Cell]] = [
        {"round trip": what, "p50 ms": 1e3 * median(found), "p99 ms": 1e3 * float(np.percentile(found, 99))}
        for what, found in (("plan and result, idle", times["plan"]), ("Ray actor call, idle", times["ray"]))
    ]
    p99_s = float(np.percentile(loaded, 99))
    rows.append({"round trip": "plan and result, 2 workers run", "p50 ms": 1e3 * median(loaded), "p99 ms": 1e3 * p99_s})
    report.table("control stream", rows)
    report.table("processor", [{"what": f"idle, {name}", "share of a core": share} for name, share in idle.items()])
    ratio = median(times["plan"]) / median(times["ray"])
    report.check(f"a plan takes at most {IDLE_SHARE:g}x of a Ray call", ratio <= IDLE_SHARE, f"{ratio:.2f}x")
    report.check("p99 under 5 ms while two workers run", p99_s < LOAD_P99_S, f"{1e3 * p99_s:.2f} ms")
    detail = f"{1e6 * plan_cpu_s:.0f} us"
    report.check("a plan and its result take less than 60 us of both ends", plan_cpu_s < PLAN_CPU_S, detail)
    for name, share in idle.items():
        report.check(f"idle {name} takes less than 2 % of a core", share < IDLE_CPU, f"{100 * share:.2f} %")
    report.note(f"round trip {ratio:.2f}x of a Ray call; {detail} of processor time a plan and its result")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench control", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the time of each part")
    options = parser.parse_args(argv)
    report = Report("control", argv)
    report.begins("the control stream: round trips, plans and results, idle, beside Ray", 150 * options.scale)
    asyncio.run(measure(options.scale, report))
    import ray

    ray.shutdown()
    return report.finish(options.json)
