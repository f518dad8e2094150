"""The pure state machine of transfers under random events, against a model of who may write and read."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.register.blocks import COMMITTED, EMPTY, QUARANTINED, WRITING
from cluster.register.moving import Moving
from cluster.register.states import (
    Carrier,
    NotObeyed,
    TransferName,
    TransferPhase,
)
from tests.register.parts import NUM_BLOCKS, asked, name, register


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
        self.sessions: dict[str, list[int]] = {"a": [], "b": []}
        self.next_session = 10
        for caller in self.lives:
            self._is_given_memory(caller)
        self.told: list[Told] = []
        self.content: dict[int, tuple[int, int]] = {}

    def _is_given_memory(self, caller: str) -> None:
        self.made.session_began(self.next_session, caller, self.lives[caller], write=True)
        self.sessions[caller].append(self.next_session)
        self.next_session += 1

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
        session = self.sessions[caller][-1]
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
            moving = self.made.reserve(asked(named, blocks, write, carrier, timeout_s, session), b"", self.now)
        except NotObeyed:
            return
        if any(told.moving is moving for told in self.told):
            return
        # Leave was given: nobody else may be able to write here, and nobody may read what is to be written. Who reads
        # blocks that steps own is the scheduler's care (see PoolBlocks.check_claim): there readers do not hold up.
        assert not [told for told in writers if told.writing or told.at_large or told.moving.live]
        if not self.made.blocks.own_content:
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
        except NotObeyed:
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
        except NotObeyed:
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
                except NotObeyed:
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
        except NotObeyed:
            return
        if moving.phase is not TransferPhase.COMMITTED or was is TransferPhase.COMMITTED or not told.write:
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
        for session in self.sessions[caller]:
            self.made.session_died(session, self.now)
        self.sessions[caller].clear()
        self._is_given_memory(caller)

    @rule(caller=st.sampled_from(["a", "b"]))
    def caller_begins_anew(self, caller: str) -> None:
        self.lives[caller] += 1
        self._is_given_memory(caller)

    @rule()
    def scheduler_begins_anew(self) -> None:
        self.epoch += 1
        self.made.adopt_epoch(self.epoch, self.now)

    @rule(number=st.integers(1, 30))
    def give_up(self, number: int) -> None:
        self.made.give_up(self.epoch, number, self.now)

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
            if told.write and (told.writing or told.at_large) and told.moving.phase is not TransferPhase.COMMITTED:
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
                with pytest.raises(NotObeyed):
                    self.made.end_chunks(told.moving, told.writing.pop(), 1, None, self.now)
        for session in [*self.sessions["a"], *self.sessions["b"]]:
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
