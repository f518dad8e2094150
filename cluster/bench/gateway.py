"""`quire bench gateway`: what the front door costs, with workers that make up tokens.

A gateway in a process of its own, whose processor time is read; scheduler, workers and clients in this one, over real
gRPC streams. Clients keep the bytes that they get and read them when the clock has stopped; every token is checked.
Measured: tokens per second of gateway processor time on GenerateMany, messages per second over single streams, and what
merging adds to the time from a token's making to its arrival when more is made than the gateway can pass on one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np

from cluster.bench.gateway_child import MODEL, SECURITY
from cluster.bench.gateway_worker import MadeUpReplica, made_up
from cluster.bench.report import Cell, Report
from cluster.gateway.front import ServedModel
from cluster.messages import ReplicaLost
from cluster.serving.front_server import FrontServer
from cluster.serving.host import SchedulerHost
from cluster.settings import SchedulerSettings
from cluster.wire.frames import framed
from cluster.wire.plans import parsed
from protos.quire.v1 import common_pb2, front_pb2
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.front_pb2_grpc import add_FrontServiceServicer_to_server
from worker.frame_link import TOKENS, FrameLink, connect

SERVICE = "/quire.v1.InferenceService/"
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]
RUN_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` at once, each of `tokens`, from a replica that takes `step_s` for a step."""

    name: str
    is_many: bool
    requests: int
    tokens: int
    step_s: float
    detokenize: bool = True


@dataclass(slots=True)
class Outcome:
    """What one run gave. `arrived`: (time, bytes of one message) as they came."""

    wall_s: float
    cpu_s: float
    arrived: list[tuple[float, bytes]]
    replica: MadeUpReplica


class Bench:
    """Scheduler, replica and clients around the gateway's process."""

    def __init__(self) -> None:
        self._host = SchedulerHost(SchedulerSettings(prefix_caching=False, max_queue=100_000), 1)
        served = (ServedModel(MODEL, True, "", 1, 16, 2048),)
        self._front = FrontServer(self._host, lambda: served, silence_s=20.0)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_replicas = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = grpc.aio.server()
        add_FrontServiceServicer_to_server(self._front, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._tasks = [loop.create_task(self._host.run()), loop.create_task(self._front.watch())]
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cluster.bench.gateway_child",
            f"127.0.0.1:{port}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        ports = await self._answer()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{int(ports['port'])}", options=OPTIONS)
        self._token_address = f"127.0.0.1:{int(ports['token_port'])}"
        async with asyncio.timeout(30):
            while not self._front.sessions or not await self._is_ready():  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _is_ready(self) -> bool:
        models = self._channel.unary_unary(
            f"{SERVICE}ListModels",
            request_serializer=pb.ListModelsRequest.SerializeToString,
            response_deserializer=pb.ListModelsResponse.FromString,
        )
        return any(model.ready for model in (await models(pb.ListModelsRequest())).models)

    async def stop(self) -> None:
        await self._channel.close(None)
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            await asyncio.wait_for(self._child.wait(), 10)
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop(None)

    async def _answer(self) -> dict[str, float]:
        assert self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), 60)
        found: dict[str, float] = json.loads(line)
        return found

    async def _cpu_s(self) -> float:
        assert self._child.stdin is not None
        self._child.stdin.write(b"cpu\n")
        return (await self._answer())["cpu_s"]

    async def run(self, load: Load) -> Outcome:
        """One load to its end. The clock starts when every request has been accepted and the replica begins to step."""
        self._num_replicas += 1
        replica = MadeUpReplica(f"r{self._num_replicas}", MODEL, load.requests, load.tokens)
        self._host.replica_links[replica.name] = replica.obey
        self._host.post(replica.joined)
        arrived: list[tuple[float, bytes]] = []
        read = self._read_many if load.is_many else self._read_singles
        readers = asyncio.create_task(read(load, arrived))
        async with asyncio.timeout(RUN_S):
            while len(replica.row_of_first) < load.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            arrived.clear()
            cpu_s, began = await self._cpu_s(), time.perf_counter()
            stepping = asyncio.create_task(self._step(replica, load))
            await readers
            wall_s = time.perf_counter() - began
            cpu_s = await self._cpu_s() - cpu_s
            await stepping
        del self._host.replica_links[replica.name]
        self._host.post(ReplicaLost(replica.name, 1))
        await asyncio.sleep(1.2)
        return Outcome(wall_s, cpu_s, arrived, replica)

    async def _step(self, replica: MadeUpReplica, load: Load) -> None:
        link, loop, taken = FrameLink("the gateway", math.inf), asyncio.get_running_loop(), 0

        def acknowledge() -> None:
            nonlocal taken
            link.wait(0.0)
            for raw in link.read():
                taken = parsed(front_pb2.FromGateway, raw).taken

        hello = front_pb2.ToGateway(hello=front_pb2.TokenHello(replica=replica.name, incarnation=1))
        link.open(await asyncio.to_thread(connect, self._token_address, SECURITY, TOKENS), framed(hello))
        loop.add_reader(link.fileno(), acknowledge)
        number, due = 0, time.perf_counter()
        while replica.num_made < load.requests * load.tokens:
            batch, result = replica.step(time.perf_counter())
            if batch is not None:
                number += 1
                link.send(framed(front_pb2.ToGateway(number=number, batch=batch)))
            if result is not None:
                self._host.post(result)
            due += load.step_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        async with asyncio.timeout(RUN_S):
            while taken < number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        loop.remove_reader(link.fileno())
        link.close()

    # -- clients, which keep bytes

    def _request(self, load: Load, number: int) -> pb.GenerateRequest:
        prompt = pb.Prompt(token_ids=common_pb2.TokenIds(ids=[number + 1, 7, 9]))
        sampling = common_pb2.Sampling(
            max_tokens=load.tokens, ignore_eos=True, seed=1, detokenize=load.detokenize, temperature=0.0
        )
        return pb.GenerateRequest(prompt=prompt, sampling=sampling)

    async def _read_many(self, load: Load, arrived: list[tuple[float, bytes]]) -> None:
        call = self._channel.stream_stream(f"{SERVICE}GenerateMany", None, None)(None)
        for number in range(load.requests):
            message = pb.GenerateManyRequest(tag=number + 1, generate=self._request(load, number))
            await call.write(message.SerializeToString())
        await call.done_writing()
        async for raw in call:
            arrived.append((time.perf_counter(), raw))

    async def _read_singles(self, load: Load, arrived: list[tuple[float, bytes]]) -> None:
        make = self._channel.unary_stream(f"{SERVICE}Generate", None, None)

        async def one(number: int) -> None:
            tag = (number + 1).to_bytes(2, "little")
            async for raw in make(self._request(load, number).SerializeToString()):
                arrived.append((time.perf_counter(), tag + raw))

        await asyncio.gather(*(one(number) for number in range(load.requests)))


@dataclass(slots=True)
class Read:
    """What the clients got, token by token."""

    wrong: int
    missing: int
    messages: int
    delays_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    chars: int


def read_back(load: Load, outcome: Outcome) -> Read:
    """Parses what arrived and holds every token against what was made."""
    delays: list[float] = []
    positions = dict.fromkeys(range(1, load.requests + 1), 0)
    wrong = messages = chars = 0
    for when, raw in outcome.arrived:
        if load.is_many:
            responses = [(one.tag, one) for one in pb.GenerateManyResponse.FromString(raw).responses]
        else:
            responses = [(int.from_bytes(raw[:2], "little"), pb.GenerateResponse.FromString(raw[2:]))]
        has_tokens = False
        for first, response in responses:
            if not response.HasField("tokens"):
                continue
            has_tokens = True
            chunk = response.tokens
            row = outcome.replica.row_of_first[first]
            wrong += chunk.position != positions[first]
            for position, token in enumerate(chunk.ids, chunk.position):
                wrong += token != made_up(first, position)
                delays.append(when - outcome.replica.times[row, position])
            positions[first] = chunk.position + len(chunk.ids)
            chars += len(chunk.text)
        messages += has_tokens
    missing = sum(load.tokens - position for position in positions.values())
    return Read(wrong, missing, messages, np.array(delays), chars)


def row_of(load: Load, outcome: Outcome, read: Read) -> dict[str, Cell]:
    num = load.requests * load.tokens
    return {
        "load": load.name,
        "streams": 1 if load.is_many else load.requests,
        "tokens": num,
        "tokens/s": num / outcome.wall_s,
        "messages/s": read.messages / outcome.wall_s,
        "tokens/message": num / max(1, read.messages),
        "gateway share": outcome.cpu_s / outcome.wall_s,
        "tokens/cpu s": num / outcome.cpu_s,
        "messages/cpu s": read.messages / outcome.cpu_s,
        "delay p50 ms": 1e3 * float(np.percentile(read.delays_s, 50)),
        "delay p99 ms": 1e3 * float(np.percentile(read.delays_s, 99)),
    }


def loads(scale: float) -> list[Load]:
    def tokens(count: int) -> int:
        return max(16, int(count * scale))

    return [
        Load("many, text", True, 512, tokens(300), 0.010),
        Load("many, ids only", True, 512, tokens(300), 0.010, detokenize=False),
        Load("64 single, 8,000/s made", False, 64, tokens(400), 0.008),
        Load("64 single, 16,000/s made", False, 64, tokens(800), 0.004),
        Load("64 single, 32,000/s made", False, 64, tokens(1600), 0.002),
    ]


async def measure(scale: float, report: Report) -> None:
    bench = Bench()
    await bench.start()
    try:
        await bench.run(Load("warm-up", True, 64, 64, 0.002))
        rows = {}
        for load in loads(scale):
            outcome = await bench.run(load)
            read = read_back(load, outcome)
            rows[load.name] = row_of(load, outcome, read)
            detail = f"{read.wrong} wrong, {read.missing} missing, {outcome.replica.num_dry} dry"
            report.check(f"{load.name}: every token once, in order", not read.wrong and not read.missing, detail)
            report.check(f"{load.name}: text as asked for", bool(read.chars) == load.detokenize, f"{read.chars} chars")
        report.table("gateway", list(rows.values()))
    finally:
        await bench.stop()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench gateway", description=__doc__)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens of each load")
    options = parser.parse_args(argv)
    report = Report("gateway", argv)
    asyncio.run(measure(options.scale, report))
    return report.finish(options.json)
