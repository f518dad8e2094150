"""A door with a clock of its own, for tests: every step is checked, and what it orders is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.gateway.door.check import check
from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import Chunk, Entry, Finished, Part, Reader, Whole
from cluster.gateway.door.kept import DoorSettings, Orders
from cluster.gateway.door.notices import Notice
from cluster.messages import Accepted, Done, Reason, Submit, Tokens, ids
from cluster.sampling import SamplingParams


def submit(name: str = "t/q", tenant: str = "t", **sampling: Any) -> Submit:
    params = SamplingParams(**{"n": 1, "max_tokens": 50, "seed": 1, **sampling})
    return Submit(name, "", 0, "m", tenant, ids(range(8)), (), params, salt=tenant.encode())


class At:
    """`said` are the events for the scheduler, in order; `got` the tokens that each stream was given."""

    def __init__(self, **settings: Any) -> None:
        self.door = Door(DoorSettings(**{"gateway": "a", **settings}))
        self.now = 100.0
        self.said: list[Any] = []
        self.pins: list[Any] = []
        self.got: dict[int, list[int]] = {}
        self.ends: list[Part] = []

    def step(self) -> Orders:
        check(self.door)
        orders = self.door.take_orders()
        self.said += orders.events
        self.pins += orders.pins
        return orders

    def ask(self, asked: Submit | None = None, grace_s: float = 0.0) -> Reader:
        reader = self.door.ask(asked or submit(), grace_s, self.now)
        self.step()
        return reader

    def resume(self, asked: Submit | None = None, positions: Sequence[int] = (0,), grace_s: float = 5.0) -> Reader:
        reader = self.door.resume(asked or submit(), positions, grace_s, self.now)
        self.step()
        return reader

    def take(self, *notices: Notice) -> list[Any]:
        """What is said in answer."""
        before = len(self.said)
        for notice in notices:
            self.door.take(notice, self.now)
            self.step()
        return self.said[before:]

    def tokens(self, entry: Entry, position: int, *new: int, cut: int | None = None, **how: Any) -> int:
        message = Tokens(
            **{"index": 0, "attempt": 1, "reason": Reason.NONE, **how},
            route=entry.route,
            position=position,
            ids=ids(new),
        )
        fresh = self.door.fresh(message, self.now)
        num = 0 if fresh is None else self.door.take_tokens(message, fresh, cut, self.now)
        self.step()
        return num

    def read(self, reader: Reader, most_bytes: int = 1 << 20) -> list[Part]:
        parts, _ = self.door.read(reader, most_bytes)
        for part in parts:
            if isinstance(part, Chunk):
                self.got.setdefault(part.sequence.index, []).extend(part.sequence.ids[part.first : part.last])
            elif isinstance(part, Finished | Whole):
                self.ends.append(part)
        self.step()
        return parts

    def leave(self, reader: Reader, *, is_final: bool = False) -> None:
        self.door.leave(reader, self.now, is_final=is_final)
        self.step()

    def meet(self, *, wants_state: bool = True) -> list[Any]:
        before = len(self.said)
        self.door.meet(self.now, wants_state=wants_state)
        self.step()
        return self.said[before:]

    def wait(self, seconds: float, *, is_met: bool = True) -> list[Any]:
        """As a shell does: it calls at each deadline until then."""
        before, until = len(self.said), self.now + seconds
        while (due := self.door.next_deadline) is not None and due <= until:
            self.now = max(self.now, due)
            self.door.tick(self.now, is_met=is_met)
            self.step()
        self.now = until
        return self.said[before:]


def accepted(entry: Entry, turn: int = 0, claim: int = 0) -> Accepted:
    return Accepted("a", entry.route, entry.request_id, 0, "", turn, claim)


def done(entry: Entry) -> Done:
    return Done("a", entry.route, entry.request_id, 0, 0, 0.0, 0.0, 0.0)


def other(asked: Submit, **sampling: Any) -> Submit:
    return replace(asked, sampling=replace(asked.sampling, **sampling))
