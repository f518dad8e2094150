"""What a step loop makes of its link to the scheduler, over a real socket: what it obeys, whose epoch it is."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cluster.links.frames import FrameBuffer
from cluster.links.listener import Listener
from cluster.links.terms import Close, Heard, Met, Order, Send
from cluster.messages import GiveUp, Plan, ReplicaState, Result, Tokens, ids
from cluster.settings import WorkerSettings
from cluster.wire import control as wire
from tests.engine import models
from worker.replica_stream import ReplicaStream
from worker.step_loop import Inbound, NewEpoch
from worker.worker import Worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    folder = models.build(tmp_path_factory.mktemp("llama"), "llama")
    return Worker(WorkerSettings(model=str(folder), kv_blocks=8, max_batch=2, show_progress=False), replica="r0")


class Scheduler:
    """The other end: the real machine, on one connection at a time."""

    def __init__(self, worker: Worker) -> None:
        self.pushed: list[dict[str, list[Tokens]]] = []
        self.directories: list[dict[str, str]] = []
        self.stream = ReplicaStream(worker, "there:1", self.pushed.append, self.directories.append)
        self.begin(1)
        self._socket: socket.socket | None = None
        self._number = 0

    def begin(self, epoch: int) -> None:
        """A scheduler of this epoch."""
        self.epoch = epoch
        self.listener = Listener(wire.SCHEDULER, epoch, wire.terms(60.0), wire.read_up, wire.joining_from)

    def accept(self) -> list[Inbound]:
        """A new connection of the worker; returns what its step loop makes of the welcome."""
        self.close()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.settimeout(5)
        self._socket, self._frames, self._number = ours, FrameBuffer(), self._number + 1
        self.listener.opened(self._number, 0.0)
        self.stream.end.open(theirs, self.stream.card())
        (self.met,) = [order for order in self._read() if isinstance(order, Met)]
        return self._inbound()

    def heard(self) -> list[object]:
        """The next words of the worker."""
        return [order.message for order in self._read() if isinstance(order, Heard)]

    def hears_nothing(self) -> bool:
        assert self._socket is not None
        self._socket.setblocking(False)
        try:
            return not self.heard()
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(5)

    def say(self, *messages: bytes) -> list[Inbound]:
        """What the step loop makes of them."""
        for message in messages:
            self._do(self.listener.say("r0", message, 0.0))
        return self._inbound()

    def close(self) -> None:
        self.stream.end.close()
        if self._socket is not None:
            self._socket.close()
            self.listener.broke(self._number, 0.0)

    def _inbound(self) -> list[Inbound]:
        self.stream.wait(5)
        return self.stream.read()

    def _read(self) -> list[Order]:
        assert self._socket is not None
        frames = self._frames.took(self._socket.recv_into(self._frames.room()))
        return self._do(self.listener.heard(self._number, frames, 0.0))

    def _do(self, orders: list[Order]) -> list[Order]:
        assert self._socket is not None
        for order in orders:
            assert not isinstance(order, Close)
            if isinstance(order, Send):
                self._socket.sendall(order.frame)
        return orders


@pytest.fixture
def scheduler(worker: Worker) -> Iterator[Scheduler]:
    scheduler = Scheduler(worker)
    yield scheduler
    scheduler.close()


def plan(number: int, epoch: int = 1) -> bytes:
    return wire.plan_to(Plan("r0", 1, epoch, number, 4, 0))


def numbers(words: list[Inbound]) -> list[int]:
    return [word.number for word in words if isinstance(word, Plan)]


def test_plans_come_once_and_in_order(scheduler: Scheduler) -> None:
    assert scheduler.accept() == [NewEpoch(1, False)]
    assert (scheduler.met.peer, scheduler.met.card.transfer_address) == ("r0", "there:1")
    assert numbers(scheduler.say(plan(1), plan(2))) == [1, 2]
    assert scheduler.accept() == [] and not scheduler.met.is_new
    assert numbers(scheduler.say(plan(3))) == [3]


def test_results_are_kept_until_they_are_taken(scheduler: Scheduler) -> None:
    scheduler.accept()
    for number in (1, 2, 3):
        scheduler.stream.say(Result("r0", 1, 1, number, 0, number))
    assert [message.number for message in scheduler.heard() if isinstance(message, Result)] == [1, 2, 3]
    # The stream breaks, and another result is made meanwhile.
    scheduler.close()
    scheduler.stream.say(Result("r0", 1, 1, 4, 0, 4))
    scheduler.accept()
    assert [message.number for message in scheduler.heard() if isinstance(message, Result)] == [4]
    scheduler.say(plan(1))
    assert scheduler.stream.end.dialer.numbers.num_kept == 0


def test_a_new_scheduler_begins_anew(scheduler: Scheduler, worker: Worker) -> None:
    scheduler.accept()
    scheduler.say(plan(1))
    scheduler.stream.say(Result("r0", 1, 1, 1, 1, 1))
    scheduler.heard()
    scheduler.begin(2)
    assert scheduler.accept() == [NewEpoch(2, True)]
    scheduler.stream.say(Result("r0", 1, 1, 2, 1, 2))
    assert scheduler.hears_nothing(), "results for the old scheduler mean nothing to the new one"
    state = ReplicaState(worker.joined(), (), (), ())
    scheduler.stream.say(state)
    scheduler.stream.say(Result("r0", 1, 2, 1, 0, 2))
    heard = scheduler.heard()
    assert heard[0] == state and isinstance(heard[1], Result) and len(heard) == 2
    assert numbers(scheduler.say(plan(1, epoch=2))) == [1]
    scheduler.begin(1)
    scheduler.listener.opened(0, 0.0)
    assert scheduler.stream.end.dialer.peer_life == 2


def test_the_directory_and_tokens_go_where_they_belong(scheduler: Scheduler) -> None:
    scheduler.accept()
    scheduler.say(wire.directory_to({"g0": "there:2"}, is_whole=True))
    scheduler.say(wire.directory_to({"g1": "there:3", "h0": "there:4"}, is_whole=False))
    scheduler.say(wire.directory_to({"g0": ""}, is_whole=False))
    scheduler.say(wire.directory_to({"g2": "there:5"}, is_whole=True))
    assert scheduler.directories == [
        {"g0": "there:2"},
        {"g0": "there:2", "g1": "there:3", "h0": "there:4"},
        {"g1": "there:3", "h0": "there:4"},
        {"g2": "there:5"},
    ]
    tokens = {"g0": [Tokens(1, 0, 1, 0, ids([5]))]}
    scheduler.stream.say(tokens)
    assert scheduler.pushed == [tokens] and scheduler.hears_nothing()


def test_what_a_replica_cannot_do_or_read_ends_nothing_but_the_connection(scheduler: Scheduler) -> None:
    scheduler.accept()
    assert scheduler.say(wire.give_up_to(GiveUp("h0", 1, 1, (1,)))) == []
    assert scheduler.stream.end.is_open
    assert scheduler.say(b"\xff\xff\xff") == []
    assert not scheduler.stream.end.is_open and scheduler.stream.end.num_garbled == 1
