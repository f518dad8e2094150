"""A journal of everything that the scheduler was told, so that any run can be replayed decision by decision.

Two lines of JSON for each turn: its events and time, written before it is decided, and a digest of what was ordered,
written behind it; a CRC ends each line. So a turn in which the scheduler stopped is there, without its second line.
Every life of a scheduler begins with a head and is appended: none erases one before it.
Whoever hosts a scheduler writes it (an option). `read` checks version, order and wholeness before a single event is
replayed, and takes what is whole. Events are values, so a replay needs nothing but this file. No pickle: every type is
written by name and looked up.
"""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from hashlib import blake2b
from itertools import islice, repeat
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TextIO, Union, get_args, get_origin, get_type_hints

from cluster import messages
from cluster.errors import ConfigError, unreadable
from cluster.messages import Event, Order
from cluster.private_files import check_private
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from cluster.structure import StructuredOutputsParams

VERSION = 6

# More lives than this no scheduler has written into one file.
MAX_LIVES = 65_536
MAX_LINE_CHARS = 1 << 28

_CLASSES: dict[str, type[Any]] = {
    name: kind
    for name, kind in vars(messages).items()
    if isinstance(kind, type) and kind.__module__.startswith(messages.__name__) and dataclasses.is_dataclass(kind)
} | {kind.__name__: kind for kind in (SamplingParams, StructuredOutputsParams, SchedulerSettings)}
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
    hints = _hints(kind.__name__)
    values = dict(zip(hints, map(from_plain, plain["is"]), strict=True))
    for name, hint in hints.items():
        if not _fits(values[name], hint):
            raise TypeError(f"{kind.__name__}.{name} is {str(values[name])[:60]!r}")
    return kind(**values)


@cache
def _hints(name: str) -> Mapping[str, Any]:
    """The types of a class's fields, in their order."""
    kind = _CLASSES[name]
    # `array` takes no parameters before Python 3.12.
    hints = get_type_hints(kind, localns={"array": list})
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field of the messages has."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is float:
        return type(value) in (int, float)
    if origin is None:
        # True is no number, and a number is no member of an enumeration.
        return hint is Any or (isinstance(value, hint) and (hint is not int or not isinstance(value, bool)))
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, array) and value.typecode in "bBhHiIlLqQ"
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if issubclass(origin, Mapping):
        return (
            isinstance(value, dict)
            and all(map(_fits, value, repeat(inner[0])))
            and all(map(_fits, value.values(), repeat(inner[1])))
        )
    return isinstance(value, tuple) and all(map(_fits, value, repeat(inner[0])))


def digest(orders: Sequence[Order]) -> str:
    """Names what was ordered in a turn, byte for byte."""
    return blake2b(json.dumps(to_plain(list(orders))).encode(), digest_size=8).hexdigest()


class JournalWriter:
    """Appends one life to a file until its bound is reached, or the disk is full: then it writes no more, and `stopped`
    says why. It never raises: who serves goes on without a journal."""

    def __init__(self, path: Path, settings: SchedulerSettings, epoch: int, max_bytes: int = 1 << 30) -> None:
        self.stopped = ""
        self._path = path
        self._left = max_bytes
        self._number = 0
        self._file: TextIO | None = None
        try:
            # What clients ask is in it: nobody else reads it.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+", encoding="ascii")
            check_private(path, os.fstat(self._file.fileno()), "the journal")
            # For as long as this process lives; a scheduler that stands still keeps none out that follows it.
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not _ends_a_line(path):
                self._file.write("\n")  # a life before this one stopped within a line
        except (OSError, ConfigError) as error:
            self._stop(str(error))
        self._write({"quire journal": VERSION, "epoch": epoch, "settings": to_plain(settings)})

    def begin(self, events: Sequence[Event], now: float) -> None:
        """A turn is about to be decided."""
        self._number += 1
        if self._file is not None:
            self._write({"turn": self._number, "now": now, "events": to_plain(list(events))})

    def end(self, orders: Sequence[Order]) -> None:
        """That turn has been decided."""
        if self._file is not None:
            self._write({"of": self._number, "orders": digest(orders)})

    def close(self) -> None:
        self._write({"end": "closed"})
        self._stop("it was closed")

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        text = json.dumps(line, separators=(",", ":"))
        text = f"{text} {zlib.crc32(text.encode()):08x}\n"
        self._left -= len(text)
        try:
            if self._left >= 0:
                self._file.write(text)
                self._file.flush()
            else:
                self._stop("its bound is reached")
        except OSError as error:
            self._stop(str(error))

    def _stop(self, why: str) -> None:
        self.stopped = self.stopped or f"the journal {self._path} ends behind turn {self._number}: {why}"
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            pass  # what was in its buffer: the disk is full


def _ends_a_line(path: Path) -> bool:
    """Of a file that was not written to by anybody yet: it does."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn as the journal has it. `digest` is empty where the scheduler stopped in it."""

    number: int
    now: float
    events: tuple[Event, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Journal:
    """One life that was read: what the scheduler was made of, and its turns. Of a last turn that it did not end only
    the events are there. `is_closed`: it stopped properly. `epochs`: of all lives in the file, this one among them."""

    settings: SchedulerSettings
    epoch: int
    turns: tuple[Turn, ...]
    is_closed: bool
    epochs: tuple[int, ...]

    @property
    def num_whole(self) -> int:
        """Turns that were decided to their end."""
        return len(self.turns) - (1 if self.turns and not self.turns[-1].digest else 0)


def read(path: Path, *, life: int = -1) -> Journal:
    """Reads and checks a life of a journal: by its place in the file, the last one unless told otherwise. What is cut
    off is left out; a file that is no journal, or one of another version, is a ConfigError."""
    try:
        check_private(path, path.stat(), "the journal")
        heads = _heads(path)
        if not heads:
            raise ConfigError(f"{path} is not a journal of Quire: its first line does not say so")
        if not -len(heads) <= life < len(heads):
            raise ConfigError(f"{path} holds lives 0 to {len(heads) - 1} of a scheduler, and none of number {life}")
        at, head = heads[life]
        if head["quire journal"] != VERSION:
            version = head["quire journal"]
            raise ConfigError(f"{path} is a journal of version {version}; this Quire reads version {VERSION}")
        turns, is_closed = _turns(path, at)
        settings, epoch = from_plain(head["settings"]), head["epoch"]
        epochs = tuple([int(other["epoch"]) for _, other in heads])
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(f"the journal {path}", error) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is no journal that a scheduler has written: {detail}") from error
    if not isinstance(settings, SchedulerSettings) or not isinstance(epoch, int):
        raise ConfigError(f"{path} is no journal that a scheduler has written: its head has no settings")
    return Journal(settings, epoch, turns, is_closed, epochs)


def is_written(path: Path) -> bool:
    """Whether a scheduler that lives writes it."""
    with path.open(encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _heads(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The heads of all lives, each with the number of its line."""
    found: list[tuple[int, dict[str, Any]]] = []
    with path.open(encoding="ascii") as file:
        for number, line in enumerate(_lines(file)):
            if line.startswith('{"quire journal"') and len(found) < MAX_LIVES:
                head = _checked(line)
                if head is not None:
                    found.append((number, head))
    return found


def _turns(path: Path, head: int) -> tuple[tuple[Turn, ...], bool]:
    """The turns of the life whose head is in this line, and whether it was closed."""
    turns: list[Turn] = []
    with path.open(encoding="ascii") as file:
        for line in islice(_lines(file), head + 1, None):
            told = _checked(line)
            if told is None or "quire journal" in told:
                break
            if "end" in told:
                return tuple(turns), True
            if "of" in told:
                if not turns or turns[-1].number != told["of"]:
                    break
                turns[-1] = replace(turns[-1], digest=str(told["orders"]))
            elif told["turn"] != len(turns) + 1 or (turns and not turns[-1].digest):
                break
            else:
                turns.append(Turn(told["turn"], float(told["now"]), _events(told["events"]), ""))
    return tuple(turns), False


def _events(plain: Any) -> tuple[Event, ...]:
    events = from_plain(plain)
    if not _fits(events, tuple[Event, ...]):
        raise TypeError(f"a turn was told {str(plain)[:60]!r}")
    return events  # type: ignore[no-any-return]


def _lines(file: TextIO) -> Iterator[str]:
    """One at a time, none longer than any that a scheduler writes."""
    while line := file.readline(MAX_LINE_CHARS + 1):
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(f"a line of it has more than {MAX_LINE_CHARS:,} characters")
        yield line


def _checked(line: str) -> dict[str, Any] | None:
    """A line whose CRC holds."""
    text, _, crc = line.rstrip("\n").rpartition(" ")
    if not text or crc != f"{zlib.crc32(text.encode()):08x}":
        return None
    told = json.loads(text)
    return told if isinstance(told, dict) else None
