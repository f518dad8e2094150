"""A history told in lines, for the person who has to understand a failure: scenario, events, orders, deaths.

It only writes what others give it; nothing depends on it, and a history runs the same with and without it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from cluster.messages import EPOCH_BITS, Event, Order, Tick
from cluster.sim.workload import Scenario

LONG = 12
_LEFT_OUT = {"sampling", "hashes", "salt", "chain", "epoch", "step_seconds", "prefill_waiting", "fingerprint"}


def short(value: Any) -> str:
    """A value on one line: defaults and long arrays are left out, attempts are written attempt/row."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = []
        for entry in fields(value):
            item = getattr(value, entry.name)
            if entry.name in _LEFT_OUT or _is_empty(item):
                continue
            parts.append(f"{entry.name}={_seq(item) if entry.name == 'seq' else short(item)}")
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, array):
        items = [_seq(item) for item in value] if value.typecode == "q" else [str(item) for item in value]
        more = f" .. {len(items)}" if len(items) > LONG else ""
        return f"[{' '.join(items[:LONG])}{more}]"
    if isinstance(value, bytes):
        return value[:4].hex()
    if isinstance(value, tuple | list):
        return "(" + ", ".join(short(item) for item in value) + ")"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _is_empty(item: Any) -> bool:
    if is_dataclass(item):
        return all(_is_empty(getattr(item, entry.name)) for entry in fields(item))
    return item in (0, "", None, ()) or (hasattr(item, "__len__") and len(item) == 0)


def _seq(seq: int) -> str:
    return f"{seq >> EPOCH_BITS}/{seq & ((1 << EPOCH_BITS) - 1)}"


class Story:
    """Writes a history as it goes, to `write`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def scenario(self, scenario: Scenario) -> None:
        world = scenario.world
        self.write(f"seed {scenario.seed}: {len(world.workers)} workers, {world.num_gateways} gateways")
        self.write(f"  {world.settings}")
        self.write(f"  {world.weather}")
        for number, shape in enumerate(world.workers):
            self.write(f"  w{number} {shape}")
        for number, blocks in enumerate(world.host_blocks):
            if blocks:
                self.write(f"  h{number} {blocks} blocks")
        for ask in scenario.asks:
            self.write(f"  {ask}")
        for warm in scenario.warms:
            self.write(f"  {warm}")
        for fault in scenario.faults:
            self.write(f"  {fault}")

    def turn(self, now: float, events: list[Event], orders: list[Order]) -> None:
        for event in events:
            if not isinstance(event, Tick):
                self.write(f"{now:8.4f} > {short(event)}")
        for order in orders:
            self.write(f"{now:8.4f}   < {short(order)}")

    def note(self, now: float, text: str) -> None:
        self.write(f"{now:8.4f} * {text}")
