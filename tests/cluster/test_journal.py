"""Journals: every life is kept, a crash leaves its last turn, a full disk stops nobody, and a replay proves itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import stat
import zlib
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cluster.centre.journal import _CLASSES, _ENUMS, VERSION, JournalWriter, is_written, read
from cluster.centre.replay import describe, replay
from cluster.centre.scheduler import Scheduler
from cluster.cli import main
from cluster.errors import ConfigError, ProtocolError
from cluster.messages import Cancel, Event, Reason, Submit
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from cluster.structure import StructuredOutputsParams
from tests.cluster.test_scheduler import joined, submit

SETTINGS = SchedulerSettings()
TOLD: list[tuple[Event, ...]] = [
    (joined(),),
    (submit("a", range(40), 9, n=2), submit("b", range(40), 9)),
    (Cancel("a"),),
]


def live(path: Path, told: Sequence[tuple[Event, ...]] = TOLD, epoch: int = 1, max_bytes: int = 1 << 30) -> Scheduler:
    """A life that is ended by SIGKILL: nothing closes its journal."""
    writer, scheduler = JournalWriter(path, SETTINGS, epoch, max_bytes), Scheduler(SETTINGS, epoch)
    for number, events in enumerate(told):
        writer.begin(events, float(number))
        writer.end(scheduler.turn(events, float(number)))
    return scheduler


def test_a_journal_replays_to_the_same_decisions_though_nobody_closed_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    live(path)
    journal = read(path)
    assert len(journal.turns) == journal.num_whole == 3 and not journal.is_closed
    assert "request a: stopping" in describe(replay(journal))
    assert "request" not in describe(replay(journal, at=1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "what clients ask is in it"


def test_a_new_life_erases_none_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    live(path)
    live(path, TOLD[:1], epoch=2)
    # The second one died within a line.
    path.write_bytes(path.read_bytes() + b'{"turn":2,"now":1.0,"ev')
    live(path, TOLD[:2], epoch=3)
    assert read(path).epochs == (1, 2, 3)
    assert [len(read(path, life=life).turns) for life in (0, 1, 2, -1)] == [3, 1, 2, 2]
    assert "request b" in describe(replay(read(path, life=0)))
    with pytest.raises(ConfigError, match=r"^[^ ]* holds lives 0 to 2 of a scheduler, and none of number 3"):
        read(path, life=3)


class _Odd(Scheduler):
    """One that stops in the turn in which it is told of a request named `odd`."""

    def turn(self, events: Sequence[Event], now: float) -> list:  # type: ignore[type-arg]
        assert not any(isinstance(event, Submit) and event.request_id == "odd" for event in events), "odd"
        return super().turn(events, now)


def test_the_turn_in_which_a_scheduler_stops_is_written_before_it_is_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal"
    host = SchedulerShell(SETTINGS, 1, JournalWriter(path, SETTINGS, 1))
    host.scheduler = _Odd(SETTINGS, 1)

    async def run() -> None:
        running = asyncio.create_task(host.run())
        for event in (joined(), submit("odd", range(4), 4)):
            host.post(event)
            await asyncio.sleep(0.05)
        with pytest.raises(AssertionError, match="odd"):
            await running

    asyncio.run(run())
    journal = read(path)
    assert journal.num_whole == len(journal.turns) - 1 and not journal.is_closed
    assert [type(event) for event in journal.turns[-1].events] == [Submit]
    assert "replica r0" in describe(replay(journal))
    # Decided again it does what the scheduler of this version does.
    assert "request odd: running" in describe(replay(journal, at=len(journal.turns)))
    assert main(["replay", str(path)]) == 0
    said = capsys.readouterr().out
    assert "was begun and not ended: the scheduler stopped in it" in said, said


def test_a_cancelled_host_closes_its_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal"

    async def run() -> None:
        host = SchedulerShell(SETTINGS, 1, JournalWriter(path, SETTINGS, 1))
        running = asyncio.create_task(host.run())
        host.post(joined())
        await asyncio.sleep(0.05)
        assert is_written(path)
        assert main(["replay", str(path)]) == 0
        assert "the scheduler is at work after turn 1" in capsys.readouterr().out
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert read(path).is_closed and read(path).num_whole == 1 and not is_written(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said_once_and_serving_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        host = SchedulerShell(SETTINGS, 1, JournalWriter(Path("/dev/full"), SETTINGS, 1))
        running = asyncio.create_task(host.run())
        for event in (joined(), submit("a", range(4), 4), Cancel("a")):
            host.post(event)
            await asyncio.sleep(0.05)
        assert host.scheduler.requests["a"].is_cancelled and not running.done()
        running.cancel()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    said = [record.getMessage() for record in caplog.records if "journal" in record.getMessage()]
    assert len(said) == 1 and "No space left on device; the scheduler goes on without one" in said[0]


def test_a_journal_that_reaches_its_bound_ends_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    live(path)
    size = path.stat().st_size
    for max_bytes in range(size - 200, size, 40):
        path.unlink()
        live(path, max_bytes=max_bytes)
        journal = read(path)
        assert path.stat().st_size <= max_bytes and 1 <= journal.num_whole < 3
        replay(journal)


def test_a_folder_that_cannot_be_written_to_stops_nobody(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "nowhere" / "journal", SETTINGS, 1)
    writer.begin(TOLD[0], 0.0)
    assert "No such file or directory" in writer.stopped


def test_a_journal_that_others_can_write_is_neither_written_to_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    JournalWriter(path, SchedulerSettings(), 1).close()
    assert path.stat().st_mode & 0o777 == 0o600 and read(path).epoch == 1
    path.chmod(0o622)
    before = path.read_bytes()
    assert "can be written by others" in JournalWriter(path, SchedulerSettings(), 2).stopped
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="can be written by others"):
        read(path)


def test_a_journal_that_is_cut_is_read_up_to_its_last_whole_turn(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    live(path)
    whole = path.read_text()
    path.write_text(whole[: whole.rindex('{"turn":3') + 30])
    assert read(path).num_whole == len(read(path).turns) == 2
    path.write_text(whole[: whole.rindex('{"of":3') + 9])
    assert (read(path).num_whole, len(read(path).turns)) == (2, 3)
    replay(read(path))


def test_what_is_no_journal_or_of_another_version_or_decides_otherwise_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    path.write_text("no journal at all")
    with pytest.raises(ConfigError, match="is not a journal"):
        read(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"the journal .* cannot be read"):
        read(path)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("cluster.centre.journal.VERSION", 0)
        live(path)
    with pytest.raises(ConfigError, match="a journal of version 0; this Quire reads version"):
        read(path)
    writer = JournalWriter(path, SETTINGS, 1)
    for number in (0, 1):
        writer.begin(TOLD[number], float(number))
        writer.end([])
    with pytest.raises(ProtocolError, match="turn 2 decides otherwise"):
        replay(read(path))


@pytest.mark.parametrize(
    "line",
    [
        '{"quire journal":VERSION}',
        '{"quire journal":VERSION,"epoch":1,"settings":7}',
        '{"quire journal":VERSION,"epoch":1,"settings":{"new":"Popen","is":[]}}',
        '{"quire journal":VERSION,"epoch":1,"settings":{"new":"SchedulerSettings","is":[1]}}',
        '{"quire journal":VERSION,"epoch":[],"settings":{"map":[]}}',
        '{"quire journal":VERSION,"epoch":1,"settings":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=range(6),
)
def test_a_hostile_journal_is_one_error(line: str, tmp_path: Path) -> None:
    path, line = tmp_path / "journal", line.replace("VERSION", str(VERSION))
    path.write_text(f"{line} {zlib.crc32(line.encode()):08x}\n")
    with pytest.raises(ConfigError, match="journal"):
        read(path)


@pytest.mark.parametrize(
    ("line", "place", "value"),
    [
        (0, ("settings", "is", 0), "x"),
        (0, ("settings", "is", 8), 1e308),
        (1, ("events", 0, "is", 6), [[]]),
        (3, ("events",), "aaa"),
        (3, ("events", 0, "is", 7), [None]),
        (3, ("events", 1, "is", 0), 2**70),
    ],
    ids=range(6),
)
def test_a_value_of_another_type_is_named(line: int, place: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    live(path)
    lines = [json.loads(one.rpartition(" ")[0]) for one in path.read_text().splitlines()]
    part = lines[line]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    texts = [json.dumps(one) for one in lines]
    path.write_text("".join(f"{text} {zlib.crc32(text.encode()):08x}\n" for text in texts))
    with pytest.raises(ConfigError):
        replay(read(path))


def test_a_line_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    live(path)
    monkeypatch.setattr("cluster.centre.journal.MAX_LINE_CHARS", 1_000_000)
    with path.open("a") as file:
        file.write("x" * 1_000_001)
    with pytest.raises(ConfigError, match="more than 1,000,000 characters"):
        read(path)


def test_whatever_a_message_can_hold_can_be_written_and_read() -> None:
    """A journal with one structured answer in it could not be read: its class was not known by its name."""
    left: list[Any] = list(_CLASSES.values())
    seen: set[Any] = set()
    while left:
        kind = left.pop()
        if kind in seen:
            continue
        seen.add(kind)
        left += get_args(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            assert _CLASSES.get(kind.__name__) is kind, kind
            # array.array takes no parameters before Python 3.12.
            left += get_type_hints(kind, localns={"array": list}).values()
        elif isinstance(kind, type) and issubclass(kind, IntEnum):
            assert _ENUMS.get(kind.__name__) is kind, kind
    assert {StructuredOutputsParams, Reason} <= seen
