"""The asking end of a transfer: what it does next, when it tries again, when it gives up, and that it answers once."""

from collections.abc import Callable

import numpy as np
import pytest

from cluster.errors import TransferError
from cluster.messages import Road, Transfer, Transferred, ids
from cluster.register.asking import Asking, AskingSettings
from cluster.register.errand import Errand, ErrandSettings, Unknown
from cluster.register.states import Carrier, CarrierLost, NotObeyed, TransferPhase, WhyRefused
from cluster.register.steps import (
    AnswerScheduler,
    CallOff,
    Commit,
    Committed,
    Copied,
    Finish,
    Meet,
    MoveChunks,
    Outcome,
    PauseCopy,
    PoolsMet,
    Ready,
    Reserve,
    Reserved,
    Step,
)
from tests.register.parts import INCARNATION, LAYOUT, fill, register

THERE = 9
MET = PoolsMet(THERE, (Carrier.STREAM,))
DONE = Committed([], True)


class Way:
    """One errand and the pool that it runs in, with a clock that the test moves."""

    def __init__(self, road: Road, blocks: list[int], timeout_s: float = 10.0, **settings: object) -> None:
        self.register = register(own_content=True)
        self.asking = Asking("w", self.register, AskingSettings(errand=ErrandSettings(**settings)))  # type: ignore[arg-type]
        theirs = [block + 20 for block in blocks]
        self.order = Transfer(1, road, "p", THERE, ids(blocks), ids(theirs), timeout_s)
        self.now = 0.0
        assert self.asking.order(self.order, 1, self.now) is not None
        errand = self.asking.begin(self.now)
        assert errand is not None
        self.errand: Errand = errand
        self.steps: list[Step] = []

    def next(self, outcome: Outcome = None) -> Step | None:
        step = self.errand.next(outcome, self.now)
        if step is not None:
            self.steps.append(step)
        if isinstance(step, AnswerScheduler):
            self.asking.answer(self.errand, step.transferred, self.now)
        self.asking.check()
        return step

    def until(self, kind: type[Step], outcome: Callable[[Step], Outcome]) -> Step:
        """Goes on with these outcomes until a step of this kind."""
        step = self.next()
        while not isinstance(step, kind):
            assert step is not None, f"it ended before {kind.__name__}: {self.steps}"
            step = self.next(outcome(step))
        return step

    def kinds(self) -> list[str]:
        return [type(step).__name__ for step in self.steps]

    @property
    def answer(self) -> Transferred:
        (answer,) = self.asking.answers
        return answer


def smooth(step: Step) -> Outcome:
    """All goes well."""
    if isinstance(step, Meet):
        return MET
    if isinstance(step, Reserve):
        return Reserved(b"token")
    if isinstance(step, MoveChunks):
        return Copied()
    if isinstance(step, Commit):
        return DONE
    return True if isinstance(step, CallOff) else None


def test_a_write_goes_out_and_is_answered() -> None:
    road = Way(Road.WRITE, [3, 1])
    copy = road.until(MoveChunks, smooth)
    assert isinstance(copy, MoveChunks) and copy.chunks == [(0, 4)] and copy.reserved.token == b"token"
    assert (copy.part.there.pool_incarnation, copy.part.here.pool_incarnation) == (THERE, INCARNATION)
    assert road.register.num_live == 1, "nobody else may have the blocks meanwhile"
    assert isinstance(road.next(Copied(0, np.array([1, 2, 3, 4], np.uint32))), Commit)
    answer = road.next(DONE)
    assert isinstance(answer, AnswerScheduler)
    assert (answer.transferred.ok, answer.transferred.size_bytes) == (True, 2 * LAYOUT.block_bytes)
    assert answer.transferred.detail == "by stream"
    assert road.next() is None
    assert road.kinds() == ["Ready", "Meet", "Reserve", "MoveChunks", "Commit", "AnswerScheduler"]
    assert road.register.num_live == 0


def test_what_is_missing_there_is_sent_again() -> None:
    road = Way(Road.WRITE, [0, 1])
    road.until(MoveChunks, smooth)
    assert isinstance(road.next(CarrierLost("the connection broke")), PauseCopy)
    assert isinstance(road.next(), Commit)
    again = road.next(Committed([(1, 1), (3, 1)], False))
    assert isinstance(again, MoveChunks) and again.chunks == [(1, 1), (3, 1)]
    road.next(Copied())
    assert isinstance(road.next(DONE), AnswerScheduler)
    assert road.answer.ok


def test_a_read_is_answered_before_its_peer_lets_go() -> None:
    road = Way(Road.READ, [2])
    copy = road.until(MoveChunks, smooth)
    assert isinstance(copy, MoveChunks)
    moving = road.register.live(copy.part.here, 0.0)
    # Half of it came before the connection broke.
    road.register.begin_chunks(moving, 0, 1, 0.1)
    road.register.end_chunks(moving, 0, 1, 5, 0.1)
    assert isinstance(road.next(CarrierLost("broke")), PauseCopy)
    again = road.next()
    assert isinstance(again, MoveChunks) and again.chunks == [(1, 1)]
    fill(road.register, moving, 0.2)
    assert isinstance(road.next(Copied()), Finish)
    road.register.commit(copy.part.here, 0.2)
    assert isinstance(road.next(), AnswerScheduler)
    assert road.answer.ok
    assert isinstance(road.next(), Commit), "let go"
    assert road.next(CarrierLost("its deadline does it too")) is None


def test_parts_by_bytes_and_one_part_through_shared_memory() -> None:
    def parts(carrier: Carrier) -> list[list[int]]:
        road = Way(Road.WRITE, [0, 1, 2, 3, 4], part_bytes=2 * LAYOUT.block_bytes)
        met = PoolsMet(THERE, (carrier,), session=7)
        road.until(AnswerScheduler, lambda step: met if isinstance(step, Meet) else smooth(step))
        assert road.answer.ok
        asked = [step.asked for step in road.steps if isinstance(step, Reserve)]
        assert [one.name.key.part for one in asked] == list(range(len(asked)))
        assert {one.session for one in asked} == {7 if carrier is Carrier.SHARED_MEMORY else 0}
        return [one.blocks.tolist() for one in asked]

    assert parts(Carrier.STREAM) == [[20, 21], [22, 23], [24]]
    assert parts(Carrier.SHARED_MEMORY) == [[20, 21, 22, 23, 24]]


def test_a_peer_that_is_busy_is_asked_until_the_deadline_and_a_silent_one_not_so_long() -> None:
    def seconds_until_given_up(outcome: Exception) -> float:
        road = Way(Road.WRITE, [0], timeout_s=60.0)
        step = road.until(Reserve, smooth)
        while not isinstance(step, CallOff):
            if isinstance(step, PauseCopy):
                assert step.seconds <= 0.5
                road.now += step.seconds
                step = road.next()
            else:
                assert isinstance(step, Reserve)
                road.now += 0.01
                step = road.next(outcome)
        return road.now

    assert seconds_until_given_up(NotObeyed(WhyRefused.BUSY, "a reader has yet to let go")) == pytest.approx(
        60.0, abs=0.6
    )
    assert seconds_until_given_up(CarrierLost("nothing")) == pytest.approx(6.0, abs=0.6)
    assert seconds_until_given_up(CarrierLost("never", final=True)) < 0.1
    assert seconds_until_given_up(NotObeyed(WhyRefused.QUARANTINED, "in quarantine")) < 0.1


def test_an_address_that_nobody_knows_is_waited_for_a_moment() -> None:
    road = Way(Road.WRITE, [0])
    step = road.until(Meet, smooth)
    while not isinstance(step, AnswerScheduler):
        road.now += step.seconds if isinstance(step, PauseCopy) else 0.0
        assert step is not None
        step = road.next(Unknown("no address is known") if isinstance(step, Meet) else None)
    assert 1.0 <= road.now < 1.6
    assert road.answer.detail == "write of 1 blocks to p: no address is known"
    assert "CallOff" not in road.kinds(), "nothing was said to anybody"


@pytest.mark.parametrize("at", [Ready, Meet, Reserve, MoveChunks, Commit])
@pytest.mark.parametrize("road", [Road.WRITE, Road.READ])
def test_given_up_at_any_step_the_peer_is_told_first(road: Road, at: type[Step]) -> None:
    if road is Road.READ and at is Commit:
        return  # it is answered by then
    made = Way(road, [0, 1])
    made.until(at, smooth)
    made.asking.abort(1)
    step = made.next(TransferError(made.errand.why_stop(0.0)))
    if at in (Reserve, MoveChunks, Commit):
        assert isinstance(step, CallOff) and step.reason == "aborted by the scheduler"
        assert made.register.num_live == 0, "here it has ended before"
        assert not made.asking.answers
        step = made.next(True)
    assert isinstance(step, AnswerScheduler)
    assert made.next() is None
    verb = "write of 2 blocks to p" if road is Road.WRITE else "read of 2 blocks from p"
    assert (made.answer.ok, made.answer.detail) == (False, f"{verb}: aborted by the scheduler")
    assert made.asking.next_word(1e9) is None


def test_the_deadline_ends_it() -> None:
    road = Way(Road.WRITE, [0], timeout_s=3.0)
    road.until(MoveChunks, smooth)
    road.now = 3.0
    assert road.errand.why_stop(road.now) == "not done within 3.0 s"
    assert isinstance(road.next(CarrierLost("stopped")), PauseCopy)
    assert isinstance(road.next(), CallOff)
    road.next(True)
    assert "not done within 3.0 s" in road.answer.detail


def test_a_peer_that_did_not_hear_is_told_until_it_does() -> None:
    road = Way(Road.WRITE, [0])
    road.until(MoveChunks, smooth)
    road.asking.abort(1)
    road.next(TransferError("aborted"))
    road.next(False)
    assert len(road.asking.answers) == 1
    assert road.asking.next_word(0.5) is None, "not at once again"
    for now in (1.0, 2.0, 3.0):
        word = road.asking.next_word(now)
        assert word is not None and word.peer == "p" and word.name.pool_incarnation == THERE
        assert road.asking.next_word(now) is None
        road.asking.told(word, False, now)
    word = road.asking.next_word(600.5)
    assert word is not None
    road.asking.told(word, False, 600.5)
    assert road.asking.next_word(1e9) is None, "not for ever"


def test_a_mistake_of_ours_is_an_answer_too() -> None:
    road = Way(Road.WRITE, [0])
    road.until(MoveChunks, smooth)
    assert isinstance(road.next(ZeroDivisionError("of the test")), CallOff)
    assert isinstance(road.next(ZeroDivisionError("again")), AnswerScheduler)
    assert road.answer.detail == "write of 1 blocks to p: ZeroDivisionError: of the test"


def test_another_incarnation_and_orders_that_cannot_be() -> None:
    road = Way(Road.WRITE, [0])
    road.until(Meet, smooth)
    road.next(PoolsMet(THERE + 1, (Carrier.STREAM,)))
    assert road.answer.detail.endswith("incarnation 10 of p is there, the order is for 9")
    road = Way(Road.WRITE, [0])
    road.until(Meet, smooth)
    road.next(PoolsMet(THERE, ()))
    assert road.answer.detail.endswith("p offers none of the carriers that may be used here")


def test_blocks_that_another_transfer_has_here_are_not_touched() -> None:
    road = Way(Road.READ, [0])
    other = Transfer(2, Road.READ, "q", THERE, ids([0]), ids([5]), 10.0)
    road.until(MoveChunks, smooth)
    road.asking.order(other, 1, 0.0)
    second = road.asking.begin(0.0)
    assert second is not None
    step = second.next(None, 0.0)
    while not isinstance(step, AnswerScheduler):
        assert isinstance(step, Ready | Meet)
        step = second.next(smooth(step), 0.0)
    assert "block 0 is being written by another transfer" in step.transferred.detail
    assert road.register.num_live == 1


def test_orders_wait_for_room_and_are_answered_once() -> None:
    asking = Asking("w", register(own_content=True), AskingSettings(max_per_peer=2, max_running=3))

    def order(number: int, peer: str) -> Transfer:
        return Transfer(number, Road.WRITE, peer, THERE, ids([0]), ids([0]), 10.0)

    for number, peer in ((1, "p"), (2, "p"), (3, "p"), (4, "q"), (5, "r")):
        assert asking.order(order(number, peer), 1, 0.0) is not None
    assert asking.order(order(1, "p"), 1, 0.0) is None, "it came before"
    running = [asking.begin(0.0) for _ in range(4)]
    assert [errand and errand.order.transfer for errand in running] == [1, 2, 4, None]
    assert asking.num_wanted == 3
    # What waits and is not wanted any more is answered without having run.
    asking.abort(3)
    asking.sweep(0.0)
    assert [answer.transfer for answer in asking.answers] == [3]
    asking.sweep(10.0)
    assert [(answer.transfer, answer.ok) for answer in asking.answers] == [(3, False), (5, False)]
    assert [order.transfer for order in asking.under_way()] == [1, 2, 4]
    # A new scheduler: older orders are to end, and those that still come are answered so.
    asking.adopt_epoch(2, 0.0)
    assert all(errand is None or errand.problem == "epoch 2 began" for errand in running)
    asking.order(order(9, "p"), 1, 0.0)
    asking.sweep(0.0)
    assert asking.answers[-1].detail == "write of 1 blocks to p: epoch 2 began"
    asking.check()


def test_a_write_whose_own_deadline_passed_a_moment_before_is_done() -> None:
    road = Way(Road.WRITE, [0], timeout_s=5.0)
    road.until(Commit, smooth)
    road.now = 6.0
    road.register.expire(road.now)
    assert isinstance(road.next(DONE), AnswerScheduler)
    assert road.answer.ok
    assert all(moving.phase is TransferPhase.ABORTED for moving in road.register.transfers())
