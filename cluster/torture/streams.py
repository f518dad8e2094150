"""The streams of a torture: always so many at once, each compared with what must come, each with its longest pause.

Of four readers two know all gateways, one knows the first alone, and one speaks HTTP and goes elsewhere by itself at
times.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

from cluster.client.asynchronous import AsyncClient
from cluster.client.request import Options
from cluster.errors import QuireError
from cluster.torture import over_http
from cluster.torture.asks import StreamAsk
from cluster.torture.house import House

TIMEOUT_S, GRACE_S = 120.0, 30.0


@dataclass(slots=True)
class Pause:
    """The longest time that a stream said nothing, and when that began."""

    kind: str
    began: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Seen:
    """What has come of all streams so far. Times are `time.monotonic`."""

    equal: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    num_tokens: int = 0
    first_tokens: list[tuple[float, float]] = field(default_factory=list)  # when asked, seconds until the first token

    @property
    def num_ended(self) -> int:
        return self.equal + len(self.wrong) + len(self.lost)


class Streams:
    """So many readers, each of which asks one thing after another until it is told to stop."""

    def __init__(self, house: House, asks: Sequence[StreamAsk], seed: int, num: int) -> None:
        self.seen = Seen()
        self._house = house
        self._gateways = list(house.gateways)
        self._http = list(house.http)
        self._asks = asks
        self._seed = seed
        self._num = num
        self._is_over = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for reader in range(self._num):
                group.create_task(self._read_on(reader))

    def stop(self) -> None:
        """What runs is read to its end."""
        self._is_over = True

    async def _read_on(self, reader: int) -> None:
        random = Random(f"reader/{self._seed}/{reader}")
        speaks_http = reader % 4 == 3 and bool(self._http)
        known = self._gateways[:1] if reader % 4 == 2 else self._gateways
        async with AsyncClient(known, token=self._house.token, tls=self._house.tls) as client:
            while not self._is_over:
                ask = random.choice(self._asks)
                if speaks_http:
                    news = over_http.stream(self._http, ask.prompt, ask.params, random, leaves=True)
                else:
                    news = _over_grpc(client, ask)
                how = "HTTP" if speaks_http else f"gRPC, {len(known)} known"
                await self._read(news, ask, f"reader {reader} ({how}), stream {self.seen.num_ended}")

    async def _read(self, coming: AsyncGenerator[tuple[int, list[int], int], None], ask: StreamAsk, name: str) -> None:
        seen, asked = self.seen, time.monotonic()
        outputs: list[list[int]] = [[] for _ in ask.answer]
        last, pause, num_logprobs = asked, Pause(ask.kind), 0
        try:
            async with aclosing(coming) as news:
                async for index, token_ids, logprobs in news:
                    now = time.monotonic()
                    if not any(outputs) and token_ids:
                        seen.first_tokens.append((asked, now - asked))
                    elif now - last > pause.seconds:
                        pause.began, pause.seconds = last, now - last
                    last = now
                    outputs[index] += token_ids
                    num_logprobs += logprobs
        except (QuireError, over_http.LostStreamError) as error:
            seen.lost.append(f"{name} ({ask.kind}, {sum(map(len, outputs))} tokens came): {error}")
            # A cluster that refuses everybody is not asked a thousand times a second.
            await asyncio.sleep(0.2)
            return
        num_tokens = sum(map(len, outputs))
        seen.num_tokens += num_tokens
        seen.pauses.append(pause)
        if [tuple(output) for output in outputs] != list(ask.answer):
            seen.wrong.append(f"{name} ({ask.kind}, {ask.prompt!r}): {_difference(outputs, ask.answer)}")
        elif ask.params.logprobs is not None and num_logprobs != num_tokens:
            seen.wrong.append(f"{name} ({ask.kind}): {num_logprobs} logprobs of {num_tokens} tokens")
        else:
            seen.equal += 1
            seen.by_kind[ask.kind] += 1


async def _over_grpc(client: AsyncClient, ask: StreamAsk) -> AsyncGenerator[tuple[int, list[int], int], None]:
    options = Options(model="demo", timeout_s=TIMEOUT_S, resume_grace_s=GRACE_S)
    async with aclosing(client.stream(ask.prompt, ask.params, options)) as stream:
        async for news in stream:
            yield news.index, news.token_ids, len(news.logprobs or ())


def _difference(outputs: Sequence[Sequence[int]], answer: Sequence[Sequence[int]]) -> str:
    for index, (got, wanted) in enumerate(zip(outputs, answer, strict=True)):
        for at, (one, other) in enumerate(zip(got, wanted, strict=False)):
            if one != other:
                return (
                    f"sequence {index} differs at token {at}: {list(got[at : at + 4])}, not {list(wanted[at : at + 4])}"
                )
        if len(got) != len(wanted):
            return f"sequence {index} has {len(got)} tokens, not {len(wanted)}"
    return "nothing"
