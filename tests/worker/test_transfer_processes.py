"""Peers killed and stopped in every state of a transfer: real processes, real signals, no wrong byte committed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cluster.messages import Road
from cluster.register.states import Carrier, TransferPhase
from tests.worker.transfer_child import content
from tests.worker.transfer_parts import (
    ROOT,
    PoolProcess,
    WorkerPool,
    answers,
    host_pool,
    num_descriptors,
    order,
    resident_bytes,
    run,
    wait,
)

BLOCK_BYTES = 1 << 16
# How far a worker goes before it is killed or stopped, and how its transfer must end.
STATES = {
    "reserved": ([], "ABORTED"),
    "half copied": (["copy 2"], "ABORTED"),
    "copied": (["copy 4"], "ABORTED"),
    "half checked": (["copy 4", "sums 2"], "ABORTED"),
    "committed": (["copy 4", "sums 4"], "COMMITTED"),
}


class Child:
    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.worker.transfer_child", *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.heard() == "ready"

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def do(self, line: str) -> None:
        self.tell(line)
        assert self.heard() == line.split(maxsplit=1)[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str]:
        """Closes its input; its exit code and last words."""
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest


@contextmanager
def child(*arguments: object) -> Iterator[Child]:
    made = Child(*arguments)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolProcess]:
    with host_pool(tmp_path_factory.mktemp("pool"), 32, BLOCK_BYTES) as started:
        yield started


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Transfers and lives of this module: each higher than the one before."""
    return iter(range(1, 1_000_000))


def read(pool: PoolProcess, number: int, blocks: list[int]) -> "np.ndarray":
    """What the pool holds, by a worker that checks it on the way."""
    worker = WorkerPool(len(blocks), BLOCK_BYTES, 0, name=f"reader-{number}")
    agent = worker.agent({pool.name: pool.address})
    answer = run(agent, order(number, Road.READ, pool, range(len(blocks)), blocks))
    agent.close()
    assert answer.ok, answer.detail
    return worker.blocks


def overwrite(pool: PoolProcess, number: int, blocks: list[int]) -> tuple[bool, str]:
    """Another worker writes to the same blocks."""
    worker = WorkerPool(len(blocks), BLOCK_BYTES, number, name=f"writer-{number}")
    for place, block in enumerate(blocks):
        worker.blocks[place] = content(number, block, BLOCK_BYTES)
    agent = worker.agent({pool.name: pool.address})
    answer = run(agent, order(number, Road.WRITE, pool, range(len(blocks)), blocks, timeout_s=10.0))
    agent.close()
    return answer.ok, answer.detail


@pytest.mark.parametrize("state", STATES)
def test_a_killed_worker_leaves_nothing_half_written(state: str, pool: PoolProcess, numbers: Iterator[int]) -> None:
    transfer, blocks = next(numbers), [1, 3, 5, 7]
    todo, outcome = STATES[state]
    with child("steps", pool.address, BLOCK_BYTES, "victim", transfer) as victim:
        victim.do(f"reserve {transfer} 60 1 3 5 7")
        for line in todo:
            victim.do(line)
        before = pool.phases()[transfer, 0]
        assert before in ("RESERVED", "COPYING", "COMMITTED")
        victim.signal(signal.SIGKILL)
        wait(lambda: pool.phases()[transfer, 0] == outcome, f"{state} ends as {outcome}", 5)
    wait(lambda: pool.quarantined() == [], "a dead process cannot write", 5)
    if outcome == "COMMITTED":
        held = read(pool, next(numbers), blocks)
        assert all(np.array_equal(held[i], content(transfer, block, BLOCK_BYTES)) for i, block in enumerate(blocks))
    else:
        assert not set(blocks) & set(pool.committed())
    ok, detail = overwrite(pool, next(numbers), blocks)
    assert ok, detail


@pytest.mark.parametrize("state", [state for state in STATES if state != "committed"])
def test_a_stopped_worker_cannot_reach_reused_blocks(state: str, pool: PoolProcess, numbers: Iterator[int]) -> None:
    """It is stopped, its deadline passes, it wakes up and writes on: into blocks that nobody else was given."""
    transfer, blocks = next(numbers), [2, 4, 6, 8]
    with child("steps", pool.address, BLOCK_BYTES, "victim", transfer) as victim:
        victim.do(f"reserve {transfer} 1.0 2 4 6 8")
        for line in STATES[state][0]:
            victim.do(line)
        victim.do("scribble")
        victim.signal(signal.SIGSTOP)
        wait(lambda: pool.phases()[transfer, 0] == "ABORTED", "the deadline passes", 5)
        assert pool.quarantined() == blocks
        refused = overwrite(pool, next(numbers), blocks)
        assert not refused[0] and "block 2 is in quarantine (4 such)" in refused[1]
        victim.signal(signal.SIGCONT)
        time.sleep(0.1)
        assert pool.quarantined() == blocks, "awake is not stopped"
        assert not overwrite(pool, next(numbers), blocks)[0]
        victim.do("rest")
        victim.do("abort")
        assert pool.quarantined() == []
        written = next(numbers)
        assert overwrite(pool, written, blocks)[0]
        time.sleep(0.1)
        held = read(pool, next(numbers), blocks)
        assert all(np.array_equal(held[i], content(written, block, BLOCK_BYTES)) for i, block in enumerate(blocks))


def test_a_stopped_worker_that_is_killed_frees_its_blocks(pool: PoolProcess, numbers: Iterator[int]) -> None:
    transfer = next(numbers)
    with child("steps", pool.address, BLOCK_BYTES, "victim", transfer) as victim:
        victim.do(f"reserve {transfer} 0.5 9 10")
        victim.do("scribble")
        victim.signal(signal.SIGSTOP)
        wait(lambda: pool.quarantined() == [9, 10], "the deadline passes", 5)
        time.sleep(0.5)
        assert pool.quarantined() == [9, 10]
        victim.signal(signal.SIGKILL)
        wait(lambda: pool.quarantined() == [], "proof of death", 5)


@pytest.mark.parametrize("carrier", [Carrier.SHARED_MEMORY, Carrier.SOCKET, Carrier.STREAM])
def test_bytes_that_are_not_what_was_summed_reach_nobody(
    carrier: Carrier, pool: PoolProcess, numbers: Iterator[int]
) -> None:
    transfer = next(numbers)
    with child("steps", pool.address, BLOCK_BYTES, "victim", transfer) as victim:
        victim.do(f"reserve {transfer} 30 11")
        victim.do("sums 1")  # of bytes that it never copied
        assert 11 in pool.committed()
    number = next(numbers)
    reader = WorkerPool(1, BLOCK_BYTES, 0, name=f"reader-{number}")
    agent = reader.agent({pool.name: pool.address}, carrier)
    answer = run(agent, order(number, Road.READ, pool, [0], [11], timeout_s=1.0))
    agent.close()
    assert not answer.ok
    assert reader.end.refused["corrupt"] >= 1
    assert all(moving.phase is TransferPhase.ABORTED for moving in reader.end.register.transfers())
    # The blocks are good for other bytes.
    written = next(numbers)
    assert overwrite(pool, written, [11])[0]
    assert np.array_equal(read(pool, next(numbers), [11])[0], content(written, 11, BLOCK_BYTES))


def test_a_new_scheduler_finds_what_was_committed_and_nothing_else(tmp_path: Path) -> None:
    with host_pool(tmp_path, 32, BLOCK_BYTES) as fresh:
        assert overwrite(fresh, 1, [0, 1])[0]
        with child("steps", fresh.address, BLOCK_BYTES, "victim", 1) as victim:
            victim.do("reserve 2 60 2 3")
            victim.do("copy 2")
            shown = fresh.shown("epoch 5")
            assert (shown["epoch"], shown["committed"], shown["quarantined"]) == (5, [0, 1], [2, 3])
            by_number = {one["transfer"]: one for one in shown["transfers"]}
            assert (by_number[2]["reason"], by_number[2]["quarantined"]) == ("epoch 5 began", True)
            # Of an older epoch, and still good to hear.
            victim.do("abort")
            assert fresh.quarantined() == []
        assert np.array_equal(read_in(fresh, 5, 1)[0], content(1, 0, BLOCK_BYTES))


def read_in(pool: PoolProcess, epoch: int, number: int) -> "np.ndarray":
    worker = WorkerPool(1, BLOCK_BYTES, 0, name="reader")
    agent = worker.agent({pool.name: pool.address})
    answer = run(agent, order(number, Road.READ, pool, [0], [0]), epoch)
    agent.close()
    assert answer.ok, answer.detail
    return worker.blocks


@pytest.mark.parametrize("carrier", list(Carrier))
def test_a_pool_that_is_killed_or_stopped_ends_every_order(carrier: Carrier, tmp_path: Path, seed: int) -> None:
    """At moments that are drawn, so that they fall into every state. Every order is answered, none with wrong bytes."""
    draw, size = random.Random(seed), 1 << 20
    worker = WorkerPool(32, size, seed, name="worker")
    before = worker.blocks.copy()
    addresses: dict[str, str] = {}
    agent = worker.agent(addresses, carrier, part_bytes=8 << 20)
    number, outcomes = 0, {True: 0, False: 0}
    for ends in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
        with host_pool(tmp_path, 32, size) as pool:
            addresses[pool.name] = pool.address
            number += 1
            assert run(agent, order(number, Road.WRITE, pool, range(16), range(16))).ok
            number += 2
            agent.submit(order(number - 1, Road.WRITE, pool, range(16), range(16, 32), timeout_s=2.0), 1)
            agent.submit(order(number, Road.READ, pool, range(16, 32), range(16), timeout_s=2.0), 1)
            time.sleep(draw.choice((0.0, 0.001, 0.003, 0.01, 0.03)))
            os.kill(pool.pid, ends)
            for answer in answers(agent, 2, timeout_s=20):
                outcomes[answer.ok] += 1
                if answer.ok and answer.transfer == number:
                    assert np.array_equal(worker.blocks[16:], before[:16])
            worker.end.check()
            # The source is whole, whatever happened.
            assert np.array_equal(worker.blocks[:16], before[:16])
            worker.blocks[16:] = before[16:]
    assert sum(outcomes.values()) == 6
    agent.close()


@pytest.mark.parametrize(
    "seconds", [6, pytest.param(90, marks=[pytest.mark.trust, pytest.mark.timeout(300)])], ids=["short", "long"]
)
def test_a_storm_of_kills_and_stops(seconds: int, tmp_path: Path, seed: int) -> None:
    """Workers swap while they are killed, stopped and woken: what is committed is right, and all is freed."""
    draw = random.Random(seed)
    with host_pool(tmp_path, 48, BLOCK_BYTES) as pool:
        told = {"address": pool.address, "incarnation": pool.incarnation}
        carriers = [[1, 2, 3], [2], [1]]
        lives = [1, 1, 1]

        def start(index: int) -> Child:
            lives[index] += 1
            about = json.dumps({**told, "carriers": carriers[index]})
            return Child(
                "storm", about, BLOCK_BYTES, f"w{index}", lives[index], 16 * index, 16, draw.randrange(1 << 30)
            )

        workers = [start(index) for index in range(3)]
        descriptors = resident = 0
        try:
            ends_at, num_kills = time.monotonic() + seconds, 0
            while time.monotonic() < ends_at:
                time.sleep(draw.uniform(0.05, 0.5))
                index = draw.randrange(3)
                victim = workers[index]
                assert victim.process.poll() is None, victim.finish()
                if draw.random() < 0.5:
                    victim.signal(signal.SIGKILL)
                    victim.process.communicate(timeout=10)
                    workers[index] = start(index)
                    num_kills += 1
                    if num_kills == 2:
                        descriptors, resident = num_descriptors(pool.pid), resident_bytes(pool.pid)
                else:
                    victim.signal(signal.SIGSTOP)
                    time.sleep(draw.choice((0.1, 1.0, 2.0)))
                    victim.signal(signal.SIGCONT)
            for worker in workers:
                code, words = worker.finish()
                assert code == 0, words
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.communicate(timeout=10)
        wait(lambda: not pool.quarantined() and not {"RESERVED", "COPYING"} & set(pool.phases().values()), "all ended")
        shown = pool.shown()
        # The last that wrote each block; what was forgotten meanwhile was overwritten, or is not looked at.
        wrote = {
            block: one["transfer"]
            for one in shown["transfers"]
            if one["write"] and one["phase"] == "COMMITTED"
            for block in one["blocks"]
        }
        blocks = [block for block in shown["committed"] if block in wrote]
        assert blocks
        held = read(pool, 1 << 40, blocks)
        for place, block in enumerate(blocks):
            assert np.array_equal(held[place], content(wrote[block], block, BLOCK_BYTES)), f"block {block}, seed {seed}"
        if num_kills > 2:
            assert num_descriptors(pool.pid) <= descriptors + 4
            assert resident_bytes(pool.pid) <= resident + (32 << 20)
