"""Blocks on their way between two simulated pools, piece by piece, and all that can go wrong with them.

A worker moves blocks between its own pool and a peer (a host pool, or another worker). Each block is read at one time
and written at a later one, so that whoever reuses a block too early shows in the tokens. On one node the worker itself
writes into the peer's memory, which is how a stopped process becomes a late writer; between nodes a chunk needs both
ends and a way between them. A chunk that arrives corrupt fails its checksum and with it the whole transfer. However it
goes, `Transferred` is told once, when this worker can no longer touch a block of it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from cluster.messages import EPOCH_BITS, Road, Transfer, Transferred
from cluster.sim.clock import Action, Clock
from cluster.sim.device import Blocks, Stream


class Pool(Protocol):
    """A process that owns blocks and lets others read and write them by transfer."""

    name: str
    node: str
    incarnation: int
    epoch: int  # of the scheduler that it obeys
    alive: bool
    stopped: bool
    blocks: Blocks
    random: Random

    def when_written(self, then: Callable[[], None]) -> None:
        """Calls back once all that was issued until now has been written to its blocks."""


class Mover(Pool, Protocol):
    """A pool whose process moves blocks itself."""

    clock: Clock

    def after(self, delay_s: float, action: Action, *args: Any) -> None: ...


class Faults:
    """What is about to go wrong with transfers of one worker; each is used up by the next transfer it meets."""

    def __init__(self) -> None:
        self.fail_next = 0
        self.corrupt_next = 0


class Roads(Protocol):
    """The world that a transfer passes through."""

    @property
    def pool(self) -> Callable[[str], Pool | None]: ...

    @property
    def reaches(self) -> Callable[[str, str], bool]: ...

    @property
    def landed(self) -> Callable[[Transfer, int], None]: ...

    @property
    def refusal(self) -> Callable[[Transfer], str]: ...


class Moving:
    """One transfer under way."""

    def __init__(self, order: Transfer, began: float) -> None:
        self.order = order
        self.began = began
        self.at = 0
        self.given_up = ""
        self.corrupt_at = -1
        self.fail_at = -1
        # The peer has answered: what it had issued into the blocks that are read is there.
        self.is_ready = order.road is Road.WRITE

    def ready(self) -> None:
        self.is_ready = True


class Transfers:
    """The transfers of one worker. `owner` is its process: where that stands still, so do they."""

    PIECE_S = 0.0008  # seconds for a block on one node; between nodes it takes three times as long

    def __init__(self, owner: Mover, stream: Stream, roads: Roads, on_settled: Callable[[Transferred], None]) -> None:
        self._owner = owner
        self._stream = stream
        self._roads = roads
        self._on_settled = on_settled
        self.faults = Faults()
        # Declared lost while it cannot be reached: pools of other nodes refuse it.
        self.is_fenced = False
        self.under_way: dict[int, Moving] = {}

    @property
    def is_writing(self) -> bool:
        """A transfer into a peer's pool has just begun."""
        return any(
            each.order.road is Road.WRITE and 2 * each.at < len(each.order.mine) for each in self.under_way.values()
        )

    def begin(self, order: Transfer) -> None:
        moving = Moving(order, self._owner.clock.now)
        assert order.transfer not in self.under_way, f"transfer {order.transfer} was ordered twice"
        self.under_way[order.transfer] = moving
        if self.faults.fail_next:
            self.faults.fail_next -= 1
            moving.fail_at = len(order.mine) // 2
        if self.faults.corrupt_next:
            self.faults.corrupt_next -= 1
            moving.corrupt_at = len(order.mine) // 2
        peer = self._peer(order)
        if order.road is Road.READ and peer is not None:
            peer.when_written(moving.ready)
        # Steps that were issued before may still write the blocks that are to be sent.
        self._stream.issue(0.0, lambda: self._piece(moving))

    def abort(self, transfer: int) -> None:
        moving = self.under_way.get(transfer)
        if moving is not None:
            moving.given_up = "aborted by the scheduler"

    def _peer(self, order: Transfer) -> Pool | None:
        peer = self._roads.pool(order.peer)
        if self.is_fenced or peer is None or not peer.alive or peer.incarnation != order.peer_incarnation:
            return None
        return peer

    def _piece(self, moving: Moving) -> None:
        """Reads the next block where it lies; it is written a moment later."""
        order, clock = moving.order, self._owner.clock
        mine = self._owner.blocks
        peer = self._peer(order)
        problem = moving.given_up
        if not problem and clock.now - moving.began > order.timeout_s:
            problem = f"not done after {order.timeout_s} s"
        if not problem and peer is None:
            problem = f"pool {order.peer} of incarnation {order.peer_incarnation} is gone"
        if not problem and peer is not None and order.road is Road.READ and peer.epoch > order.transfer >> EPOCH_BITS:
            # Its blocks are another scheduler's now, and may hold anything: it sends no sums for them.
            problem = f"pool {order.peer} obeys a scheduler of epoch {peer.epoch}"
        if not problem and not moving.at and order.road is Road.WRITE:
            problem = self._roads.refusal(order)
        if not problem and moving.at == moving.fail_at:
            problem = "the road broke"
        if problem:
            self._settle(moving, problem)
            return
        if moving.at == len(order.mine):
            self._settle(moving, "")
            return
        assert peer is not None
        if not moving.is_ready:
            self._owner.after(0.002, self._piece, moving)
            return
        near = peer.node == self._owner.node
        if not near and (peer.stopped or not self._roads.reaches(self._owner.node, peer.node)):
            self._owner.after(0.02, self._piece, moving)
            return
        if order.road is Road.WRITE:
            content = bytes(mine.content[order.mine[moving.at]])
        else:
            content = bytes(peer.blocks.content[order.theirs[moving.at]])
        seconds = self.PIECE_S * (0.5 + self._owner.random.random()) * (1 if near else 3)
        self._owner.after(seconds, self._land, moving, content)

    def _land(self, moving: Moving, content: bytes) -> None:
        order = moving.order
        peer = self._peer(order)
        if moving.at == moving.corrupt_at:
            # The checksum of the chunk is wrong: its bytes are thrown away, and nothing more is sent.
            self._settle(moving, "a chunk arrived with a wrong checksum")
            return
        if order.road is Road.READ:
            self._owner.blocks.content[order.mine[moving.at]][:] = content
        elif peer is not None:
            self._roads.landed(order, order.theirs[moving.at])
            peer.blocks.content[order.theirs[moving.at]][:] = content
        moving.at += 1
        self._piece(moving)

    def _settle(self, moving: Moving, problem: str) -> None:
        order = moving.order
        del self.under_way[order.transfer]
        mine = self._owner.blocks
        seconds = self._owner.clock.now - moving.began
        done = moving.at * mine.num_bytes
        self._on_settled(Transferred(order.transfer, not problem, problem, done, seconds))
