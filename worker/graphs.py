"""Decode steps of a GPU as captured graphs: one launch for a whole step, for each of some numbers of rows.

The launcher pads a batch of decodes to the next captured number and replays. A graph reads the step's tensors where the
builder puts them in every step, plans its attention on the device, and leaves logits where the next replay will write
its own. What can't be captured (a model that asks the device a question in the middle of a step) runs as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

import torch

from kernels.batch import AttentionBatch
from kernels.device.seam import Graph, device_of
from worker.batch import StepBuilder
from worker.model.model import Model
from worker.state import BatchState


def sizes_up_to(most: int) -> list[int]:
    """Numbers of rows that are captured: half of a padded batch is real at least, and more of a large one."""
    steps = [1, 2, 4, 8, *range(16, 257, 16), *range(320, 4097, 64)]
    return [size for size in steps if size < most] + [most]


class DecodeGraphs:
    """The captured steps of one worker."""

    def __init__(self, model: Model, state: BatchState, builder: StepBuilder, max_model_len: int) -> None:
        self._model = model
        self._state = state
        self._builder = builder
        self._max_model_len = max_model_len
        self._seam = device_of(model.device)
        self._graphs: dict[int, Graph] = {}
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

    def _leave_logits(self, place: torch.Tensor) -> None:
        place.copy_(self._step(len(place)))

    def _step(self, size: int) -> torch.Tensor:
        """A step of so many decodes over the builder's tensors, whatever they hold: empty sequences at first."""
        on = self._builder.device
        batch = AttentionBatch(
            query_start=on.query_start[: size + 1],
            context_len=on.context_len[:size],
            tables=self._state.device_tables,
            rows=on.rows[:size],
            slots=on.slots[:size],
            positions=on.positions[:size],
            max_query_len=1,
            max_context_len=self._max_model_len,
            num_decodes=size,
        )
        self._model.prepare(batch)
        return self._model.forward(on.ids[:size], on.positions[:size], on.logit_rows[:size])
