"""What makes single tokens likelier, impossible or certain: bias, allowed and banned ids, banned runs, forced tokens.

Each class owns one of these for the batch rows that ask for it. The sampler calls `apply` before the filters, which
changes the rows `which` of its logits for the batch rows `rows`, and `observe` after the draw. What can be known from
positions is decided on the host; what depends on drawn tokens stays on the device, and nothing waits for it.
"""

from __future__ import annotations

import numpy as np
import torch

from cluster.limits import MAX_BAD_WORD_TOKENS
from cluster.sampling import SamplingParams
from kernels.sampling import send
from worker.sampling.row_slots import Ints, RowSlots, put, some

_ANY = -1  # in the head of a banned run: whatever stands there
_NOTHING = -2  # in the tokens of a sequence: before its beginning


class Biases:
    """Logit bias, allowed ids and single banned ids: one number per token of the vocabulary, minus infinity bans."""

    def __init__(self, max_batch: int, vocab_size: int, device: torch.device) -> None:
        self._slots = RowSlots(max_batch, device)
        self._biases = torch.zeros(0, vocab_size, device=device)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        banned = any(len(run) == 1 for run in params.bad_words_token_ids)
        return bool(params.logit_bias) or params.allowed_token_ids is not None or banned

    def enter(self, row: int, params: SamplingParams) -> None:
        slot = self._slots.take(row)
        self._biases = self._slots.grown(self._biases)
        bias = np.zeros(self._biases.shape[1], np.float32)
        bias[list(params.logit_bias)] = list(params.logit_bias.values())
        if params.allowed_token_ids is not None:
            denied = np.ones(bias.size, np.bool_)
            denied[list(params.allowed_token_ids)] = False
            bias[denied] = -np.inf
        bias[[run[0] for run in params.bad_words_token_ids if len(run) == 1]] = -np.inf
        self._biases[slot] = send(bias, self._slots.device)

    def leave(self, row: int) -> None:
        self._slots.give_back(row)

    def apply(self, values: torch.Tensor, which: Ints, rows: Ints) -> None:
        put(values, which, some(values, which) + self._biases[self._slots.on_device(rows)])


class BannedRuns:
    """Runs of two tokens and more: where all but the last of a run stand at a sequence's end, its last is banned."""

    def __init__(self, max_batch: int, device: torch.device) -> None:
        self._slots = RowSlots(max_batch, device)
        length = MAX_BAD_WORD_TOKENS - 1
        # Runs of each slot, written to the right edge of their heads; and the last tokens of each sequence.
        self._heads = torch.zeros(0, 1, length, dtype=torch.int64, device=device)
        self._lasts = torch.zeros(0, 1, dtype=torch.int64, device=device)
        self._recent = torch.zeros(0, length, dtype=torch.int64, device=device)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        return any(len(run) > 1 for run in params.bad_words_token_ids)

    def enter(self, row: int, params: SamplingParams, tokens: Ints) -> None:
        runs = [run for run in params.bad_words_token_ids if len(run) > 1]
        slot = self._slots.take(row)
        width = max(self._lasts.shape[1], len(runs))
        missing = width - self._lasts.shape[1]
        self._heads = self._slots.grown(torch.nn.functional.pad(self._heads, (0, 0, 0, missing), value=_NOTHING - 1))
        self._lasts = self._slots.grown(torch.nn.functional.pad(self._lasts, (0, missing)))
        self._recent = self._slots.grown(self._recent)
        length = self._recent.shape[1]
        # What no token equals fills the places without a run.
        heads = np.full((width, length), _NOTHING - 1, np.int64)
        lasts = np.zeros(width, np.int64)
        for at, run in enumerate(runs):
            heads[at] = _ANY
            heads[at, length - len(run) + 1 :] = run[:-1]
            lasts[at] = run[-1]
        recent = np.full(length, _NOTHING, np.int64)
        tail = tokens[-length:]
        recent[length - len(tail) :] = tail
        device = self._slots.device
        self._heads[slot], self._lasts[slot] = send(heads, device), send(lasts, device)
        self._recent[slot] = send(recent, device)

    def leave(self, row: int) -> None:
        self._slots.give_back(row)

    def apply(self, values: torch.Tensor, which: Ints, rows: Ints) -> None:
        slots = self._slots.on_device(rows)
        heads = self._heads[slots]
        matches = ((heads == _ANY) | (heads == self._recent[slots][:, None, :])).all(-1)
        part = some(values, which)
        banned = part.scatter_add(1, self._lasts[slots], torch.where(matches, -torch.inf, 0.0))
        # Where a run would ban the last token that is left, the sequence must go on all the same.
        put(values, which, torch.where(banned.amax(-1, keepdim=True) == -torch.inf, part, banned))

    def inherit(self, rows: Ints, parents: Ints) -> None:
        """Rows take over the tokens of other rows; a row may be both."""
        self._recent[self._slots.on_device(rows)] = self._recent[self._slots.on_device(parents)]

    def observe(self, rows: Ints, ids: torch.Tensor) -> None:
        slots = self._slots.on_device(rows)
        self._recent[slots] = torch.cat([self._recent[slots][:, 1:], ids[:, None]], dim=1)


class EarlyStops:
    """Stop ids, which may not come before `min_tokens`. Positions are known, so the host says what is banned."""

    def __init__(self, max_batch: int) -> None:
        self._min_tokens = np.zeros(max_batch, np.int64)
        self._ids = np.zeros((max_batch, 1), np.int64)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        return bool(params.min_tokens) and bool(params.stop_ids)

    def enter(self, row: int, params: SamplingParams) -> None:
        ids = params.stop_ids
        missing = len(ids) - self._ids.shape[1]
        if missing > 0:
            self._ids = np.pad(self._ids, ((0, 0), (0, missing)), mode="edge")
        assert params.min_tokens is not None
        self._min_tokens[row] = params.min_tokens
        # An id that stands twice is banned twice.
        self._ids[row] = ids[0]
        self._ids[row, : len(ids)] = ids

    def due(self, rows: Ints, num_outputs: Ints) -> Ints:
        """Which of these rows are still before their `min_tokens`, as indices into `rows`."""
        return np.flatnonzero(num_outputs < self._min_tokens[rows])

    def apply(self, values: torch.Tensor, which: Ints, rows: Ints) -> None:
        values[send(which, values.device)[:, None], send(self._ids[rows], values.device)] = -torch.inf


class ForcedTokens:
    """Tokens that must come at given output positions; the draw at those positions is replaced."""

    def __init__(self, max_batch: int) -> None:
        self._places = np.full((max_batch, 1), -1, np.int64)
        self._ids = np.zeros((max_batch, 1), np.int64)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        return bool(params.forced_tokens)

    def enter(self, row: int, params: SamplingParams) -> None:
        forced = params.forced_tokens
        missing = len(forced) - self._places.shape[1]
        if missing > 0:
            self._places = np.pad(self._places, ((0, 0), (0, missing)), constant_values=-1)
            self._ids = np.pad(self._ids, ((0, 0), (0, missing)))
        self._places[row] = -1
        self._places[row, : len(forced)] = list(forced)
        self._ids[row, : len(forced)] = list(forced.values())

    def leave(self, row: int) -> None:
        """Whoever gets the row next may not ask for any."""
        self._places[row] = -1

    def due(self, rows: Ints, num_outputs: Ints) -> tuple[Ints, Ints]:
        """Which of these rows have a forced token now, as indices into `rows`, and the tokens."""
        which, places = np.nonzero(self._places[rows] == num_outputs[:, None])
        return which, self._ids[rows[which], places]
