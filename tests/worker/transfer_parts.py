"""Parts for tests of transfers: host pools as real processes, a worker's pool in memory, orders and their answers.

Every process started here dies with the test: its owner kills it, and it ends by itself when its input is closed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from cluster.links.security import ClusterSecurity
from cluster.messages import Road, Transfer, Transferred, ids
from cluster.register.asking import AskingSettings
from cluster.register.errand import ErrandSettings
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Carrier, layout_of
from worker.transfer.agent import TransferAgent
from worker.transfer.bytes import HostBytes
from worker.transfer.calls import Calls
from worker.transfer.copy import Copier
from worker.transfer.end import PoolEnd

ROOT = Path(__file__).parents[2]
SECRET = "the secret of these tests"
SECURITY = ClusterSecurity(SECRET)
FINGERPRINT = "kv1-test"
CALL_S = 20.0


class PoolProcess:
    """A host pool in a process of its own, and what a scheduler would ask it."""

    def __init__(self, process: "subprocess.Popen[str]", told: dict[str, object]) -> None:
        self.process = process
        self.pid = process.pid
        self.name = str(told["pool"])
        self.address = str(told["address"])
        self.incarnation = int(str(told["incarnation"]))
        self.told = told
        self.calls = Calls(self.address, SECURITY)

    def shown(self, line: str = "show") -> dict[str, Any]:
        """How its transfers and blocks stand; see tests/worker/pool_child.py."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        shown: dict[str, Any] = json.loads(self.process.stdout.readline())
        return shown

    def committed(self) -> list[int]:
        return list(self.shown()["committed"])

    def quarantined(self) -> list[int]:
        return list(self.shown()["quarantined"])

    def phases(self) -> dict[tuple[int, int], str]:
        """By transfer and part: how it stands."""
        return {(one["transfer"], one["part"]): one["phase"] for one in self.shown()["transfers"]}

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL reaches a stopped process too."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def host_pool(
    folder: Path,
    num_blocks: int,
    block_bytes: int,
    *options: str,
    name: str = "host-0",
    security: ClusterSecurity = SECURITY,
    module: str = "tests.worker.pool_child",
) -> Iterator[PoolProcess]:
    """Starts a host pool and waits until it can be reached; by itself, one that shows what it holds."""
    secret = folder / "secret"
    secret.write_text(security.secret)
    secret.chmod(0o600)
    command = [sys.executable, "-m", module, "--name", name, "--node", "node-0"]
    command += ["--size", str(num_blocks * block_bytes), "--block-bytes", str(block_bytes)]
    command += ["--fingerprint", FINGERPRINT, "--secret-file", str(secret)]
    command += options
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    try:
        line = process.stdout.readline()
        assert line, f"the host pool ended with {process.wait(10)}"
        pool = PoolProcess(process, json.loads(line))
        yield pool
        pool.calls.close()
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
        process.stdin.close()


class WorkerPool:
    """A worker's own pool: blocks in plain memory, filled at random, and the end that transfers see."""

    def __init__(
        self, num_blocks: int, block_bytes: int, seed: int, *, name: str = "worker-0", incarnation: int = 1
    ) -> None:
        layout = layout_of(FINGERPRINT, block_bytes)
        # On a 64-byte border, as the pools of workers are.
        raw = np.zeros(num_blocks * block_bytes + 64, np.uint8)
        begin = -raw.ctypes.data % 64
        self.blocks: npt.NDArray[np.uint8] = raw[begin : begin + num_blocks * block_bytes].reshape(num_blocks, -1)
        self.fill(seed)
        self.num_blocks = num_blocks
        register = Register(layout, num_blocks, incarnation, RegisterSettings(), own_content=True)
        held = HostBytes(layout, num_blocks, self.blocks.ctypes.data, Copier(), keep=raw)
        self.end = PoolEnd(name, register, held)

    def fill(self, seed: int) -> None:
        self.blocks[:] = np.random.default_rng(seed).integers(0, 256, self.blocks.shape, np.uint8)

    def agent(
        self, addresses: dict[str, str], *carriers: Carrier, part_bytes: int = 64 << 20, max_per_peer: int = 2
    ) -> TransferAgent:
        settings = asking(*carriers, part_bytes=part_bytes, max_per_peer=max_per_peer)
        return TransferAgent(self.end, addresses, SECURITY, settings)


def asking(*carriers: Carrier, part_bytes: int = 64 << 20, max_per_peer: int = 2) -> AskingSettings:
    errand = ErrandSettings(carriers=carriers or tuple(Carrier), part_bytes=part_bytes)
    return AskingSettings(errand=errand, max_per_peer=max_per_peer)


def order(
    number: int, road: Road, pool: PoolProcess, mine: Iterable[int], theirs: Iterable[int], timeout_s: float = 30.0
) -> Transfer:
    return Transfer(number, road, pool.name, pool.incarnation, ids(mine), ids(theirs), timeout_s)


def run(agent: TransferAgent, ordered: Transfer, epoch: int = 1) -> Transferred:
    """Submits one order to an idle agent and returns its answer."""
    agent.submit(ordered, epoch)
    return answers(agent, 1, ordered.timeout_s + 20)[0]


def answers(agent: TransferAgent, count: int, timeout_s: float = 30.0) -> list[Transferred]:
    came: list[Transferred] = []
    wait(lambda: len(came) >= count or came.extend(agent.take_answers()), f"{count} answers", timeout_s)
    assert len(came) == count, came
    return came


def wait(done: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Until `done` says so."""
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


def status_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    call: grpc.Call = error  # type: ignore[assignment]
    return call.code(), call.details()


def num_descriptors(pid: int | None = None) -> int:
    return len(os.listdir(f"/proc/{pid or os.getpid()}/fd"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
