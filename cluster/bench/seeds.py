"""`quire bench seeds`: the examples that paged attention is explained with, each run on the real parts.

A row per example: what is said about it, what it comes to here, and whether that holds or why not. Pages are given by
the real ledger, tables by the real scheduler, and times are those of real attention on this machine's CPU.
"""

from __future__ import annotations

import argparse
import random
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from cluster.bench.report import BenchHelp, Report, Row
from cluster.centre.ledger import Ledger, TurnClock
from cluster.centre.prefix import PrefixIndex
from cluster.centre.scheduler import Scheduler
from cluster.hashing import BlockHasher
from cluster.messages import Advances, Event, Plan, ReplicaJoined, Result, Start, Submit, ids
from cluster.sampling import SamplingParams
from cluster.settings import AllocatorName, SchedulerSettings
from cluster.sim.traces import TRACES, length
from cluster.sizing import ExpectedLoad, kv_shape

if TYPE_CHECKING:
    import torch

    from cluster.bench.gpu_batches import Built

# The sixteen lengths of the page exercise, in pages of 16 beside reservations of 2,048.
LENGTHS = (100, 500, 50, 1500, 200, 800, 150, 1000, 300, 600, 75, 1200, 400, 900, 250, 700)
PAGE = 16
SCENARIOS = {
    "short sequences": (50, 100, 150) * 10,
    "mixed lengths": (100, 500, 1000, 2000) * 8,
    "long sequences": (1500, 2000, 2500) * 6,
}


class Examples:
    """The rows of one run."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.rows: list[Row] = []

    def add(self, what: str, stated: str, ours: str, verdict: str, *, ok: bool) -> None:
        """`ok`: what is true of it holds here; a figure that is stated wrongly is corrected in `verdict`."""
        self.rows.append({"example": what, "stated": stated, "ours": ours, "verdict": verdict})
        self.report.check(what, ok, f"{ours}; {verdict}")


# -- memory


def pages(lengths: Sequence[int], page: int = PAGE, policy: AllocatorName = "lru") -> tuple[int, int]:
    """Pages that the ledger gives to sequences that grow side by side, and runs of adjacent ones in their tables."""
    num = sum(-(-tokens // page) for tokens in lengths)
    ledger = Ledger(1, num, policy, PrefixIndex(), TurnClock())
    tables: list[list[int]] = [[] for _ in lengths]
    growing = list(range(len(lengths)))
    while growing:
        for one in tuple(growing):
            given = ledger.allocate(1, one + 1, tables[one][-1] if tables[one] else -1)
            assert given is not None, f"{num} pages are not enough"
            tables[one] += given
            if len(tables[one]) * page >= lengths[one]:
                growing.remove(one)
    ledger.check(tables)
    runs = sum(1 + sum(b != a + 1 for a, b in pairwise(table)) for table in tables)
    return ledger.counts().held, runs


def layouts(examples: Examples) -> None:
    for what, stated, used, reserved in (
        ("three drawn sequences in 4K each", 37.0, (2048, 1536, 4096), 4096),
        ("800, 300 and 600 tokens in 2,048 each", 72.0, (800, 300, 600), 2048),
    ):
        waste = 100 * (1 - sum(used) / (reserved * len(used)))
        held, _ = pages(used)
        paged = 100 * (1 - sum(used) / (held * PAGE))
        ours = f"{waste:.1f} % reserved, {paged:.1f} % in pages of {PAGE}"
        examples.add(what, f"{stated:.0f} % waste", ours, "holds", ok=abs(waste - stated) < 1.5 and paged < 1.0)


def sizes(examples: Examples) -> None:
    llama = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    reserved = 8 * 4096 * kv_shape(llama, "bfloat16").token_bytes
    examples.add(
        "8 requests of 4,096, 32 layers of 4,096, bfloat16",
        "67 GB",
        f"{reserved / 1e9:.1f} GB",
        "stated too high: 8 x 4,096 x 4,096 x 32 x 2 x 2 bytes are 17.2 GB",
        ok=round(reserved / 1e9, 1) == 17.2,
    )
    thirteen = {"num_hidden_layers": 40, "num_attention_heads": 40, "hidden_size": 5120}
    whole, eighths = (2048 * kv_shape(thirteen, "float16").token_bytes * share for share in (1.0, 0.5))
    examples.add(
        "LLaMA-13B at 2,048 tokens",
        "800 MB",
        f"{whole / 1e6:,.0f} MB in float16",
        f"stated too low by half: {eighths / 1e6:,.0f} MB are one byte a value; 800 KB are a token's",
        ok=1600 < whole / 1e6 < 1700,
    )
    rule = ExpectedLoad(requests=50, length=200, safety=1.5).num_blocks(16)
    examples.add(
        "pool for 50 requests of 200 tokens, 1.5 x",
        "937.5 blocks",
        f"{rule} blocks",
        "holds, rounded up",
        ok=rule == 938,
    )


def sixteen(examples: Examples) -> None:
    reserved = len(LENGTHS) * 2048
    held, runs = pages(LENGTHS)
    saved = 100 * (1 - held * PAGE / reserved)
    examples.add(
        "sixteen lengths, pages of 16", "a saving", f"{held} pages, {saved:.1f} % saved", "holds", ok=saved > 70
    )
    for prefix in (48, 512):
        # All begin alike, as far as they go: full pages of the prefix are there once.
        shared = sum(min(tokens, prefix) // PAGE for tokens in LENGTHS) - prefix // PAGE
        saved_too = 100 * (1 - (held - shared) * PAGE / reserved)
        examples.add(
            f"the same with a prefix of {prefix} tokens in common",
            "a larger saving",
            f"{held - shared} pages, {saved_too:.1f} % saved",
            "holds",
            ok=saved_too > saved,
        )
    policies: tuple[AllocatorName, ...] = ("fifo", "lru", "buddy")
    for policy in policies:
        given, runs = pages(LENGTHS, PAGE, policy)
        examples.add(f"the same by {policy}", "all fit", f"{given} pages in {runs} runs", "holds", ok=given == held)


def batches(examples: Examples, seed: int) -> None:
    """How many requests the same memory holds at once, reserved for the longest and in pages."""
    rng = random.Random(seed)
    chat = [
        length(rng, TRACES["sharegpt"].prompt, 1, 4, 2048) + length(rng, TRACES["sharegpt"].output, 1, 4, 2048)
        for _ in range(4000)
    ]
    # 8 GB of key/value memory of a 7B model: 512 KiB a token.
    slots = (8 << 30) // (512 << 10)
    reserved, paged = slots // 4096, fill(chat, slots // PAGE)
    used = 100 * sum(chat[:paged]) / slots
    examples.add(
        "8 GB, requests of 4,096 at most",
        "3 against 30+",
        f"{reserved} against {paged}",
        "holds",
        ok=reserved <= 4 and paged >= 30,
    )
    share = 100 * sum(chat[:reserved]) / slots
    examples.add(
        "the same: memory that holds tokens",
        "10 % against 95 %",
        f"{share:.0f} % against {used:.0f} %",
        "holds",
        ok=share < 25 and used > 93,
    )
    forty = [max(1, round(rng.gauss(0.4, 0.1) * 2048)) for _ in range(400)]
    fits = fill(forty, 10 * 2048 // PAGE)
    examples.add(
        "memory of 10 reserved sequences that use 40 %",
        "10 against 25 (10 % waste)",
        f"10 against {fits}",
        "holds: 1 / 0.4 is 25, and pages of 16 waste 1 %; with 10 % waste it would be 22",
        ok=22 <= fits <= 26,
    )


def fill(lengths: Sequence[int], num_pages: int) -> int:
    """How many sequences, in their order, a ledger of so many pages holds whole."""
    ledger = Ledger(1, num_pages, "lru", PrefixIndex(), TurnClock())
    for count, tokens in enumerate(lengths):
        if ledger.allocate(-(-tokens // PAGE), count + 1) is None:
            return count
    return len(lengths)


# -- tables


def words(examples: Examples) -> None:
    """The fox, the cat and hello, in pages of 4, through the scheduler: who shares what."""
    vocabulary: dict[str, int] = {}
    texts = ("The quick brown fox jumps over", "The quick brown cat runs fast", "Hello world")
    prompts = [[vocabulary.setdefault(word, len(vocabulary)) for word in text.split()] for text in texts]
    starts, copies = schedule(prompts, page=4)
    tables = " ".join(f"{name} {list(start.table)}" for name, start in zip("ABC", starts, strict=True))
    computed = [start.num_prompt - start.position for start in starts]
    examples.add(
        "fox, cat and hello in pages of 4",
        "A [0, 1] B [0, 2] C [3]",
        f"{tables}; computed {computed}",
        "the drawing leaves a hole in page 0; here B copies the 3 slots that it has in common, and pages stay full",
        ok=[len(start.table) for start in starts] == [2, 2, 1] and computed == [6, 3, 2] and copies == [3],
    )
    prefix = [7] * 8
    shared, _ = schedule([[*prefix, 1, 2], [*prefix, 3, 4]], page=4)
    common = [a for a, b in zip(shared[0].table, shared[1].table, strict=True) if a == b]
    examples.add(
        "two prompts with two pages in common",
        "share both",
        f"{list(shared[0].table)} and {list(shared[1].table)}",
        "holds",
        ok=len(common) == 2 and shared[1].position == 8,
    )


def schedule(prompts: Sequence[Sequence[int]], page: int) -> tuple[list[Start], list[int]]:
    """Requests one after the other, each when the one before has written its prompt: their Starts, and slots copied."""
    key = b"seeds"
    joined = ReplicaJoined("w", 1, "n", "m", 32, page, page * 64, "seeds", 8, 64, 1000.0)
    scheduler = Scheduler(SchedulerSettings(ahead=0))
    hasher = BlockHasher(key, b"", b"", page)
    events: list[Event] = [joined]
    starts: list[Start] = []
    copies: list[int] = []
    now = 0.0
    for number, prompt in enumerate(prompts):
        tokens = ids(prompt)
        events.append(Submit(f"r{number}", "g", number, "m", "", tokens, hasher.prompt(tokens), _greedy()))
        for order in scheduler.turn(events, now):
            if isinstance(order, Plan):
                starts += order.starts
                copies += [copy.num_slots for copy in order.copies]
        now += 1.0
        events = [written(starts[-1], order_number=number + 1)]
    scheduler.check()
    return starts, copies


def written(start: Start, order_number: int) -> Event:
    """What a worker reports of a prompt that it has written."""
    advances = Advances(array("q", [start.seq]), ids([start.num_prompt]), ids([0]), ids(), ids([0]), b"")
    return Result("w", 1, 1, order_number, order_number, order_number, advances)


def _greedy() -> SamplingParams:
    return SamplingParams(
        temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, seed=0, max_tokens=2, min_tokens=0,
    )  # fmt: skip


# -- times


def attention(examples: Examples, seconds: float, seed: int) -> None:
    """A decode of each scenario: padded to the longest in one tensor, and in pages; both say the same."""
    import torch

    from cluster.bench.cpu_kernels import CPU, SMALL, CpuBench, laid_out, ours
    from cluster.bench.gpu_batches import build, decodes

    bench = CpuBench(examples.report, [torch.float32], [], False, seconds, seed)
    rows: list[Row] = []
    for name, lengths in SCENARIOS.items():
        built = build(SMALL, decodes(name, lengths), block_size=PAGE, dtype=torch.float32, device=CPU)
        padded, paged = traditional(built), ours(bench, laid_out(bench, built, shuffled=True))
        error = float((padded() - paged()).abs().max())
        examples.report.check(f"{name}: both ways say the same", error < 1e-4, f"they differ by {error:.1e}")
        took = bench.times({"padded": padded, "paged": paged})
        rows.append(
            {
                "scenario": name,
                "padded ms": 1e3 * took["padded"],
                "paged ms": 1e3 * took["paged"],
                "speedup": took["padded"] / took["paged"],
                "memory, padded over paged": len(lengths) * max(lengths) / (PAGE * pages(lengths)[0]),
            }
        )
    examples.report.table("One decode of each scenario, padded to the longest and in pages", rows)


def traditional(built: Built) -> Callable[[], torch.Tensor]:
    """One tensor for all sequences, each as long as the longest, and torch's attention over it under a mask."""
    import torch
    from torch.nn import functional

    from cluster.bench.gpu_batches import contiguous

    shape, lengths = built.shape, built.workload.contexts
    padded = torch.zeros(2, len(lengths), shape.num_kv_heads, max(lengths), shape.dim)
    mask = torch.zeros(len(lengths), 1, 1, max(lengths), dtype=torch.bool)
    for part, flat in zip(padded, contiguous(built), strict=True):
        begin = 0
        for row, tokens in enumerate(lengths):
            part[row, :, :tokens] = flat[begin : begin + tokens].transpose(0, 1)
            mask[row, ..., :tokens] = True
            begin += tokens
    query = built.q.view(len(lengths), shape.num_heads, 1, shape.dim)

    def call() -> torch.Tensor:
        out = functional.scaled_dot_product_attention(
            query, padded[0], padded[1], attn_mask=mask, scale=built.scale, enable_gqa=True
        )
        return out[:, :, 0]

    return call


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench seeds", description=__doc__, formatter_class=BenchHelp)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each scenario's attention; 0: none")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    report = Report("seeds", argv)
    report.begins("the examples on the real ledger, scheduler and attention", 30 + arguments.seconds)
    examples = Examples(report)
    layouts(examples)
    sizes(examples)
    sixteen(examples)
    batches(examples, arguments.seed)
    words(examples)
    report.table("Examples", examples.rows)
    if arguments.seconds:
        attention(examples, arguments.seconds, arguments.seed)
    return report.finish(arguments.json)
