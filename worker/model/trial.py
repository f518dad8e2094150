"""Tries a model before its pool is sized: a step as large as steps get, what its tokens are chosen with, its graphs.

`worker/model/startup.py` makes one, asks what each of these takes of the device and how long a step lasts, and throws
it away. What is measured here is left free beside the pool, so that the first request that asks for everything finds
room on a card that is full. All ranks of a team try at the same time; the first of them chooses tokens for all.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from cluster.desk.batcher import Batch
from cluster.desk.rows import Rows
from cluster.limits import MAX_LOGPROBS
from cluster.sampling import SamplingParams
from cluster.settings import WorkerSettings
from kernels.device.seam import Graph, device_of
from kernels.layout import BlockLayout
from worker.batch import StepBuilder, sizes_up_to
from worker.model.model import Model
from worker.pool import DevicePool
from worker.sampling.logprobs import token_logprobs
from worker.sampling.sampler import Sampler
from worker.state import BatchState

# What takes the most of a sampler: state of a vocabulary's width for each row, edits, filters, logprobs.
_EVERYTHING = SamplingParams(
    temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, seed=1, repetition_penalty=1.1, frequency_penalty=0.1,
    logit_bias={0: 1.0}, bad_words_token_ids=[[0, 1]], logprobs=1,
)  # fmt: skip


class Trial:
    """One step over a pool of its own that is thrown away."""

    def __init__(
        self, model: Model, layout: BlockLayout, device: torch.device, num_tokens: int, settings: WorkerSettings
    ) -> None:
        self.num_tokens = num_tokens
        num_blocks = -(-num_tokens // layout.block_size)
        self._model = model
        self._seam = device_of(device)
        self._pool = DevicePool(layout, num_blocks, device)
        # As many rows as a step of decodes has.
        self._num_rows = min(settings.max_batch, num_tokens)
        held = Rows(self._num_rows, num_tokens, layout.block_size)
        state = BatchState(held, device)
        # As tables come to be, so that the device has it too: every block is read.
        held.extend(0, 0, np.arange(num_blocks, dtype=np.int32))
        self._builder = StepBuilder(state, num_tokens, model.backend)
        counts = np.array([num_tokens], np.int32)
        none = np.zeros(1, np.int32)
        self._batch = Batch(none, none, counts, 0, num_tokens, 0)
        self._lengths = np.full(self._num_rows, num_tokens, np.int32)
        # Each token of a step has logits at most once: it is the last of its row, or judges the next of a prompt.
        self._tokens = torch.arange(num_tokens, device=device)
        self._logit_rows = self._tokens[: self._num_rows]

    def run(self) -> None:
        """The step that takes the most: with logits of all its tokens."""
        self._model.attach_pool(self._pool)
        self._step(self._batch, self._tokens)

    def time(self) -> float:
        """Seconds of one with no more logits than tokens are chosen by."""
        began = time.perf_counter()
        self._step(self._batch, self._logit_rows)
        return time.perf_counter() - began

    def sampling_bytes(self) -> tuple[int, int]:
        """What a sampler whose rows all ask for everything takes beside a prompt that is judged: at its highest, the
        logits of all tokens included, and between two steps."""
        sampler: list[Sampler] = []
        model, num = self._model, self._num_rows
        params = _EVERYTHING.resolve({}, vocab_size=model.vocab_size, max_model_len=model.loaded.max_model_len)

        def enter() -> None:
            made = Sampler(num, model.vocab_size, model.device, kernels=model.backend.name)
            sampler.append(made)
            for row in range(num):
                made.enter(row, params, 0, np.zeros(2, np.int64), 1)

        def sample() -> None:
            shape = self.num_tokens, model.vocab_size
            logits = torch.zeros(shape, dtype=model.loaded.dtype, device=model.device)
            judged = token_logprobs(logits, torch.zeros_like(self._tokens), MAX_LOGPROBS)
            for _ in range(2):
                sampler[0].sample(logits[:num], np.arange(num))
            del judged

        growing = self._seam.peak_bytes(enter)
        held = sampler[0].held_bytes
        return max(growing, held + self._seam.peak_bytes(sample)), held

    def graph_bytes(self) -> int:
        """What graphs of decodes take: a place for their logits, memory that all of them share, as large as the largest
        step needs it, and what the driver keeps of each. 0 where the model can't be captured."""
        num, seam = self._num_rows, self._seam
        rows, ones = np.arange(num, dtype=np.int32), np.ones(num, np.int32)
        # Once as it is: everything is compiled and has its workspace.
        logits = self._step(Batch(rows, 0 * rows, ones, num, num, 0), self._logit_rows)
        before = seam.free_bytes()
        pool, graphs, taken = seam.graphs(), list[Graph](), list[int]()
        try:
            for _ in range(2):
                graphs.append(pool.capture(partial(self._forward, num, logits))[0])
                taken.append(before - seam.free_bytes())
        except RuntimeError:
            return 0
        # Those of fewer rows have as many launches; each has others that take the likeliest tokens, and draw them.
        each = max(0, taken[1] - taken[0])
        return taken[0] + each * 3 * len(sizes_up_to(num)) + logits.nbytes + seam.slack_bytes

    def _forward(self, num: int, place: torch.Tensor) -> None:
        on = self._builder.device
        place.copy_(self._model.forward(on.ids[:num], on.positions[:num], self._logit_rows))

    def _step(self, batch: Batch, logit_rows: torch.Tensor) -> torch.Tensor:
        step = self._builder.build(batch, self._lengths)
        self._model.prepare(step.attention)
        logits = self._model.forward(step.ids, step.positions, logit_rows)
        self._seam.wait()
        return logits
