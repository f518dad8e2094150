"""Repetition, presence and frequency penalties, for the batch rows that ask for any.

Owns which tokens a sequence has seen and how often it wrote each, as dense arrays over the vocabulary in slots of
their own. The sampler calls `apply` before the filters and `observe` after the draw; neither waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch

from cluster.sampling import SamplingParams, required
from worker.row_slots import Ints, RowSlots, send


class Penalties:
    """State and arithmetic of the three penalties."""

    def __init__(self, max_batch: int, vocab_size: int, device: torch.device) -> None:
        self._slots = RowSlots(max_batch, device)
        # Repetition looks at prompt and output, as transformers does; presence and frequency at the output alone.
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(0, vocab_size, device=device)
        self._factors = np.zeros((3, max_batch), np.float32)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        neutral = params.repetition_penalty == 1.0 and not params.presence_penalty and not params.frequency_penalty
        return not neutral

    def enter(self, row: int, params: SamplingParams, tokens: Ints, num_prompt: int) -> None:
        """`tokens` are all that are known of the sequence, the first `num_prompt` of them its prompt."""
        slot = self._slots.take(row)
        self._seen = self._slots.grown(self._seen)
        self._counts = self._slots.grown(self._counts)
        known = torch.from_numpy(np.asarray(tokens, np.int64)).to(self._slots.device)
        output = known[num_prompt:]
        self._seen[slot].zero_().index_fill_(0, known, True)
        self._counts[slot].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.float32))
        factors = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self._factors[:, row] = [required(factor) for factor in factors]

    def leave(self, row: int) -> None:
        self._slots.give_back(row)

    def apply(self, values: torch.Tensor, rows: Ints) -> torch.Tensor:
        """`values` fp32 [rows, vocabulary] after the penalties, in the order repetition, presence, frequency."""
        slots = self._slots.on_device(rows)
        factors = send(self._factors[:, rows], values.device)[:, :, None]
        repetition, presence, frequency = factors[0], factors[1], factors[2]
        penalised = torch.where(values < 0, values * repetition, values / repetition)
        values = torch.where(self._seen[slots], penalised, values)
        counts = self._counts[slots]
        return values - (counts > 0) * presence - counts * frequency

    def observe(self, rows: Ints, ids: torch.Tensor) -> None:
        """Counts the tokens that were drawn."""
        slots = self._slots.on_device(rows)
        one = torch.ones((), device=ids.device)
        self._counts.index_put_((slots, ids), one, accumulate=True)
        self._seen.index_put_((slots, ids), one.bool())
