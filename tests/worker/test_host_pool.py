"""The host pool as a process: what it says of itself, what it refuses, what is left of it when it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from cluster.errors import ConfigError, TransferError
from cluster.links.security import ClusterSecurity
from cluster.messages import HostPoolJoined, HostPoolSettled, Road
from cluster.register.blocks import COMMITTED
from cluster.register.register import RegisterSettings
from cluster.register.states import Carrier, CarrierLost, NotObeyed, WhyRefused
from protos.quire.v1 import transfer_pb2 as pb
from protos.quire.v1.transfer_pb2_grpc import TransferServiceStub
from tests.worker.transfer_parts import (
    CALL_S,
    FINGERPRINT,
    ROOT,
    SECRET,
    SECURITY,
    PoolProcess,
    WorkerPool,
    answers,
    host_pool,
    order,
    run,
    status_of,
    wait,
)
from worker.host_pool import HostPoolServer, HostPoolSettings

BLOCK_BYTES = 1 << 16


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolProcess]:
    with host_pool(tmp_path_factory.mktemp("pool"), 16, BLOCK_BYTES, "--incarnation", "77") as started:
        yield started


def settings(**changed: object) -> HostPoolSettings:
    given: dict[str, object] = {
        "name": "host-0",
        "node": "node-0",
        "size": 16 * BLOCK_BYTES,
        "block_bytes": BLOCK_BYTES,
        "fingerprint": FINGERPRINT,
        **changed,
    }
    return HostPoolSettings(**given)  # type: ignore[arg-type]


def memory_files() -> list[str]:
    """Memory files of host pools that any process of ours has open or mapped."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [line for line in (process / "maps").read_text().splitlines() if "quire-leak" in line]
            for path in (process / "fd").iterdir():
                try:
                    found += [name for name in (os.readlink(path),) if "quire-leak" in name]
                except OSError:
                    continue  # closed meanwhile
        except OSError:
            continue
    return found


def test_it_says_what_it_is(pool: PoolProcess) -> None:
    assert {name: pool.told[name] for name in ("pool", "incarnation", "node", "num_blocks", "block_bytes")} == {
        "pool": "host-0",
        "incarnation": 77,
        "node": "node-0",
        "num_blocks": 16,
        "block_bytes": BLOCK_BYTES,
    }
    assert set(HostPoolJoined.__slots__) <= set(pool.told)
    assert pool.told["bytes_per_s"] > 1e8  # type: ignore[operator]
    layout = pb.PoolLayout(fingerprint=FINGERPRINT, block_bytes=BLOCK_BYTES, chunk_bytes=BLOCK_BYTES)
    joined = pool.calls.unary("Join", pb.JoinRequest(layout=layout), pb.JoinResponse, CALL_S)
    assert (joined.pool, joined.pool_incarnation, joined.num_blocks, joined.layout) == ("host-0", 77, 16, layout)


def test_calls_need_the_secret_and_a_deadline(pool: PoolProcess) -> None:
    with grpc.insecure_channel(pool.address) as channel:
        stub = TransferServiceStub(channel)
        for metadata in (None, (("authorization", f"Bearer {SECRET}"),), (("quire-ask-bin", b"x" * 16),)):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Join(pb.JoinRequest(), timeout=CALL_S, metadata=metadata)
            assert status_of(refused.value)[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(CarrierLost, match=r"needs a deadline, of at most 120 s"):
        pool.calls.unary("Join", pb.JoinRequest(), pb.JoinResponse, 3600.0)


def test_a_worker_with_another_secret_gets_nowhere(pool: PoolProcess, seed: int) -> None:
    worker = WorkerPool(1, BLOCK_BYTES, seed, name="stranger")
    agent = worker.agent({pool.name: pool.address})
    agent._peers._security = ClusterSecurity("not the secret of these tests")
    answer = run(agent, order(1, Road.WRITE, pool, [0], [0]))
    agent.close()
    assert not answer.ok and "does not know the secret of this cluster" in answer.detail


def test_joining_with_another_layout_is_refused(pool: PoolProcess) -> None:
    for changed, words in (
        ({"block_bytes": 4096}, f"blocks of 4,096 bytes against {BLOCK_BYTES:,} here"),
        ({"fingerprint": "kv1-bfloat16"}, f"blocks laid out as kv1-bfloat16 against {FINGERPRINT} here"),
    ):
        fields = {"fingerprint": FINGERPRINT, "block_bytes": BLOCK_BYTES, "chunk_bytes": BLOCK_BYTES, **changed}
        asked = pb.JoinRequest(caller="w", layout=pb.PoolLayout(**fields))  # type: ignore[arg-type]
        with pytest.raises(NotObeyed, match=words):
            pool.calls.unary("Join", asked, pb.JoinResponse, CALL_S)


def test_nothing_is_left_after_sigkill(tmp_path: Path, seed: int) -> None:
    before = sorted(os.listdir("/dev/shm"))
    with host_pool(tmp_path, 64, 1 << 20, name="leak") as doomed:
        worker = WorkerPool(4, 1 << 20, seed)
        agent = worker.agent({"leak": doomed.address}, Carrier.SHARED_MEMORY)
        assert run(agent, order(1, Road.WRITE, doomed, range(4), range(4))).ok
        assert sorted(os.listdir("/dev/shm")) == before, "the pool must not need /dev/shm"
        assert memory_files()
        doomed.kill()
        assert memory_files(), "this process has it mapped still"
        agent.close()
        assert memory_files() == []
    assert sorted(os.listdir("/dev/shm")) == before


def test_its_memory_is_taken_at_the_start(pool: PoolProcess) -> None:
    """So that no copy finds out that there is less than was promised."""
    files = [path for path in Path(f"/proc/{pool.pid}/fd").iterdir() if "memfd:quire-host-0" in os.readlink(path)]
    assert {path.stat().st_size for path in files} == {16 * BLOCK_BYTES}
    assert {path.stat().st_blocks * 512 for path in files} == {16 * BLOCK_BYTES}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, "input"])
def test_it_ends_when_it_is_told_to(end: signal.Signals | str, tmp_path: Path) -> None:
    with host_pool(tmp_path, 4, BLOCK_BYTES, "--stop-with-input", module="worker.host_pool") as started:
        assert started.process.stdin is not None
        if isinstance(end, str):
            started.process.stdin.close()
        else:
            started.process.send_signal(end)
        assert started.process.wait(10) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "1KiB"], "holds no block of 64.0 KiB; give 64.0 KiB or more"),
        (["--size", "lots"], "which is no amount of memory"),
        (["--block-bytes", "1000"], "a pool's blocks have a multiple of 64 bytes"),
        (["--size", "4000TiB"], "set a smaller pool"),
        (["--secret-file", "/dev/null"], "the secret of the cluster has 0 characters; give at least 16"),
        (["--port", "1", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_what_it_cannot_be_is_one_line(options: list[str], words: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECURITY.secret)
    command = [sys.executable, "-m", "worker.host_pool", "--name", "h", "--node", "n", "--fingerprint", "f"]
    command += ["--size", "1MiB", "--block-bytes", str(BLOCK_BYTES), "--secret-file", str(secret), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("E0000", "I0000", "WARNING"))]
    assert ended.returncode == 1
    assert len(lines) == 1 and lines[0].startswith("host pool h: ") and words in lines[0], ended.stderr


def test_the_scheduler_hears_when_a_transfer_is_settled(seed: int) -> None:
    made = HostPoolServer(settings(incarnation=5, register=RegisterSettings(idle_s=0.5)), SECURITY)
    worker = WorkerPool(4, BLOCK_BYTES, seed)
    agent = worker.agent({"host-0": made.address}, Carrier.SHARED_MEMORY)
    try:
        assert made.joined().num_blocks == 16
        ordered = PoolOrder(made)
        assert run(agent, ordered.write(1, [0, 1])).ok
        time.sleep(0.3)
        assert made.take_settled() == [], "what was committed needs no word"
        # One that never came here, and one that was given up here and is asked about again.
        made.give_up(1, [9])
        wait(lambda: made.take_settled() == [HostPoolSettled("host-0", 5, 9)], "settled")
        assert "given up by the scheduler" in run(agent, ordered.write(9, [2])).detail
        made.give_up(1, [9])
        wait(lambda: made.take_settled() == [HostPoolSettled("host-0", 5, 9)], "settled again")
        assert made.end.register.num_live == 0
        assert (made.end.register.blocks.states == COMMITTED).sum() == 2
        assert made.end.refused[WhyRefused.LATE] >= 1
        made.end.check()
    finally:
        agent.close()
        made.close()


class PoolOrder:
    """Orders for a pool of this process."""

    def __init__(self, pool: HostPoolServer) -> None:
        self.name = pool.settings.name
        self.incarnation = pool.incarnation

    def write(self, number: int, blocks: list[int]) -> object:
        return order(number, Road.WRITE, self, range(len(blocks)), blocks)  # type: ignore[arg-type]


def test_bytes_under_way_of_a_caller_are_bounded(seed: int) -> None:
    """One after the other instead of at once: the second waits until the first has ended, and then goes."""
    bound = RegisterSettings(max_bytes_per_caller=3 * BLOCK_BYTES)
    made = HostPoolServer(settings(register=bound), SECURITY)
    worker = WorkerPool(16, BLOCK_BYTES, seed)
    agent = worker.agent({"host-0": made.address}, Carrier.SOCKET, max_per_peer=4)
    try:
        ordered = PoolOrder(made)
        for number in range(1, 9):
            agent.submit(ordered.write(number, [2 * number - 2, 2 * number - 1]), 1)  # type: ignore[arg-type]
        assert all(answer.ok for answer in answers(agent, 8))
        assert (made.end.register.blocks.states == COMMITTED).all()
    finally:
        agent.close()
        made.close()


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="holds no block"):
        settings(size=10).num_blocks  # noqa: B018
    with pytest.raises(ConfigError, match="has 5 characters; give at least 16"):
        ClusterSecurity("short")


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with host_pool(tmp_path, 2, BLOCK_BYTES) as first:
        port = first.address.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "worker.host_pool", "--name", "second", "--node", "n", "--fingerprint", "f"]
        command += ["--size", "1MiB", "--block-bytes", str(BLOCK_BYTES), "--secret-file", str(tmp_path / "secret")]
        ended = subprocess.run(
            [*command, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 1
        assert f"an internal port cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_a_call_that_was_given_up_while_the_pool_stood_still_holds_nothing(tmp_path: Path) -> None:
    """Its caller went on without an answer. Mostly the pool sees that and does not obey; where its word came first, a
    transfer that nobody speaks of ends long before the minute that was asked for."""
    with host_pool(tmp_path, 4, BLOCK_BYTES, "--idle", "1") as started:
        layout = pb.PoolLayout(fingerprint=FINGERPRINT, block_bytes=BLOCK_BYTES, chunk_bytes=BLOCK_BYTES)
        name = pb.TransferName(
            epoch=1, transfer=1, caller="w", caller_incarnation=1, pool_incarnation=started.incarnation
        )
        blocks = np.array([0], "<i4").tobytes()
        asked = pb.ReserveRequest(
            name=name, write=True, layout=layout, blocks=blocks, carrier=pb.CARRIER_SOCKET, timeout_s=60.0
        )
        started.shown()
        started.stop()
        with pytest.raises(CarrierLost):
            started.calls.unary("Reserve", asked, pb.ReserveResponse, 0.5)
        started.resume()
        asked.name.transfer = 2

        def reserved() -> bool:
            try:
                started.calls.unary("Reserve", asked, pb.ReserveResponse, 10)
            except TransferError:
                return False
            return True

        wait(reserved, "the block is nobody's")
