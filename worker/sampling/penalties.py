"""Repetition, presence and frequency penalties, for the batch rows that ask for any.

Owns which tokens a sequence has seen and how often it wrote each, as dense arrays over the vocabulary in slots of
their own. The sampler calls `apply` before the filters and `observe` after the draw; neither waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch

from cluster.sampling import SamplingParams, required
from kernels.sampling import send
from worker.sampling.row_slots import Ints, RowSlots, put, some


class Penalties:
    """State and arithmetic of the three penalties."""

    def __init__(self, max_batch: int, vocab_size: int, device: torch.device, fused: bool) -> None:
        """`fused`: by the CPU's kernel."""
        self._fused = fused
        self._slots = RowSlots(max_batch, device)
        # Repetition looks at prompt and output, as transformers does; presence and frequency at the output alone.
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._counts = torch.zeros(0, vocab_size, device=device)
        self._factors = np.zeros((3, max_batch), np.float32)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        neutral = params.repetition_penalty == 1.0 and not params.presence_penalty and not params.frequency_penalty
        return not neutral

    def warm_up(self) -> None:
        """Compiles the CPU's kernel, or loads it from the cache."""
        from kernels.cpu.penalties import penalise_rows

        none = np.zeros(0, np.int64)
        empty = np.zeros((0, 1), np.float32)
        penalise_rows(empty, none, none, empty.astype(np.bool_), empty, np.zeros((3, 0), np.float32))

    def enter(self, row: int, params: SamplingParams, tokens: Ints, num_prompt: int) -> None:
        """`tokens` are all that are known of the sequence, the first `num_prompt` of them its prompt."""
        slot = self._slots.take(row)
        self._seen = self._slots.grown(self._seen)
        self._counts = self._slots.grown(self._counts)
        known = send(np.asarray(tokens, np.int64), self._slots.device)
        output = known[num_prompt:]
        self._seen[slot].zero_().index_fill_(0, known, True)
        self._counts[slot].zero_().index_add_(0, output, torch.ones_like(output, dtype=torch.float32))
        factors = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        self._factors[:, row] = [required(factor) for factor in factors]

    def leave(self, row: int) -> None:
        self._slots.give_back(row)

    def apply(self, values: torch.Tensor, which: Ints, rows: Ints) -> None:
        """Changes `values[which]`, fp32 [, vocabulary], of the batch rows `rows`: repetition, presence, frequency."""
        if self._fused:
            from kernels.cpu.penalties import penalise_rows

            state = (self._slots.of(rows), self._seen.numpy(), self._counts.numpy())
            penalise_rows(values.numpy(), which, *state, self._factors[:, rows])
            return
        part = some(values, which)
        slots = self._slots.on_device(rows)
        factors = send(self._factors[:, rows], values.device)[:, :, None]
        repetition, presence, frequency = factors[0], factors[1], factors[2]
        penalised = torch.where(part < 0, part * repetition, part / repetition)
        part = torch.where(self._seen[slots], penalised, part)
        written = self._counts[slots]
        put(values, which, part - (written > 0) * presence - written * frequency)

    def inherit(self, rows: Ints, parents: Ints) -> None:
        """Rows take over what other rows have seen; a row may be both."""
        slots, theirs = self._slots.on_device(rows), self._slots.on_device(parents)
        self._counts[slots] = self._counts[theirs]
        self._seen[slots] = self._seen[theirs]

    def observe(self, rows: Ints, ids: torch.Tensor) -> None:
        """Counts the tokens that were drawn."""
        slots = self._slots.on_device(rows)
        one = torch.ones((), device=ids.device)
        self._counts.index_put_((slots, ids), one, accumulate=True)
        self._seen.index_put_((slots, ids), one.bool())
