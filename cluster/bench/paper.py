"""`quire bench paper`: experiments of the PagedAttention paper (SOSP 2023) again, on this code.

    memory    the share of KV memory that holds tokens, and requests at once: reserved for the longest, to the next
              power of two, by an oracle (each contiguous, by a buddy allocator, as the paper's baselines were), and in
              pages of 1 to 256
    sharing   blocks saved by parallel sampling, in the engine, while it runs

A row has the paper's figure beside ours. Lengths are log-normal with the public means of ShareGPT and Alpaca.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.bench.report import Report, Row
from cluster.centre.ledger import Clock, Ledger
from cluster.centre.prefix import PrefixIndex
from cluster.sim.traces import TRACES, length

MAX_LEN = 2048
SLOTS = 1 << 14  # 13B on 40 GB: 12 GB of KV memory, 800 KB a token
RESERVE = 0.01  # of the pages, kept for those that run
PARTS = ("memory", "sharing")
# Share of KV memory that holds tokens, percent; requests at once beside the oracle's and the longest's.
PAPER_MEMORY = {"longest": 20.4, "power of two": 26.8, "oracle": 38.2, "pages of 16": 96.3}
PAPER_BATCH = {"oracle": 2.2, "longest": 4.3}
# Percent saved, n = 2 to 6.
PAPER_SHARING = {"alpaca": "6.1-9.8", "sharegpt": "16.2-30.5"}


@dataclass(slots=True)
class Life:
    """One request: its lengths, and how much of it is written."""

    prompt: int
    output: int
    written: int = 0
    place: tuple[int, int] = (0, 0)
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


# -- contiguous reservations


class Buddy:
    """Runs of slots whose length is a power of two, split and joined in halves."""

    def __init__(self, num_slots: int) -> None:
        self._free: dict[int, set[int]] = {num_slots: {0}}
        self._whole = num_slots

    def take(self, count: int) -> tuple[int, int] | None:
        """Place and size of a run of at least `count`; None: there is none."""
        wanted = 1 << (count - 1).bit_length()
        size = wanted
        while not self._free.get(size):
            size *= 2
            if size > self._whole:
                return None
        at = min(self._free[size])
        self._free[size].discard(at)
        while size > wanted:
            size //= 2
            self._free.setdefault(size, set()).add(at + size)
        return at, size

    def give_back(self, at: int, size: int) -> None:
        while size < self._whole and (buddy := at ^ size) in self._free.get(size, ()):
            self._free[size].discard(buddy)
            at, size = min(at, buddy), size * 2
        self._free.setdefault(size, set()).add(at)


RESERVED: dict[str, Callable[[Life], int]] = {
    "longest": lambda life: MAX_LEN,
    "power of two": lambda life: min(MAX_LEN, life.prompt + (1 << (life.output - 1).bit_length())),
    "oracle": lambda life: life.end,
}


@dataclass(slots=True)
class Seen:
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


def reserved(lives: list[Life], need: Callable[[Life], int]) -> Seen:
    """First come, first served; a request runs when its whole reservation is had."""
    buddy, seen = Buddy(SLOTS), Seen()
    waiting, running = lives[::-1], list[Life]()
    while waiting:
        while waiting and (place := buddy.take(need(waiting[-1]))) is not None:
            life = waiting.pop()
            life.place, life.written = place, life.prompt
            running.append(life)
        seen.note(running)
        running = _written(running, lambda life: buddy.give_back(*life.place))
    return seen


def paged(lives: list[Life], page: int) -> Seen:
    """The real ledger: pages as they are needed; when none is left the last to come gives its own back and waits."""
    ledger = Ledger(1, SLOTS // page, "lru", PrefixIndex(), Clock())
    reserve = max(1, int(RESERVE * SLOTS // page))
    seen = Seen()
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
    for trace in ("sharegpt", "alpaca"):
        found = {name: reserved(drawn(trace, seed, num), need) for name, need in RESERVED.items()}
        pages = (1, 8, 16, 32, 64, 128, 256)
        found |= {f"pages of {page}": paged(drawn(trace, seed, num), page) for page in pages}
        rows: list[Row] = [
            {
                "memory": name,
                "holds tokens %": seen.share,
                "paper %": PAPER_MEMORY.get(name) if trace == "sharegpt" else None,
                "requests at once": seen.at_once,
                "preempted": seen.preempted,
            }
            for name, seen in found.items()
        ]
        report.table(f"KV memory, {trace}-like lengths, {SLOTS:,} slots, {num:,} requests that all wait at first", rows)
        best = found["pages of 16"]
        for name in ("longest", "power of two", "oracle"):
            ratio = best.at_once / found[name].at_once
            stated = f", paper {PAPER_BATCH[name]}" if name in PAPER_BATCH and trace == "sharegpt" else ""
            report.note(f"{trace}: pages of 16 run {ratio:.1f} times the requests of `{name}` at once{stated}")
            report.check(f"{trace}: pages hold more than `{name}`", best.share > found[name].share)
        # Half a page of each sequence is empty on average, and that is much of a short one.
        least = {"sharegpt": 95.0, "alpaca": 85.0}[trace]
        report.check(f"{trace}: pages of 16 hold at least {least:g} %", best.share >= least, f"{best.share:.1f} %")


# -- sharing, in the engine


def sharing(report: Report, seed: int, num: int) -> None:
    from cluster import LLM, SamplingParams

    rows: list[Row] = []
    rng = random.Random(seed)
    for trace in ("alpaca", "sharegpt"):
        for n in (2, 4, 6):
            lives = drawn(trace, seed, num)
            llm = LLM("demo", quiet=True, kv_blocks=8192, max_batch=64, prefix_caching=False)
            prompts = [{"prompt_token_ids": [rng.randrange(5, 200) for _ in range(life.prompt)]} for life in lives]
            params = [
                SamplingParams(n=n, temperature=1.0, seed=at, max_tokens=min(life.output, 600), ignore_eos=True)
                for at, life in enumerate(lives)
            ]
            saved = _saved(llm, prompts, params)
            rows.append(
                {"lengths": trace, "n": n, "blocks saved %": saved, "paper %, n of 2 to 6": PAPER_SHARING[trace]}
            )
            report.check(f"{trace}, n = {n}: sharing saves", saved > 2, f"{saved:.1f} %")
    report.table(
        "Parallel sampling: blocks that tables name once more and memory holds once, averaged over the run", rows
    )


def _saved(llm: object, prompts: list[dict[str, list[int]]], params: Sequence[object]) -> float:
    """Watches the scheduler's own tables and ledger after every turn."""
    scheduler = llm._engine.scheduler  # type: ignore[attr-defined]
    named = held = 0
    for _ in llm.stream(prompts, params):  # type: ignore[attr-defined]
        (replica,) = scheduler.replicas.values()
        tables = sum(len(sequence.table) for sequence in replica.residents.values())
        named, held = named + tables, held + replica.ledger.counts().held
    return 100 * (1 - held / named)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench paper", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--requests", type=int, default=1500, help="of the memory part")
    parser.add_argument("--sampled", type=int, default=12, help="requests of each row of the sharing part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("paper", argv)
    if "memory" in arguments.parts:
        memory(report, arguments.seed, arguments.requests)
    if "sharing" in arguments.parts:
        sharing(report, arguments.seed, arguments.sampled)
    return report.finish(arguments.json)
