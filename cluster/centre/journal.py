"""A journal of everything that the scheduler was told, so that any run can be replayed decision by decision.

One line of JSON per turn with its events, its time and a digest of what was ordered; a CRC ends each line. Whoever
hosts a scheduler writes it (an option); `read` checks version, order and wholeness before a single event is replayed.
Events are values, so a replay needs nothing but this file. No pickle: every type is written by name and looked up.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from cluster import messages
from cluster.errors import ConfigError
from cluster.messages import Event, Order
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings

VERSION = 3

_CLASSES: dict[str, type[Any]] = {
    name: kind
    for name, kind in vars(messages).items()
    if isinstance(kind, type) and kind.__module__.startswith(messages.__name__) and dataclasses.is_dataclass(kind)
} | {"SamplingParams": SamplingParams, "SchedulerSettings": SchedulerSettings}
_ENUMS: dict[str, type[IntEnum]] = {
    name: kind for name, kind in vars(messages).items() if isinstance(kind, type) and issubclass(kind, IntEnum)
}


def to_plain(value: Any) -> Any:
    """A value of the messages as what JSON knows; `from_plain` is the way back."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, IntEnum):
        return {"enum": type(value).__name__, "is": int(value)}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, array):
        return {"array": value.typecode, "is": value.tolist()}
    if isinstance(value, Mapping):
        return {"map": [[to_plain(key), to_plain(item)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {"new": type(value).__name__, "is": [to_plain(getattr(value, field.name)) for field in fields]}
    assert isinstance(value, Sequence), f"a journal cannot hold {type(value).__name__}"
    return [to_plain(item) for item in value]


def from_plain(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(from_plain(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if "enum" in plain:
        return _ENUMS[plain["enum"]](plain["is"])
    if "bytes" in plain:
        return base64.b64decode(plain["bytes"])
    if "array" in plain:
        return array(plain["array"], plain["is"])
    if "map" in plain:
        return {from_plain(key): from_plain(item) for key, item in plain["map"]}
    kind = _CLASSES[plain["new"]]
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**dict(zip(names, map(from_plain, plain["is"]), strict=True)))


def digest(orders: Sequence[Order]) -> str:
    """Names what was ordered in a turn, byte for byte."""
    return blake2b(json.dumps(to_plain(list(orders))).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the journal has it."""

    number: int
    now: float
    events: tuple[Event, ...]
    digest: str


class JournalWriter:
    """Appends turns to a file until its bound is reached; then it says so once and writes no more."""

    def __init__(self, path: Path, settings: SchedulerSettings, epoch: int, max_bytes: int = 1 << 30) -> None:
        self._file: TextIO | None = path.open("w", encoding="ascii")
        self._left = max_bytes
        self._number = 0
        self._write({"quire journal": VERSION, "epoch": epoch, "settings": to_plain(settings)})

    def turn(self, events: Sequence[Event], now: float, orders: Sequence[Order]) -> None:
        if self._file is None:
            return
        self._number += 1
        line = {"turn": self._number, "now": now, "events": to_plain(list(events)), "orders": digest(orders)}
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(line, separators=(",", ":"))
        text = f"{text} {zlib.crc32(text.encode()):08x}\n"
        self._left -= len(text)
        if self._left < 0:
            self._write_end("full")
            return
        self._file.write(text)
        self._file.flush()

    def _write_end(self, why: str) -> None:
        assert self._file is not None
        text = json.dumps({"end": why, "turns": self._number})
        self._file.write(f"{text} {zlib.crc32(text.encode()):08x}\n")
        self._file.close()
        self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._write_end("closed")


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal that was read: what the scheduler was made of, and its turns. `is_whole`: it was closed properly."""

    settings: SchedulerSettings
    epoch: int
    turns: tuple[Turn, ...]
    is_whole: bool


def read(path: Path, *, allow_cut: bool = False) -> Journal:
    """Reads and checks a journal. A cut one is refused unless `allow_cut`, which takes what is whole of it."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a journal: {error}") from error
    checked = list(_whole_lines(lines))
    if not checked or "quire journal" not in checked[0]:
        raise ConfigError(f"{path} is not a journal of Quire: its first line does not say so")
    head = checked[0]
    if head["quire journal"] != VERSION:
        raise ConfigError(f"{path} is a journal of version {head['quire journal']}; this Quire reads version {VERSION}")
    is_whole = "end" in checked[-1] and len(checked) == len(lines)
    turns = tuple(
        Turn(line["turn"], line["now"], from_plain(line["events"]), line["orders"])
        for line in checked[1:]
        if "turn" in line
    )
    if not is_whole and not allow_cut:
        raise ConfigError(
            f"{path} is truncated after turn {len(turns)}; give --at {len(turns)} or less to see up to there"
        )
    return Journal(from_plain(head["settings"]), head["epoch"], turns, is_whole)


def _whole_lines(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Lines up to the first whose CRC does not hold."""
    for line in lines:
        text, _, crc = line.rpartition(" ")
        if not text or crc != f"{zlib.crc32(text.encode()):08x}":
            return
        yield json.loads(text)
