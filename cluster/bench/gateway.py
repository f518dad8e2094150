"""`quire bench cluster --parts door`: what the front door costs, with workers that make up tokens.

A gateway in a process of its own, whose processor time is read; scheduler, workers and clients in this one, over real
streams of gRPC and HTTP. Clients keep the bytes that they get and read them when the clock has stopped; every token is
checked.
Measured: tokens per second of gateway processor time on GenerateMany, messages per second over single streams, what
merging adds to the time from a token's making to its arrival when more is made than the gateway can pass on one by one,
and what the same streams, and one that is alone, cost over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from cluster.bench.gateway_child import MODEL, SECURITY
from cluster.bench.gateway_worker import MadeUpReplica, made_up
from cluster.bench.report import Cell, Report
from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd
from cluster.links.sockets import connect
from cluster.messages import ReplicaLost
from cluster.serving.front_server import FrontServer
from cluster.serving.inside import Inside
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from cluster.wire import tokens as wire
from cluster.wire.gateways import ServedModel
from protos.quire.v1 import common_pb2
from protos.quire.v1 import inference_pb2 as pb

SERVICE = "/quire.v1.InferenceService/"
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]
RUN_S = 60.0
LAST = b"data: [DONE]\n\n\r\n"
MIN_HTTP, MAX_ALONE = 0.6, 1.05
SHARED = ("64 single, 8,000/s made", "64 over HTTP, 8,000/s made")
ALONE = ("alone, 500/s made", "alone over HTTP, 500/s made")


@dataclass(frozen=True, slots=True)
class DoorLoad:
    """`requests` at once, each of `tokens`, from a replica that takes `step_s` for a step."""

    name: str
    is_many: bool
    requests: int
    tokens: int
    step_s: float
    detokenize: bool = True
    is_http: bool = False


@dataclass(slots=True)
class DoorOutcome:
    """What one run gave. `arrived`: (time, bytes of one message) as they came."""

    wall_s: float
    cpu_s: float
    arrived: list[tuple[float, bytes]]
    replica: MadeUpReplica


class DoorBench:
    """Scheduler, replica and clients around the gateway's process."""

    def __init__(self) -> None:
        self._shell = SchedulerShell(SchedulerSettings(prefix_caching=False, max_queue=100_000), 1)
        served = (ServedModel(MODEL, True, "", 1, 16, 2048),)
        self._front = FrontServer(self._shell, lambda: served, silence_s=20.0)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_replicas = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        address = await self._front.listen(Inside("127.0.0.1", SECURITY))
        self._tasks = [loop.create_task(self._shell.run()), loop.create_task(self._front.watch())]
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cluster.bench.gateway_child",
            address,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        ports = await self._answer()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{int(ports['port'])}", options=OPTIONS)
        self._token_address, self._http_port = str(ports["tokens"]), int(ports["http"])
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
        self._front.close()

    async def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), 60)
        found: dict[str, Any] = json.loads(line)
        return found

    async def _cpu_s(self) -> float:
        assert self._child.stdin is not None
        self._child.stdin.write(b"cpu\n")
        return float((await self._answer())["cpu_s"])

    async def run(self, load: DoorLoad) -> DoorOutcome:
        """One load to its end. The clock starts when every request has been accepted and the replica begins to step."""
        self._num_replicas += 1
        replica = MadeUpReplica(f"r{self._num_replicas}", MODEL, load.requests, load.tokens)
        self._shell.replica_links[replica.name] = replica.obey
        self._shell.post(replica.joined)
        arrived: list[tuple[float, bytes]] = []
        read = self._read_many if load.is_many else self._read_http if load.is_http else self._read_singles
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
        del self._shell.replica_links[replica.name]
        self._shell.post(ReplicaLost(replica.name, 1))
        await asyncio.sleep(1.2)
        return DoorOutcome(wall_s, cpu_s, arrived, replica)

    async def _step(self, replica: MadeUpReplica, load: DoorLoad) -> None:
        loop = asyncio.get_running_loop()
        end = DialingEnd(Dialer(replica.name, 1, "gateway-0", wire.terms(), wire.read_down))

        def read() -> None:
            end.wait(0.0)
            end.read()

        async def pulse() -> None:
            while True:
                await asyncio.sleep(end.pulse_s)
                end.pulse()

        end.open(await asyncio.to_thread(connect, self._token_address, SECURITY, wire.GREETING), b"")
        loop.add_reader(end.fileno(), read)
        pulsing = loop.create_task(pulse())
        due = time.perf_counter()
        while replica.num_made < load.requests * load.tokens:
            tokens, result = replica.step(time.perf_counter())
            if tokens:
                end.say(wire.batch_to(tokens))
            if result is not None:
                self._shell.post(result)
            due += load.step_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        async with asyncio.timeout(RUN_S):
            while end.dialer.numbers.num_kept:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        pulsing.cancel()
        loop.remove_reader(end.fileno())
        end.close()

    # -- clients, which keep bytes

    def _request(self, load: DoorLoad, number: int) -> pb.GenerateRequest:
        prompt = pb.Prompt(token_ids=common_pb2.TokenIds(ids=[number + 1, 7, 9]))
        sampling = common_pb2.Sampling(
            max_tokens=load.tokens, ignore_eos=True, seed=1, detokenize=load.detokenize, temperature=0.0
        )
        return pb.GenerateRequest(prompt=prompt, sampling=sampling)

    async def _read_many(self, load: DoorLoad, arrived: list[tuple[float, bytes]]) -> None:
        call = self._channel.stream_stream(f"{SERVICE}GenerateMany", None, None)(None)
        for number in range(load.requests):
            message = pb.GenerateManyRequest(tag=number + 1, generate=self._request(load, number))
            await call.write(message.SerializeToString())
        await call.done_writing()
        async for raw in call:
            arrived.append((time.perf_counter(), raw))

    async def _read_singles(self, load: DoorLoad, arrived: list[tuple[float, bytes]]) -> None:
        make = self._channel.unary_stream(f"{SERVICE}Generate", None, None)

        async def one(number: int) -> None:
            tag = (number + 1).to_bytes(2, "little")
            async for raw in make(self._request(load, number).SerializeToString()):
                arrived.append((time.perf_counter(), tag + raw))

        await asyncio.gather(*(one(number) for number in range(load.requests)))

    async def _read_http(self, load: DoorLoad, arrived: list[tuple[float, bytes]]) -> None:
        async def one(number: int) -> None:
            tag = (number + 1).to_bytes(2, "little")
            reader, writer = await asyncio.open_connection("127.0.0.1", self._http_port, limit=1 << 20)
            body = json.dumps(
                {
                    "model": MODEL,
                    "prompt": [number + 1, 7, 9],
                    "max_tokens": load.tokens,
                    "temperature": 0,
                    "seed": 1,
                    "ignore_eos": True,
                    "stream": True,
                    "return_token_ids": True,
                }
            )
            head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            writer.write(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
            await reader.readuntil(b"\r\n\r\n")
            # What the door writes at once is a chunk: its size, a line's end, and whole events.
            raw = b""
            while not raw.endswith(LAST):
                raw = await reader.readuntil(b"\n\n\r\n")
                arrived.append((time.perf_counter(), tag + raw))
            writer.close()

        await asyncio.gather(*(one(number) for number in range(load.requests)))


@dataclass(slots=True)
class Read:
    """What the clients got, token by token."""

    wrong: int
    missing: int
    messages: int
    delays_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    chars: int


# First token of the prompt; position, ids and text.
Chunk = tuple[int, int, Sequence[int], str]


def chunks_of(load: DoorLoad, raw: bytes) -> Iterator[Chunk]:
    """What of tokens stands in the bytes that came at once."""
    if load.is_http:
        for event in raw[2:].partition(b"\r\n")[2].split(b"\n\n"):
            told, _, data = event.partition(b"\ndata: ")
            if data:
                choice = json.loads(data)["choices"][0]
                ids = choice["token_ids"]
                yield int.from_bytes(raw[:2], "little"), int(told.rpartition(b" ")[2]) - len(ids), ids, choice["text"]
        return
    if load.is_many:
        responses = [(one.tag, one) for one in pb.GenerateManyResponse.FromString(raw).responses]
    else:
        responses = [(int.from_bytes(raw[:2], "little"), pb.GenerateResponse.FromString(raw[2:]))]
    for first, response in responses:
        if response.HasField("tokens"):
            chunk = response.tokens
            yield first, chunk.position, chunk.ids, chunk.text


def read_back(load: DoorLoad, outcome: DoorOutcome) -> Read:
    """Parses what arrived and holds every token against what was made."""
    delays: list[float] = []
    positions = dict.fromkeys(range(1, load.requests + 1), 0)
    wrong = messages = chars = 0
    for when, raw in outcome.arrived:
        has_tokens = False
        for first, begin, ids, text in chunks_of(load, raw):
            has_tokens = True
            row = outcome.replica.row_of_first[first]
            wrong += begin != positions[first]
            for position, token in enumerate(ids, begin):
                wrong += token != made_up(first, position)
                delays.append(when - outcome.replica.times[row, position])
            positions[first] = begin + len(ids)
            chars += len(text)
        messages += has_tokens
    missing = sum(load.tokens - position for position in positions.values())
    return Read(wrong, missing, messages, np.array(delays), chars)


def row_of(load: DoorLoad, outcome: DoorOutcome, read: Read) -> dict[str, Cell]:
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
        "ms a token": 1e3 * (outcome.arrived[-1][0] - outcome.arrived[0][0]) / (load.tokens - 1),
        "delay p50 ms": 1e3 * float(np.percentile(read.delays_s, 50)),
        "delay p99 ms": 1e3 * float(np.percentile(read.delays_s, 99)),
    }


def loads(scale: float) -> list[DoorLoad]:
    def tokens(count: int) -> int:
        return max(16, int(count * scale))

    return [
        DoorLoad("many, text", True, 512, tokens(300), 0.010),
        DoorLoad("many, ids only", True, 512, tokens(300), 0.010, detokenize=False),
        DoorLoad(SHARED[0], False, 64, tokens(400), 0.008),
        DoorLoad("64 single, 16,000/s made", False, 64, tokens(800), 0.004),
        DoorLoad("64 single, 32,000/s made", False, 64, tokens(1600), 0.002),
        DoorLoad(SHARED[1], False, 64, tokens(400), 0.008, is_http=True),
        DoorLoad(ALONE[0], False, 1, tokens(1000), 0.002),
        DoorLoad(ALONE[1], False, 1, tokens(1000), 0.002, is_http=True),
    ]


async def measure(scale: float, report: Report) -> None:
    bench = DoorBench()
    await bench.start()
    try:
        await bench.run(DoorLoad("warm-up", True, 64, 64, 0.002))
        for load in loads(scale):
            outcome = await bench.run(load)
            read = read_back(load, outcome)
            report.row("gateway", row_of(load, outcome, read))
            detail = f"{read.wrong} wrong, {read.missing} missing, {outcome.replica.num_dry} dry"
            report.check(f"{load.name}: every token once, in order", not read.wrong and not read.missing, detail)
            report.check(f"{load.name}: text as asked for", bool(read.chars) == load.detokenize, f"{read.chars} chars")
        rows = {str(row["load"]): row for row in report.tables["gateway"]}
        grpc_rate, http_rate = (float(rows[name]["tokens/cpu s"] or 0) for name in SHARED)
        what = f"over HTTP at least {MIN_HTTP:g}x of the tokens for the gateway's processor time"
        report.check(what, http_rate >= MIN_HTTP * grpc_rate, f"{http_rate / grpc_rate:.3f}x")
        grpc_ms, http_ms = (float(rows[name]["ms a token"] or 0) for name in ALONE)
        what = f"over HTTP at most {MAX_ALONE:g}x of the time between tokens of a lone stream"
        report.check(what, http_ms <= MAX_ALONE * grpc_ms, f"{http_ms / grpc_ms:.3f}x")
    finally:
        await bench.stop()
