"""Brings a worker up: loads the model, tries it with a full step, sizes the pool and says what became of the memory.

`Worker` calls `start` once. Each stage is timed and reported through `say`; what does not fit is one ConfigError with
the figures. After this nothing of the model or the pool changes its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from cluster.errors import ConfigError, ModelError
from cluster.generation_config import not_honoured
from cluster.settings import WorkerSettings
from cluster.sizes import format_bytes
from kernels.device.seam import Device, device_of
from kernels.dispatch import Backend, backend
from kernels.layout import BlockLayout
from worker.model import budget, loading
from worker.model.budget import Budget
from worker.model.loading import Loaded
from worker.model.model import Model
from worker.model.proof import prove, try_out
from worker.model.trial import Trial
from worker.pool import DevicePool
from worker.ranks.team import CLEAR, COPY, RankPlace, Team

Say = Callable[[str], None]
CPU_TOKEN_BUDGET = 512
GPU_TOKEN_BUDGET = 4096


@dataclass(frozen=True, slots=True)
class WorkerParts:
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


def start(settings: WorkerSettings, say: Say, place: RankPlace | None = None) -> WorkerParts:
    """Loads, profiles, sizes, allocates; all ranks of a team at the same time. Raises ModelError or ConfigError."""
    device = loading.pick_device(settings.device)
    seam = device_of(device)
    seam.bind()
    with seam.may_wait():
        return _start(settings, say, place, device)


def _start(settings: WorkerSettings, say: Say, place: RankPlace | None, device: torch.device) -> WorkerParts:
    began = time.perf_counter()
    seam = device_of(device)
    team = Team(place, device) if place is not None else None
    loaded = loading.load(settings, device, team)
    share = f" in {team.size} slices" if team is not None else ""
    say(f"weights: {settings.model}, {loaded.dtype} on {device}{share}, {time.perf_counter() - began:.1f} s")
    left_out = not_honoured(loaded.defaults)
    if left_out:
        say(f"generation config: {', '.join(left_out)} not honoured; set what you need in each request")
    token_budget = settings.token_budget or (GPU_TOKEN_BUDGET if seam.is_apart else CPU_TOKEN_BUDGET)
    model, layout = _make(settings, say, loaded, device, token_budget, in_slices=team is not None)
    found = _profile(settings, say, model, layout, min(token_budget, loaded.max_model_len), team)
    free_bytes = _free_bytes(settings, seam)
    if team is not None:
        # Ranks on one CPU take from the same memory; all have the same blocks.
        free_bytes = team.least(free_bytes if seam.is_apart else free_bytes // team.size)
    sizes = budget.decide(
        settings,
        layout,
        free_bytes=free_bytes,
        weights_bytes=model.weights_bytes,
        working_bytes=found.working_bytes,
        max_model_len=loaded.max_model_len,
        graph_bytes=found.graph_bytes,
    )
    wants_sharing = settings.share_pool and team is None
    pool = DevicePool(layout, sizes.num_blocks, device, debug=settings.debug, wants_sharing=wants_sharing)
    model.attach_pool(pool)
    for line in sizes.lines(loaded.max_model_len):
        say(line)
    return WorkerParts(
        device=device,
        backend=model.backend,
        model=model,
        layout=layout,
        pool=pool,
        budget=sizes,
        # A longer sequence could never be held.
        max_model_len=min(loaded.max_model_len, sizes.num_tokens),
        token_budget=token_budget,
        prefill_tokens_per_s=found.prefill_tokens_per_s,
        digest=loaded.digest,
        team=team,
    )


def _make(
    settings: WorkerSettings, say: Say, loaded: Loaded, device: torch.device, token_budget: int, *, in_slices: bool
) -> tuple[Model, BlockLayout]:
    """The model on its kernels, all of them compiled; fused, or proven to say what transformers' own says."""
    began = time.perf_counter()
    try:
        kernels = backend(device, settings.kernels, debug=settings.debug)
    except ValueError as error:
        raise ConfigError(f"kernels: {error}") from error
    model = Model(loaded, kernels, device)
    layout = model.layout(settings.block_size)
    softcap, sinks = any(call.softcap for call in model.calls), any(call.has_sinks for call in model.calls)
    kernels.warm_up(layout, model.num_heads, softcap=softcap, sinks=sinks)
    reason = "fuse is off" if not settings.fuse else model.fuse(token_budget, in_slices=in_slices)
    if reason:
        model.replace(partial(try_out, model, layout))
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
    return model, layout


@dataclass(frozen=True, slots=True)
class _StepNeeds:
    """What a step takes, and how fast it is; of a team: what the rank that takes most does."""

    working_bytes: int
    graph_bytes: int
    prefill_tokens_per_s: float


def _profile(
    settings: WorkerSettings, say: Say, model: Model, layout: BlockLayout, num_tokens: int, team: Team | None
) -> _StepNeeds:
    """Runs the largest step that there will be."""
    began = time.perf_counter()
    seam = device_of(model.device)
    try:
        trial = Trial(model, layout, model.device, num_tokens, settings)
        working_bytes = seam.peak_bytes(trial.run)
        if seam.is_apart and (team is None or team.leads):
            # Nothing is computed while tokens are chosen.
            most, held = trial.sampling_bytes()
            working_bytes = max(working_bytes + held, most)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"no room for a step of {num_tokens:,} tokens and for choosing those of {settings.max_batch:,} rows beside "
            f"{format_bytes(model.weights_bytes)} of weights; set a lower token_budget or max_batch"
        ) from error
    working_bytes += seam.slack_bytes
    if team is not None:
        working_bytes = team.most(working_bytes)
    # The first start on a machine compiles what later ones find in a cache.
    say(f"first step: with what had to be compiled for it, {time.perf_counter() - began:.1f} s")
    seconds = trial.time()
    say(f"profile: a step of {trial.num_tokens:,} tokens takes {seconds:.3f} s")
    graph_bytes = trial.graph_bytes() if seam.has_graphs else 0
    if team is not None:
        graph_bytes = team.most(graph_bytes)
    return _StepNeeds(working_bytes, graph_bytes, num_tokens / seconds)


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
