"""Log-probabilities of prompt tokens, for the few requests that ask for them.

While such a prompt is computed, the step's logits are asked for at all its tokens and not only at the last; the logits
of one position judge the token behind it. The launcher asks which are `wanted` before a launch and has them judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from cluster.desk.batcher import Batch
from cluster.messages import Logprobs
from kernels.sampling import send
from worker.sampling.logprobs import TokenLogprobs, token_logprobs
from worker.state import BatchState


@dataclass(frozen=True, slots=True)
class Judged:
    """Prompt tokens of one step: whose they are, how many of each, and what the logits say of them."""

    rows: list[int]
    counts: list[int]
    num_top: list[int]
    logprobs: TokenLogprobs

    def messages(self) -> list[tuple[int, list[Logprobs]]]:
        """The logprobs by the row whose prompt it is, once the step's tokens are here."""
        messages = iter(self.logprobs.messages(np.repeat(self.num_top, self.counts).tolist()))
        return [(row, list(islice(messages, count))) for row, count in zip(self.rows, self.counts, strict=True)]


class PromptLogprobs:
    """The rows of one worker whose prompts are to be judged."""

    def __init__(self, state: BatchState) -> None:
        self._state = state
        # Rows whose prompt is not judged to its end yet, and how many top tokens they want with each of its tokens.
        self._rows: dict[int, int] = {}

    def enter(self, row: int, num_top: int) -> None:
        """A sequence that asks for them moves in at position 0."""
        self._rows[row] = num_top

    def leave(self, row: int) -> None:
        self._rows.pop(row, None)

    def wanted(self, batch: Batch) -> list[tuple[int, int, int, int]]:
        """(row, first token in the step, first token judged, how many), one for each prompt that is in the batch."""
        if not self._rows:
            return []
        found, at = [], 0
        for row, start, count in zip(batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True):
            if row in self._rows:
                judged = min(start + count, int(self._state.num_prompt[row]) - 1) - start
                if judged > 0:
                    found.append((row, at, start + 1, judged))
                elif start + count >= self._state.num_prompt[row] - 1:
                    # A prompt of one token has nothing to judge.
                    self._rows.pop(row)
            at += count
        return found

    def judge(self, logits: torch.Tensor, wanted: list[tuple[int, int, int, int]]) -> Judged:
        """`logits` [tokens, vocabulary] are those of the wanted tokens, in order."""
        tokens = [self._state.tokens[row, first : first + count] for row, _, first, count in wanted]
        ids = send(np.concatenate(tokens).astype(np.int64), logits.device)
        rows = [row for row, _, _, _ in wanted]
        num_top = [self._rows[row] for row in rows]
        for row, _, first, count in wanted:
            if first + count >= self._state.num_prompt[row]:
                self._rows.pop(row)
        counts = [count for _, _, _, count in wanted]
        return Judged(rows, counts, num_top, token_logprobs(logits, ids, max(num_top)).leaving())


def token_rows(wanted: list[tuple[int, int, int, int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which tokens of the step the wanted logits belong to."""
    parts = [np.arange(at, at + count) for _, at, _, count in wanted]
    return np.concatenate([np.zeros(0, np.int64), *parts])
