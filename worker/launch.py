"""One step from the batcher's choice to tokens that are coming: tensors, model, beams, sampler.

The worker calls `Launcher.launch` and waits for what comes back when it retires the step. Where a batch asks for no
more than likeliest tokens or plain draws the model picks them itself, for several steps at once if nothing can come in
between: what the host does per step is then done once for all of them, and tokens are the same as step by step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from cluster.desk.batcher import Batch
from cluster.desk.desk import Desk
from cluster.desk.words import Drawn
from kernels.cpu.decoder import Picked
from kernels.sampling import send
from worker.batch import Step, StepBuilder
from worker.beams import Ranked, Searches
from worker.graphs import DecodeGraphs, capture
from worker.model.startup import Say, WorkerParts
from worker.model.tokenizer import guide_of
from worker.ranks.lead import Lead
from worker.sampling.prompt_logprobs import Judged, PromptLogprobs, token_rows
from worker.sampling.sampler import Sampled, Sampler
from worker.state import BatchState, Int32, Int64


@dataclass(frozen=True, slots=True)
class Pending:
    """What the device draws in a step that was launched and is not retired yet, or in a run of such."""

    rows: Int32  # those that get a token, beams apart
    sampled: Sampled  # of the last step
    earlier: Int64  # tokens of the steps before it, [steps - 1, rows]
    ranked: Ranked | None  # beams
    judged: Judged | None  # logprobs of prompt tokens

    @property
    def num_steps(self) -> int:
        return len(self.earlier) + 1

    def drawn(self, searches: Searches) -> Drawn:
        """All of it, in numbers. Waits for the device."""
        ids, broken = self.sampled.ids(), self.sampled.broken()
        return Drawn(
            ids,
            broken,
            self.earlier,
            self.sampled.logprobs(),
            () if self.judged is None else self.judged.messages(),
            () if self.ranked is None else searches.choose(self.ranked),
        )


class Launcher:
    """Launches one worker's steps."""

    def __init__(
        self,
        parts: WorkerParts,
        desk: Desk,
        state: BatchState,
        sampler: Sampler,
        searches: Searches,
        *,
        overlaps: bool,
    ) -> None:
        """`overlaps`: steps are issued before the tokens of the step before are known here."""
        self.prompt_logprobs = PromptLogprobs(state)
        # Seconds spent so far, by part of a step.
        self.seconds = {"prepare": 0.0, "model": 0.0, "sample": 0.0, "retire": 0.0}
        self.num_launches = 0
        self._parts = parts
        self._state = state
        self._desk = desk
        self._sampler = sampler
        loaded = parts.model.loaded
        sampler.guide_by(lambda: guide_of(loaded.folder, loaded.vocab_size, loaded.defaults))
        self._searches = searches
        self.builder = StepBuilder(state, parts.token_budget, parts.backend)
        self.overlaps = overlaps
        self.lead = Lead(parts.team, self.builder, shares=overlaps) if parts.team is not None else None
        self.graphs: DecodeGraphs | None = None

    def capture(self, say: Say) -> None:
        """Decode steps as graphs, where the device has such and the model allows it."""
        began = time.perf_counter()
        self.graphs, reason = capture(self._parts, self._state, self.builder)
        if reason or self.graphs is not None:
            say(f"decode graphs: {f'none, {reason}' if reason else 'captured'}, {time.perf_counter() - began:.1f} s")

    def launch(self, batch: Batch, allowed: int, began: float, previous: Pending | None = None) -> Pending:
        """Prepares the step and issues it: its tokens are coming. Up to `allowed` steps at once. `previous` is under
        way still: its tokens are taken over on the device. RuntimeError when the model failed."""
        model = self._parts.model
        self.num_launches += 1
        if previous is not None and self._sampler.is_guided:
            # What may come next depends on what came: the host must know it before it goes on.
            previous.sampled.ids()
        num_steps = 1
        if allowed > 1 and model.runs_ahead and self._sampler.is_plain(batch.rows):
            num_steps = self._desk.most_steps(batch, allowed, model.keys_per_cut)
        wanted = self.prompt_logprobs.wanted(batch)
        padded = 0
        if self.graphs is not None and not wanted and batch.num_decodes == len(batch.rows):
            padded = self.graphs.padded(len(batch.rows))
        self.builder.goes_behind(None if previous is None else previous.rows)
        drawn = bool(padded) and self._can_draw(batch)
        draws = self._sampler.next_draw if drawn else None
        step = self.builder.build(batch, self._desk.batcher.length, padded, draws)
        if not padded:
            model.prepare(step.attention)
        if self.lead is not None:
            # Beams choose on the host.
            num_shared = 0 if self._searches else len(step.sampled)
            self.lead.step(step, token_rows(wanted), padded, num_shared)
        self.seconds["prepare"] += time.perf_counter() - began
        plain = not wanted and not self._searches and self._sampler.is_plain(step.sampled)
        if plain and model.picks:
            return self._pick(step, num_steps)
        return self._sample(step, wanted, padded, drawn)

    def _can_draw(self, batch: Batch) -> bool:
        """Whether a graph draws the tokens of these decodes."""
        sampler, graphs = self._sampler, self.graphs
        is_drawn = sampler.is_plain(batch.rows) and not sampler.is_greedy(batch.rows)
        return is_drawn and graphs is not None and graphs.draws and not self._searches

    def _pick(self, step: Step, num_steps: int) -> Pending:
        """The model takes its likeliest tokens itself, or draws them."""
        began = time.perf_counter()
        draws = self._sampler.draws(step.sampled, num_steps)
        picked = self._parts.model.pick(step.ids, step.positions, step.logit_rows, num_steps, self._state.stops, draws)
        self.seconds["model"] += time.perf_counter() - began
        self._sampler.took(step.sampled, len(picked.ids))
        return Pending(step.sampled, self._kept(_last(picked)), picked.ids[:-1], None, None)

    def _kept(self, sampled: Sampled) -> Sampled:
        """Its tokens where the next step and the other ranks find them."""
        if self.overlaps:
            self.builder.last[: len(sampled.device_ids)].copy_(sampled.device_ids)
        return sampled

    def _sample(self, step: Step, wanted: list[tuple[int, int, int, int]], padded: int, drawn: bool) -> Pending:
        """`drawn`: how tokens are drawn was laid out for a graph."""
        began = time.perf_counter()
        logit_rows, num_sampled = step.logit_rows, len(step.sampled)
        if wanted:
            logit_rows = torch.cat([logit_rows, send(token_rows(wanted), logit_rows.device)])
        if padded:
            assert self.graphs is not None
            logits = self.graphs.replay(padded, num_sampled)
        else:
            logits = self._parts.model.forward(step.ids, step.positions, logit_rows)
        computed = time.perf_counter()
        judged = self.prompt_logprobs.judge(logits[num_sampled:], wanted) if wanted else None
        logits, rows, ranked = self._searches.rank(logits[:num_sampled], step.sampled)
        chosen = drawn or (padded and len(rows) == num_sampled and self._sampler.is_greedy(rows))
        if chosen and self.graphs is not None:
            self._sampler.took(rows, 1)
            sampled = self.graphs.drawn(padded, num_sampled) if drawn else self.graphs.likeliest(padded, num_sampled)
        else:
            sampled = self._kept(self._sampler.sample(logits, rows, in_place=True))
        if self.lead is not None:
            self.lead.share()
        self.seconds["model"] += computed - began
        self.seconds["sample"] += time.perf_counter() - computed
        return Pending(rows, sampled, np.zeros((0, len(rows)), np.int64), ranked, judged)


def _last(picked: Picked) -> Sampled:
    return Sampled(torch.from_numpy(picked.ids[-1]), torch.from_numpy(picked.broken != 0))
