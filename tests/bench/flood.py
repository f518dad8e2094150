"""`python -m tests.bench flood`: what a gateway does when far more is asked of it than there is, at a fixed pace.

The clients are in this process, both doors in another, over loopback. Measured at each door: how much is served at its
peak, and when four times as much is asked, and how soon those hear of it who are refused, with when to try again; how
soon the blocks of a storm of cancelled requests are free; what readers that read nothing cost the others, in turns with
and without them; and, for as long as `--minutes` says, how memory grows. Times are by the clock: on a busy machine they
tell of that machine. The peak is the most that is served when as much is asked as the worker could serve if no row ever
waited for its next request, or twice or four times as much.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc.aio

from cluster.bench.report import RawHelp, Report
from cluster.client.errors import error_from_call
from cluster.errors import QueueFull
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.bench.flood_child import MODEL

PARTS = ("rejections", "cancels", "stuck", "memory")
BATCH, QUEUE, STEP_S, TOKENS = 8, 16, 0.02, 10
PEAK = BATCH / (TOKENS * STEP_S)
"""Requests a second that the worker can serve."""
TIMES = 4
REJECTED_P99_S, GOODPUT, BACK_S = 0.010, 0.95, 0.1
MEDIAN_MORE, P99_MORE, MEMORY_MORE = 1.05, 1.25, 1.02


class Child:
    """The gateway's process."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int]) -> None:
        self._process = process
        self.ports = ports

    @classmethod
    async def start(cls, **told: Any) -> Child:
        about = {"queue": QUEUE, "batch": BATCH, "blocks": 4096, "step_s": STEP_S, "freezes": True, **told}
        words = (sys.executable, "-m", "tests.bench.flood_child", json.dumps(about))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        return cls(process, json.loads(await asyncio.wait_for(process.stdout.readline(), 120)))

    async def ask(self) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: dict[str, float] = json.loads(await asyncio.wait_for(self._process.stdout.readline(), 30))
        return found

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


# -- clients: each asks once, and says how it was told


class Told:
    """`seconds` until the answer was whole; `retry_s` of one that was refused, None of one that was served."""

    def __init__(self, seconds: float, retry_s: float | None) -> None:
        self.seconds = seconds
        self.retry_s = retry_s


Ask = Callable[[], Awaitable[Told]]


def request(tokens: int, number: int = 1) -> pb.GenerateRequest:
    prompt = pb.Prompt(token_ids=common_pb2.TokenIds(ids=[1 + number % 9_000, 7, 9]))
    sampling = common_pb2.Sampling(max_tokens=tokens, ignore_eos=True, seed=1, temperature=0.0)
    return pb.GenerateRequest(model=MODEL, prompt=prompt, sampling=sampling)


class GrpcDoor:
    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = InferenceServiceAsyncStub(self.channel)

    async def ask(self) -> Told:
        began = time.perf_counter()
        try:
            async for _ in self.stub.Generate(request(TOKENS)):
                pass
        except grpc.aio.AioRpcError as error:
            seconds, found = time.perf_counter() - began, error_from_call(error)
            if not isinstance(found, QueueFull):
                raise
            return Told(seconds, found.retry_after_s)
        return Told(time.perf_counter() - began, None)

    async def close(self) -> None:
        await self.channel.close(None)


class HttpDoor:
    """Connections are kept and used again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        body = json.dumps(
            {"model": MODEL, "prompt": [1, 7, 9], "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
        ).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def ask(self) -> Told:
        line = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = line
        began = time.perf_counter()
        writer.write(self._sent)
        first, *lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines) if name}
        await reader.readexactly(int(headers["content-length"]))
        seconds, status = time.perf_counter() - began, int(first.split()[1])
        self._idle.append(line)
        if status not in (200, 429):
            raise RuntimeError(f"the HTTP door answered {first}")
        return Told(seconds, float(headers["retry-after"]) if status == 429 else None)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


# -- parts


async def rejections(report: Report, seconds: float, freezes: bool) -> None:
    for name in ("grpc", "http"):
        child = await Child.start(freezes=freezes)
        door: GrpcDoor | HttpDoor = GrpcDoor(child.ports["grpc"]) if name == "grpc" else HttpDoor(child.ports["http"])
        try:
            await _open_loop(door.ask, PEAK, 1.0)
            # The collector looks at nothing that was there before; clients are measured, too.
            gc.collect()
            gc.freeze()
            calm = [(await _open_loop(door.ask, times * PEAK, seconds))[1] for times in (1, 2)]
            before = await child.ask()
            found, goodput = await _open_loop(door.ask, TIMES * PEAK, seconds)
            after = await child.ask()
        finally:
            await door.close()
            await child.stop()
        peak = max(*calm, goodput)
        refused = sorted(one.seconds for one in found if one.retry_s is not None)
        p50, p99 = (refused[int(len(refused) * share)] for share in (0.5, 0.99))
        row = {
            "door": name,
            "asked/s": TIMES * PEAK,
            "peak/s": peak,
            "served/s": goodput,
            "refused": len(refused),
            "refused p50 ms": 1e3 * p50,
            "p99 ms": 1e3 * p99,
            "longest ms": 1e3 * refused[-1],
            "looks of the collector": after["looks"],
            "longest look ms": after["longest look ms"],
            "load of a core": (after["cpu_s"] - before["cpu_s"]) / seconds,
        }
        report.row(f"{TIMES} times as much as can be served", row)
        told = all(one.retry_s > 0 for one in found if one.retry_s is not None)
        report.check(f"{name}: all who are refused hear when to come back", told)
        report.check(f"{name}: refused within 10 ms at p99", p99 <= REJECTED_P99_S, f"{1e3 * p99:.1f} ms")
        report.check(f"{name}: goodput at least 0.95x of the peak", goodput >= GOODPUT * peak, f"{goodput / peak:.2f}x")


async def _open_loop(ask: Ask, rate: float, seconds: float) -> tuple[list[Told], float]:
    """Asked at this rate whatever comes; what each was told, and answers a second while it went on."""
    tasks: list[asyncio.Task[Told]] = []
    ends: list[float] = []
    began = time.perf_counter()

    async def one() -> Told:
        told = await ask()
        if told.retry_s is None:
            ends.append(time.perf_counter())
        return told

    while (now := time.perf_counter()) - began < seconds:
        due = int((now - began) * rate)
        tasks += [asyncio.create_task(one()) for _ in range(due - len(tasks))]
        await asyncio.sleep(1 / rate)
    last = time.perf_counter()
    found = list(await asyncio.gather(*tasks))
    # The first answers take as long as one takes.
    served = [end for end in ends if began + TOKENS * STEP_S < end <= last]
    return found, len(served) / (last - began - TOKENS * STEP_S)


async def cancels(report: Report, num: int, rate: float) -> None:
    """Long answers that all run, and are cancelled one after the other."""
    child = await Child.start(batch=num, blocks=num * 8)
    door = GrpcDoor(child.ports["grpc"])
    try:
        calls = [door.stub.Generate(request(100, number)) for number in range(num)]
        for call in calls:
            await call.read()
        began = time.perf_counter()
        for number, call in enumerate(calls):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            call.cancel()
        last = time.perf_counter()
        while (await child.ask())["held"] and time.perf_counter() - last < 30:
            pass
        back_s = time.perf_counter() - last
        while (await child.ask())["open"] and time.perf_counter() - last < 30:
            pass
        # The child proves its ledgers when nothing is open.
        state = await child.ask()
    finally:
        await door.close()
        await child.stop()
    row = {"cancelled": num, "a second": num / (last - began), "all blocks back, ms": 1e3 * back_s}
    report.row("a storm of cancels", row)
    report.check("blocks back within a step and 100 ms", back_s <= STEP_S + BACK_S, f"{1e3 * back_s:.0f} ms")
    report.check("nothing is held or open at the end", not state["held"] and not state["open"])


async def stuck(report: Report, num: int, rounds: int, seconds: float) -> None:
    """In turns: all read, and one in ten reads nothing."""
    gaps: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(rounds):
        for has_stuck in (False, True):
            gaps[has_stuck].append(await _gaps(num, num // 10 if has_stuck else 0, seconds))

    def middle(has_stuck: bool, share: float) -> float:
        return statistics.median(found[int(len(found) * share)] for found in map(sorted, gaps[has_stuck]))

    rows = [
        {
            "readers": num,
            "of them stuck": num // 10 if has_stuck else 0,
            "between tokens p50 ms": 1e3 * middle(has_stuck, 0.5),
            "p99 ms": 1e3 * middle(has_stuck, 0.99),
        }
        for has_stuck in (False, True)
    ]
    report.table(f"readers that read nothing, {rounds} rounds in turn", rows)
    for share, more in ((0.5, MEDIAN_MORE), (0.99, P99_MORE)):
        times = middle(True, share) / middle(False, share)
        report.check(f"others wait at most {more:g}x as long at {share:g}", times <= more, f"{times:.2f}x")


async def _gaps(num: int, num_stuck: int, seconds: float) -> list[float]:
    """Times between messages of those who read."""
    child = await Child.start(batch=num, queue=num, blocks=num * 260, step_s=0.1)
    # A connection for each that is stuck, so that it is its own window that fills.
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{child.ports['grpc']}", options=narrow) for _ in range(num_stuck)]
    door, found = GrpcDoor(child.ports["grpc"]), []
    try:
        held = [InferenceServiceAsyncStub(channel).Generate(request(4000, at)) for at, channel in enumerate(channels)]
        for call in held:
            await call.read()

        async def read(number: int) -> None:
            call, before = door.stub.Generate(request(4000, number)), 0.0
            until = time.perf_counter() + seconds + 3.0
            while time.perf_counter() < until:
                await call.read()
                now = time.perf_counter()
                # Not while all begin.
                if before and now > until - seconds:
                    found.append(now - before)
                before = now
            call.cancel()

        await asyncio.gather(*(read(number) for number in range(num_stuck, num)))
        for call in held:
            call.cancel()
    finally:
        for channel in channels:
            await channel.close(None)
        await door.close()
        await child.stop()
    return found


async def memory(report: Report, minutes: float) -> None:
    """Both doors, in turns served, refused and cancelled, and what the process holds every half minute."""
    child = await Child.start()
    grpc_door, http_door = GrpcDoor(child.ports["grpc"]), HttpDoor(child.ports["http"])
    draw, began, sizes = random.Random(1), time.monotonic(), []

    async def clients(ask: Ask) -> None:
        while time.monotonic() - began < 60 * minutes:
            await ask()
            await asyncio.sleep(draw.random() * 0.1)

    async def cancelled() -> Told:
        call = grpc_door.stub.Generate(request(200, draw.randrange(9_000)))
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await call.read()
            await asyncio.sleep(draw.random() * 0.1)
        call.cancel()
        return Told(0.0, None)

    async def watch() -> None:
        while time.monotonic() - began < 60 * minutes:
            await asyncio.sleep(min(30.0, 3.0 * minutes))
            sizes.append((time.monotonic() - began, (await child.ask())["mb"]))

    try:
        asks = [grpc_door.ask] * 12 + [http_door.ask] * 12 + [cancelled] * 6
        await asyncio.gather(watch(), *map(clients, asks))
    finally:
        await grpc_door.close()
        await http_door.close()
        await child.stop()
    report.table("memory of the gateway's process", [{"minute": at / 60, "MB": mb} for at, mb in sizes])
    # What is loaded and cached first is no leak.
    early = max(mb for at, mb in sizes if at <= max(120.0, 60 * minutes / 3) + 1.0)
    report.check("at most 2 % above minute 2", sizes[-1][1] <= MEMORY_MORE * early, f"{sizes[-1][1] / early:.3f}x")


async def measure(options: argparse.Namespace, report: Report) -> None:
    if "rejections" in options.parts:
        await rejections(report, options.seconds, not options.as_it_comes)
    if "cancels" in options.parts:
        await cancels(report, options.cancels, 500.0)
    if "stuck" in options.parts:
        await stuck(report, options.readers, options.rounds, options.seconds)
    if "memory" in options.parts:
        await memory(report, options.minutes)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench flood", description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--cancels", type=int, default=500, help="requests that are cancelled, 500 a second")
    parser.add_argument("--readers", type=int, default=1000, help="streams, one in ten of which is stuck")
    parser.add_argument("--rounds", type=int, default=5, help="with and without readers that are stuck, in turns")
    parser.add_argument("--minutes", type=float, default=6.0, help="for which memory is watched")
    parser.add_argument("--as-it-comes", action="store_true", help="leave Python's collector as it comes")
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    report = Report("flood", argv)
    about_s = 6 * options.seconds + 60 * options.minutes * ("memory" in options.parts)
    report.begins(f"floods of a gateway: {', '.join(options.parts)}", about_s)
    asyncio.run(measure(options, report))
    return report.finish(options.json)
