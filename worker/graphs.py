"""Decode steps of a GPU as captured graphs: one launch for a whole step, for each of some numbers of rows.

The launcher pads a batch of decodes to the next captured number and replays. A graph reads the step's tensors where the
builder puts them in every step, takes over tokens that the step before drew and what is new in tables, plans its
attention on the device, and leaves logits where the next replay will write its own; a second one takes the likeliest
tokens, and a third draws them. What can't be captured (a model that asks the device a question in the middle of a step)
runs as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch

from kernels.batch import AttentionBatch
from kernels.device.seam import Graph, device_of
from worker.batch import StepBuilder, sizes_up_to
from worker.model.model import Model
from worker.model.startup import WorkerParts
from worker.sampling.sampler import Sampled, likeliest
from worker.state import BatchState


def capture(
    parts: WorkerParts, state: BatchState, builder: StepBuilder, *, chooses: bool = True
) -> tuple[DecodeGraphs | None, str]:
    """The decode steps of a worker or a member, which does not choose tokens; or why there are none. All ranks of a
    team at the same time."""
    if not device_of(parts.device).has_graphs:
        return None, ""
    graphs = DecodeGraphs(parts.model, state, builder, parts.max_model_len, chooses=chooses)
    reason = graphs.capture(builder.max_rows)
    if parts.team is not None and not parts.team.least(not reason):
        # A sum needs all of them.
        reason = reason or "another rank has none"
    if reason:
        return None, reason
    if parts.team is not None:
        parts.team.recorded.add(graphs)
    return graphs, ""


class DecodeGraphs:
    """The captured steps of one worker."""

    def __init__(
        self, model: Model, state: BatchState, builder: StepBuilder, max_model_len: int, *, chooses: bool
    ) -> None:
        self._model = model
        self._state = state
        self._builder = builder
        self._max_model_len = max_model_len
        self._seam = device_of(model.device)
        self._graphs: dict[int, Graph] = {}
        # What takes the likeliest tokens of those steps; None: that is another rank's.
        self._choices: dict[int, Graph] | None = {} if chooses else None
        # What draws them, where there is a kernel for it.
        self._draws: dict[int, Graph] = {}
        self._draw: Callable[[torch.Tensor], None] | None = None
        if chooses and model.backend.name == "triton":
            self._draw = self._drawing()
        # One place for the logits of all sizes: they are read before the next replay.
        self._logits: torch.Tensor | None = None
        self._sizes: list[int] = []

    def capture(self, most: int) -> str:
        """Captures steps of up to `most` rows, the largest first so that the others fit into its memory. Returns why
        there are none, or nothing."""
        pool = self._seam.graphs()
        try:
            for size in reversed(sizes_up_to(most)):
                self._builder.build_empty(size)
                # Everything is compiled and has its workspace before it is captured.
                logits = self._step(size)
                if self._logits is None:
                    self._logits = torch.empty_like(logits)
                del logits
                self._graphs[size], _ = pool.capture(partial(self._leave_logits, self._logits[:size]))
                if self._choices is not None:
                    self._choices[size], _ = pool.capture(partial(self._choose, self._logits[:size]))
                if self._draw is not None:
                    draw = partial(self._draw, self._logits[:size])
                    draw()
                    self._draws[size], _ = pool.capture(draw)
        except RuntimeError as error:
            self._graphs.clear()
            self._logits = None
            self._seam.wait()
            return " ".join(str(error).split())[:200]
        self._sizes = sorted(self._graphs)
        return ""

    def padded(self, rows: int) -> int:
        """The captured number of rows for a batch of so many decodes; 0 if there is none."""
        at = bisect_left(self._sizes, rows)
        return self._sizes[at] if at < len(self._sizes) else 0

    def replay(self, size: int, rows: int) -> torch.Tensor:
        """The step that the builder has laid out, padded to `size`. Logits of its first rows, until the next replay."""
        self._graphs[size].replay()
        assert self._logits is not None
        return self._logits[:rows]

    def likeliest(self, size: int, rows: int) -> Sampled:
        """The likeliest tokens of the step that was replayed last, which the next step can take over."""
        assert self._choices is not None
        self._choices[size].replay()
        return self._sampled(size, rows)

    @property
    def draws(self) -> bool:
        return bool(self._draws)

    def drawn(self, size: int, rows: int) -> Sampled:
        """The same for tokens that are drawn as the builder has laid out."""
        self._draws[size].replay()
        return self._sampled(size, rows)

    def _sampled(self, size: int, rows: int) -> Sampled:
        both = self._builder.last[: 2 * size].view(2, size)
        return Sampled(both[0, :rows], both[1, :rows], both=both)

    def _drawing(self) -> Callable[[torch.Tensor], None]:
        from kernels.gpu.sampling import draw_packed, scratch_for

        builder = self._builder
        own = scratch_for(self._model.device, builder.max_rows)

        def draw(logits: torch.Tensor) -> None:
            rows = len(logits)
            both = builder.last[: 2 * rows].view(2, rows)
            draw_packed(logits, builder.device.draws[: 6 * rows].view(6, rows), both[0], both[1], own)

        return draw

    def _choose(self, logits: torch.Tensor) -> None:
        ids, broken = likeliest(logits)
        both = self._builder.last[: 2 * len(logits)].view(2, -1)
        both[0].copy_(ids)
        both[1].copy_(broken)

    def _leave_logits(self, place: torch.Tensor) -> None:
        place.copy_(self._step(len(place)))

    def _step(self, size: int) -> torch.Tensor:
        """A step of so many decodes over the builder's tensors, whatever they hold: empty sequences at first."""
        on, tables = self._builder.device, self._state.device_tables
        batch = AttentionBatch(
            query_start=on.query_start[: size + 1],
            context_len=on.context_len[:size],
            tables=tables,
            rows=on.rows[:size],
            slots=on.slots[:size],
            positions=on.positions[:size],
            max_query_len=1,
            max_context_len=self._max_model_len,
            num_decodes=size,
        )
        self._model.backend.take(on.ids[:size], on.taken[:size], self._builder.last, tables, on.changes)
        self._model.prepare(batch)
        return self._model.forward(on.ids[:size], on.positions[:size], on.logit_rows[:size])
