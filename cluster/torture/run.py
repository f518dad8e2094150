"""One torture from its cluster's start to its end: the answers, the streams, the fires, the quiet, the proof.

`quire torture` and the tests call `torture`. The cluster is its own, in a state folder of its own: nobody else's burns.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.torture.asks import StreamAsk
from cluster.torture.fires import STOPS_S, Fires
from cluster.torture.house import House, held
from cluster.torture.paced import PacedHouse
from cluster.torture.ray_house import SETTINGS, RayHouse
from cluster.torture.report import Verdict
from cluster.torture.streams import Streams

QUIET_S = 30.0


@dataclass(frozen=True, slots=True)
class Torture:
    """What is asked for."""

    seed: int
    minutes: float
    num_streams: int = 32
    num_asks: int = 40
    every_s: float = 5.0
    # Of a Ray that the cluster joins; 1: its own Ray.
    num_nodes: int = 1
    # Of each replica.
    num_ranks: int = 1
    # Tokens are made up at a fixed pace, and there is no Ray: pauses and first tokens are judged too.
    is_paced: bool = False
    stops_s: Sequence[float] = STOPS_S


def torture(wanted: Torture, say: Callable[[str], None]) -> Verdict:
    settings = replace(SETTINGS, tp=wanted.num_ranks)
    house = PacedHouse(say) if wanted.is_paced else RayHouse(settings, wanted.num_nodes, say)
    say(f"computing {wanted.num_asks} answers")
    drawn = house.asks(wanted.seed, wanted.num_asks)
    with house:
        verdict = burn(house, wanted, drawn, say)
    verdict.left += house.left
    return verdict


def burn(house: House, wanted: Torture, drawn: list[StreamAsk], say: Callable[[str], None]) -> Verdict:
    """A house that serves, or is about to."""
    began = time.monotonic()
    streams = Streams(house, drawn, wanted.seed, wanted.num_streams)
    told = lambda what: say(  # noqa: E731
        f"{time.monotonic() - began:6.1f} s  {streams.seen.equal:,} equal, {len(streams.seen.wrong)} wrong, "
        f"{len(streams.seen.lost)} lost: {what}"
    )
    fires = Fires(house, wanted.seed, wanted.every_s, told, wanted.stops_s)
    fires.wait_for_all()
    end = threading.Timer(60 * wanted.minutes, streams.stop)
    end.start()
    fires.start()
    try:
        asyncio.run(streams.run())
    finally:
        # Nothing burns on, and no thread keeps the process, when it is interrupted.
        end.cancel()
        fires.stop()
    left: list[str] = []
    try:
        fires.wait_for_all()
        left = _left(house)
    except AssertionError as error:
        fires.failure = fires.failure or str(error)
    return Verdict(streams.seen, fires.fires, fires.failure, left, wanted.seed, judges_times=wanted.is_paced)


def _left(house: House) -> list[str]:
    """What pools still hold though nobody asks for anything any more; waits a while for it to go."""
    until = time.monotonic() + QUIET_S
    while (found := held(house)) and time.monotonic() < until:
        time.sleep(0.5)
    return found
