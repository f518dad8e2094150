"""Memory that is handed to other processes: who gets it, what they can do with it, and the proof that one is dead."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError, TransferError
from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.messages import Road, Transfer, ids
from cluster.register.states import Carrier
from cluster.serving.auth_certificates import make_certificates
from protos.quire.v1 import transfer_pb2 as pb
from tests.worker.transfer_parts import ROOT, SECRET, SECURITY, WorkerPool, asking, num_descriptors, run, wait
from worker.transfer.agent import TransferAgent
from worker.transfer.handover import HandoverServer, take_over
from worker.transfer.memory import SharedMemory
from worker.transfer.server import TransferServer

SIZE = 1 << 20
CHILD = """
import sys
from protos.quire.v1 import transfer_pb2 as pb
from cluster.links.security import ClusterSecurity
from worker.transfer.handover import take_over
hello = pb.HandoverRequest(caller="w", caller_incarnation=3, pool_incarnation=7, write=True)
memory, session = take_over(sys.argv[1], hello, ClusterSecurity(sys.argv[2]), 5.0)
memory.array()[:4] = (1, 2, 3, 4)
print(session, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory.create("quire-test", SIZE)
    yield made
    made.close()


class Told:
    """What a register would hear."""

    def __init__(self) -> None:
        self.began: list[tuple[int, str, int, bool]] = []
        self.died: list[int] = []

    def session_began(self, session: int, caller: str, caller_incarnation: int, *, write: bool) -> None:
        self.began.append((session, caller, caller_incarnation, write))

    def session_died(self, session: int) -> None:
        self.died.append(session)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def server(memory: SharedMemory, told: Told) -> Iterator[HandoverServer]:
    made = HandoverServer(memory, 7, SECURITY, told)
    yield made
    made.close()


def hello(**changed: object) -> pb.HandoverRequest:
    given: dict[str, object] = {"caller": "w", "caller_incarnation": 3, "pool_incarnation": 7}
    return pb.HandoverRequest(**{**given, "write": True, **changed})  # type: ignore[arg-type]


def test_the_size_is_sealed(memory: SharedMemory) -> None:
    seals = fcntl.fcntl(memory.descriptor, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    for size in (0, SIZE // 2, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.descriptor, size)


def test_more_than_there_is_is_refused_before_anything_is_taken() -> None:
    before = num_descriptors()
    with pytest.raises(
        ConfigError, match=r"4000.0 TiB of shared memory for x, and .* are available; set a smaller pool"
    ):
        SharedMemory.create("x", 4000 << 40)
    assert num_descriptors() == before


def test_memory_is_shared_and_read_only_means_it(memory: SharedMemory, server: HandoverServer, told: Told) -> None:
    writing, first = take_over(server.name, hello(), SECURITY, 5.0)
    reading, second = take_over(server.name, hello(write=False), SECURITY, 5.0)
    writing.array()[5] = 42
    assert memory.array()[5] == 42 and reading.array()[5] == 42
    with pytest.raises(ValueError, match="read-only"):
        reading.array()[5] = 1
    with pytest.raises(OSError, match=r"Bad file descriptor|Operation not permitted|Permission denied"):
        os.pwrite(reading.descriptor, b"x", 0)
    assert told.began == [(first, "w", 3, True), (second, "w", 3, False)]
    writing.close()
    reading.close()


def test_strangers_get_nothing(server: HandoverServer) -> None:
    before = num_descriptors()
    with pytest.raises(TransferError, match="does not know the secret"):
        take_over(server.name, hello(), ClusterSecurity("another secret altogether"), 5.0)
    with pytest.raises(TransferError, match="incarnation 7 of the pool is here, 6 was asked for"):
        take_over(server.name, hello(pool_incarnation=6), SECURITY, 5.0)
    with pytest.raises(TransferError, match="was not handed over"):
        take_over("quire-nobody-listens-here", hello(), SECURITY, 1.0)
    wait(lambda: num_descriptors() == before, "nothing stays open")


def test_only_death_is_proof(server: HandoverServer, memory: SharedMemory, told: Told) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, server.name, SECRET],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        session = int(child.stdout.readline())
        assert memory.array()[:4].tolist() == [1, 2, 3, 4]
        child.send_signal(signal.SIGSTOP)
        threading.Event().wait(0.5)
        assert told.died == [], "a stopped process can wake up"
        child.send_signal(signal.SIGKILL)
        wait(lambda: told.died == [session], "the death is noticed")
    finally:
        child.kill()
        child.communicate(timeout=10)


@pytest.mark.parametrize("carrier", [Carrier.SOCKET, Carrier.STREAM])
def test_transfers_over_tls_need_a_certificate_of_ours(carrier: Carrier, tmp_path: Path, seed: int) -> None:
    def pair(folder: str) -> tuple[ClusterSecurity, ClusterSecurity]:
        """What the end that listens and the end that calls show."""
        files = make_certificates(tmp_path / folder, ["quire", "127.0.0.1"])
        served = TlsFiles(files.server_certificate, files.server_key, files.authority)
        return ClusterSecurity(SECRET, served), ClusterSecurity(
            SECRET, TlsFiles(files.client_certificate, files.client_key, files.authority)
        )

    (serving, ours), (_, strange) = pair("ours"), pair("strange")
    here, there = WorkerPool(4, 1 << 20, seed), WorkerPool(4, 1 << 20, seed + 1, name="worker-1", incarnation=9)
    server = TransferServer(there.end, serving)
    outcomes = []
    for number, shown in enumerate((ours, strange, ClusterSecurity(SECRET)), 1):
        agent = TransferAgent(here.end, {"worker-1": server.address}, shown, asking(carrier))
        outcomes.append(run(agent, Transfer(number, Road.WRITE, "worker-1", 9, ids([0]), ids([number]), 3.0)).ok)
        agent.close()
    server.close()
    assert outcomes == [True, False, False]
    assert np.array_equal(there.blocks[1], here.blocks[0])
    assert not np.array_equal(there.blocks[2], here.blocks[0]) and not np.array_equal(there.blocks[3], here.blocks[0])
