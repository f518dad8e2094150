"""The streams of a torture: always so many at once, each compared with what must come, each with its longest pause."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from cluster.client.asynchronous import AsyncClient
from cluster.errors import QuireError
from cluster.torture.asks import Ask

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

    def __init__(self, gateways: Sequence[str], asks: Sequence[Ask], seed: int, num: int) -> None:
        self.seen = Seen()
        self._gateways = list(gateways)
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
        async with AsyncClient(self._gateways) as client:
            while not self._is_over:
                await self._read(client, random.choice(self._asks), f"reader {reader}, stream {self.seen.num_ended}")

    async def _read(self, client: AsyncClient, ask: Ask, name: str) -> None:
        seen, asked = self.seen, time.monotonic()
        outputs: list[list[int]] = [[] for _ in ask.answer]
        last, pause = asked, Pause(ask.kind)
        num_logprobs = 0
        try:
            async for news in client.stream(
                ask.prompt, ask.params, model="demo", timeout_s=TIMEOUT_S, resume_grace_s=GRACE_S
            ):
                now = time.monotonic()
                if not any(outputs) and news.token_ids:
                    seen.first_tokens.append((asked, now - asked))
                elif now - last > pause.seconds:
                    pause.began, pause.seconds = last, now - last
                last = now
                outputs[news.index] += news.token_ids
                num_logprobs += len(news.logprobs or ())
        except QuireError as error:
            seen.lost.append(f"{name} ({ask.kind}, {sum(map(len, outputs))} tokens came): {error}")
            # A cluster that refuses everybody is not asked a thousand times a second.
            await asyncio.sleep(0.2)
            return
        seen.num_tokens += sum(map(len, outputs))
        seen.pauses.append(pause)
        if [tuple(output) for output in outputs] == list(ask.answer):
            seen.equal += 1
            seen.by_kind[ask.kind] += 1
        else:
            seen.wrong.append(f"{name} ({ask.kind}, {ask.prompt!r}): {_difference(outputs, ask.answer)}")


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
