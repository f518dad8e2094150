"""The pure state machine of transfers: plain cases, and random events against a model of who may write and read."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.transfer_blocks import COMMITTED, EMPTY, QUARANTINED, WRITING
from worker.transfer_register import RegisterSettings, TransferRegister
from worker.transfer_states import (
    Carrier,
    Moving,
    Phase,
    PoolLayout,
    Refusal,
    Refused,
    Reservation,
    TransferKey,
    TransferName,
    layout_of,
)

LAYOUT = PoolLayout("f", 256, 128)
NUM_BLOCKS = 6
INCARNATION = 7


def name(
    transfer: int, epoch: int = 1, part: int = 0, caller: str = "w", life: int = 1, pool: int = INCARNATION
) -> TransferName:
    return TransferName(TransferKey(epoch, transfer, part, caller), life, pool)


def asked(
    named: TransferName,
    blocks: list[int],
    write: bool = True,
    carrier: Carrier = Carrier.SOCKET,
    timeout_s: float = 10.0,
    session: int = 0,
    layout: PoolLayout = LAYOUT,
) -> Reservation:
    return Reservation(named, write, layout, np.array(blocks, np.int32), carrier, timeout_s, session)


def register(*, own_content: bool = False, **bounds: float) -> TransferRegister:
    return TransferRegister(LAYOUT, NUM_BLOCKS, INCARNATION, RegisterSettings(**bounds), own_content=own_content)  # type: ignore[arg-type]


def fill(made: TransferRegister, moving: Moving, now: float, crc: int = 5) -> None:
    for first, count in moving.missing(100):
        made.begin_chunks(moving, first, count, now)
        made.end_chunks(moving, first, count, np.full(count, crc, np.uint32), now)
    assert made.begin_finish(moving, now)
    made.end_finish(moving, True, now)


def refused(why: Refusal, words: str = "") -> "pytest.RaisesExc[Refused]":
    return pytest.raises(Refused, match=words or None, check=lambda error: error.refusal is why)


def test_a_write_from_reservation_to_commit_to_read() -> None:
    made = register()
    moving = made.reserve(asked(name(1), [4, 2]), 0.0)
    assert made.blocks.states.tolist() == [EMPTY, EMPTY, WRITING, EMPTY, WRITING, EMPTY]
    with refused(Refusal.OCCUPIED, "block 2 is being written"):
        made.reserve(asked(name(2), [2], write=False), 0.0)
    assert made.commit(name(1), 0.1).phase is Phase.RESERVED  # nothing is here yet
    assert moving.missing(10) == [(0, 4)]
    # Block 4 is the first, so chunk 1 is its second half.
    assert made.chunk_number(moving, 4, 128, 128) == 1
    assert made.chunk_number(moving, 2, 0, 128) == 2
    made.begin_chunks(moving, 1, 1, 0.2)
    made.end_chunks(moving, 1, 1, 9, 0.2)
    assert moving.missing(10) == [(0, 1), (2, 2)] and moving.missing(1) == [(0, 1)]
    fill(made, moving, 0.3)
    assert made.commit(name(1), 0.4).phase is Phase.COMMITTED
    assert made.commit(name(1), 0.5).phase is Phase.COMMITTED
    assert made.blocks.crcs(np.array([4, 2], np.int32)).tolist() == [5, 9, 5, 5]  # type: ignore[union-attr]
    reading = made.reserve(asked(name(2), [2, 4], write=False), 0.6)
    with refused(Refusal.OCCUPIED, "is being read"):
        made.reserve(asked(name(3), [4]), 0.6)
    made.commit(name(2), 0.7)
    assert reading.phase is Phase.COMMITTED
    made.reserve(asked(name(3), [4]), 0.8)
    made.check()


def test_what_is_not_committed_cannot_be_read_unless_the_steps_own_it() -> None:
    with refused(Refusal.UNREADABLE, "block 3 holds nothing committed"):
        register().reserve(asked(name(1), [3], write=False), 0.0)
    assert register(own_content=True).reserve(asked(name(1), [3], write=False), 0.0).live


def test_an_abort_frees_at_once_only_what_nobody_can_write() -> None:
    made = register()
    made.reserve(asked(name(1), [0]), 0.0)
    shared = made.reserve(asked(name(2), [1], carrier=Carrier.SHARED_MEMORY, session=3), 0.0)
    arriving = made.reserve(asked(name(3), [2]), 0.0)
    made.begin_chunks(arriving, 0, 1, 0.1)
    for transfer in (1, 2, 3):
        made.abort(name(transfer), "test", False, 0.2)
    assert made.blocks.states[:3].tolist() == [EMPTY, QUARANTINED, QUARANTINED]
    made.reserve(asked(name(4), [0]), 0.3)
    with refused(Refusal.QUARANTINED, "block 1 is in quarantine"):
        made.reserve(asked(name(5), [1]), 0.3)
    with refused(Refusal.LATE):
        made.end_chunks(arriving, 0, 1, 9, 0.4)
    assert made.blocks.states[2] == EMPTY
    # A deadline that passes twice, a long time, another session's death: none is proof.
    made.expire(1e6)
    made.session_died(4, 1e6)
    assert shared.quarantined
    made.abort(name(2), "stopped at last", True, 1e6)
    assert made.blocks.states[1] == EMPTY
    made.check()


def test_a_dead_process_ends_its_transfers_and_their_quarantine() -> None:
    made = register()
    made.reserve(asked(name(1), [0], carrier=Carrier.SHARED_MEMORY, session=3), 0.0)
    made.reserve(asked(name(2), [1], carrier=Carrier.SHARED_MEMORY, session=3), 0.0)
    made.reserve(asked(name(3), [2], carrier=Carrier.SHARED_MEMORY, session=4), 0.0)
    made.abort(name(1), "test", False, 0.1)
    assert len(made.session_died(3, 0.2)) == 2
    assert made.blocks.states[:3].tolist() == [EMPTY, EMPTY, WRITING]
    made.check()


def test_deadlines_end_every_live_phase() -> None:
    made = register(idle_s=3.0)
    silent = made.reserve(asked(name(1), [0]), 0.0)
    slow = made.reserve(asked(name(2), [1], timeout_s=8.0), 0.0)
    shared = made.reserve(asked(name(3), [2], carrier=Carrier.SHARED_MEMORY, session=1, timeout_s=8.0), 0.0)
    for now in (2.0, 4.0, 6.0):
        assert made.touch(slow, now)
        made.expire(now)
    assert silent.phase is Phase.ABORTED and silent.reason == "nothing heard for 4.0 s"
    assert slow.live and shared.live
    made.expire(8.0)
    assert (slow.phase, shared.phase) == (Phase.ABORTED, Phase.ABORTED)
    assert slow.reason == "not committed within 8.0 s"
    assert not made.touch(slow, 8.1)
    made.check()


def test_messages_of_older_lives_are_stale() -> None:
    made = register()
    first = made.reserve(asked(name(1, life=4), [0]), 0.0)
    with refused(Refusal.STALE, "incarnation 6 of this pool, 7 holds"):
        made.reserve(asked(name(2, pool=6), [1]), 0.0)
    made.reserve(asked(name(2, life=5), [1]), 0.0)
    assert first.phase is Phase.ABORTED and first.reason == "incarnation 5 of w began"
    with refused(Refusal.STALE):
        made.find(name(1, life=4), 0.1)
    second = made.find(name(2, life=5), 0.1)
    made.adopt_epoch(9, 0.2)
    assert second.phase is Phase.ABORTED
    with refused(Refusal.STALE, "epoch 9 holds"):
        made.commit(name(2, life=5), 0.3)
    # That it stopped is good to hear of an older life too.
    assert made.abort(name(2, life=5), "late", True, 0.4) is second
    with refused(Refusal.STALE):
        made.release(8, np.array([0], np.int32), False, 0.5)


def test_an_epoch_keeps_what_was_committed_before() -> None:
    made = register()
    moving = made.reserve(asked(name(1), [3]), 0.0)
    fill(made, moving, 0.1)
    made.commit(name(1), 0.2)
    made.adopt_epoch(2, 0.3)
    blocks, transfers, epochs = made.blocks.committed()
    assert (blocks.tolist(), transfers.tolist(), epochs.tolist()) == ([3], [1], [1])
    assert made.reserve(asked(name(1, epoch=2), [3], write=False), 0.4).live


def test_chunks_that_are_wrong_are_refused() -> None:
    made = register()
    moving = made.reserve(asked(name(1), [5]), 0.0)
    for block, offset, length, why in (
        (5, 0, 127, Refusal.TRUNCATED),
        (5, 64, 128, Refusal.OUTSIDE),
        (5, 256, 128, Refusal.OUTSIDE),
        (4, 0, 128, Refusal.OUTSIDE),
    ):
        with refused(why):
            made.chunk_number(moving, block, offset, length)
    made.begin_chunks(moving, 0, 1, 0.1)
    with refused(Refusal.DOUBLED):
        made.begin_chunks(moving, 0, 1, 0.1)
    made.end_chunks(moving, 0, 1, None, 0.2)  # corrupt: missing again
    made.begin_chunks(moving, 0, 1, 0.3)
    made.end_chunks(moving, 0, 1, 9, 0.3)
    with refused(Refusal.DOUBLED):
        made.begin_chunks(moving, 0, 1, 0.4)
    with refused(Refusal.OUTSIDE):
        made.begin_chunks(moving, 1, 2, 0.4)
    with refused(Refusal.UNKNOWN):
        made.find(name(99), 0.5)


def test_reservations_that_cannot_be() -> None:
    made = register(max_bytes_per_caller=600)
    for blocks, why in (
        ([], Refusal.OUTSIDE),
        ([6], Refusal.OUTSIDE),
        ([-1], Refusal.OUTSIDE),
        ([1, 1], Refusal.OUTSIDE),
    ):
        with refused(why):
            made.reserve(asked(name(1), blocks), 0.0)
    with refused(Refusal.LAYOUT, "w has blocks of 512 bytes against 256 here"):
        made.reserve(asked(name(1), [0], layout=PoolLayout("f", 512, 128)), 0.0)
    with refused(Refusal.LAYOUT, "laid out as g against f"):
        made.reserve(asked(name(1), [0], layout=PoolLayout("g", 256, 128)), 0.0)
    # One that is larger than the bound goes when it is alone; another caller is not hindered.
    made.reserve(asked(name(1), [0, 1, 2]), 0.0)
    with refused(Refusal.BUSY, "768 bytes under way and asks for 256 more; 600 is the most"):
        made.reserve(asked(name(2), [3]), 0.0)
    made.reserve(asked(name(2, caller="v"), [3]), 0.0)
    made.abort(name(1), "", True, 0.1)
    made.reserve(asked(name(2), [0]), 0.2)


def test_repetitions_get_the_same_answer() -> None:
    made = register()
    first = made.reserve(asked(name(1), [0, 1]), 0.0)
    assert made.reserve(asked(name(1), [0, 1]), 0.1) is first
    with refused(Refusal.CONFLICT):
        made.reserve(asked(name(1), [0, 2]), 0.1)
    made.abort(name(1), "enough", True, 0.2)
    with refused(Refusal.LATE, "was given up: enough"):
        made.reserve(asked(name(1), [0, 1]), 0.3)
    # An abort that overtakes its reservation.
    assert made.abort(name(2), "early", True, 0.4) is None
    with refused(Refusal.LATE):
        made.reserve(asked(name(2), [0]), 0.5)
    made.give_up(1, 3, "the scheduler's wish", 0.6)
    with refused(Refusal.LATE):
        made.reserve(asked(name(3), [0]), 0.7)
    # Ends are remembered for a while, and then forgotten.
    made.expire(200.0)
    assert list(made.transfers()) == []


def test_a_reservation_that_was_held_up_does_not_push_out_newer_content() -> None:
    made = register()
    moving = made.reserve(asked(name(8), [0]), 0.0)
    fill(made, moving, 0.1)
    made.commit(name(8), 0.1)
    with refused(Refusal.STALE, "holds what a newer transfer wrote"):
        made.reserve(asked(name(5), [0]), 0.2)
    assert made.blocks.states[0] == COMMITTED
    made.reserve(asked(name(9), [0]), 0.3)
    made.abort(name(9), "", True, 0.4)
    assert made.blocks.states[0] == EMPTY  # half overwritten, so nothing


def test_release_and_clear() -> None:
    made = register()
    for transfer, block in ((1, 0), (2, 1), (3, 2)):
        moving = made.reserve(asked(name(transfer), [block]), 0.0)
        fill(made, moving, 0.0)
        made.commit(name(transfer), 0.0)
    made.reserve(asked(name(4), [1], write=False), 0.1)
    # Block 1 is being read, block 3 never held anything.
    assert made.release(1, np.array([0, 1, 3], np.int32), False, 0.2).tolist() == [0]
    assert made.release(1, np.array([2], np.int32), True, 0.2).tolist() == [2]
    with refused(Refusal.QUARANTINED):
        made.reserve(asked(name(5), [2]), 0.3)
    made.cleared(np.array([2], np.int32))
    made.reserve(asked(name(5), [2]), 0.4)
    made.check()


def test_chunks_of_a_layout() -> None:
    assert layout_of("f", 16_384).chunks_per_block == 1
    large = layout_of("f", (5 << 19))
    assert (large.chunk_bytes, large.chunks_per_block, large.length(2)) == (1 << 20, 3, 1 << 19)


@dataclass
class Told:
    """What the model knows of one transfer that was reserved."""

    moving: Moving
    named: TransferName
    write: bool
    # Chunks that the test is writing, and whether a shared-memory writer is still at large.
    writing: set[int] = field(default_factory=set)
    at_large: bool = False
    sums: dict[int, int] = field(default_factory=dict)


class Machine(RuleBasedStateMachine):
    """Drives the register with whatever could be said to it, in any order, and holds the rules against the outcome."""

    @initialize(own_content=st.booleans())
    def begin(self, own_content: bool) -> None:
        self.made = register(own_content=own_content, idle_s=5.0, remember_s=20.0, max_bytes_per_caller=1024)
        self.now = 0.0
        self.number = 0
        self.epoch = 1
        self.lives = {"a": 1, "b": 1}
        self.told: list[Told] = []
        self.content: dict[int, tuple[int, int]] = {}

    def some(self, data: st.DataObject) -> Told:
        return data.draw(st.sampled_from(self.told))

    @rule(
        caller=st.sampled_from(["a", "b"]),
        blocks=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=4, unique=True),
        write=st.booleans(),
        carrier=st.sampled_from(list(Carrier)),
        timeout_s=st.floats(0.5, 20.0),
        old=st.booleans(),
    )
    def reserve(
        self, caller: str, blocks: list[int], write: bool, carrier: Carrier, timeout_s: float, old: bool
    ) -> None:
        self.number += 1
        number = max(1, self.number - 3) if old else self.number
        named = name(number, self.epoch, 1 if old else 0, caller, self.lives[caller])
        session = 1 if caller == "a" else 2
        writers = [
            told
            for told in self.told
            if told.write
            and (told.moving.live or told.writing or told.at_large)
            and set(told.moving.reservation.blocks.tolist()) & set(blocks)
        ]
        readers = [
            told
            for told in self.told
            if not told.write and told.moving.live and set(told.moving.reservation.blocks.tolist()) & set(blocks)
        ]
        try:
            moving = self.made.reserve(asked(named, blocks, write, carrier, timeout_s, session), self.now)
        except Refused:
            return
        if any(told.moving is moving for told in self.told):
            return
        # Leave was given: nobody else may be able to write here, and nobody may read what is to be written.
        assert not [told for told in writers if told.writing or told.at_large or told.moving.live]
        assert not (write and [told for told in readers if told.moving.live])
        if not write and not self.made.blocks.own_content:
            assert all(block in self.content for block in blocks), "read of something that was never committed"
        if write:
            for block in blocks:
                self.content.pop(block, None)
        self.told.append(Told(moving, named, write, at_large=write and carrier is Carrier.SHARED_MEMORY))

    @precondition(lambda self: self.told)
    @rule(data=st.data(), chunk=st.integers(0, 7))
    def begin_chunk(self, data: st.DataObject, chunk: int) -> None:
        told = self.some(data)
        if not told.write:
            return
        try:
            self.made.begin_chunks(told.moving, chunk, 1, self.now)
        except Refused:
            return
        assert chunk not in told.writing
        told.writing.add(chunk)

    @precondition(lambda self: any(told.writing for told in self.told))
    @rule(data=st.data(), crc=st.one_of(st.none(), st.integers(0, 2**32 - 1)))
    def end_chunk(self, data: st.DataObject, crc: int | None) -> None:
        told = data.draw(st.sampled_from([told for told in self.told if told.writing]))
        chunk = told.writing.pop()
        try:
            self.made.end_chunks(told.moving, chunk, 1, crc, self.now)
        except Refused:
            assert not told.moving.live
            return
        assert told.moving.live
        if crc is not None:
            told.sums[chunk] = crc

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """Sends all that is missing of one write, and commits."""
        told = self.some(data)
        if not told.write or not told.moving.live or told.writing:
            return
        for first, count in told.moving.missing(10):
            for chunk in range(first, first + count):
                try:
                    self.made.begin_chunks(told.moving, chunk, 1, self.now)
                except Refused:
                    return
                self.made.end_chunks(told.moving, chunk, 1, chunk + 1, self.now)
                told.sums[chunk] = chunk + 1
        self._commit(told)

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self._commit(self.some(data))

    def _commit(self, told: Told) -> None:
        was = told.moving.phase
        if told.write and self.made.begin_finish(told.moving, self.now):
            self.made.end_finish(told.moving, True, self.now)
        try:
            moving = self.made.commit(told.named, self.now)
        except Refused:
            return
        if moving.phase is not Phase.COMMITTED or was is Phase.COMMITTED or not told.write:
            return
        told.at_large = False
        assert not told.writing and len(told.sums) == len(moving.chunks), "committed before all of it was there"
        blocks = moving.reservation.blocks
        stored = self.made.blocks.crcs(blocks)
        if stored is not None:
            assert stored.tolist() == [told.sums[chunk] for chunk in range(len(moving.chunks))]
            self.content.update(dict.fromkeys(blocks.tolist(), (told.named.key.epoch, told.named.key.transfer)))

    @precondition(lambda self: self.told)
    @rule(data=st.data(), stopped=st.booleans())
    def abort(self, data: st.DataObject, stopped: bool) -> None:
        told = self.some(data)
        if stopped:
            told.at_large = False
        # Whatever life it is of: it is good to hear.
        answer = self.made.abort(told.named, "test", stopped, self.now)
        # Long after its end it may have been forgotten, and this abort be what is remembered.
        assert answer is None or not answer.live
        assert not told.moving.live

    @rule(caller=st.sampled_from(["a", "b"]))
    def process_dies(self, caller: str) -> None:
        for told in self.told:
            if told.named.key.caller == caller:
                told.at_large = False
        self.made.session_died(1 if caller == "a" else 2, self.now)

    @rule(caller=st.sampled_from(["a", "b"]))
    def caller_begins_anew(self, caller: str) -> None:
        self.lives[caller] += 1

    @rule()
    def scheduler_begins_anew(self) -> None:
        self.epoch += 1
        self.made.adopt_epoch(self.epoch, self.now)

    @rule(blocks=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=3, unique=True))
    def release(self, blocks: list[int]) -> None:
        for block in self.made.release(self.epoch, np.array(blocks, np.int32), False, self.now).tolist():
            del self.content[block]

    @rule(number=st.integers(1, 30))
    def give_up(self, number: int) -> None:
        self.made.give_up(self.epoch, number, "test", self.now)

    @rule(seconds=st.floats(0.01, 8.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.made.expire(self.now)

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "made"):
            return
        self.made.check()
        for told in self.told:
            if told.write and (told.writing or told.at_large) and told.moving.phase is not Phase.COMMITTED:
                states = self.made.blocks.states[told.moving.reservation.blocks]
                assert np.isin(states, (WRITING, QUARANTINED)).all(), (
                    f"{told.named.key} can still write to a free block"
                )
        held = set(np.flatnonzero(self.made.blocks.states == COMMITTED).tolist())
        assert held == set(self.content)

    def teardown(self) -> None:
        """Whatever happened: once time has passed and writers have stopped, nothing is left hanging."""
        if not hasattr(self, "made"):
            return
        self.now += 1e4
        self.made.expire(self.now)
        assert self.made.num_live == 0
        for told in self.told:
            while told.writing:
                with pytest.raises(Refused):
                    self.made.end_chunks(told.moving, told.writing.pop(), 1, None, self.now)
        for session in (1, 2):
            self.made.session_died(session, self.now)
        self.made.expire(self.now + 1e4)
        assert list(self.made.transfers()) == []
        assert np.isin(self.made.blocks.states, (EMPTY, COMMITTED)).all()
        assert not self.made.blocks.readers.any()
        self.made.check()


Machine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMachine = Machine.TestCase
