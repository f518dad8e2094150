"""What anybody who is near can do to the ports of a pool: nothing, and no secret reaches them.

Each port is a real one, the strangers speak through real sockets: garbage, silence, half a greeting, lies of a server
on a dead pool's port, words passed on, and fields that no honest peer would send.
"""

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from cluster.errors import TransferError
from cluster.links.security import ClusterSecurity
from cluster.messages import Road
from cluster.register.states import Carrier, CarrierLost, NotObeyed
from protos.quire.v1 import transfer_pb2 as pb
from tests.worker.test_transfer_handover import CHILD, Told, hello
from tests.worker.transfer_faults import StreamFaults
from tests.worker.transfer_parts import (
    CALL_S,
    FINGERPRINT,
    ROOT,
    SECRET,
    SECURITY,
    PoolProcess,
    WorkerPool,
    host_pool,
    order,
    run,
    status_of,
    wait,
)
from worker.transfer.calls import Calls
from worker.transfer.chunk_messages import SERVICE
from worker.transfer.handover import HandoverServer, take_over
from worker.transfer.memory import SharedMemory
from worker.transfer.peer import PeerPool
from worker.transfer.secret_proof import Prover

BLOCK_BYTES = 1 << 16
NUM_BLOCKS = 16
GARBAGE = (b"\xff\xff\xff\xff", b"\x0a\xff\xff\xff\x7f", bytes(range(256)) * 8)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolProcess]:
    with host_pool(tmp_path_factory.mktemp("pool"), NUM_BLOCKS, BLOCK_BYTES) as started:
        yield started


@pytest.fixture
def numbers() -> Iterator[int]:
    return iter(range(time.time_ns() // 1000, 1 << 62))


# -- the handover of memory


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def handover(told: Told) -> Iterator[HandoverServer]:
    memory = SharedMemory.create("quire-test", 1 << 20)
    made = HandoverServer(memory, 7, SECURITY, told)
    yield made
    made.close()
    memory.close()


def near(name: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(5)
    made.connect(f"\0{name}")
    return made


@pytest.mark.parametrize("said", [*GARBAGE, b"", b"QTH1", b"QTH1\xff\xff", b"QTH1\0\0" + bytes(16)])
def test_whatever_a_stranger_says_deaths_are_proven(said: bytes, handover: HandoverServer, told: Told) -> None:
    with near(handover.name) as stranger:
        stranger.sendall(said)
    with near(handover.name) as open_one:
        open_one.sendall(said)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, handover.name, SECRET],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            session = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            wait(lambda: told.died == [session], "the death is noticed", 5)
        finally:
            child.kill()
            child.communicate(timeout=10)


def test_who_knows_the_secret_and_talks_nonsense_does_no_more(handover: HandoverServer) -> None:
    from cluster.links import handshake
    from worker.transfer.handover import GREETING

    for said in (b"\0\0", b"\xff\xff", struct.pack("<H", 4) + b"\xff\xff\xff\xff", b"\x01"):
        with near(handover.name) as peer:
            handshake.drive(peer, handshake.greet(GREETING, b"", SECRET.encode()))
            peer.sendall(said)
    held, session = take_over(handover.name, hello(), SECURITY, 5.0)
    held.close()
    assert session == 1


def test_silent_strangers_cost_a_peer_no_time(handover: HandoverServer) -> None:
    with ExitStack() as silent:
        for _ in range(16):
            silent.enter_context(near(handover.name))
        began = time.monotonic()
        held, session = take_over(handover.name, hello(), SECURITY, 20.0)
        held.close()
        assert session == 1
        assert time.monotonic() - began < 1.0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_even_greeted(handover: HandoverServer) -> None:
    """Neither by the server, whatever he knows, nor by a peer when he listens on the server's name."""
    asks = f"""
import os, socket
os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect("\\0{handover.name}")
try:
    print(s.recv(1))
except ConnectionError:
    print(b"")
"""
    told = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=30, check=True).stdout
    assert told == "b''\n"
    listens = """
import os, socket
os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.bind("\\0quire-of-another"); s.listen()
print("ready", flush=True)
peer, _ = s.accept(); peer.settimeout(5)
print(peer.recv(4096), flush=True)
"""
    other = subprocess.Popen([sys.executable, "-c", listens], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(TransferError, match="another user's process listens there"):
            take_over("quire-of-another", hello(), SECURITY, 5.0)
        assert other.stdout.readline() == "b''\n"
    finally:
        other.kill()
        other.communicate(timeout=10)


def test_who_listens_in_a_servers_place_hears_no_secret() -> None:
    heard = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0quire-false-server")
        listener.listen()

        def listen() -> None:
            peer, _ = listener.accept()
            with peer:
                heard.extend(peer.recv(4096))
                peer.sendall(bytes(48))
                heard.extend(peer.recv(4096))

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(TransferError, match="does not know the secret"):
            take_over("quire-false-server", hello(), SECURITY, 5.0)
        thread.join()
    assert len(heard) == 22, "the greeting and nothing after it"
    assert SECRET.encode() not in heard


# -- the gRPC port


class Liar(grpc.GenericRpcHandler):
    """Answers every call as if all were well, and keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.heard += [repr(pair) for pair in details.invocation_metadata]
        method = details.method.rsplit("/", 1)[1]

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            context.send_initial_metadata((("quire-answer-bin", b"x" * 32),))
            self.heard += [repr(request) for request in requests]
            kinds = {"Join": pb.JoinResponse, "Reserve": pb.ReserveResponse, "Commit": pb.CommitResponse}
            made = kinds.get(method, pb.WriteResponse)()
            if isinstance(made, pb.CommitResponse):
                made.phase = pb.TRANSFER_PHASE_COMMITTED
            return made.SerializeToString()

        return grpc.stream_unary_rpc_method_handler(answer)


@pytest.fixture
def liar() -> Iterator[tuple[Liar, str]]:
    made, server = Liar(), grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([made])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_who_listens_on_a_dead_pools_port_hears_nothing_and_is_not_believed(liar: tuple[Liar, str], seed: int) -> None:
    listener, address = liar
    worker = WorkerPool(1, BLOCK_BYTES, seed)
    peer = PeerPool("host-0", address, worker.end, SECURITY)
    with pytest.raises(TransferError, match="has not proven that it knows the secret"):
        peer.join(CALL_S)
    with pytest.raises(TransferError, match="has not proven"):
        peer.calls.unary("Commit", pb.CommitRequest(), pb.CommitResponse, CALL_S)
    secret = worker.blocks[0].tobytes()
    with pytest.raises(TransferError, match="has not proven"):
        peer.calls.write(iter([secret]), CALL_S, lambda: None)
    peer.release()
    told = "".join(listener.heard)
    assert SECRET not in told
    assert repr(secret) not in told, "blocks were sent to who has proven nothing"


def test_who_takes_a_pools_port_after_its_death_is_not_believed(tmp_path: Path, seed: int) -> None:
    """The worker had agreed with the pool that was there before."""
    worker, listener = WorkerPool(2, BLOCK_BYTES, seed), Liar()
    with host_pool(tmp_path, 4, BLOCK_BYTES) as started:
        peer = PeerPool(started.name, started.address, worker.end, SECURITY)
        peer.join(CALL_S)
        started.kill()
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers([listener])
        assert server.add_insecure_port(started.address)
        server.start()
        try:
            for method in ("Commit", "Reserve"):
                for _ in range(5):  # the first finds that the connection is gone
                    with pytest.raises(CarrierLost):
                        peer.calls.unary(method, pb.CommitRequest(), pb.CommitResponse, 5.0)
            with pytest.raises(CarrierLost):
                peer.calls.write(iter([b"blocks of ours"]), 5.0, lambda: None)
        finally:
            server.stop(None).wait()
            peer.release()
    assert "blocks of ours" not in "".join(listener.heard)


def test_who_passes_words_on_gains_nothing(pool: PoolProcess) -> None:
    """Proofs hold for the address that was called: from another one they lead nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    between = StreamFaults(port, pool.address, 1e-9, 1)
    calls = Calls(f"127.0.0.1:{port}", SECURITY)
    with pytest.raises(CarrierLost, match="does not know the secret of this cluster"):
        calls.unary("Join", pb.JoinRequest(), pb.JoinResponse, CALL_S)
    calls.close()
    between.close()


def test_a_proof_holds_for_one_connection_and_one_method(pool: PoolProcess) -> None:
    prover = Prover(SECRET, pool.address)
    path = f"/{SERVICE}/Join"
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(pool.address, alone) as first, grpc.insecure_channel(pool.address, alone) as second:
        with pytest.raises(grpc.RpcError) as challenge:
            first.unary_unary(path)(b"", timeout=CALL_S, metadata=prover.agreed.metadata("Join"))
        assert prover.challenged(challenge.value)
        proven = prover.agreed.metadata("Join")
        for channel, called in ((second, path), (first, f"/{SERVICE}/Abort")):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(called)(b"", timeout=CALL_S, metadata=proven)
            assert status_of(refused.value)[0] is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as refused:
            first.unary_unary(path)(b"", timeout=CALL_S, metadata=proven)
        assert status_of(refused.value)[0] is grpc.StatusCode.FAILED_PRECONDITION, "it fits, and the layout does not"


def test_strangers_on_the_ports_cost_a_worker_no_time(pool: PoolProcess, numbers: Iterator[int], seed: int) -> None:
    """Silent ones, half a greeting, calls without a proof that never end."""
    worker = WorkerPool(2, BLOCK_BYTES, seed, name=f"w{seed}")
    host, port = pool.address.rsplit(":", 1)
    data_port = pool.calls.unary("Join", _join(), pb.JoinResponse, CALL_S).data_port
    with ExitStack() as strangers:
        for number in range(40):
            for where in (int(port), data_port):
                made = strangers.enter_context(socket.create_connection((host, where)))
                if number % 2:
                    made.sendall(b"QTX1\x04")
        channel = strangers.enter_context(grpc.insecure_channel(pool.address))
        for method in ("Reserve", "Write") * 40:
            channel.stream_unary(f"/{SERVICE}/{method}").future(_silent(), timeout=30)
        for carrier in (Carrier.SOCKET, Carrier.STREAM):
            agent = worker.agent({pool.name: pool.address}, carrier)
            began = time.monotonic()
            answer = run(agent, order(next(numbers), Road.WRITE, pool, [0], [0]))
            assert answer.ok, answer.detail
            assert time.monotonic() - began < 2.0
            agent.close()


def _silent() -> Iterator[bytes]:
    time.sleep(60)
    yield b""


def _join() -> pb.JoinRequest:
    return pb.JoinRequest(
        layout=pb.PoolLayout(fingerprint=FINGERPRINT, block_bytes=BLOCK_BYTES, chunk_bytes=BLOCK_BYTES)
    )


@pytest.mark.parametrize("method", ["Join", "Reserve", "Write", "Read", "Commit", "Abort"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=len)
def test_bytes_that_mean_nothing_are_the_callers_mistake(method: str, garbage: bytes, pool: PoolProcess) -> None:
    assert _status(pool, method, garbage) is grpc.StatusCode.INVALID_ARGUMENT


def _status(pool: PoolProcess, method: str, body: bytes) -> grpc.StatusCode:
    """How a call with this body ends, of one who has proven himself."""
    prover = Prover(SECRET, pool.address)
    with grpc.insecure_channel(pool.address) as channel:
        say = channel.unary_unary(f"/{SERVICE}/{method}")
        with pytest.raises(grpc.RpcError) as challenge:
            say(b"", timeout=CALL_S, metadata=prover.agreed.metadata(method))
        assert prover.challenged(challenge.value)
        try:
            say(body, timeout=CALL_S, metadata=prover.agreed.metadata(method))
        except grpc.RpcError as error:
            return status_of(error)[0]
    return grpc.StatusCode.OK


def _name(pool: PoolProcess, number: int, **changed: object) -> pb.TransferName:
    given = {"epoch": 1, "transfer": number, "caller": "honest", "caller_incarnation": 1}
    return pb.TransferName(**{**given, "pool_incarnation": pool.incarnation, **changed})  # type: ignore[arg-type]


def _reserve(pool: PoolProcess, number: int, **changed: object) -> pb.ReserveRequest:
    given = {
        "name": _name(pool, number),
        "write": True,
        "layout": _join().layout,
        "blocks": np.array([1, 2], "<i4").tobytes(),
        "carrier": pb.CARRIER_STREAM,
        "timeout_s": 5.0,
    }
    return pb.ReserveRequest(**{**given, **changed})  # type: ignore[arg-type]


ABSURD = {
    "no blocks": {"blocks": b""},
    "half a block": {"blocks": b"\0\0\0"},
    "a negative block": {"blocks": np.array([-1], "<i4").tobytes()},
    "a block far away": {"blocks": np.array([2**31 - 1], "<i4").tobytes()},
    "a block twice": {"blocks": np.array([3, 3], "<i4").tobytes()},
    "more blocks than there are": {"blocks": np.arange(100_000, dtype="<i4").tobytes()},
    "no carrier": {"carrier": 0},
    "a carrier of another world": {"carrier": 99},
    "no time": {"timeout_s": 0.0},
    "less than no time": {"timeout_s": -1.0},
    "no number of seconds": {"timeout_s": float("nan")},
    "for ever": {"timeout_s": float("inf")},
    "nearly for ever": {"timeout_s": 1e300},
}


@pytest.mark.parametrize("changed", ABSURD.values(), ids=ABSURD)
def test_absurd_reservations_are_the_callers_mistake(
    changed: dict[str, object], pool: PoolProcess, numbers: Iterator[int]
) -> None:
    asked = _reserve(pool, next(numbers), **changed)
    assert _status(pool, "Reserve", asked.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    assert pool.phases() == {key: phase for key, phase in pool.phases().items() if phase != "RESERVED"}


@pytest.mark.parametrize(
    "changed",
    [{"epoch": 2**64 - 1}, {"transfer": 2**64 - 1}, {"caller_incarnation": 2**63}, {"caller": "x" * 100_000}],
    ids=["epoch", "transfer", "incarnation", "caller"],
)
def test_absurd_names_are_the_callers_mistake(
    changed: dict[str, object], pool: PoolProcess, numbers: Iterator[int]
) -> None:
    name = _name(pool, next(numbers), **changed)
    for method, asked in (
        ("Reserve", _reserve(pool, 1, name=name)),
        ("Commit", pb.CommitRequest(name=name)),
        ("Abort", pb.AbortRequest(name=name)),
        ("Read", pb.ReadRequest(name=name)),
        ("Write", pb.WriteRequest(chunks=[pb.TransferChunk(name=name)])),
    ):
        assert _status(pool, method, asked.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT, method
    assert pool.shown()["epoch"] < 2**40


def test_absurd_words_about_a_transfer_are_the_callers_mistake(pool: PoolProcess, numbers: Iterator[int]) -> None:
    worker = WorkerPool(2, BLOCK_BYTES, 1, name="filling")
    agent = worker.agent({pool.name: pool.address})
    assert run(agent, order(next(numbers), Road.WRITE, pool, [0, 1], [8, 9])).ok
    agent.close()
    number = next(numbers)
    blocks = np.array([8, 9], "<i4").tobytes()
    asked = _reserve(pool, number, write=False, blocks=blocks)
    pool.calls.unary("Reserve", asked, pb.ReserveResponse, CALL_S)
    name = asked.name
    for ranges in ([(0, 3)], [(2**32 - 1, 2**32 - 1)], [(0, 0)], [(0, 2)] * 2, [(0, 1)] * 2000):
        chunks = [pb.ChunkRange(first=first, count=count) for first, count in ranges]
        body = pb.ReadRequest(name=name, chunks=chunks).SerializeToString()
        assert _status(pool, "Read", body) is grpc.StatusCode.INVALID_ARGUMENT, ranges
    written = next(numbers)
    peer = PeerPool(pool.name, pool.address, worker.end, SECURITY)
    peer.join(CALL_S)
    held = peer.memory(write=True)
    assert held is not None
    asked = _reserve(pool, written, carrier=pb.CARRIER_SHARED_MEMORY, session=held[1])
    asked.name.caller = "filling"
    pool.calls.unary("Reserve", asked, pb.ReserveResponse, CALL_S)
    body = pb.CommitRequest(name=asked.name, sums=pb.ChunkSums(crc32c=b"\0\0\0")).SerializeToString()
    assert _status(pool, "Commit", body) is grpc.StatusCode.INVALID_ARGUMENT
    # Wrong in a chunk is refused with the chunk: the call says what is missing.
    for first, crcs in ((0, b""), (2**32 - 1, b"\0\0\0\0"), (1, bytes(8))):
        sums = pb.ChunkSums(first=first, crc32c=crcs)
        answer = pool.calls.unary("Commit", pb.CommitRequest(name=asked.name, sums=sums), pb.CommitResponse, CALL_S)
        assert answer.phase != pb.TRANSFER_PHASE_COMMITTED
    body = pb.AbortRequest(name=asked.name, reason="x" * 1_000_000).SerializeToString()
    assert _status(pool, "Abort", body) is grpc.StatusCode.INVALID_ARGUMENT
    peer.release()
    for name in (asked.name, _name(pool, number)):
        pool.calls.unary("Abort", pb.AbortRequest(name=name, stopped=True), pb.AbortResponse, CALL_S)
    assert not pool.quarantined()


def test_a_message_beyond_the_bound_is_not_taken(pool: PoolProcess, numbers: Iterator[int]) -> None:
    asked = _reserve(pool, next(numbers), blocks=bytes(16 << 20))
    with pytest.raises((CarrierLost, NotObeyed)):
        pool.calls.unary("Reserve", asked, pb.ReserveResponse, CALL_S)
    assert _status(pool, "Join", _join().SerializeToString()) is grpc.StatusCode.OK


def test_another_secret_opens_nothing(pool: PoolProcess) -> None:
    calls = Calls(pool.address, ClusterSecurity("not the secret of these tests"))
    with pytest.raises(CarrierLost, match="does not know the secret"):
        calls.unary("Join", _join(), pb.JoinResponse, CALL_S)
    calls.close()


# -- a process that has no descriptor left


def test_a_pool_without_descriptors_takes_who_waits_once_it_has_some(tmp_path: Path, numbers: Iterator[int]) -> None:
    """Its ports are there again by themselves, and meanwhile it does not run in circles."""
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as pool, ExitStack() as stack:
        worker = WorkerPool(4, BLOCK_BYTES, seed=5)
        agent = worker.agent({pool.name: pool.address}, Carrier.SOCKET)
        stack.callback(agent.close)
        assert run(agent, order(next(numbers), Road.WRITE, pool, [0], [0])).ok
        joined = pool.calls.unary("Join", _join(), pb.JoinResponse, CALL_S)
        before = resource.prlimit(pool.pid, resource.RLIMIT_NOFILE)
        # From here on it can open nothing more.
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", joined.data_port))) for _ in range(3)]
        name = socket.socket(socket.AF_UNIX)
        stack.callback(name.close)
        name.connect(f"\0{joined.handover}")
        began = processor_s(pool.pid)
        time.sleep(1.5)
        assert processor_s(pool.pid) - began < 0.5
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, before)
        for one in held:
            one.close()
        assert run(agent, order(next(numbers), Road.WRITE, pool, [1], [1])).ok


def processor_s(pid: int) -> float:
    """Processor time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
