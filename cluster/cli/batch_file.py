"""`quire generate --file`: asks every line of a file, and writes the answers as they come.

Nothing is asked before all lines have been read and found good. A file of answers is only ever written on: what stands
there is an answer of a batch or the command refuses, and lines that are answered there are not asked again. What one
line asks and how it is answered is in `batch_lines.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cluster.cli.batch_lines import BEGINS, LineAsked, answer, answered, read_line
from cluster.client.asynchronous import AsyncClient
from cluster.errors import ConfigError, InvalidRequest, QuireError, unreadable
from cluster.offline.outputs import RequestOutput
from cluster.sampling import SamplingParams

MAX_LINE_BYTES = 64 << 20
# Of lines that failed, so many are told one by one.
MAX_TOLD = 20


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a line says nothing else."""

    params: SamplingParams
    model: str


def run_batch(file: str, out: str | None, connect: Callable[[], AsyncClient], defaults: Defaults, quiet: bool) -> int:
    """Asks the lines of `file` ("-": the input) that have no answer in `out` (None or "-": the output) yet. Returns how
    many failed. Raises `QuireError`."""
    with ExitStack() as stack:
        lines = stack.enter_context(_opened(file))
        places = _read(lines, file, defaults)
        answers = stack.enter_context(_Answers.open(out, file))
        left = answers.left(places)
        count = _Count(len(places) - len(left), len(left))
        show = stack.enter_context(_progress(len(places), count.before, quiet))
        under_way: dict[int, LineAsked] = {}
        asked = _asked(lines, left, defaults, under_way)

        def take(at: int, result: RequestOutput | QuireError) -> None:
            number, one = left[at][0], under_way.pop(at)
            if isinstance(result, RequestOutput):
                answers.write(answer(one, number, result))
            elif count.failed < MAX_TOLD:
                print(f"line {number}: {result}", file=sys.stderr)
            count.add(isinstance(result, RequestOutput))
            show()

        try:
            # There a Ctrl-C is heard while it waits, and not while an answer is written.
            asyncio.run(_ask_all(asked, connect, take))
        finally:
            if not quiet:
                print(count.told(can_go_on=answers.is_file), file=sys.stderr)
        return count.failed


async def _ask_all(
    asked: Iterator[LineAsked],
    connect: Callable[[], AsyncClient],
    take: Callable[[int, RequestOutput | QuireError], None],
) -> None:
    async with (
        connect() as client,
        aclosing(client.try_each((one.prompt, one.params, one.options) for one in asked)) as results,
    ):
        async for at, result in results:
            take(at, result)


@dataclass(slots=True)
class _Count:
    before: int
    left: int
    answered: int = 0
    failed: int = 0

    def add(self, is_answer: bool) -> None:
        self.left -= 1
        self.answered += is_answer
        self.failed += not is_answer

    def told(self, can_go_on: bool) -> str:
        told = f"{self.answered:,} answered, {self.before:,} were there before, {self.failed:,} failed"
        if not self.left:
            return told
        return f"{told}, {self.left:,} are not answered" + ("; run it again to go on" if can_go_on else "")


# -- questions

Place = tuple[int, int, str]  # the line's number, where it begins, its fingerprint


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The file of questions; what comes through a pipe is kept aside, because it is read twice."""
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(sys.stdin.buffer if file == "-" else Path(file).open("rb"))  # noqa: SIM115
            if file == "-" or not lines.seekable():
                kept = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(lines, kept)
                kept.seek(0)
                lines = kept
        except OSError as error:
            raise unreadable(f"--file {file}", error, "give a file of JSON lines, or -") from error
        yield lines


def _read(lines: BinaryIO, file: str, defaults: Defaults) -> list[Place]:
    """Where each question stands. Raises `InvalidRequest` for the first line that is wrong; empty ones are passed
    over."""
    places: list[Place] = []
    number, at = 0, 0
    while raw := lines.readline(MAX_LINE_BYTES + 1):
        number += 1
        if raw.strip():
            places.append((number, at, _question(raw, number, file, defaults).fingerprint))
        at += len(raw)
    if not places:
        raise InvalidRequest("--file", f"{_shown(file)} holds no line", "give one JSON object a line")
    return places


def _question(raw: bytes, number: int, file: str, defaults: Defaults) -> LineAsked:
    place = f"line {number} of {_shown(file)}"
    if len(raw) > MAX_LINE_BYTES:
        raise InvalidRequest(place, f"is longer than {MAX_LINE_BYTES >> 20} MiB", "cut it")
    try:
        return read_line(raw.decode(), defaults.params, defaults.model)
    except UnicodeDecodeError as error:
        raise InvalidRequest(place, f"is no UTF-8: {error}", "encode it so") from error
    except InvalidRequest as error:
        where = place if error.field == "line" else f"{place}: {error.field}"
        raise InvalidRequest(where, error.problem, error.remedy) from error


def _shown(file: str) -> str:
    return "the pipe" if file == "-" else file


def _asked(lines: BinaryIO, left: list[Place], defaults: Defaults, kept: dict[int, LineAsked]) -> Iterator[LineAsked]:
    for at, (number, begin, _) in enumerate(left):
        lines.seek(begin)
        kept[at] = _question(lines.readline(MAX_LINE_BYTES + 1), number, "the file", defaults)
        yield kept[at]


# -- answers


class _Answers:
    """Where answers go. A line is written at once and whole."""

    def __init__(self, descriptor: int, name: str, is_file: bool, known: Counter[str]) -> None:
        self._descriptor = descriptor
        self._name = name
        self.is_file = is_file
        self._known = known

    @staticmethod
    @contextmanager
    def open(out: str | None, file: str) -> Iterator[_Answers]:
        """Raises `ConfigError` for a file that cannot be written, or holds anything but answers."""
        if out is None or out == "-":
            yield _Answers(1, "the output", False, Counter())
            return
        if file != "-" and os.path.exists(out) and os.path.samefile(file, out):
            raise ConfigError(f"--file and --out are both {out}: answers would stand among questions; name another")
        is_file = not os.path.exists(out) or os.path.isfile(out)
        how = os.O_RDWR | os.O_CREAT | os.O_APPEND if is_file else os.O_WRONLY
        try:
            descriptor = os.open(out, how, 0o644)
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}; name another file") from error
        try:
            if is_file:
                _lock(descriptor, out)
            yield _Answers(descriptor, out, is_file, _known(descriptor, out) if is_file else Counter())
        finally:
            os.close(descriptor)

    def left(self, places: list[Place]) -> list[Place]:
        """The questions without an answer here. One that stands twice in the file is asked twice."""
        known, left = Counter(self._known), []
        for place in places:
            if known[place[2]]:
                known[place[2]] -= 1
            else:
                left.append(place)
        return left

    def write(self, line: str) -> None:
        raw = line.encode() + b"\n"
        try:
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            # The next run takes away what this one left half-written.
            raise QuireError(
                f"{self._name} cannot be written: {error.strerror}; make room, and run it again"
            ) from error


def _lock(descriptor: int, out: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(f"--out {out}: another batch writes there; wait for it, or name another") from None


def _known(descriptor: int, out: str) -> Counter[str]:
    """The answers that stand in the file. What a killed run left half-written at its end is taken away."""
    known: Counter[str] = Counter()
    with os.fdopen(os.dup(descriptor), "rb") as there:
        there.seek(0)
        begins, at = BEGINS.encode(), 0
        for number, raw in enumerate(there, 1):
            found = answered(raw.decode(errors="replace"))
            if found is None:
                is_cut = not raw.endswith(b"\n") and (raw.startswith(begins) or begins.startswith(raw))
                if not is_cut:
                    remedy = "name another file: what stands in this one is kept"
                    raise ConfigError(f"line {number} of --out {out} is no answer of a batch; {remedy}")
                os.ftruncate(descriptor, at)
                break
            known[found] += 1
            at += len(raw)
            if not raw.endswith(b"\n"):
                os.write(descriptor, b"\n")
    return known


@contextmanager
def _progress(total: int, completed: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function that says that one more is over; shown where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=total, completed=completed)
        yield lambda: progress.advance(bar)
