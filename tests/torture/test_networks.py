"""Streams while the network between a cluster's processes is slow, loses, is cut, in one direction too, and comes back.

Scheduler, gateways and workers have a network namespace each, and speak TLS; their cables end in a switch of ours.
Tokens are made up, so that every answer is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from cluster.client.asynchronous import AsyncClient
from cluster.client.request import Options
from cluster.torture.asks import StreamAsk
from cluster.torture.fires import Fires
from cluster.torture.house import held
from cluster.torture.paced import GATEWAYS, WORKERS, PacedHouse
from cluster.torture.streams import Streams
from tests.cluster.networks import identity
from tests.torture.cables import HERE, Cables, cables

PLACES = ("scheduler", *GATEWAYS, *WORKERS)
pytestmark = [pytest.mark.trust, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def burning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PacedHouse, Cables]]:
    with (
        cables(*PLACES) as laid,
        PacedHouse(print, laid.networks, identity(tmp_path_factory.mktemp("tls"))) as house,
    ):
        Fires(house, 1, 1.0, print).wait_for_all()
        yield house, laid


def outcome(house: PacedHouse, streams: Streams) -> str:
    """Empty: all is as it should be, and all are there again."""
    Fires(house, 1, 1.0, print).wait_for_all()
    until = time.monotonic() + 60
    while (left := held(house)) and time.monotonic() < until:
        time.sleep(0.5)
    seen = streams.seen
    print(
        f"{seen.equal} equal, {seen.num_tokens:,} tokens, longest pauses {sorted(p.seconds for p in seen.pauses)[-5:]}"
    )
    return "\n".join([*seen.wrong, *seen.lost, *left, *([] if seen.equal else ["nothing came"])])


async def tokens(house: PacedHouse, gateway: str, ask: StreamAsk) -> list[list[int]]:
    outputs: list[list[int]] = [[] for _ in ask.answer]
    async with AsyncClient(gateway, token=house.token, tls=house.tls) as client:
        options = Options(model="demo", timeout_s=100.0)
        async for news in client.stream(ask.prompt, ask.params, options):
            outputs[news.index] += news.token_ids
    return outputs


def test_a_gateway_that_cannot_reach_one_worker_is_told_its_tokens_all_the_same(
    burning: tuple[PacedHouse, Cables],
) -> None:
    """The way stays cut until all have come: nobody waits for it."""
    house, laid = burning
    asks = house.asks(1, 12)

    async def run() -> list[list[list[int]]]:
        asking = [asyncio.create_task(tokens(house, house.gateways[0], ask)) for ask in asks[:6]]
        await asyncio.sleep(1.0)
        laid.rule("gateway-0", "worker-0", loss=1.0)
        asking += [asyncio.create_task(tokens(house, house.gateways[0], ask)) for ask in asks[6:]]
        return await asyncio.gather(*asking)

    try:
        answers = asyncio.run(run())
    finally:
        laid.rule("gateway-0", "worker-0")
    assert answers == [[list(output) for output in ask.answer] for ask in asks]


# What befalls the network, and for how many seconds; longer than every silence is 12.
WEATHERS = {
    "a worker and a gateway are cut off from each other": (("worker-1",), ("gateway-0",), 1.0, True, 12.0),
    "a worker hears the scheduler and is not heard": (("worker-0",), ("scheduler",), 1.0, False, 12.0),
    "a worker is heard and does not hear": (("scheduler",), ("worker-1",), 1.0, False, 12.0),
    "a gateway hears the scheduler and is not heard": (("gateway-0",), ("scheduler",), 1.0, False, 12.0),
    "a gateway is heard and does not hear": (("scheduler",), ("gateway-1",), 1.0, False, 12.0),
    "the scheduler is cut off": (("scheduler",), (*GATEWAYS, *WORKERS), 1.0, True, 12.0),
    "a worker is cut off": (("worker-0",), ("scheduler", *GATEWAYS), 1.0, True, 12.0),
    "a gateway is cut off from all within": (("gateway-1",), ("scheduler", *WORKERS), 1.0, True, 12.0),
    "all lose a tenth": (PLACES, PLACES, 0.1, True, 8.0),
    "clients lose a tenth": ((HERE,), GATEWAYS, 0.1, True, 8.0),
    "short cuts": (("scheduler",), (*GATEWAYS, *WORKERS), 1.0, True, 1.0),
}


def test_streams_outlive_what_befalls_the_network(burning: tuple[PacedHouse, Cables]) -> None:
    house, laid = burning
    streams = Streams(house, house.asks(2, 20), 2, 8)

    async def run() -> None:
        reading = asyncio.create_task(streams.run())
        for name, (ones, others, loss, both, seconds) in WEATHERS.items():
            print(f"{name}: {streams.seen.equal} equal, {len(streams.seen.lost)} lost")
            for one in ones:
                for other in others:
                    if one != other:
                        laid.rule(one, other, delay_s=0.05 if loss < 1 else 0.0, loss=loss, both=both)
            await asyncio.sleep(seconds)
            for one in (HERE, *PLACES):
                for other in (HERE, *PLACES):
                    laid.rule(one, other, delay_s=0.02 if one != HERE and other != HERE else 0.0)
            await asyncio.sleep(8.0)
        streams.stop()
        await reading

    asyncio.run(run())
    assert not outcome(house, streams), outcome(house, streams)
