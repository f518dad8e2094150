"""One client process of `quire bench serve`: sends its share of the load and notes when tokens come.

Started by the benchmark with what it shall send on its standard input; tells its progress and at the end its records as
JSON lines. All its requests go over one GenerateMany stream, or each over a call of its own; either way tokens are only
counted and timed, so that few such processes can saturate a server.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc.aio

from cluster.bench.serve_load import LoadShape, Shot, shots
from cluster.client.connection import Connection, Tls
from cluster.client.errors import error_from_call, error_from_status
from cluster.client.request import Options, generate_message
from cluster.errors import QuireError
from cluster.sampling import SamplingParams
from protos.quire.v1 import inference_pb2 as pb

TELL_EVERY_S = 0.25
REQUEST_S = 300.0


class ShotRecord:
    """What came of one shot. Times are seconds after the start of the run."""

    __slots__ = ("cached", "due", "end", "error", "first", "gaps", "last", "num_prompt", "num_tokens", "number", "sent")

    def __init__(self, shot: Shot, due: float) -> None:
        self.number, self.due, self.num_prompt = shot.number, due, len(shot.prompt)
        self.sent = self.first = self.last = self.end = -1.0
        self.num_tokens = self.cached = 0
        # Seconds and how many tokens shared them.
        self.gaps: list[tuple[float, int]] = []
        self.error = ""

    def tokens(self, count: int, now: float) -> None:
        """So many came together. Those that came with the first share its time, and make no gap."""
        if self.first < 0:
            self.first = now
        else:
            self.gaps.append(((now - self.last) / count, count))
        self.num_tokens += count
        self.last = now

    def plain(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Shooter:
    """Runs the shots of one process."""

    def __init__(self, about: dict[str, Any]) -> None:
        shape = LoadShape(**about["shape"])
        share, of = about["share"], about["of"]
        every = shots(shape, about["count"], about["vocabulary"])
        self._shots = [shot for shot in every if shot.number % of == share]
        self._lanes: int = about["lanes"]
        self._seconds: float | None = about["seconds"]
        self._is_single: bool = about["single"]
        self._model: str = about["model"]
        self._start: float = about["start"]
        tls = None if about["authority"] is None else Tls(about["authority"])
        self._connection = Connection(about["address"], about["token"], tls)
        self.records: list[ShotRecord] = []
        self._open: dict[int, tuple[ShotRecord, asyncio.Event]] = {}
        self.num_done = self.num_tokens = 0
        self.cpu_s = 0.0

    def now(self) -> float:
        return time.monotonic() - self._start

    async def run(self) -> None:
        await asyncio.sleep(max(0.0, -self.now()))
        began = time.process_time()
        send, close = await self._opened()
        try:
            if self._lanes:
                waiting = iter(self._shots)
                await asyncio.gather(*(self._lane(waiting, send) for _ in range(self._lanes)))
            else:
                await self._on_time(send)
        finally:
            await close()
            self.cpu_s = time.process_time() - began
            await self._connection.close()

    @property
    def _is_over(self) -> bool:
        return self._seconds is not None and self.now() > self._seconds

    async def _lane(self, waiting: Any, send: Callable[[ShotRecord, pb.GenerateRequest], Any]) -> None:
        for shot in waiting:
            if self._is_over:
                return
            await self._shoot(shot, self.now(), send)

    async def _on_time(self, send: Callable[[ShotRecord, pb.GenerateRequest], Any]) -> None:
        tasks = []
        for shot in self._shots:
            if self._seconds is not None and shot.at > self._seconds:
                break
            await asyncio.sleep(max(0.0, shot.at - self.now()))
            tasks.append(asyncio.create_task(self._shoot(shot, shot.at, send)))
        await asyncio.gather(*tasks)

    async def _shoot(self, shot: Shot, due: float, send: Callable[[ShotRecord, pb.GenerateRequest], Any]) -> None:
        record = ShotRecord(shot, due)
        self.records.append(record)
        params = SamplingParams(max_tokens=shot.num_output, ignore_eos=True, seed=shot.number)
        options = Options(model=self._model, resume_grace_s=0.0)
        message = generate_message(list(shot.prompt), params, options)
        record.sent = self.now()
        try:
            async with asyncio.timeout(REQUEST_S):
                await send(record, message)
        except QuireError as error:
            record.error = str(error)
        except TimeoutError:
            record.error = f"it had not ended after {REQUEST_S:g} s"
        record.end = self.now()
        self.num_done += 1

    # -- the two ways to send

    async def _opened(self) -> tuple[Callable[[ShotRecord, pb.GenerateRequest], Any], Callable[[], Any]]:
        if self._is_single:
            return self._generate, self._nothing
        call = self._connection.stub().GenerateMany(None, metadata=self._connection.metadata)
        reader = asyncio.create_task(self._read(call))

        # A stream takes one message at a time.
        turn = asyncio.Lock()

        async def send(record: ShotRecord, message: pb.GenerateRequest) -> None:
            done = asyncio.Event()
            async with turn:
                if reader.done():
                    raise QuireError("the stream to the gateway is broken")
                self._open[record.number] = (record, done)
                try:
                    await call.write(pb.GenerateManyRequest(tag=record.number, generate=message))
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError) as error:
                    raise QuireError("the stream to the gateway is broken") from error
            await done.wait()

        async def close() -> None:
            call.cancel()
            await asyncio.gather(reader, return_exceptions=True)

        return send, close

    async def _nothing(self) -> None:
        return

    async def _generate(self, record: ShotRecord, message: pb.GenerateRequest) -> None:
        try:
            async for response in self._connection.stub().Generate(message, metadata=self._connection.metadata):
                self._take(record, response, self.now())
        except grpc.aio.AioRpcError as failure:
            raise error_from_call(failure) from failure

    async def _read(self, call: Any) -> None:
        try:
            async for message in call:
                now = self.now()
                for response in message.responses:
                    record, done = self._open.get(response.tag, (None, None))
                    if record is not None and done is not None and self._take(record, response, now):
                        del self._open[response.tag]
                        done.set()
            error: QuireError = QuireError("the gateway ended the stream")
        except grpc.aio.AioRpcError as failure:
            error = error_from_call(failure)
        for record, done in self._open.values():
            record.error = str(error)
            done.set()

    def _take(self, record: ShotRecord, response: pb.GenerateResponse, now: float) -> bool:
        """True: the request is over."""
        kind = response.WhichOneof("event")
        if kind == "tokens" and response.tokens.ids:
            record.tokens(len(response.tokens.ids), now)
            self.num_tokens += len(response.tokens.ids)
        elif kind == "failed":
            record.error = str(error_from_status(response.failed))
            return True
        elif kind == "done":
            record.cached = response.done.cached_tokens
            return True
        return False


async def main() -> None:
    shooter = Shooter(json.loads(sys.stdin.readline()))
    running = asyncio.create_task(shooter.run())
    while not running.done():
        await asyncio.wait([running], timeout=TELL_EVERY_S)
        print(json.dumps({"done": shooter.num_done, "tokens": shooter.num_tokens}), flush=True)
    running.result()
    records = [record.plain() for record in shooter.records]
    print(json.dumps({"records": records, "cpu_s": shooter.cpu_s, "wall_s": shooter.now()}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
