"""The worker's side of the control stream over a real socket: what is obeyed once, what is said again, whose epoch."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cluster.messages import Plan, Result, Tokens, ids
from cluster.settings import WorkerSettings
from cluster.wire.frames import FrameBuffer, framed
from cluster.wire.plans import fill_plan, parsed
from protos.quire.v1 import control_pb2 as pb
from tests.engine import models
from worker.replica_stream import ReplicaStream
from worker.step_loop import Inbound, NewEpoch
from worker.worker import Worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    folder = models.build(tmp_path_factory.mktemp("llama"), "llama")
    return Worker(WorkerSettings(model=str(folder), kv_blocks=8, max_batch=2, show_progress=False), replica="r0")


class Scheduler:
    """The other end: one connection at a time."""

    def __init__(self, worker: Worker) -> None:
        self.pushed: list[dict[str, list[Tokens]]] = []
        self.directories: list[dict[str, str]] = []
        self.stream = ReplicaStream(worker, "there:1", self.pushed.append, self.directories.append)
        self._socket: socket.socket | None = None

    def accept(self) -> pb.Hello:
        """A new connection of the worker; returns its hello."""
        self.close()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.settimeout(5)
        self._socket, self._frames = ours, FrameBuffer()
        self.stream.link.open(theirs, self.stream.hello())
        (message,) = self.heard()
        return message.hello

    def heard(self) -> list[pb.ToScheduler]:
        assert self._socket is not None
        room = self._frames.room()
        raw = self._frames.took(self._socket.recv_into(room))
        return [parsed(pb.ToScheduler, one) for one in raw]

    def hears_nothing(self) -> bool:
        assert self._socket is not None
        self._socket.setblocking(False)
        try:
            return not self.heard()
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(5)

    def say(self, *messages: pb.FromScheduler) -> list[Inbound]:
        """What the step loop makes of them."""
        assert self._socket is not None
        self._socket.sendall(b"".join(map(framed, messages)))
        self.stream.wait(5)
        return self.stream.read()

    def close(self) -> None:
        self.stream.link.close()
        if self._socket is not None:
            self._socket.close()


@pytest.fixture
def scheduler(worker: Worker) -> Iterator[Scheduler]:
    scheduler = Scheduler(worker)
    yield scheduler
    scheduler.close()


def welcome(epoch: int, result: int = 0, wants_state: bool = False) -> pb.FromScheduler:
    return pb.FromScheduler(welcome=pb.Welcome(epoch=epoch, result=result, wants_state=wants_state, silence_s=60.0))


def plan(number: int, result: int = 0, epoch: int = 1) -> pb.FromScheduler:
    message = pb.FromScheduler()
    fill_plan(message.plan, Plan("r0", 1, epoch, number, 4, result))
    return message


def numbers(words: list[Inbound]) -> list[int]:
    return [word.number for word in words if isinstance(word, Plan)]


def test_plans_count_once_and_in_order(scheduler: Scheduler) -> None:
    hello = scheduler.accept()
    assert (hello.epoch, hello.plan, hello.replica.replica, hello.transfer_address) == (0, 0, "r0", "there:1")
    assert scheduler.say(welcome(1)) == [NewEpoch(1, False)]
    assert numbers(scheduler.say(plan(1), plan(1), plan(2))) == [1, 2]
    # A gap, and a plan of another scheduler.
    assert numbers(scheduler.say(plan(4), plan(3, epoch=2))) == []
    hello = scheduler.accept()
    assert (hello.epoch, hello.plan) == (1, 2)
    assert scheduler.say(welcome(1)) == []
    assert numbers(scheduler.say(plan(2), plan(3))) == [3]


def test_results_are_kept_until_they_are_taken(scheduler: Scheduler) -> None:
    scheduler.accept()
    scheduler.say(welcome(1))
    for number in (1, 2, 3):
        scheduler.stream.say(Result("r0", 1, 1, number, 0, number))
    assert [message.result.number for message in scheduler.heard()] == [1, 2, 3]
    # The stream breaks; another result is made meanwhile; the scheduler had taken the first.
    scheduler.close()
    scheduler.stream.say(Result("r0", 1, 1, 4, 0, 4))
    scheduler.accept()
    scheduler.say(welcome(1, result=1))
    assert [message.result.number for message in scheduler.heard()] == [2, 3, 4]
    # A plan says that all have come.
    scheduler.say(plan(1, result=4))
    scheduler.accept()
    scheduler.say(welcome(1))
    assert scheduler.hears_nothing()


def test_a_new_scheduler_begins_anew(scheduler: Scheduler) -> None:
    scheduler.accept()
    scheduler.say(welcome(1), plan(1))
    scheduler.stream.say(Result("r0", 1, 1, 1, 1, 1))
    scheduler.heard()
    scheduler.accept()
    assert scheduler.say(welcome(2, wants_state=True)) == [NewEpoch(2, True)]
    scheduler.stream.say(Result("r0", 1, 1, 2, 1, 2))
    assert scheduler.hears_nothing(), "results for the old scheduler mean nothing to the new one"
    assert numbers(scheduler.say(plan(1, epoch=2))) == [1]


def test_the_directory_and_tokens_go_where_they_belong(scheduler: Scheduler) -> None:
    scheduler.accept()
    told = pb.FromScheduler()
    told.directory.entries.add(name="g0", address="there:2")
    assert scheduler.say(welcome(1), told) == [NewEpoch(1, False)]
    assert scheduler.directories == [{"g0": "there:2"}]
    tokens = {"g0": [Tokens(1, 0, 1, 0, ids([5]))]}
    scheduler.stream.say(tokens)
    assert scheduler.pushed == [tokens] and scheduler.hears_nothing()


def test_bytes_that_mean_nothing_end_the_connection_and_are_counted(scheduler: Scheduler) -> None:
    scheduler.accept()
    assert scheduler._socket is not None
    scheduler._socket.sendall(b"\x03\0\0\0\xff\xff\xff")
    scheduler.stream.wait(5)
    assert scheduler.stream.read() == []
    assert not scheduler.stream.link.is_open and scheduler.stream.link.num_undecodable == 1
