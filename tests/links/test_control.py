"""The link between scheduler and workers over real sockets: who is let in, what is counted, what outlives a break."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import NotAuthenticated
from cluster.links import handshake, sockets, streams
from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd, keep_open
from cluster.links.frames import FrameBuffer, Welcome, pack
from cluster.links.security import ClusterSecurity, TlsFiles
from cluster.links.sockets import connect, local_name
from cluster.links.terms import Heard, Met, Pulsed, RefusedByPeer, Terms
from cluster.messages import CloseModel, HostPoolJoined, Plan, ReplicaJoined, Result, Start, ids
from cluster.sampling import SamplingParams
from cluster.serving.control_server import ControlServer
from cluster.serving.inside import Inside
from cluster.serving.scheduler_server import served_models
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from cluster.wire import control as wire
from tests.cluster.test_inside import SECRET, identity
from tests.links.proxies import LinkProxy

SECURITY = ClusterSecurity(SECRET)
SILENCE_S = 4.0


def joined(incarnation: int = 1, **changes: int) -> ReplicaJoined:
    sizes = {"num_blocks": 64, "block_size": 16, "block_bytes": 4096, "max_batch": 8, "max_model_len": 2048, **changes}
    return ReplicaJoined("r0", incarnation, "n", "m", fingerprint="f", **sizes)


def result(number: int, plan: int) -> bytes:
    return wire.result_to(Result("r0", 1, 1, number, plan, number))


class Worker:
    """The other end, as a step loop has it."""

    def __init__(self, incarnation: int = 1, terms: Terms | None = None, name: str = "r0") -> None:
        dialer = Dialer(name, incarnation, wire.SCHEDULER, terms or wire.terms(), wire.read_down, has_state=True)
        self.end = DialingEnd(dialer)
        self.card = wire.joining_to(joined(incarnation), "")

    async def come(self, centre: Centre) -> None:
        connection = await asyncio.to_thread(connect, centre.address, centre.security, wire.GREETING)
        self.end.open(connection, self.card)

    async def hears(self, count: int) -> list[str]:
        """The next words down, as they are called here; pulses do not count."""
        found: list[str] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                await asyncio.to_thread(self.end.wait, 0.05)
                for order in self.end.read():
                    if isinstance(order, Met):
                        found.append("met" if order.is_new else "met again")
                    elif isinstance(order, RefusedByPeer):
                        found.append(f"refused: {order.detail}")
                    elif isinstance(order, Heard):
                        message = order.message
                        found.append(f"plan {message.number}" if isinstance(message, Plan) else "directory")
        return found

    async def is_cut(self) -> None:
        async with asyncio.timeout(10):
            while self.end.is_open:
                await asyncio.to_thread(self.end.wait, 0.05)
                self.end.read()


class Centre:
    """A scheduler's control port."""

    def __init__(self, security: ClusterSecurity) -> None:
        self.host = SchedulerShell(SchedulerSettings(), 1)
        self.control = ControlServer(self.host, SILENCE_S)
        self.security = security
        self.address = ""

    @property
    def refused(self) -> dict[str, int]:
        assert self.control.end.port is not None
        return dict(self.control.end.port.refused)

    @property
    def num_kept(self) -> int:
        """Words that the worker has not said to have taken."""
        return self.control.end.listener.peers["r0"].numbers.num_kept

    def plan(self, number: int, starts: tuple[Start, ...] = ()) -> None:
        self.host.replica_links["r0"](Plan("r0", 1, 1, number, 4, 0, starts=starts))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


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


# ---------------------------------------------------------------- who is let in


@pytest.mark.parametrize("road", ["local", "tls"])
def test_only_who_knows_the_secret_is_let_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, road: str) -> None:
    tls = identity(tmp_path / "ours") if road == "tls" else None
    if tls is not None:
        # Both ends are on one machine here.
        monkeypatch.setattr(sockets, "_connect_here", lambda address: None)

    async def story(centre: Centre) -> None:
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        for count, wrong in enumerate(("another secret, as long.", SECRET[:-1] + "!", SECRET + " "), 1):
            with pytest.raises((NotAuthenticated, OSError)):
                await asyncio.to_thread(connect, centre.address, ClusterSecurity(wrong, tls), wire.GREETING)
            # The client sees it first, and says nothing more; the scheduler sees the end of the connection.
            assert len(centre.control.peers) == 1, count
        with pytest.raises((NotAuthenticated, OSError)):
            # A link of another use.
            await asyncio.to_thread(connect, centre.address, centre.security, b"QTK2")
        if tls is not None:
            # The secret alone is not enough, nor is it with the certificate of another authority.
            strange: TlsFiles | None = identity(tmp_path / "strange")
            for stranger in (None, strange):
                with pytest.raises((NotAuthenticated, OSError, Exception), match=r"TLS|SSL|certificate|secret|closed"):
                    await asyncio.to_thread(connect, centre.address, ClusterSecurity(SECRET, stranger), wire.GREETING)
        worker.end.close()
        await centre.until(lambda: centre.control.end.listener.peers["r0"].connection is None)

    at_the_port(story, ClusterSecurity(SECRET, tls))


def test_the_scheduler_believes_nobody_who_only_says_so() -> None:
    """A client that skips the check of the server, and one that says nothing at all."""

    async def story(centre: Centre) -> None:
        def lie() -> bytes:
            with socket.socket(socket.AF_UNIX) as liar:
                liar.settimeout(10)
                liar.connect(local_name(centre.address))
                steps = handshake.greet(wire.GREETING, b"", b"some other secret")
                send, want = next(steps)
                liar.sendall(send)
                while want:
                    want -= len(liar.recv(want))
                liar.sendall(bytes(32) + Worker().end.dialer.open(b"", 0.0))
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


@pytest.mark.parametrize("road", ["local", "tls"])
def test_silent_strangers_hold_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, road: str) -> None:
    """More than there are places for: the oldest goes, and a peer is met within a fraction of a second."""
    tls = identity(tmp_path / "ours") if road == "tls" else None
    if tls is not None:
        monkeypatch.setattr(sockets, "_connect_here", lambda address: None)
    monkeypatch.setattr(streams, "MAX_STRANGERS", 100)

    async def story(centre: Centre) -> None:
        strangers: list[socket.socket] = []

        def come() -> None:
            for _ in range(300):
                if tls is None:
                    stranger = socket.socket(socket.AF_UNIX)
                    stranger.connect(local_name(centre.address))
                else:
                    host, _, port = centre.address.rpartition(":")
                    stranger = socket.create_connection((host, int(port)))
                strangers.append(stranger)

        try:
            await asyncio.to_thread(come)
            began = time.monotonic()
            worker = Worker()
            await worker.come(centre)
            assert (await worker.hears(1))[0] == "met"
            assert time.monotonic() - began < 2.0
            # From one address of another machine there are fewer places.
            places = 100 if tls is None else streams.MAX_OF_ONE_ADDRESS
            assert centre.refused["too many"] >= 300 - places
            worker.end.close()
        finally:
            for stranger in strangers:
                stranger.close()

    at_the_port(story, ClusterSecurity(SECRET, tls))


def test_a_process_of_another_user_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(centre: Centre) -> None:
        # Each end in turn sees a user that it is not; the test cannot be two.
        with monkeypatch.context() as patch:
            patch.setattr(streams, "user_of", lambda connection: os.geteuid() + 1)
            with pytest.raises(OSError):
                await asyncio.to_thread(connect, centre.address, SECURITY, wire.GREETING)
        assert centre.refused == {"another user": 1}
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "user_of", lambda connection: os.geteuid() + 1)
            with pytest.raises(Exception, match="no process of ours listens"):
                await asyncio.to_thread(connect, centre.address, SECURITY, wire.GREETING)

    at_the_port(story)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(struct.pack("<I", 1 << 30), id="too long a frame"),
        pytest.param(pack(1, 0, 0, b"\xff" * 5), id="no hello"),
        pytest.param(pack(4, 1, 0, b"x"), id="a message before the hello"),
        pytest.param(Welcome(1, 1, False, 1.0).pack(0), id="a welcome"),
    ],
)
def test_bytes_that_mean_nothing_end_the_stream_and_are_counted(garbage: bytes) -> None:
    async def story(centre: Centre) -> None:
        stranger = await asyncio.to_thread(connect, centre.address, SECURITY, wire.GREETING)
        stranger.sendall(garbage)
        await centre.until(lambda: centre.refused == {"undecodable": 1})
        stranger.setblocking(True)
        assert await asyncio.to_thread(stranger.recv, 100) == b""
        stranger.close()
        # The next connection of the same process is as good as any.
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        worker.end.close()

    at_the_port(story)


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (b"\xff\xff\xff", "are no quire.v1.Joining"),
        (b"", "a replica or a host pool"),
        (wire.joining_to(joined(2), ""), "r0 of incarnation 1 joins as r0 of 2"),
        (wire.joining_to(joined(num_blocks=0), ""), "0 blocks of 4,096 bytes"),
        (wire.joining_to(joined(block_size=0), ""), "are 0, 8, 2048; each is at least 1"),
        (wire.joining_to(HostPoolJoined("r0", 1, "n", 0, 1, "f"), ""), "0 blocks of 1 bytes"),
    ],
)
def test_who_joins_with_a_card_that_means_nothing_is_refused(card: bytes, why: str) -> None:
    async def story(centre: Centre) -> None:
        worker = Worker()
        worker.card = card
        await worker.come(centre)
        (refusal,) = await worker.hears(1)
        assert why in refusal and not centre.control.peers
        worker.end.close()

    at_the_port(story)


def test_a_worker_of_another_protocol_and_one_that_was_lost_are_refused() -> None:
    async def story(centre: Centre) -> None:
        old = Worker(terms=Terms(0, 1))
        await old.come(centre)
        (refusal,) = await old.hears(1)
        assert "install the same Quire" in refusal
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        centre.control.lose("r0", "for the test")
        await worker.is_cut()
        await worker.come(centre)
        assert await worker.hears(1) == ["refused: life 1 of r0 was declared lost; come with a higher one"]
        worker = Worker(2)
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        worker.end.close()

    at_the_port(story)


# ---------------------------------------------------------------- what is said


def test_plans_that_were_not_taken_come_again_and_results_count_once() -> None:
    async def story(centre: Centre) -> None:
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        for number in (1, 2, 3):
            centre.plan(number)
        assert await worker.hears(3) == ["plan 1", "plan 2", "plan 3"]
        worker.end.say(result(1, plan=1))
        peer = centre.control.peers["r0"]
        await centre.until(lambda: peer.result == 1 and not centre.num_kept)
        worker.end.cut("for the test")
        centre.plan(4)
        worker.end.say(result(2, plan=3))
        await worker.come(centre)
        assert await worker.hears(2) == ["met again", "plan 4"]
        await centre.until(lambda: peer.result == 2)
        assert centre.control.peers["r0"] is peer
        worker.end.close()

    at_the_port(story)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wire.result_to(Result("r1", 1, 1, 1, 0, 0)), id="another's"),
        pytest.param(wire.result_to(Result("r0", 2, 1, 1, 0, 0)), id="another incarnation's"),
        pytest.param(wire.result_to(Result("r0", 1, 1, 2, 0, 0)), id="a gap"),
        pytest.param(wire.result_to(Result("r0", 1, 2, 1, 0, 0)), id="another epoch's"),
    ],
)
def test_a_word_that_does_not_fit_who_says_it_is_a_loss(wrong: bytes) -> None:
    async def story(centre: Centre) -> None:
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        worker.end.say(wrong)
        await centre.until(lambda: not centre.control.peers)
        await worker.is_cut()
        assert "r0" not in centre.host.replica_links

    at_the_port(story)


def test_a_result_that_cannot_be_read_is_not_taken() -> None:
    async def story(centre: Centre) -> None:
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        worker.end.say(b"\xff\xff\xff")
        await worker.is_cut()
        assert centre.refused == {"undecodable": 1}
        assert "r0" in centre.control.peers and worker.end.dialer.numbers.num_kept == 1

    at_the_port(story)


def test_messages_of_many_megabytes_go_in_parts_both_ways() -> None:
    async def story(centre: Centre) -> None:
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        tokens = ids(range(6 << 20))
        sampling = SamplingParams(max_tokens=1)
        start = Start(1, "q", 0, 1, "g", 1, tokens, len(tokens), 0, ids(), 16, 1, sampling, b"", b"")
        centre.plan(1, (start,))
        worker.end.say(wire.result_to(Result("r0", 1, 1, 1, 0, 0, advances=_advances(5 << 20))))
        assert await worker.hears(1) == ["plan 1"]
        await centre.until(lambda: centre.control.peers["r0"].result == 1)
        worker.end.close()

    at_the_port(story)


def _advances(num_ids: int) -> object:
    from array import array

    from cluster.messages import Advances

    return Advances(array("q", [1]), array("i", [num_ids]), array("i", [num_ids]), ids(range(num_ids)), array("i", [0]))


def test_a_link_finds_its_way_back_after_its_connection_was_cut_and_after_a_silence() -> None:
    async def story(centre: Centre) -> None:
        proxy = LinkProxy(centre.address)
        await proxy.start()

        async def find() -> str:
            return proxy.address

        worker = Worker()
        keeping = asyncio.create_task(keep_open(worker.end, wire.GREETING, find, SECURITY, lambda: worker.card))
        try:
            assert await worker.hears(2) == ["met", "directory"]
            proxy.cut()
            assert await worker.hears(1) == ["met again"]
            # Nothing breaks, but nothing comes through either. The scheduler bears longer silence than the worker here.
            worker.end.dialer.silence_s = 0.6
            proxy.flows.clear()
            await worker.is_cut()
            proxy.flows.set()
            assert await worker.hears(1) == ["met again"]
            assert centre.control.peers["r0"].incarnation == 1 and not centre.refused
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await proxy.stop()

    at_the_port(story)


def test_a_silent_worker_is_lost_and_one_that_pulses_is_not() -> None:
    async def story(centre: Centre) -> None:
        listener = centre.control.end.listener
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        for _ in range(12):
            await asyncio.sleep(SILENCE_S / 8)
            worker.end.pulse(wire.step_to(7))
        assert centre.control.peers["r0"].step == 7 and listener.peers["r0"].connection is not None
        await centre.until(lambda: not centre.control.peers)
        await worker.is_cut()

    at_the_port(story)


def test_a_model_whose_workers_are_all_lost_is_served_on_and_not_ready() -> None:
    """Else a gateway says that nobody knows it, which its clients take for good."""

    async def story(centre: Centre) -> None:
        worker = Worker()
        await worker.come(centre)
        assert await worker.hears(2) == ["met", "directory"]
        turns = asyncio.create_task(centre.host.run())
        await centre.until(lambda: bool(centre.host.scheduler.replicas))
        (model,) = served_models(centre.host, centre.control)
        assert model.num_replicas == 1
        await centre.until(lambda: not centre.host.scheduler.replicas)
        lost = replace(model, is_ready=False, detail="none of its workers is here", num_replicas=0, max_model_len=0)
        assert served_models(centre.host, centre.control) == (lost,)
        # It is unloaded while nobody is there: it is served no more.
        centre.host.post(CloseModel(model.name))
        await centre.until(lambda: not served_models(centre.host, centre.control))
        turns.cancel()
        await worker.is_cut()

    at_the_port(story)


def test_nobody_waits_for_an_end_that_takes_nothing() -> None:
    """What the kernel does not take is kept in order, and goes out as soon as the other end reads."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    end = DialingEnd(Dialer("d", 1, "l", Terms(1, 1), bytes))
    end.open(ours, b"")
    theirs.setblocking(True)
    theirs.recv(1000)
    theirs.sendall(Welcome(1, 1, False, 60.0).pack(0))
    end.wait(5)
    assert [type(order) for order in end.read()] == [Met]
    words = [bytes([number]) * 200_000 for number in range(40)]
    for word in words:
        end.say(word)
    frames, found = FrameBuffer(), list[bytes]()
    theirs.settimeout(10)
    while len(found) < len(words):
        end.wait(0.01)
        assert {type(order) for order in end.read()} <= {Pulsed} and end.is_open
        found += [body for *_, body in frames.took(theirs.recv_into(frames.room()))]
        theirs.sendall(pack(6, 0, len(found)))
    assert found == words
    end.close()
    theirs.close()
