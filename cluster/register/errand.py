"""One order to move blocks, at the end that was ordered: what to do next, when to try again, when to give up.

`(outcome, now) -> step`: whoever runs it carries out each step and hands in the outcome. Both pools have the transfer
in their registers while it runs, so neither end lets another one touch the blocks. It is answered exactly once, and
only when nothing of this process can touch the peer's blocks any more.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cluster.errors import QuireError, TransferError
from cluster.messages import Road, Transfer, Transferred
from cluster.register.moving import Moving
from cluster.register.register import Register
from cluster.register.states import (
    Blocks,
    Carrier,
    CarrierLost,
    NotObeyed,
    Reservation,
    TransferKey,
    TransferName,
    TransferPhase,
    WhyRefused,
)
from cluster.register.steps import (
    AnswerScheduler,
    CallOff,
    Commit,
    Committed,
    Copied,
    Covered,
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

MAX_RANGES = 1024
"""Gaps that are asked for at a time."""

Value = TypeVar("Value")
Steps = Generator[Step, Any, Value]


@dataclass(frozen=True, slots=True)
class ErrandSettings:
    """Bounds of one errand; seconds."""

    # One try of a call, and how long a peer that says nothing is asked again: computing anew beats waiting for long.
    call_s: float = 2.0
    patience_s: float = 6.0
    # How long an address that nobody knows is waited for: the directory may be a moment behind the order.
    directory_s: float = 1.0
    # Between tries: from the first to the last, which doubles with each. Before a connection that broke is tried again.
    pause_s: float = 0.02
    max_pause_s: float = 0.5
    # For the word that a transfer was given up, before the answer.
    abort_s: float = 1.0
    # Bytes of one reservation where they go over a connection or through a GPU's staging memory.
    part_bytes: int = 64 << 20
    # Carriers that may be used; the best of them that a peer offers is.
    carriers: tuple[Carrier, ...] = (Carrier.SHARED_MEMORY, Carrier.SOCKET, Carrier.STREAM)


class Unknown(CarrierLost):
    """Nobody knows where the peer is."""


class Errand:
    """The order `order` of a scheduler of `epoch`, between the pool `name` of `register` and its peer."""

    def __init__(
        self, order: Transfer, epoch: int, name: str, register: Register, settings: ErrandSettings, now: float
    ) -> None:
        self.order = order
        self.epoch = epoch
        self.deadline = now + order.timeout_s
        # Why it is to be given up.
        self.problem = ""
        # What the peer was told and did not hear: that this part was given up, and why.
        self.unheard: tuple[TransferName, str] | None = None
        self.answered = False
        # Of ours, which ended it.
        self.mistake: Exception | None = None
        self._name = name
        self._register = register
        self._settings = settings
        self._now = self._began = now
        # The part under way, whether its reservation may have reached the peer, and the parts that are done.
        self._part: Covered | None = None
        self._said = False
        self._parts: list[Covered] = []
        self._steps = self._run()
        self._over = False

    @property
    def write(self) -> bool:
        """Into the peer's pool."""
        return self.order.road is Road.WRITE

    def why_stop(self, now: float) -> str:
        """Why what is being done should end now; "": go on."""
        if self.problem:
            return self.problem
        return f"not done within {self.order.timeout_s:.1f} s" if now >= self.deadline else ""

    def next(self, outcome: Outcome, now: float) -> Step | None:
        """The next step; None: it is over. `outcome` is that of the step before, None at first."""
        assert not self._over, self.order
        self._now = now
        try:
            if isinstance(outcome, Exception):
                return self._steps.throw(outcome)
            return self._steps.send(outcome)
        except StopIteration:
            self._over = True
            return None

    # -- from the order to its answer

    def _run(self) -> Steps[None]:
        self._began = self._now
        ok, detail = False, ""
        try:
            carrier = yield from self._carry_out()
            ok, detail = True, f"by {carrier.name.lower().replace('_', ' ')}"
        except QuireError as error:
            detail = str(error)
            yield from self._give_up(detail)
        except Exception as error:
            # A mistake of ours must not leave the scheduler without its answer.
            self.mistake, detail = error, f"{type(error).__name__}: {error}"
            yield from self._give_up(detail)
        yield AnswerScheduler(self.outcome(ok, detail, self._now))
        yield from self._let_go()

    def outcome(self, ok: bool, detail: str, now: float) -> Transferred:
        """The answer to the order."""
        self.answered = True
        count, size_bytes = len(self.order.mine), self._register.layout.block_bytes
        if not ok:
            verb, way = ("write", "to") if self.write else ("read", "from")
            detail = f"{verb} of {count} blocks {way} {self.order.peer}: {detail}"
        return Transferred(self.order.transfer, ok, detail, count * size_bytes if ok else 0, now - self._began)

    def _carry_out(self) -> Steps[Carrier]:
        order = self.order
        if len(order.mine) != len(order.theirs) or not len(order.mine):
            raise TransferError(f"{len(order.mine)} blocks here against {len(order.theirs)} there")
        self._go_on()
        yield Ready()
        met = yield from self._meet()
        if not met.carriers:
            raise TransferError(f"{order.peer} offers none of the carriers that may be used here")
        carrier = met.carriers[0]
        for number, (mine, theirs) in enumerate(self._cut(carrier)):
            self._part, self._said = self._new_part(number, mine, theirs, met, carrier), False
            yield from self._run_part(self._part, met)
            self._parts.append(self._part)
            self._part = None
        return carrier

    def _cut(self, carrier: Carrier) -> list[tuple[Blocks, Blocks]]:
        """The blocks of each part. Through shared memory it is one."""
        mine, theirs = np.array(self.order.mine, np.int32), np.array(self.order.theirs, np.int32)
        step = max(1, self._settings.part_bytes // self._register.layout.block_bytes)
        if carrier is Carrier.SHARED_MEMORY:
            step = len(mine)
        return [(mine[i : i + step], theirs[i : i + step]) for i in range(0, len(mine), step)]

    def _new_part(self, number: int, mine: Blocks, theirs: Blocks, met: PoolsMet, carrier: Carrier) -> Covered:
        life = self._register.incarnation
        key = TransferKey(self.epoch, self.order.transfer, number, self._name)
        here, there = TransferName(key, life, life), TransferName(key, life, met.incarnation)
        return Covered(key, here, there, self.write, mine, theirs, carrier)

    def _run_part(self, part: Covered, met: PoolsMet) -> Steps[None]:
        moving = self._register.reserve(self._reservation(part, met, local=True), b"", self._now)
        if not moving.live:
            raise NotObeyed(WhyRefused.DOUBLED, f"{part.key} ran before")
        asked = self._reservation(part, met, local=False)
        self._said = True
        reserved: Reserved = yield from self._call(Reserve(asked, self._settings.call_s))
        if part.write:
            yield from self._write(part, moving, reserved)
        else:
            yield from self._read(part, moving, reserved)

    def _reservation(self, part: Covered, met: PoolsMet, *, local: bool) -> Reservation:
        """Of the peer's pool, or of this one: what is written there is read here."""
        return Reservation(
            name=part.here if local else part.there,
            write=part.write != local,
            layout=self._register.layout,
            blocks=part.mine if local else part.theirs,
            carrier=part.carrier,
            timeout_s=self.deadline - self._now,
            session=met.session if part.carrier is Carrier.SHARED_MEMORY and not local else 0,
            wire_blocks=part.theirs,
            local=local,
        )

    # -- the two ways

    def _write(self, part: Covered, moving: Moving, reserved: Reserved) -> Steps[None]:
        """The peer says what is missing; it has all if it has committed."""
        missing = [(0, len(part.mine) * self._register.layout.chunks_per_block)]
        while True:
            self._go_on()
            copied = Copied()
            try:
                copied = yield MoveChunks(part, missing, reserved)
            except CarrierLost:
                # What arrived before counts; the answer to the commit says what is still missing.
                yield PauseCopy(self._settings.pause_s)
            else:
                # What was read until now was still the transfer's.
                self._check_live(moving)
            answer: Committed = yield from self._call(Commit(part.there, copied, self._settings.call_s))
            if answer.done:
                break
            missing = answer.missing
        try:
            self._register.commit(part.here, self._now)
        except NotObeyed:
            pass  # its deadline here passed a moment before; the peer has every byte

    def _read(self, part: Covered, moving: Moving, reserved: Reserved) -> Steps[None]:
        """This pool's own account says what is missing."""
        while moving.num_missing:
            self._go_on()
            self._check_live(moving)
            try:
                yield MoveChunks(part, moving.missing(MAX_RANGES), reserved)
            except CarrierLost:
                yield PauseCopy(self._settings.pause_s)
        yield Finish(part)
        if moving.phase is not TransferPhase.COMMITTED:
            raise TransferError(f"{part.key} did not commit here: {moving.reason or moving.phase.name.lower()}")

    # -- how it ends

    def _give_up(self, reason: str) -> Steps[None]:
        """Nothing of this process copies any more. The peer is told before the answer is given: the scheduler may use
        the blocks again from then on."""
        part, self._part = self._part, None
        if part is None:
            return
        self._register.abort(part.here, reason, True, self._now)
        if not self._said:
            return
        try:
            heard = yield CallOff(part.there, reason, self._settings.abort_s)
        except Exception:
            heard = False
        if not heard:
            self.unheard = part.there, reason

    def _let_go(self) -> Steps[None]:
        """Of what was read: every byte is here and checked, and whoever waits for it was told. The peer only has to let
        go, which its deadline would do too."""
        for part in () if self.write else self._parts:
            try:
                yield Commit(part.there, Copied(), self._settings.call_s)
            except Exception:
                return

    # -- calls

    def _meet(self) -> Steps[PoolsMet]:
        order = self.order
        settings = self._settings
        meet = Meet(order.peer, order.peer_incarnation, self.write, settings.carriers, settings.call_s)
        met: PoolsMet = yield from self._call(meet)
        if met.incarnation != order.peer_incarnation:
            raise TransferError(
                f"incarnation {met.incarnation} of {order.peer} is there, the order is for {order.peer_incarnation}"
            )
        return met

    def _call(self, step: Meet | Reserve | Commit) -> Steps[Any]:
        """Until it is answered or refused, or the errand is to end. A peer that is busy is asked for as long as that,
        one that says nothing for `patience_s`."""
        settings = self._settings
        pause_s, heard_at = settings.pause_s, self._now
        while True:
            self._go_on()
            try:
                return (yield step)
            except NotObeyed as refused:
                if refused.refusal is not WhyRefused.BUSY:
                    raise
                heard_at = self._now
            except CarrierLost as lost:
                patience_s = settings.directory_s if isinstance(lost, Unknown) else settings.patience_s
                if lost.final or self._now >= heard_at + patience_s:
                    raise
            yield PauseCopy(pause_s)
            pause_s = min(2 * pause_s, settings.max_pause_s)

    def _go_on(self) -> None:
        problem = self.why_stop(self._now)
        if problem:
            raise TransferError(problem)

    def _check_live(self, moving: Moving) -> None:
        if not self._register.touch(moving, self._now):
            raise NotObeyed(WhyRefused.LATE, f"{moving.key} has ended here: {moving.reason}")
