"""`python -m tests.bench transfer --steps`: what running sequences lose while blocks are swapped.

A worker's real step loop decodes a batch of the demo model; its other blocks go to a real host pool process and come
back through the same plans, results and threads as in a cluster. Rounds with and without swaps take turns and do the
same work. What the copies take from steps on a CPU is the processor itself: their own processor time is subtracted, and
the time that the step thread was ready and had none, as the kernel counts it, is told apart from what it lost to locks,
to Python and to the caches.
"""

from __future__ import annotations

import os
import queue
import secrets
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from cluster.bench.report import Report
from cluster.links.security import ClusterSecurity
from cluster.messages import Plan, Result, Road, Start, Tokens, Transfer, ids
from cluster.sampling import SamplingParams
from cluster.settings import WorkerSettings
from tests.bench.transfer_pool import delayed_seconds, host_pool, processor_seconds, thread_seconds
from worker.step_loop import Inbound, Outbound, StepLoop
from worker.swap import Swapper
from worker.worker import Worker

BATCH, PROMPT, NUM_TOKENS = 16, 64, 240
BLOCK_SIZE, SWAPPED, MOVERS = 64, 64, 2
GOAL = 0.95
_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Round:
    """One batch from its start to its last token."""

    seconds: float
    # The step thread's: it ran, and it was ready and had no processor.
    ran_s: float
    waited_s: float
    # All other threads of both processes; and how long those of the worker's own were ready and had no processor.
    others_s: float
    delayed_s: float
    moved_bytes: int
    tokens: tuple[tuple[int, ...], ...]

    @property
    def own_seconds(self) -> float:
        """Without what others took of the processors."""
        return self.seconds - self.waited_s

    @property
    def slept_s(self) -> float:
        """The step thread waited for a lock, for Python or for somebody's word."""
        return self.seconds - self.ran_s - self.waited_s

    @property
    def undisturbed_s(self) -> float:
        """Nor what it may have slept because whoever held a lock had no processor: beside other work that is much."""
        return self.own_seconds - min(self.slept_s, self.delayed_s)


class QueueLink:
    """Plans for a step loop from this process."""

    def __init__(self, say: Callable[[Outbound], None]) -> None:
        self.say = say
        self._words: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def put(self, word: Inbound) -> None:
        self._words.put(word)
        self.wake()

    def read(self) -> list[Inbound]:
        return [self._words.get_nowait() for _ in range(self._words.qsize())]

    def fileno(self) -> int:
        return self._news

    def wait(self, timeout_s: float) -> None:
        if select.select([self._news], [], [], timeout_s)[0]:
            os.eventfd_read(self._news)

    def wake(self) -> None:
        os.eventfd_write(self._news, 1)


class Loaded:
    """A worker with its step loop, and whoever orders it about."""

    def __init__(self, pool_pid: int, pool: dict[str, object], worker: Worker, secret: str) -> None:
        self._pids = [os.getpid(), pool_pid]
        self._pool, self._incarnation = str(pool["pool"]), int(str(pool["incarnation"]))
        self._worker = worker
        self._swap = Swapper(worker, ClusterSecurity(secret))
        self._swap.direct({self._pool: str(pool["address"])})
        self._swap.begin_epoch(1)
        self._link = QueueLink(self._say)
        self._loop = StepLoop(worker, self._link, self._swap)
        self._lock = threading.Lock()
        self._num_plans = self._num_transfers = self._num_seqs = self._last_result = 0
        self._moved_bytes = 0
        self._waiting: dict[int, queue.SimpleQueue[str]] = {}
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._tokens: dict[int, list[int]] = {}
        self._stop = threading.Event()
        self._loop.start()

    def close(self) -> None:
        self._loop.close()
        self._swap.close()

    # -- what the loop says; on its thread

    def _say(self, word: Outbound) -> None:
        if isinstance(word, dict):
            for tokens in word.values():
                self._note(tokens)
        elif isinstance(word, Result):
            self._last_result = word.number
            for answer in word.transferred:
                self._moved_bytes += answer.size_bytes
                self._waiting[answer.transfer].put("" if answer.ok else answer.detail)
            for stopped in word.stopped:
                self._ended.put(stopped.seq)

    def _note(self, news: list[Tokens]) -> None:
        for one in news:
            self._tokens.setdefault(one.route, []).extend(one.ids)

    # -- orders

    def _order(self, starts: tuple[Start, ...] = (), transfers: tuple[Transfer, ...] = ()) -> None:
        with self._lock:
            self._num_plans += 1
            plan = Plan("local", 1, 1, self._num_plans, 0, self._last_result, starts=starts, transfers=transfers)
            self._link.put(plan)

    def run(self, swaps: bool) -> Round:
        """One batch; with `swaps`, blocks are on the move from before its start to after its end."""
        self._stop.clear()
        movers = [threading.Thread(target=self._move, args=(number,)) for number in range(MOVERS if swaps else 0)]
        for mover in movers:
            mover.start()
        if movers:
            time.sleep(0.2)
        moved, others = self._moved_bytes, processor_seconds(self._pids)
        thread = self._loop.native_id
        delayed = delayed_seconds(thread)
        (ran, waited), began = thread_seconds(thread), time.perf_counter()
        self._tokens.clear()
        self._order(starts=tuple(self._start(row) for row in range(BATCH)))
        for _ in range(BATCH):
            self._ended.get(timeout=_DEADLINE_S)
        seconds = time.perf_counter() - began
        ran, waited = (after - before for after, before in zip(thread_seconds(thread), (ran, waited), strict=True))
        others = processor_seconds(self._pids) - others - ran
        delayed = delayed_seconds(thread) - delayed
        moved = self._moved_bytes - moved
        self._stop.set()
        for mover in movers:
            mover.join()
        said = tuple(tuple(self._tokens[row]) for row in range(BATCH))
        return Round(seconds, ran, waited, others, delayed, moved, said)

    def _start(self, row: int) -> Start:
        """A sequence in blocks of its own, with leave to run to its end."""
        self._num_seqs += 1
        per_row = -(-(PROMPT + NUM_TOKENS) // BLOCK_SIZE)
        table = ids(range(row * per_row, (row + 1) * per_row))
        prompt = ids(np.random.default_rng(row).integers(10, 400, PROMPT).tolist())
        sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True).resolve(
            {}, vocab_size=self._worker.parts.model.vocab_size, max_model_len=2048, num_prompt_tokens=PROMPT
        )
        end = PROMPT + NUM_TOKENS - 1
        return Start(
            self._num_seqs, f"q{row}", 0, 1, "g", row, prompt, PROMPT, 0, table, end, row, sampling, b"", b""
        )  # fmt: skip

    def _move(self, number: int) -> None:
        """Takes blocks that no sequence has out and back, one order after the other."""
        first = self._worker.parts.pool.num_blocks - (number + 1) * SWAPPED
        mine = ids(range(first, first + SWAPPED))
        theirs = ids(range(number * SWAPPED, (number + 1) * SWAPPED))
        road = Road.WRITE
        while not self._stop.is_set() or road is Road.READ:
            answers: queue.SimpleQueue[str] = queue.SimpleQueue()
            with self._lock:
                self._num_transfers += 1
                transfer = self._num_transfers
                self._waiting[transfer] = answers
            order = Transfer(transfer, road, self._pool, self._incarnation, mine, theirs, 30.0)
            self._order(transfers=(order,))
            problem = answers.get(timeout=_DEADLINE_S)
            if problem:
                raise RuntimeError(problem)
            road = Road.READ if road is Road.WRITE else Road.WRITE


def measure(report: Report, rounds: int) -> None:
    """Alternates rounds with and without swaps, checks that both say the same, and prints what swaps cost."""
    num_blocks = BATCH * -(-(PROMPT + NUM_TOKENS) // BLOCK_SIZE) + MOVERS * SWAPPED
    settings = WorkerSettings("demo", dtype="float32", block_size=BLOCK_SIZE, kv_blocks=num_blocks, max_batch=BATCH)
    worker, secret = Worker(settings), secrets.token_hex(16)
    layout, resting = worker.parts.layout, worker.parts.pool.bytes[-MOVERS * SWAPPED :]
    resting.random_(0, 256)
    before = resting.clone()
    with host_pool(MOVERS * SWAPPED, layout.block_bytes, secret, layout.fingerprint()) as (pid, told):
        loaded = Loaded(pid, told, worker, secret)
        try:
            loaded.run(True)
            pairs = [(loaded.run(False), loaded.run(True)) for _ in range(rounds)]
        finally:
            loaded.close()
    said = {one.tokens for pair in pairs for one in pair}
    report.check("tokens with and without swaps", len(said) == 1, f"{len(said)} different answers")
    report.check("blocks that went out and came back", bool((resting == before).all()), "bytes came back changed")
    report.check("swaps all the time", all(swapped.moved_bytes for _, swapped in pairs), "a round without a swap")
    quiet, busy = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    report.table("steps while blocks are swapped", [_row("without swaps", quiet), _row("with swaps", busy)])
    cores = len(os.sched_getaffinity(0))
    shared = median(one.seconds / (other.seconds - (other.others_s - one.others_s) / cores) for one, other in pairs)
    own = median(one.own_seconds / other.own_seconds for one, other in pairs)
    undisturbed = median(one.undisturbed_s / other.undisturbed_s for one, other in pairs)
    wall = median(one.seconds / other.seconds for one, other in pairs)
    run = median(one.ran_s / other.ran_s for one, other in pairs)
    report.table(
        "throughput with swaps, of that without",
        [
            {"of": f"all time, less what swaps took of {cores} processors", "ratio": shared, "goal": GOAL},
            {"of": "time in which the step thread had or needed no processor", "ratio": own, "goal": None},
            {"of": "the same, but for sleep while its process lacked one", "ratio": undisturbed, "goal": None},
            {"of": "all time", "ratio": wall, "goal": None},
            {"of": "the step thread's processor time", "ratio": run, "goal": None},
        ],
    )


def _row(name: str, rounds: list[Round]) -> dict[str, str | float]:
    tokens = BATCH * NUM_TOKENS
    return {
        "": name,
        "tokens/s": median(tokens / one.seconds for one in rounds),
        "step thread ran s": median(one.ran_s for one in rounds),
        "had no processor s": median(one.waited_s for one in rounds),
        "slept s": median(one.slept_s for one in rounds),
        "other threads had none s": median(one.delayed_s for one in rounds),
        "others' processor s": median(one.others_s for one in rounds),
        "swapped GB/s": median(one.moved_bytes / one.seconds / 1e9 for one in rounds),
    }
