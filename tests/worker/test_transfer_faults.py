"""Transfers over connections that drop, corrupt, truncate, double and reorder 5 % each, and no byte is ever wrong.

A short version runs every day; the figures that are promised (a million chunks of 4 KiB, 2,000 of 1 MiB) with --trust.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cluster.messages import Road
from cluster.register.states import Carrier
from tests.worker.transfer_faults import FAULTS, StreamFaults
from tests.worker.transfer_parts import ROOT, PoolProcess, WorkerPool, host_pool, num_descriptors, order, run, wait

RATE = 0.05
LONG = [pytest.mark.trust, pytest.mark.timeout(1800)]
KIB, MIB = 1 << 10, 1 << 20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@contextmanager
def bad_connection(
    folder: Path, num_blocks: int, block_bytes: int, seed: int
) -> Iterator[tuple[PoolProcess, Counter[str]]]:
    """A pool whose data socket can only be reached through the faults. What they did is known at the end."""
    direct, told, done = free_port(), free_port(), Counter[str]()
    ports = ("--data-port", str(direct), "--advertised-data-port", str(told))
    command = [sys.executable, "-m", "tests.worker.transfer_faults", "--listen", str(told), "--to", str(direct)]
    command += ["--rate", str(RATE), "--seed", str(seed)]
    with host_pool(folder, num_blocks, block_bytes, *ports) as pool:
        between = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert between.stdout is not None
            assert between.stdout.readline() == "ready\n"
            yield pool, done
            done.update(json.loads(between.communicate(timeout=30)[0]))
        finally:
            between.kill()
            between.communicate(timeout=10)


def swap(pool: PoolProcess, worker: WorkerPool, carrier: Carrier, address: str, rounds: int, seed: int) -> Counter[str]:
    """Writes the whole pool and reads it back over the bad connection; what it holds is checked over a good one."""
    bad = worker.agent({pool.name: address}, carrier)
    good = worker.agent({pool.name: pool.address}, Carrier.SHARED_MEMORY)
    rng, outcomes, count = np.random.default_rng(seed), Counter[str](), worker.num_blocks
    try:
        for number in range(rounds):
            worker.fill(seed + number)
            wanted = worker.blocks.copy()
            theirs = rng.permutation(count).tolist()
            first = 10 * number + 1
            for road, attempts in ((Road.WRITE, range(4)), (Road.READ, range(4, 8))):
                for attempt in attempts:
                    ordered = order(first + attempt, road, pool, range(count), theirs, timeout_s=600.0)
                    answer = run(bad, ordered)
                    outcomes[f"{road.name} {answer.ok}"] += 1
                    if answer.ok:
                        break
                else:
                    pytest.fail(f"{road.name} never came through: {answer.detail}; seed {seed}")
                if road is Road.WRITE:
                    worker.blocks[:] = 0
                    assert run(good, order(first + 8, Road.READ, pool, range(count), theirs)).ok
                assert np.array_equal(worker.blocks, wanted), f"wrong bytes after {road.name}, seed {seed}"
                if road is Road.WRITE:
                    worker.blocks[:] = 0
            worker.end.check()
    finally:
        bad.close()
        good.close()
    return outcomes


@pytest.mark.parametrize(
    ("num_blocks", "block_bytes", "rounds"),
    [
        pytest.param(2048, 4 * KIB, 2, id="4KiB-short"),
        pytest.param(32, MIB, 2, id="1MiB-short"),
        pytest.param(65_536, 4 * KIB, 8, id="4KiB-million", marks=LONG),
        pytest.param(250, MIB, 4, id="1MiB-2000", marks=LONG),
    ],
)
def test_data_socket(num_blocks: int, block_bytes: int, rounds: int, tmp_path: Path, seed: int) -> None:
    """`rounds` times the pool out and back: 2 * rounds * num_blocks chunks that must arrive."""
    descriptors = num_descriptors()
    with bad_connection(tmp_path, num_blocks, block_bytes, seed) as (pool, done):
        worker = WorkerPool(num_blocks, block_bytes, seed)
        outcomes = swap(pool, worker, Carrier.SOCKET, pool.address, rounds, seed)
        refused = Counter(pool.shown()["refused"]) + Counter({why.value: n for why, n in worker.end.refused.items()})
        assert not pool.quarantined() and len(pool.committed()) == num_blocks
    print(f"frames: {dict(done)}, refused: {dict(refused)}, outcomes: {dict(outcomes)}")
    frames, chunks = sum(done.values()), 2 * rounds * num_blocks
    assert frames > chunks
    for fault in FAULTS:
        assert done[fault] > 0.8 * RATE * frames - 10, f"the connection was too good: {done}"
    # Every kind was met and refused by name. A doubled frame may be one that does not matter.
    assert refused["corrupt"] + refused["truncated"] > 0.5 * RATE * chunks
    assert refused["doubled"] > 0.5 * RATE * chunks
    assert refused["truncated"] > 0.2 * RATE * chunks
    wait(lambda: num_descriptors() <= descriptors + 1, "descriptors are closed")


@pytest.mark.parametrize(
    ("num_blocks", "rounds"),
    [pytest.param(32, 2, id="1MiB-short"), pytest.param(250, 4, id="1MiB-2000", marks=LONG)],
)
def test_grpc_streams(num_blocks: int, rounds: int, tmp_path: Path, seed: int) -> None:
    direct, told = free_port(), free_port()
    faults = StreamFaults(told, f"127.0.0.1:{direct}", RATE, seed)
    with host_pool(tmp_path, num_blocks, MIB, "--port", str(direct), "--advertised-port", str(told)) as pool:
        worker = WorkerPool(num_blocks, MIB, seed)
        outcomes = swap(pool, worker, Carrier.STREAM, pool.address, rounds, seed)
        refused = Counter(pool.shown()["refused"]) + Counter({w.value: n for w, n in worker.end.refused.items()})
        assert not pool.quarantined() and len(pool.committed()) == num_blocks
    faults.close()
    print(f"messages: {dict(faults.done)}, refused: {dict(refused)}, outcomes: {dict(outcomes)}")
    messages = sum(faults.done.values())
    assert messages > 2 * rounds * num_blocks
    for fault in FAULTS:
        assert faults.done[fault] > 0.5 * RATE * messages - 4, f"the connection was too good: {faults.done}"
    assert refused["doubled"] > 0 and refused["corrupt"] + refused["truncated"] > 0


def test_a_killed_pool_behind_a_bad_connection_ends_the_order(tmp_path: Path, seed: int) -> None:
    with bad_connection(tmp_path, 2048, 4 * KIB, seed) as (pool, _):
        worker = WorkerPool(2048, 4 * KIB, seed)
        agent = worker.agent({pool.name: pool.address}, Carrier.SOCKET)
        agent.submit(order(1, Road.WRITE, pool, range(2048), range(2048), timeout_s=10.0), 1)
        wait(lambda: agent.under_way() == (1,), "begun")
        os.kill(pool.pid, signal.SIGKILL)
        wait(lambda: agent.under_way() == (), "answered", 20)
        worker.end.check()
        agent.close()
