"""One torture from its cluster's start to its end: the answers, the streams, the fires, the quiet, the proof.

`quire torture` and the tests call `torture`. The cluster is its own, in a state folder of its own: nobody else's burns.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.lifecycle import launch
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from cluster.torture.asks import Ask, asks
from cluster.torture.fires import Fires
from cluster.torture.report import Verdict
from cluster.torture.streams import Streams
from protos.quire.v1 import admin_pb2 as pb
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

QUIET_S = 30.0
SETTINGS = ClusterSettings(
    workers=2,
    gateways=2,
    dtype="float32",
    device="cpu",
    kv_blocks=512,
    host_memory="64MiB",
    cpus_per_worker=0.5,
    max_batch=32,
    port=0,
    admin_port=0,
    metrics_port=0,
)


@dataclass(frozen=True, slots=True)
class Torture:
    """What is asked for. `one_gateway`: clients are told the first gateway's address only."""

    seed: int
    minutes: float
    num_streams: int = 32
    num_asks: int = 40
    every_s: float = 5.0
    one_gateway: bool = False
    settings: ClusterSettings = SETTINGS


def torture(wanted: Torture, say: Callable[[str], None]) -> Verdict:
    say(f"computing {wanted.num_asks} answers with the embedded engine")
    drawn = asks(wanted.seed, wanted.num_asks)
    with tempfile.TemporaryDirectory(prefix="quire-torture-") as home, _home(Path(home)):
        running = launch.up(wanted.settings, say)
        left: list[str] = []
        try:
            verdict = _burn(wanted, running, drawn, say)
        finally:
            left = launch.down(say)
    verdict.left += left
    return verdict


def _burn(wanted: Torture, running: Running, drawn: list[Ask], say: Callable[[str], None]) -> Verdict:
    gateways = running.gateways[:1] if wanted.one_gateway else running.gateways
    streams = Streams(gateways, drawn, wanted.seed, wanted.num_streams)
    began = time.monotonic()
    told = lambda what: say(  # noqa: E731
        f"{time.monotonic() - began:6.1f} s  {streams.seen.equal:,} equal, {len(streams.seen.wrong)} wrong, "
        f"{len(streams.seen.lost)} lost: {what}"
    )
    fires = Fires(running, wanted.seed, wanted.every_s, told)
    threading.Timer(60 * wanted.minutes, streams.stop).start()
    fires.start()
    asyncio.run(streams.run())
    fires.stop()
    left: list[str] = []
    try:
        fires.wait_for_all()
        left = _held(running)
    except AssertionError as error:
        fires.failure = fires.failure or str(error)
    return Verdict(streams.seen, fires.fires, fires.failure, left, wanted.seed)


def _held(running: Running) -> list[str]:
    """What pools still hold though nobody asks for anything any more; waits a while for it to go."""
    until = time.monotonic() + QUIET_S
    while True:
        with running.admin_channel() as channel:
            pools = AdminServiceStub(channel).ListPools(pb.ListPoolsRequest(), timeout=5).pools
        held = [
            f"{pool.name}: {pool.num_held} held, {pool.num_moving} moving, {pool.num_quarantined} quarantined"
            for pool in pools
            if pool.num_free + pool.num_cached != pool.num_blocks
        ]
        if not held or time.monotonic() > until:
            return held
        time.sleep(0.5)


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ.get("QUIRE_HOME")
    os.environ["QUIRE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["QUIRE_HOME"]
        else:
            os.environ["QUIRE_HOME"] = before
