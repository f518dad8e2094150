"""What the host does in a decode step of a GPU, from call to return: `quire bench gpu --host`, on any machine.

The worker runs as it does beside a GPU, over a device that does nothing: graphs replay nothing, copies stand still.
What is left is Python, numpy and torch's way to a kernel, which a real device adds a few microseconds to for each of
the launches and copies that are counted here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.bench.report import Report, Row
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from kernels.device.host import HostDevice
from kernels.device.seam import Graph, GraphPool, standing_in
from kernels.gpu import issuing, sampling

P = ParamSpec("P")
T = TypeVar("T")

WARM_STEPS, STEPS = 40, 320
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "seed": 1},
    "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 1},
}


class _HollowGraph:
    def replay(self) -> None:
        HOLLOW.num_launches += 1


class _HollowPool:
    def capture(self, work: Callable[[], T]) -> tuple[Graph, T]:
        return _HollowGraph(), work()


class HollowDevice(HostDevice):
    """A device with memory and graphs of its own in which nothing happens after the start."""

    is_apart = True
    has_graphs = True

    def __init__(self) -> None:
        self.num_launches = self.num_copies = 0

    def graphs(self) -> GraphPool:
        return _HollowPool()

    def send(self, array: NDArray[np.generic]) -> torch.Tensor:
        self.num_copies += 1
        return super().send(array.copy())

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_copies += 1
        # What nothing has written is no token.
        return tensor.zero_()

    def call(self, work: Callable[P, object], *args: P.args, **more: P.kwargs) -> None:
        """Of a Triton kernel only what is looked at before it is launched."""
        if work is not issuing._launch:
            work(*args, **more)
            return
        self.num_launches += 1
        kernel, _, constants, *rest = args
        issuing.key_of(kernel, constants, tuple(rest))  # type: ignore[arg-type]

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 1 << 20

    def may_wait(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


HOLLOW = HollowDevice()


def host_steps(report: Report, batches: list[int]) -> None:
    """One row per batch and kind of sampling."""
    rows: list[Row] = []
    with TemporaryDirectory() as folder, standing_in(torch.device("cpu"), HOLLOW):
        llm = _engine(Path(folder), max(batches))
        llm._worker.sampler._draw = sampling.draw
        graphs = llm._worker._launcher.graphs
        assert graphs is not None
        # As beside a GPU, whose kernels for that would be interpreted here.
        graphs._draws = {size: _HollowGraph() for size in graphs._sizes}
        for batch in batches:
            rows.extend({"batch": batch, "sampling": kind, **_measure(llm, batch, kind)} for kind in KINDS)
    report.table("the host's part of a decode step", rows)


def _engine(folder: Path, batch: int) -> LLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return LLM(
        str(folder), device="cpu", quiet=True, dtype="float32", max_batch=batch, kv_blocks=batch * 40, fuse=False,
        kernels="reference", token_budget=max(512, batch),
    )  # fmt: skip


def _measure(llm: Any, batch: int, kind: str) -> Row:
    engine, worker = llm._engine, llm._worker
    params = SamplingParams(max_tokens=WARM_STEPS + STEPS + 100, ignore_eos=True, **KINDS[kind])
    prompts = [[3 + number % 7] * 20 for number in range(batch)]
    _, requests = llm._make(prompts, params, keeps_pieces=False)
    for request in requests:
        engine.submit(request)
    batcher = worker.desk.batcher
    while len(worker.desk.rows.row_of) != batch or (batcher.length - batcher.position)[batcher.resident].max() > 1:
        engine.turn(eager=True)
    took: list[float] = []
    step = worker.step

    def timed(max_steps: int = 1) -> int:
        began = time.perf_counter()
        ran: int = step(max_steps)
        took.append(time.perf_counter() - began)
        return ran

    worker.step = timed
    for number in range(WARM_STEPS + STEPS):
        if number == WARM_STEPS:
            took.clear()
            launches, copies = HOLLOW.num_launches, HOLLOW.num_copies
        engine.turn(eager=True)
    del worker.step
    llm._abandon(dict(enumerate(requests)))
    return {
        "us": median(took) * 1e6,
        "mean us": sum(took) / len(took) * 1e6,
        "replays": (HOLLOW.num_launches - launches) / STEPS,
        "copies": (HOLLOW.num_copies - copies) / STEPS,
    }
