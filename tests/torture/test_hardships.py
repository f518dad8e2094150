"""What a machine does to a cluster's processes: they stand still for half a minute, and have no descriptors left.

Without Ray and model: tokens are made up, so that every answer is known and stopping somebody costs nobody a processor.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.torture.fires import Fires
from cluster.torture.house import held
from cluster.torture.paced import PacedHouse
from cluster.torture.streams import Streams

pytestmark = [pytest.mark.trust, pytest.mark.timeout(900)]
KINDS = ("worker", "gateway", "scheduler")


@pytest.fixture(scope="module")
def burning() -> Iterator[PacedHouse]:
    with PacedHouse(print) as house:
        wait_for_all(house)
        yield house


def wait_for_all(house: PacedHouse) -> None:
    Fires(house, 1, 1.0, print).wait_for_all()


def streams_while(house: PacedHouse, what: Callable[[int], None]) -> None:
    """All streams that run while each kind has it hard are what they must be, and everybody is there afterwards."""
    streams = Streams(house, house.asks(3, 20), 3, 8)

    async def run() -> None:
        reading = asyncio.create_task(streams.run())
        for kind in KINDS:
            await asyncio.sleep(3.0)
            print(f"{kind}: {streams.seen.equal} equal, {len(streams.seen.lost)} lost")
            await asyncio.to_thread(what, house.pids(kind)[0])
            await asyncio.to_thread(wait_for_all, house)
        await asyncio.sleep(3.0)
        streams.stop()
        await reading

    asyncio.run(run())
    wait_for_all(house)
    until = time.monotonic() + 60
    while (left := held(house)) and time.monotonic() < until:
        time.sleep(0.5)
    seen = streams.seen
    print(f"{seen.equal} equal, longest pauses {sorted(round(pause.seconds, 1) for pause in seen.pauses)[-5:]}")
    assert seen.equal and not [*seen.wrong, *seen.lost, *left], "\n".join([*seen.wrong, *seen.lost, *left])


def test_each_stands_still_for_half_a_minute(burning: PacedHouse) -> None:
    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(30.0)
        # It was given up, and ends when it hears of that; nobody but us starts another in its place.
        os.kill(pid, signal.SIGCONT)

    streams_while(burning, stop)


def test_each_has_no_descriptors_left_for_a_while(burning: PacedHouse) -> None:
    """Who comes meanwhile waits, or is told; nobody ends for it."""
    ended: list[int] = []

    def starve(pid: int) -> None:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(entry.name) for entry in (Path("/proc") / str(pid) / "fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, hard))
        time.sleep(10.0)
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        except ProcessLookupError:
            ended.append(pid)

    streams_while(burning, starve)
    assert not ended
