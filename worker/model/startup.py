"""Brings a worker up: loads the model, tries it with a full step, sizes the pool and says what became of the memory.

`Worker` calls `start` once. Each stage is timed and reported through `say`; what does not fit is one ConfigError with
the figures. After this nothing of the model or the pool changes its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.desk.batcher import Batch
from cluster.desk.rows import Rows
from cluster.errors import ConfigError, ModelError
from cluster.generation_config import not_honoured
from cluster.settings import WorkerSettings
from kernels.device.seam import Device, device_of
from kernels.dispatch import Backend, backend
from kernels.layout import BlockLayout
from worker.batch import StepBuilder
from worker.model import budget, loading
from worker.model.budget import Budget
from worker.model.model import Model
from worker.model.proof import prove
from worker.pool import DevicePool
from worker.ranks.team import CLEAR, COPY, Place, Team
from worker.state import BatchState

Say = Callable[[str], None]
CPU_TOKEN_BUDGET = 512
GPU_TOKEN_BUDGET = 4096


@dataclass(frozen=True, slots=True)
class Started:
    """What a worker runs with."""

    device: torch.device
    backend: Backend
    model: Model
    layout: BlockLayout
    pool: DevicePool
    budget: Budget
    max_model_len: int
    token_budget: int
    prefill_tokens_per_s: float
    # Of the model: see `worker/model/digest.py`.
    digest: bytes
    # The other ranks; None where the model is whole in this process.
    team: Team | None

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies whole blocks, on every rank."""
        if self.team is not None:
            self.team.say(COPY, sources, targets)
        device_of(self.device).bind()
        self.backend.copy_blocks(self.pool.bytes, sources, targets)

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Overwrites these blocks with zeros, on every rank."""
        if self.team is not None:
            self.team.say(CLEAR, blocks)
        self.pool.clear(blocks)


def start(settings: WorkerSettings, say: Say, place: Place | None = None) -> Started:
    """Loads, profiles, sizes, allocates; all ranks of a team at the same time. Raises ModelError or ConfigError."""
    device = loading.pick_device(settings.device)
    seam = device_of(device)
    seam.bind()
    with seam.may_wait():
        return _start(settings, say, place, device)


def _start(settings: WorkerSettings, say: Say, place: Place | None, device: torch.device) -> Started:
    began = time.perf_counter()
    seam = device_of(device)
    team = Team(place, device) if place is not None else None
    loaded = loading.load(settings, device, team)
    share = f" in {team.size} slices" if team is not None else ""
    say(f"weights: {settings.model}, {loaded.dtype} on {device}{share}, {time.perf_counter() - began:.1f} s")
    left_out = not_honoured(loaded.defaults)
    if left_out:
        say(f"generation config: {', '.join(left_out)} not honoured; set what you need in each request")
    began = time.perf_counter()
    try:
        kernels = backend(device, settings.kernels, debug=settings.debug)
    except ValueError as error:
        raise ConfigError(f"kernels: {error}") from error
    model = Model(loaded, kernels, device)
    layout = model.layout(settings.block_size)
    softcap, sinks = any(call.softcap for call in model.calls), any(call.has_sinks for call in model.calls)
    kernels.warm_up(layout, model.num_heads, softcap=softcap, sinks=sinks)
    token_budget = settings.token_budget or (GPU_TOKEN_BUDGET if seam.is_apart else CPU_TOKEN_BUDGET)
    reason = "fuse is off" if not settings.fuse else "its ranks add up" if team else model.fuse(token_budget)
    fused = "decoder fused" if not reason else f"decoder not fused: {reason}"
    if model.num_packed:
        fused += f" ({model.num_packed} products packed)"
    if model.num_replaced:
        fused += f" ({model.num_replaced} modules replaced)"
    say(f"kernels: {kernels.name}, {fused}, {time.perf_counter() - began:.1f} s")
    if reason:
        began = time.perf_counter()
        _prove(model, layout, say)
        say(f"proof: the same logits as by transformers' attention, {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    trial = _Trial(model, layout, device, min(token_budget, loaded.max_model_len), settings)
    working_bytes = seam.peak_bytes(trial.run) + seam.slack_bytes
    if team is not None:
        working_bytes = -team.least(-working_bytes)
    # The first start on a machine compiles what later ones find in a cache.
    say(f"first step: with what had to be compiled for it, {time.perf_counter() - began:.1f} s")
    seconds = trial.time()
    say(f"profile: a step of {trial.num_tokens:,} tokens takes {seconds:.3f} s")
    graph_bytes = trial.graph_bytes() if seam.has_graphs and team is None else 0
    del trial
    free_bytes = _free_bytes(settings, seam)
    if team is not None:
        # Ranks on one CPU take from the same memory; all have the same blocks.
        free_bytes = team.least(free_bytes if seam.is_apart else free_bytes // team.size)
    sizes = budget.decide(
        settings,
        layout,
        free_bytes=free_bytes,
        weights_bytes=model.weights_bytes,
        working_bytes=working_bytes,
        max_model_len=loaded.max_model_len,
        graph_bytes=graph_bytes,
    )
    wants_sharing = settings.share_pool and team is None
    pool = DevicePool(layout, sizes.num_blocks, device, debug=settings.debug, wants_sharing=wants_sharing)
    model.attach_pool(pool)
    for line in sizes.lines(loaded.max_model_len):
        say(line)
    return Started(
        device=device,
        backend=kernels,
        model=model,
        layout=layout,
        pool=pool,
        budget=sizes,
        # A longer sequence could never be held.
        max_model_len=min(loaded.max_model_len, sizes.num_tokens),
        token_budget=token_budget,
        prefill_tokens_per_s=min(token_budget, loaded.max_model_len) / seconds,
        digest=loaded.digest,
        team=team,
    )


def _free_bytes(settings: WorkerSettings, seam: Device) -> int:
    """What is left of the device, or of the share of a card that was given."""
    free, share = seam.free_bytes(), settings.gpu_memory_utilization
    if share is None or not seam.is_apart:
        return free
    total = seam.total_bytes()
    return max(0, min(free, int(share * total) - (total - free)))


def _prove(model: Model, layout: BlockLayout, say: Say) -> None:
    try:
        prove(model, layout)
    except ModelError as error:
        if not model.num_replaced:
            raise
        # What was replaced is at fault, or it comes again.
        say(f"modules are transformers' own: {error}")
        model.put_back()
        prove(model, layout)


class _Trial:
    """One step as large as steps get, over a pool of its own that is thrown away."""

    def __init__(
        self, model: Model, layout: BlockLayout, device: torch.device, num_tokens: int, settings: WorkerSettings
    ) -> None:
        self.num_tokens = num_tokens
        num_blocks = -(-num_tokens // layout.block_size)
        self._model = model
        self._device = device
        self._pool = DevicePool(layout, num_blocks, device)
        # As many rows as a step of decodes has.
        self._num_rows = min(settings.max_batch, num_tokens)
        held = Rows(self._num_rows, num_tokens, layout.block_size)
        state = BatchState(held, device)
        # As tables come to be, so that the device has it too: every block is read.
        held.extend(0, 0, np.arange(num_blocks, dtype=np.int32))
        self._builder = StepBuilder(state, num_tokens)
        counts = np.array([num_tokens], np.int32)
        none = np.zeros(1, np.int32)
        self._batch = Batch(none, none, counts, 0, num_tokens, 0)
        self._lengths = np.full(self._num_rows, num_tokens, np.int32)
        self._logit_rows = torch.arange(self._num_rows, device=device)

    def run(self) -> None:
        self._model.attach_pool(self._pool)
        self._step(self._batch)

    def graph_bytes(self) -> int:
        """What graphs of decodes take: memory of their own for the largest step, and a place for its logits."""
        num, seam = self._num_rows, device_of(self._device)
        rows, ones = np.arange(num, dtype=np.int32), np.ones(num, np.int32)
        logits: list[torch.Tensor] = []

        def decode() -> None:
            logits.append(self._step(Batch(rows, 0 * rows, ones, num, num, 0)))

        return seam.peak_bytes(decode) + logits[0].nbytes + seam.slack_bytes

    def _step(self, batch: Batch) -> torch.Tensor:
        step = self._builder.build(batch, self._lengths)
        self._model.prepare(step.attention)
        logits = self._model.forward(step.ids, step.positions, self._logit_rows)
        device_of(self._device).wait()
        return logits

    def time(self) -> float:
        began = time.perf_counter()
        self.run()
        return time.perf_counter() - began
