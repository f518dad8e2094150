"""The transfers of one simulated worker: the real register at both ends, made-up copies and calls between them.

A worker moves blocks between its own pool and a peer (a host pool, or another worker). What is done when is decided by
`cluster/register/`; here calls and chunks take time, are lost, doubled or late, and blocks are really copied. On one
node a worker reaches a host pool's memory by itself, which is how a stopped process becomes a late writer; all else
goes through the peer's process. Each block is read at one time and written at a later one, so that whoever reuses a
block too early shows in the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol
from zlib import crc32

import numpy as np

from cluster.errors import TransferError
from cluster.messages import Transfer, Transferred
from cluster.register.asking import Asking, AskingSettings, Unheard
from cluster.register.errand import Errand, ErrandSettings
from cluster.register.states import (
    Carrier,
    CarrierLost,
    NotObeyed,
    TransferName,
    WhyRefused,
)
from cluster.register.steps import (
    CallOff,
    Commit,
    Copied,
    Finish,
    Meet,
    MoveChunks,
    Outcome,
    PauseCopy,
    PoolsMet,
    Ready,
    Reserve,
    Step,
)
from cluster.sim.device import SimStream
from cluster.sim.network import Weather
from cluster.sim.pool_end import (
    LOOK_S,
    OF_A_CHUNK,
    Mover,
    Pool,
    Reply,
    Request,
    SimChunk,
    abort,
    commit,
    read_chunk,
    reserve,
    take_chunk,
    take_commit,
)


class Faults:
    """What is about to go wrong with transfers of one worker; each is used up by the next transfer it meets."""

    def __init__(self) -> None:
        self.fail_next = 0
        self.corrupt_next = 0


class SimRoads(Protocol):
    """The world that a transfer passes through."""

    @property
    def pool(self) -> Callable[[str], Pool | None]: ...

    @property
    def reaches(self) -> Callable[[str, str], bool]: ...

    @property
    def landed(self) -> Callable[[Transfer, int, bytes], None]: ...

    @property
    def weather(self) -> Weather: ...


class SimTransfers:
    """The transfers of one worker. `owner` is its process: where that stands still, so do they."""

    PIECE_S = 0.0008  # seconds for a block on one node; between nodes it takes three times as long

    def __init__(
        self, owner: Mover, stream: SimStream, roads: SimRoads, on_settled: Callable[[Transferred], None]
    ) -> None:
        self._owner = owner
        self._stream = stream
        self._roads = roads
        self._on_settled = on_settled
        self.faults = Faults()
        size = owner.stacked.num_bytes
        errand = ErrandSettings(
            call_s=0.2,
            patience_s=0.5,
            directory_s=0.1,
            pause_s=0.005,
            max_pause_s=0.05,
            abort_s=0.1,
            part_bytes=6 * size,
            carriers=(Carrier.SHARED_MEMORY, Carrier.STREAM),
        )
        settings = AskingSettings(errand, max_running=64, settle_s=20.0, settle_pause_s=0.2, settle_call_s=0.1)
        self._asking = Asking(owner.name, owner.register, settings)
        self._runs: list[_Run] = []
        self._looks = False

    @property
    def under_way(self) -> list[Transfer]:
        """Orders that have not been answered."""
        return self._asking.under_way()

    @property
    def is_writing(self) -> bool:
        """A transfer into a peer's pool has just begun."""
        return any(run.errand.write and run.copies and not run.errand.answered for run in self._runs)

    def begin(self, order: Transfer, epoch: int) -> None:
        errand = self._asking.order(order, epoch, self._owner.clock.now)
        assert errand is not None, f"transfer {order.transfer} was ordered twice"
        self._go_on()

    def abort(self, transfer: int) -> None:
        self._asking.abort(transfer)
        self._go_on()

    def adopt_epoch(self, epoch: int) -> None:
        self._asking.adopt_epoch(epoch, self._owner.clock.now)
        self._go_on()

    def ended(self, run: _Run) -> None:
        self._runs.remove(run)

    def answer(self, errand: Errand, transferred: Transferred) -> None:
        if errand.mistake is not None:
            raise errand.mistake
        self._asking.answer(errand, transferred, self._owner.clock.now)
        self._go_on()

    def _go_on(self) -> None:
        """Begins what can begin, tells what is answered, and looks again while something may become due."""
        now = self._owner.clock.now
        while (errand := self._asking.begin(now)) is not None:
            run = _Run(self, errand, self._owner, self._stream, self._roads)
            self._runs.append(run)
            run.feed(None)
        while self._asking.answers:
            self._on_settled(self._asking.answers.popleft())
        if not self._looks and (self._asking.is_due or self._runs):
            self._looks = True
            self._owner.after(LOOK_S, self._look)

    def _look(self) -> None:
        self._looks = False
        now = self._owner.clock.now
        self._owner.register.expire(now)
        while (word := self._asking.next_word(now)) is not None:
            self._tell(word)
        self._asking.check()
        self._go_on()

    def _tell(self, word: Unheard) -> None:
        def answered(outcome: Outcome) -> None:
            self._asking.told(word, outcome is True, self._owner.clock.now)

        say = SimCall(self._owner, self._roads, word.peer, partial(abort, word.name, word.reason, self._owner.clock))
        say.begin(self._asking.settings.settle_call_s, answered)


class SimCall:
    """One try of a call, or of a chunk: to the peer's process and back, each way with all that a network does."""

    def __init__(self, owner: Mover, roads: SimRoads, peer: str, request: Request) -> None:
        self._owner = owner
        self._roads = roads
        self._peer = peer
        self._request = request
        self._answered: Reply | None = None

    def begin(self, timeout_s: float, answered: Reply) -> None:
        """`answered` gets the outcome once: the peer's, or Lost."""
        self._answered = answered
        weather, random = self._roads.weather, self._owner.random
        self._owner.after(timeout_s, self._end, CarrierLost(f"{self._peer} did not answer"))
        if random.random() >= weather.loss:
            self._owner.clock.after(self._delay(), self._arrive, True)
        if random.random() < weather.double:
            self._owner.clock.after(self._delay() + weather.slow_s * random.random(), self._arrive, False)

    def _delay(self) -> float:
        weather, random = self._roads.weather, self._owner.random
        slow = weather.slow_s * random.random() if random.random() < weather.slow else 0.0
        return 0.2 * weather.delay_s * (0.2 + 1.6 * random.random()) + slow

    def _arrive(self, answers: bool) -> None:
        peer = self._roads.pool(self._peer)
        if peer is None or not peer.alive:
            if answers:
                self._owner.run(self._end, CarrierLost(f"nobody listens at {self._peer}"))
        elif self._roads.reaches(self._owner.node, peer.node):
            peer.run(self._serve, peer, answers)

    def _serve(self, peer: Pool, answers: bool) -> None:
        def reply(outcome: Outcome) -> None:
            if answers and self._owner.random.random() >= self._roads.weather.loss:
                self._owner.clock.after(self._delay(), self._back, peer, outcome)

        try:
            self._request(peer, reply)
        except NotObeyed as refused:
            reply(refused)
        peer.look()

    def _back(self, peer: Pool, outcome: Outcome) -> None:
        if self._roads.reaches(peer.node, self._owner.node):
            self._owner.run(self._end, outcome)

    def _end(self, outcome: Outcome) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(outcome)


class _Run:
    """One errand on its way."""

    def __init__(
        self, transfers: SimTransfers, errand: Errand, owner: Mover, stream: SimStream, roads: SimRoads
    ) -> None:
        self.errand = errand
        self._transfers = transfers
        self._owner = owner
        self._stream = stream
        self._roads = roads
        self._clock = owner.clock
        # The pool whose memory is mapped, as it was met.
        self._mapped: Pool | None = None
        # A chunk is under way through shared memory, or by messages.
        self.copies = False
        faults, half = transfers.faults, len(errand.order.mine) // 2
        self._fail_at = self._corrupt_at = -1
        self._num_copied = 0
        if faults.fail_next:
            faults.fail_next -= 1
            self._fail_at = half
        if faults.corrupt_next:
            faults.corrupt_next -= 1
            self._corrupt_at = half

    def feed(self, outcome: Outcome) -> None:
        step = self.errand.next(outcome, self._clock.now)
        if step is None:
            self._transfers.ended(self)
        else:
            self._do(step)

    def _do(self, step: Step) -> None:
        clock, peer = self._clock, self.errand.order.peer
        if isinstance(step, Ready):
            # Steps that were issued before may still write the blocks that are to be sent.
            self._stream.issue(0.0, partial(self.feed, None))
        elif isinstance(step, PauseCopy):
            self._owner.after(step.seconds, self.feed, None)
        elif isinstance(step, Meet):
            self._call(peer, self._meet, step.timeout_s)
        elif isinstance(step, Reserve):
            self._call(peer, partial(reserve, step, clock), step.timeout_s)
        elif isinstance(step, MoveChunks):
            self._copy(step)
        elif isinstance(step, Finish):
            commit(self._owner.register, step.part.here, clock.now)
            self._owner.run(self.feed, None)
        elif isinstance(step, Commit):
            self._call(peer, partial(take_commit, step, clock), step.timeout_s)
        elif isinstance(step, CallOff):
            say = SimCall(self._owner, self._roads, peer, partial(abort, step.name, step.reason, clock))
            say.begin(step.timeout_s, lambda outcome: self.feed(outcome is True))
        else:
            self._transfers.answer(self.errand, step.transferred)
            self.feed(None)

    def _call(self, peer: str, request: Request, timeout_s: float) -> None:
        SimCall(self._owner, self._roads, peer, request).begin(timeout_s, self.feed)

    def _meet(self, pool: Pool, reply: Reply) -> None:
        near = pool.node == self._owner.node
        session = pool.session_of(self._owner) if near else 0
        self._mapped = pool
        reply(PoolsMet(pool.incarnation, (Carrier.SHARED_MEMORY if session else Carrier.STREAM,), session))

    # -- bytes

    def _copy(self, step: MoveChunks) -> None:
        places = [place for first, count in step.chunks for place in range(first, first + count)]
        if step.part.carrier is Carrier.SHARED_MEMORY and step.part.write:
            # As the real one: the first gap, whose sums go with the commit.
            first, count = step.chunks[0]
            places = list(range(first, first + count))
        self._piece(step, places, [])

    def _piece(self, step: MoveChunks, places: list[int], sums: list[int]) -> None:
        """The next chunk; all are there: the step is over."""
        problem = self.errand.why_stop(self._clock.now)
        if not problem and self._num_copied == self._fail_at:
            self._fail_at, problem = -1, "the road broke"
        if not problem and self._stream.hangs:
            problem = "a rank is gone"
        self.copies = bool(places) and not problem
        if problem:
            self.feed(TransferError(problem))
        elif not places:
            shared = step.part.carrier is Carrier.SHARED_MEMORY and step.part.write
            self.feed(Copied(step.chunks[0][0], np.array(sums, np.uint32)) if shared else Copied())
        elif step.part.carrier is Carrier.SHARED_MEMORY:
            self._piece_of_memory(step, places, sums)
        else:
            self._piece_of_stream(step, places)

    def _spoiled(self, content: bytes) -> bytes:
        """As it comes out at the other end of a copy."""
        self._num_copied += 1
        if self._num_copied - 1 != self._corrupt_at:
            return content
        self._corrupt_at = -1
        return bytes(255 - byte for byte in content)

    def _piece_of_memory(self, step: MoveChunks, places: list[int], sums: list[int]) -> None:
        """Read now, written a moment later, by this process alone."""
        part, at, pool = step.part, places[0], self._mapped
        assert pool is not None
        mine, theirs = int(part.mine[at]), int(part.theirs[at])
        content = self._owner.stacked.read(mine) if part.write else pool.stacked.read(theirs)

        def land() -> None:
            came = self._spoiled(content)
            if part.write:
                self._roads.landed(self.errand.order, theirs, came)
                pool.stacked.write(theirs, came)
                sums.append(crc32(content))
            else:
                wanted = step.reserved.sums
                assert wanted is not None
                try:
                    self._take(part.here, at, came, int(wanted[at]))
                except NotObeyed as refused:
                    self.feed(refused)
                    return
            self._piece(step, places[1:], sums)

        self._owner.after(self._seconds(1), land)

    def _take(self, name: TransferName, number: int, content: bytes, wanted: int) -> None:
        """A chunk into this worker's own pool. Raises Refused."""
        register, now = self._owner.register, self._clock.now
        moving = register.live(name, now)
        block = int(moving.reservation.blocks[number])

        def write(number: int) -> int:
            self._owner.stacked.write(block, content)
            return crc32(content)

        if register.take_chunk(moving, number, wanted, write, now) != wanted:
            raise NotObeyed(WhyRefused.CORRUPT, f"chunk {number} has another sum")

    def _piece_of_stream(self, step: MoveChunks, places: list[int]) -> None:
        part, at = step.part, places[0]
        mine, theirs = int(part.mine[at]), int(part.theirs[at])
        if part.write:
            content = self._owner.stacked.read(mine)
            came = self._spoiled(content)
            landed = partial(self._roads.landed, self.errand.order)
            request = partial(take_chunk, part.there, theirs, came, crc32(content), landed, self._clock)
        else:
            request = partial(read_chunk, part.there, theirs, self._clock)

        def answered(outcome: Outcome) -> None:
            if isinstance(outcome, NotObeyed) and outcome.refusal in OF_A_CHUNK:
                outcome = None  # what is missing is asked for again
            if isinstance(outcome, Exception):
                self.copies = False
                self.feed(outcome)
                return
            if isinstance(outcome, SimChunk):
                try:
                    self._take(part.here, at, self._spoiled(outcome.content), outcome.crc)
                except NotObeyed as refused:
                    if refused.refusal not in OF_A_CHUNK:
                        self.feed(refused)
                        return
            self._piece(step, places[1:], [])

        def say() -> None:
            SimCall(self._owner, self._roads, self.errand.order.peer, request).begin(0.2, answered)

        self._owner.after(self._seconds(3), say)

    def _seconds(self, times: int) -> float:
        return times * self._transfers.PIECE_S * (0.5 + self._owner.random.random())
