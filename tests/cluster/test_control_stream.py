"""Control streams over real sockets: who is let in, what is refused and counted, and what outlives a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster.errors import NotAuthenticated, ProtocolError
from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.messages import Plan, ReplicaJoined, Result
from cluster.serving.control_server import ControlServer
from cluster.serving.host import SchedulerHost
from cluster.serving.inside import Inside
from cluster.settings import SchedulerSettings
from cluster.wire.frames import MAX_FRAME_BYTES, FrameBuffer, framed
from cluster.wire.plans import fill_result, parsed
from cluster.wire.state import fill_replica_joined
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb
from tests.cluster.front_door import Proxy
from tests.cluster.test_inside import SECRET, identity
from worker import frame_link, handshake
from worker.frame_link import CONTROL, FrameLink, connect, keep_open, local_name

SECURITY = ClusterSecurity(SECRET)
SILENCE_S = 4.0


def hello(incarnation: int = 1, epoch: int = 0, plan: int = 0, newest: int = NEWEST_PROTOCOL) -> bytes:
    message = pb.ToScheduler()
    joined = ReplicaJoined("r0", incarnation, "n", "m", 64, 16, 4096, "f", 8, 2048)
    fill_replica_joined(message.hello.replica, joined)
    message.hello.epoch, message.hello.plan = epoch, plan
    message.hello.oldest_protocol, message.hello.newest_protocol = OLDEST_PROTOCOL, newest
    return framed(message)


def result(number: int, plan: int) -> bytes:
    message = pb.ToScheduler()
    fill_result(message.result, Result("r0", 1, 1, number, plan, number))
    return framed(message)


class Centre:
    """A scheduler's control port."""

    def __init__(self, security: ClusterSecurity) -> None:
        self.host = SchedulerHost(SchedulerSettings(), 1)
        self.control = ControlServer(self.host, SILENCE_S)
        self.security = security
        self.address = ""

    @property
    def refused(self) -> dict[str, int]:
        assert self.control.port is not None
        return dict(self.control.port.refused)

    def plan(self, number: int) -> None:
        self.host.replica_links["r0"](Plan("r0", 1, 1, number, 4, 0))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def heard_by(self, link: FrameLink, count: int) -> list[str]:
        """The kinds of the next messages down; plans with their numbers. Pulses do not count."""
        found: list[str] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                await asyncio.to_thread(link.wait, 0.05)
                for raw in link.read():
                    message = parsed(pb.FromScheduler, raw)
                    kind = message.WhichOneof("message") or ""
                    if kind != "pulse":
                        found.append(f"plan {message.plan.number}" if kind == "plan" else kind)
        return found


def at_the_port(story: Callable[[Centre], Awaitable[None]], security: ClusterSecurity = SECURITY) -> None:
    async def run() -> None:
        centre = Centre(security)
        centre.address = await centre.control.listen(Inside("127.0.0.1", security))
        watch = asyncio.create_task(centre.control.watch())
        try:
            await story(centre)
        finally:
            watch.cancel()
            centre.control.close()
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 40))


def roads(monkeypatch: pytest.MonkeyPatch, road: str) -> None:
    if road == "tcp":
        monkeypatch.setattr(frame_link, "_connect_here", lambda address: None)


@pytest.mark.parametrize("road", ["unix", "tcp", "tls"])
def test_only_who_knows_the_secret_is_let_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, road: str) -> None:
    tls = identity(tmp_path / "ours") if road == "tls" else None
    roads(monkeypatch, "unix" if road == "unix" else "tcp")

    async def story(centre: Centre) -> None:
        link = FrameLink()
        link.open(await asyncio.to_thread(connect, centre.address, centre.security, CONTROL), hello())
        assert await centre.heard_by(link, 2) == ["welcome", "directory"]
        for count, wrong in enumerate(("another secret, as long.", SECRET[:-1] + "!", SECRET + " "), 1):
            with pytest.raises((NotAuthenticated, OSError)):
                await asyncio.to_thread(connect, centre.address, ClusterSecurity(wrong, tls), CONTROL)
            # The client sees it first, and says nothing more; the scheduler sees the end of the connection.
            assert len(centre.control.peers) == 1, count
        if tls is not None:
            # The secret alone is not enough, nor is it with the certificate of another authority.
            strange: TlsFiles | None = identity(tmp_path / "strange")
            for stranger in (None, strange):
                with pytest.raises((NotAuthenticated, OSError)):
                    await asyncio.to_thread(connect, centre.address, ClusterSecurity(SECRET, stranger), CONTROL)
        link.close()
        await centre.until(lambda: centre.control.peers["r0"].stream is None)

    at_the_port(story, ClusterSecurity(SECRET, tls))


def test_the_scheduler_believes_nobody_who_only_says_so() -> None:
    """A client that skips the check of the server, and one that says nothing at all."""

    async def story(centre: Centre) -> None:
        def lie() -> bytes:
            with socket.socket(socket.AF_UNIX) as liar:
                liar.settimeout(10)
                liar.connect(local_name(centre.address))
                steps = handshake.greet(CONTROL, b"", b"some other secret")
                send, want = next(steps)
                liar.sendall(send)
                while want:
                    want -= len(liar.recv(want))
                liar.sendall(bytes(32) + hello())
                return liar.recv(100)

        assert await asyncio.to_thread(lie) == b""
        assert centre.refused == {"no secret": 1}

        def silent() -> bytes:
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(2 * handshake.HANDSHAKE_S)
                stranger.connect(local_name(centre.address))
                return stranger.recv(100)

        assert await asyncio.to_thread(silent) == b""
        assert centre.refused == {"no secret": 2} and not centre.control.peers

    at_the_port(story)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(struct.pack("<I", MAX_FRAME_BYTES + 1), id="too long a frame"),
        pytest.param(struct.pack("<I", 5) + b"\xff" * 5, id="no message"),
        pytest.param(framed(pb.ToScheduler(pulse=pb.Pulse())), id="no hello"),
    ],
)
def test_bytes_that_mean_nothing_end_the_stream_and_are_counted(garbage: bytes) -> None:
    async def story(centre: Centre) -> None:
        link = FrameLink()
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), garbage)
        await centre.until(lambda: centre.refused == {"undecodable": 1})
        await asyncio.to_thread(link.wait, 10)
        assert link.read() == [] and not link.is_open
        # The next connection of the same process is as good as any.
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello())
        assert await centre.heard_by(link, 2) == ["welcome", "directory"]
        link.close()

    at_the_port(story)


def test_a_worker_of_another_protocol_and_one_that_was_lost_are_refused() -> None:
    async def story(centre: Centre) -> None:
        link = FrameLink()
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello(newest=0))
        assert await centre.heard_by(link, 1) == ["refusal"]
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello())
        assert await centre.heard_by(link, 2) == ["welcome", "directory"]
        centre.control.lose(centre.control.peers["r0"], "for the test")
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello())
        assert await centre.heard_by(link, 1) == ["refusal"]
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello(incarnation=2))
        assert await centre.heard_by(link, 2) == ["welcome", "directory"]
        link.close()

    at_the_port(story)


def test_plans_that_were_not_obeyed_come_again_and_results_count_once() -> None:
    async def story(centre: Centre) -> None:
        link = FrameLink()
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello())
        assert await centre.heard_by(link, 2) == ["welcome", "directory"]
        for number in (1, 2, 3):
            centre.plan(number)
        assert await centre.heard_by(link, 3) == ["plan 1", "plan 2", "plan 3"]
        link.send(result(1, plan=1))
        link.send(result(1, plan=1))
        peer = centre.control.peers["r0"]
        await centre.until(lambda: [number for number, _ in peer.unobeyed] == [2, 3])
        # It obeyed plan 2 and could not say so: that is in its next hello.
        link.open(await asyncio.to_thread(connect, centre.address, SECURITY, CONTROL), hello(epoch=1, plan=2))
        assert await centre.heard_by(link, 3) == ["welcome", "directory", "plan 3"]
        link.send(result(2, plan=3))
        await centre.until(lambda: not peer.unobeyed)
        assert peer.result == 2 and centre.control.peers["r0"] is peer
        link.close()

    at_the_port(story)


def test_a_link_finds_its_way_back_after_its_connection_was_cut_and_after_a_silence() -> None:
    """Through a proxy: TCP, for the name of the Unix socket is of another port."""

    async def story(centre: Centre) -> None:
        proxy = Proxy(int(centre.address.rpartition(":")[2]))
        await proxy.start()

        async def find() -> str:
            return f"127.0.0.1:{proxy.port}"

        link = FrameLink()
        pulse = framed(pb.ToScheduler(pulse=pb.Pulse()))
        keeping = asyncio.create_task(keep_open(link, CONTROL, find, SECURITY, lambda: hello(epoch=1), lambda: pulse))
        try:
            assert await centre.heard_by(link, 2) == ["welcome", "directory"]
            proxy.cut()
            assert await centre.heard_by(link, 2) == ["welcome", "directory"]
            # Nothing breaks, but nothing comes through either. The scheduler bears longer silence than the link here.
            link.silence_s = 0.6
            proxy.flows.clear()
            await centre.until(lambda: not link.is_open or bool(link.read()))
            proxy.flows.set()
            assert await centre.heard_by(link, 2) == ["welcome", "directory"]
            assert centre.control.peers["r0"].incarnation == 1 and not centre.refused
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await proxy.stop()

    at_the_port(story)


def test_nobody_waits_for_an_end_that_takes_nothing() -> None:
    """What the kernel does not take is kept in order, and goes out as soon as the other end reads."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    link = FrameLink()
    words = [framed(pb.ToScheduler(hello=pb.Hello(transfer_address=f"{n} " * 40_000))) for n in range(40)]
    link.open(ours, words[0])
    for word in words[1:]:
        link.send(word)
    came, frames = bytearray(), FrameBuffer()
    theirs.settimeout(10)
    found: list[bytes] = []
    while len(found) < len(words):
        link.wait(0.01)
        assert link.read() == [] and link.is_open
        room = frames.room()
        num = theirs.recv_into(room)
        came += room[:num]
        found += frames.took(num)
    assert bytes(came) == b"".join(words)
    assert [len(raw) + 4 for raw in found] == [len(word) for word in words]
    link.close()
    theirs.close()


def test_frames_are_found_wherever_the_stream_was_cut() -> None:
    words = [framed(pb.ToScheduler(hello=pb.Hello(transfer_address="x" * size))) for size in (0, 1, 70_000, 5, 200_000)]
    stream = b"".join(words)
    for step in (1, 3, 4096, 65_536, 1 << 20):
        frames, found, at = FrameBuffer(), [], 0
        while at < len(stream):
            room = frames.room()
            num = min(step, len(room), len(stream) - at)
            room[:num] = stream[at : at + num]
            found += frames.took(num)
            at += num
        assert [struct.pack("<I", len(raw)) + raw for raw in found] == words, step
    buffer = FrameBuffer(max_frame_bytes=10)
    buffer.room()[:4] = struct.pack("<I", 11)
    with pytest.raises(ProtocolError, match="are the most"):
        buffer.took(4)
