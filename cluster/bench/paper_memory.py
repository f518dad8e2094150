"""How much of KV memory holds tokens: whole runs reserved in advance, and pages as they are needed.

The real ledger, without a scheduler: more requests wait than the memory holds, each runs a token a step. `quire bench
paper --parts memory` prints it. No time is measured: blocks are counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.bench.page import Line, PagePlot
from cluster.bench.report import Report, Row
from cluster.centre.fits import num_reserved
from cluster.centre.ledger import Ledger, TurnClock
from cluster.centre.prefix import PrefixIndex
from cluster.settings import ReserveName
from cluster.sim.traces import TRACES, length

MAX_LEN = 2048
SLOTS = 1 << 14  # 13B on 40 GB: 12 GB of KV memory, 800 KB a token
RUN_PAGE = 16  # Runs are powers of two anyhow.
RESERVE = 0.01  # of the pages, kept for those that run
PAGES = (1, 8, 16, 32, 64, 128, 256)
RESERVED: dict[str, ReserveName] = {"longest": "longest", "power of two": "power_of_two", "oracle": "oracle"}
# Share of KV memory that holds tokens, percent; requests at once in pages beside each.
PAPER_MEMORY = {"longest": 20.4, "power of two": 26.8, "oracle": 38.2, "pages of 16": 96.3}
PAPER_BATCH = {"oracle": 2.2, "longest": 4.3}


@dataclass(slots=True)
class Life:
    """One request: its lengths, and how much of it is written."""

    prompt: int
    output: int
    written: int = 0
    table: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.prompt + self.output


def drawn(trace: str, seed: int, num: int) -> list[Life]:
    rng, shape = random.Random(f"{trace}/{seed}"), TRACES[trace]
    lives = []
    for _ in range(num):
        prompt = length(rng, shape.prompt, 1, 4, MAX_LEN // 2)
        lives.append(Life(prompt, length(rng, shape.output, 1, 2, MAX_LEN - prompt)))
    return lives


@dataclass(slots=True)
class MemorySeen:
    """Averages over the steps in which the memory was wanted by more than it holds."""

    steps: int = 0
    tokens: int = 0
    running: int = 0
    preempted: int = 0

    def note(self, running: Sequence[Life]) -> None:
        self.steps += 1
        self.tokens += sum(life.written for life in running)
        self.running += len(running)

    @property
    def share(self) -> float:
        return 100 * self.tokens / max(1, self.steps) / SLOTS

    @property
    def at_once(self) -> float:
        return self.running / max(1, self.steps)


def reserved(lives: list[Life], reserve: ReserveName) -> MemorySeen:
    """First come, first served; a request runs when there is a run for all that it reserves."""
    ledger, seen = Ledger(1, SLOTS // RUN_PAGE, "buddy", PrefixIndex(), TurnClock()), MemorySeen()
    waiting, running = lives[::-1], list[Life]()
    while waiting:
        while waiting:
            life = waiting[-1]
            count = num_reserved(reserve, life.prompt, life.output, RUN_PAGE, MAX_LEN)
            if count > ledger.longest_run:
                break
            life.table, life.written = ledger.allocate_run(count, 1), life.prompt
            running.append(waiting.pop())
        seen.note(running)
        running = _written(running, lambda life: ledger.release(life.table, 1))
    return seen


def paged(lives: list[Life], page: int) -> MemorySeen:
    """Pages as they are needed; when none is left the last to come gives its own back and waits."""
    ledger = Ledger(1, SLOTS // page, "lru", PrefixIndex(), TurnClock())
    reserve = max(1, int(RESERVE * SLOTS // page))
    seen = MemorySeen()
    waiting, running = lives[::-1], list[Life]()
    while waiting:
        while waiting:
            life = waiting[-1]
            count = -(-(max(life.prompt, life.written)) // page)
            if running and ledger.num_available < count + reserve:
                break
            table = ledger.allocate(count, 1)
            if table is None:
                break
            life.table, life.written = table, max(life.prompt, life.written)
            running.append(waiting.pop())
        seen.note(running)
        for life in list(running):
            while life.table and len(life.table) * page <= life.written:
                given = ledger.allocate(1, 1, life.table[-1])
                if given is not None:
                    life.table += given
                    continue
                last = running.pop()
                ledger.release(last.table, 1)
                last.table = []
                waiting.append(last)
                seen.preempted += 1
        running = _written(running, lambda life: ledger.release(life.table, 1))
    ledger.check([life.table for life in running])
    return seen


def _written(running: list[Life], leave: Callable[[Life], object]) -> list[Life]:
    """Each writes a token; those that are done leave."""
    left = []
    for life in running:
        life.written += 1
        if life.written >= life.end:
            leave(life)
        else:
            left.append(life)
    return left


def memory(report: Report, seed: int, num: int) -> None:
    curves = []
    for trace in ("sharegpt", "alpaca"):
        title = f"KV memory, {trace}-like lengths, {SLOTS:,} slots, {num:,} requests that all wait at first"
        print(title, flush=True)
        found: dict[str, MemorySeen] = {}
        for name in (*RESERVED, *(f"pages of {page}" for page in PAGES)):
            lives = drawn(trace, seed, num)
            found[name] = reserved(lives, RESERVED[name]) if name in RESERVED else paged(lives, int(name.split()[-1]))
            row: Row = {
                "memory": name,
                "holds tokens %": found[name].share,
                "paper %": PAPER_MEMORY.get(name) if trace == "sharegpt" else None,
                "requests at once": found[name].at_once,
                "preempted": found[name].preempted,
            }
            report.row(title, row)
        _compare(report, trace, found)
        curves.append(Line(trace, PAGES, [found[f"pages of {page}"].share for page in PAGES]))
    report.plot(PagePlot("KV memory that holds tokens", "slots of a page", "%", curves, is_log=True))


def _compare(report: Report, trace: str, found: dict[str, MemorySeen]) -> None:
    best, rows = found["pages of 16"], list[Row]()
    for name in RESERVED:
        paper = PAPER_BATCH.get(name) if trace == "sharegpt" else None
        rows.append({"beside": name, "times the requests": best.at_once / found[name].at_once, "paper": paper})
        report.check(f"{trace}: pages hold more than `{name}`", best.share > found[name].share)
    report.table(f"Requests at once in pages of 16, {trace}", rows)
    # Half a page of each sequence is empty on average, and that is much of a short one.
    least = {"sharegpt": 95.0, "alpaca": 85.0}[trace]
    report.check(f"{trace}: pages of 16 hold at least {least:g} %", best.share >= least, f"{best.share:.1f} %")
