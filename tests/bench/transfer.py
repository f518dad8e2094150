"""`python -m tests.bench transfer`: how fast blocks move between two pools, by carrier and block size.

A worker's pool and a real host pool process move scattered blocks through shared memory, the data socket and gRPC, as
in a cluster, with every chunk checked at both ends; memcpy, a plain gRPC byte stream and Ray's object store move the
same bytes in the same run, in turn. What came back is compared byte for byte. Processor seconds are those of both ends.
"""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from cluster.bench.report import BenchHelp, Report
from cluster.links.security import ClusterSecurity
from cluster.messages import Road, Transfer, ids
from cluster.register.asking import AskingSettings
from cluster.register.errand import ErrandSettings
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Carrier, layout_of
from tests.bench.transfer_peers import ByteStream, ObjectStore, Pool, fused, inline, memcpy
from tests.bench.transfer_pool import host_pool, processor_seconds
from worker.transfer.agent import TransferAgent
from worker.transfer.bytes import HostBytes
from worker.transfer.checksum import checksummer
from worker.transfer.copy import Copier, block_rows
from worker.transfer.end import PoolEnd

NAMES = {Carrier.SHARED_MEMORY: "shared memory", Carrier.SOCKET: "data socket", Carrier.STREAM: "gRPC stream"}
MIB = 1 << 20
# At blocks of 1 MiB: a road, what it is held against, by what, and at least how much of it the project asks for. A rate
# needs a machine that does nothing else; processor seconds do not.
GOALS = (
    ("memcpy + CRC fused", "memcpy", "rate", 0.8),
    ("memcpy + CRC inline", "memcpy", "rate", 0.55),
    ("shared memory write", "memcpy", "rate", 0.8),
    ("shared memory read", "memcpy", "rate", 0.8),
    ("shared memory write", "gRPC bytes", "rate", 8.0),
    ("shared memory read", "gRPC bytes", "rate", 8.0),
    ("data socket write", "gRPC bytes", "processor second", 1.5),
    ("data socket read", "gRPC bytes", "processor second", 1.5),
    ("gRPC stream write", "gRPC bytes", "processor second", 1.0),
    ("gRPC stream read", "gRPC bytes", "processor second", 1.0),
    ("shared memory write", "ray.put + ray.get", "rate", None),
    ("shared memory read", "ray.put + ray.get", "rate", None),
)


def main(argv: list[str]) -> int:
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench transfer", description=about, formatter_class=BenchHelp
    )
    parser.add_argument("--blocks", default="16,64,256,1024,4096", help="block sizes in KiB (default: %(default)s)")
    parser.add_argument("--mib", type=int, default=256, help="MiB that each call moves (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each, in turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="most time for a block size (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-ray", action="store_true", help="leave Ray's object store out")
    parser.add_argument("--json", metavar="FILE", help="also write everything to this file")
    parser.add_argument("--steps", action="store_true", help="only: what running sequences lose to swaps")
    options = parser.parse_args(argv)
    report = Report("transfer", argv, command=("python", "-m", "tests.bench"))
    if options.steps:
        from tests.bench.transfer_steps import measure

        report.begins("what running sequences lose to swaps", 30 * options.rounds)
        measure(report, options.rounds)
        return report.finish(options.json)
    report.note(f"checksums: {checksummer().name}")
    stream, store = ByteStream(), None if options.no_ray else _object_store(options.mib * MIB, report)
    try:
        for kib in (int(text) for text in options.blocks.split(",")):
            report.begins(f"blocks of {kib} KiB by every road in turn, at most", options.seconds)
            _measure(report, kib << 10, options, stream, store)
    finally:
        stream.close()
        if store is not None:
            store.close()
    return report.finish(options.json)


def _object_store(size_bytes: int, report: Report) -> ObjectStore | None:
    try:
        return ObjectStore(size_bytes)
    except Exception as error:
        report.note(f"Ray's object store is left out: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return None


def _measure(
    report: Report, block_bytes: int, options: argparse.Namespace, stream: ByteStream, store: ObjectStore | None
) -> None:
    count = max(2, options.mib * MIB // block_bytes)
    rng = np.random.default_rng(options.seed)
    source, target = _pool(2 * count, block_bytes), _pool(2 * count, block_bytes)
    source[:] = rng.integers(0, 256, source.shape, np.uint8)
    mine, theirs = (rng.permutation(2 * count)[:count].astype(np.int32) for _ in range(2))
    with _Ends(source, block_bytes) as ends:
        froms = block_rows(source.ctypes.data, ends.end.layout, mine)
        tos = block_rows(target.ctypes.data, ends.end.layout, theirs)
        calls: dict[str, Callable[[], object]] = {"memcpy": memcpy(tos, froms, block_bytes)}
        calls["memcpy + CRC fused"] = fused(tos, froms, block_bytes)
        calls["memcpy + CRC inline"] = inline(tos, froms, block_bytes)
        for carrier in Carrier:
            for road in (Road.WRITE, Road.READ):
                calls[f"{NAMES[carrier]} {road.name.lower()}"] = ends.call(carrier, road, mine, theirs)
        calls["gRPC bytes"] = stream.run(source[:count])
        if store is not None:
            calls["ray.put + ray.get"] = store.run(target[:count], source[:count])
        timed = _alternate(calls, [os.getpid(), ends.pid, stream.pid], options.rounds, options.seconds)
        _compare(report, block_bytes, ends, source, mine, theirs)
    size = count * block_bytes
    rows = [
        {
            "block KiB": block_bytes >> 10,
            "road": name,
            "GB/s": size / seconds / 1e9,
            "GB per processor second": size / processor / 1e9 if processor else None,
            "of memcpy": timed["memcpy"][0] / seconds,
        }
        for name, (seconds, processor) in timed.items()
    ]
    report.table("blocks from pool to pool", rows)
    if block_bytes == MIB:
        _goals(report, timed)


def _goals(report: Report, timed: Mapping[str, tuple[float, float]]) -> None:
    rows = []
    for name, base, by, goal in GOALS:
        if name not in timed or base not in timed:
            continue
        (seconds, processor), (base_seconds, base_processor) = timed[name], timed[base]
        by_processor = base_processor / processor if processor else None
        ratios = {"rate": base_seconds / seconds, "per processor second": by_processor}
        rows.append({"road": name, "against": base, **ratios, "goal": goal, "goal is by": by if goal else None})
    report.table("ratios at blocks of 1 MiB", rows)


def _alternate(
    calls: Mapping[str, Callable[[], object]], pids: list[int], rounds: int, seconds: float
) -> dict[str, tuple[float, float]]:
    """The median seconds of each call and its processor seconds, over rounds that take all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    processor = dict.fromkeys(calls, 0.0)
    ends_at = time.perf_counter() + seconds
    for number in range(-1, rounds):
        for name, call in calls.items():
            before, began = processor_seconds(pids), time.perf_counter()
            told = call()
            # A transfer says itself how long it took, from its beginning to its answer.
            took = told if isinstance(told, float) else time.perf_counter() - began
            if number >= 0:
                times[name].append(took)
                processor[name] += processor_seconds(pids) - before
        if number >= 1 and time.perf_counter() > ends_at:
            break
    return {name: (median(times[name]), processor[name] / len(times[name])) for name in calls}


def _pool(num_blocks: int, block_bytes: int) -> Pool:
    """Zeroed blocks that begin on 64 bytes, as those of a device pool do; every page is there."""
    raw = np.zeros(num_blocks * block_bytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    pool: Pool = raw[begin : begin + num_blocks * block_bytes].reshape(num_blocks, block_bytes)
    pool[:] = 1
    return pool


def _compare(report: Report, block_bytes: int, ends: _Ends, source: Pool, mine: np.ndarray, theirs: np.ndarray) -> None:
    """Each carrier takes blocks out and back, and they are what they were."""
    wanted = source.copy()
    for carrier in Carrier:
        ends.call(carrier, Road.WRITE, mine, theirs)()
        source[mine] = 0
        ends.call(carrier, Road.READ, mine, theirs)()
        same = bool(np.array_equal(source, wanted))
        report.check(f"{block_bytes >> 10} KiB by {NAMES[carrier]}", same, "bytes came back changed")
    ends.end.check()


class _Ends:
    """A worker's pool in `source`, and a host pool process that it moves blocks to and from."""

    def __init__(self, source: Pool, block_bytes: int) -> None:
        self._source = source
        self._secret = secrets.token_hex(16)
        self._block_bytes = block_bytes
        layout = layout_of("bench", block_bytes)
        register = Register(layout, len(source), 1, RegisterSettings(remember_s=5.0), own_content=True)
        held = HostBytes(layout, len(source), source.ctypes.data, Copier(), keep=source)
        self.end = PoolEnd("worker", register, held)
        self._number = 0

    def __enter__(self) -> _Ends:
        self._starting = host_pool(len(self._source), self._block_bytes, self._secret)
        self.pid, told = self._starting.__enter__()
        self._incarnation = int(str(told["incarnation"]))
        security, addresses = ClusterSecurity(self._secret), {"host": str(told["address"])}
        self._agents = {
            carrier: TransferAgent(
                self.end, addresses, security, AskingSettings(errand=ErrandSettings(carriers=(carrier,)))
            )
            for carrier in Carrier
        }
        return self

    def __exit__(self, *problem: object) -> None:
        for agent in self._agents.values():
            agent.close()
        self._starting.__exit__(None, None, None)

    def call(self, carrier: Carrier, road: Road, mine: np.ndarray, theirs: np.ndarray) -> Callable[[], float]:
        """One whole transfer; its seconds."""
        agent, here, there = self._agents[carrier], ids(mine.tolist()), ids(theirs.tolist())

        def run() -> float:
            self._number += 1
            agent.submit(Transfer(self._number, road, "host", self._incarnation, here, there, 60.0), 1)
            while not (answers := agent.take_answers()):
                time.sleep(0.002)
            assert answers[0].ok, answers[0].detail
            return answers[0].seconds

        return run
