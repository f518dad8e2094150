"""Events as no honest peer sends them: those of a simulated history, each field at its edges now and then.

`recorded` runs a history and keeps what its schedulers were told; `Hostile` changes some of it, well formed, by seed.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping
from enum import IntEnum
from random import Random
from typing import Any

from cluster.centre.scheduler import Scheduler
from cluster.errors import QuireError
from cluster.messages import Event, Order
from cluster.sampling import SamplingParams
from cluster.sim.history import History
from cluster.sim.workload import draw_scenario

INTS = (-1, 0, 1, 2, 255, 4096, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e-300, 1e300)


class _Keeper(History):
    """A history that keeps, by epoch, the turns of its schedulers."""

    def keep(self) -> dict[int, list[tuple[float, list[Event]]]]:
        self.kept: dict[int, list[tuple[float, list[Event]]]] = {}
        verdict = self.run()
        assert not verdict.failure, f"seed {verdict.seed} breaks off by itself: {verdict.failure}"
        return self.kept

    def _look(self, scheduler: Scheduler, events: list[Event], orders: list[Order]) -> None:
        self.kept.setdefault(scheduler.epoch, []).append((scheduler.now, list(events)))
        super()._look(scheduler, events, orders)


def recorded(seed: int) -> tuple[Any, dict[int, list[tuple[float, list[Event]]]]]:
    """The settings of a history, and what its schedulers were told in each turn, by epoch."""
    scenario = draw_scenario(seed, with_faults=True)
    return scenario.world.settings, _Keeper(scenario).keep()


class Hostile:
    """Changes one field of an event to something that its type allows."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"hostile/{seed}")
        # What honest events named: more dangerous than what nobody knows.
        self._seen: dict[type, list[Any]] = {int: [], str: [], bytes: []}

    def change(self, event: Any, share: float) -> Any:
        self._note(event)
        return self._changed(event) if self._random.random() < share else event

    def _note(self, value: Any) -> None:
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            seen = self._seen.get(type(part))
            if seen is not None and len(seen) < 2000:
                seen.append(part)

    def _changed(self, value: Any) -> Any:
        random = self._random
        if isinstance(value, bool):
            return not value
        if isinstance(value, IntEnum):
            return random.choice(list(type(value)))
        if isinstance(value, int):
            return random.choice([*INTS, value + 1, value - 1, 2 * value, *random.choices(self._seen[int] or [0])])
        if isinstance(value, float):
            return random.choice([*FLOATS, -value, value * 1e9])
        if isinstance(value, str):
            return random.choice(["", value + "x", *random.choices(self._seen[str] or [""])])
        if isinstance(value, bytes):
            return random.choice(
                [b"", value[:-1], value + b"x", value + value, *random.choices(self._seen[bytes] or [b""])]
            )
        if isinstance(value, array):
            return self._array(value)
        if isinstance(value, tuple):
            return self._tuple(value)
        if isinstance(value, Mapping) or value is None:
            return value
        return self._fields(value)

    def _fields(self, value: Any) -> Any:
        fields = [field.name for field in dataclasses.fields(value)]
        if not fields:
            return value
        name = self._random.choice(fields)
        try:
            return dataclasses.replace(value, **{name: self._changed(getattr(value, name))})
        except (QuireError, TypeError, ValueError):
            assert isinstance(value, SamplingParams), value
            return value  # its own check said no, as the reader of the wire would

    def _array(self, value: array[int]) -> array[int]:
        random, items = self._random, list(value)
        edges = (-1, 0, 1, 7, 2**31 - 1, -(2**31))
        what = random.randrange(5)
        if what == 0 or not items:
            items = [*items, random.choice(edges)]
        elif what == 1:
            items = items[:-1]
        elif what == 2:
            items[random.randrange(len(items))] = random.choice(edges)
        elif what == 3:
            items = items + items
        else:
            at = random.randrange(len(items))
            items[at] = min(2**31 - 1, items[at] + random.choice((1, -1, 16)))
        return array(value.typecode, items)

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        random, items = self._random, list(value)
        # A pair of a block and its name stays a pair.
        what = (
            3 if len(items) == 2 and isinstance(items[1], bytes) and isinstance(items[0], int) else random.randrange(4)
        )
        if not items or what == 0:
            return tuple(items[:-1])
        if what == 1:
            return (*items, random.choice(items))
        at = random.randrange(len(items))
        items[at] = self._changed(items[at])
        return tuple(items)
