"""Log-probabilities of prompt tokens, for the few requests that ask for them.

While such a prompt is computed, the step's logits are asked for at all its tokens and not only at the last; the logits
of one position judge the token behind it. The worker calls `rows` before a launch and `note` with what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cluster.batcher import Batch
from kernels.sampling import send
from worker.sampling.logprobs import TokenLogprobs, token_logprobs
from worker.state import BatchState, Resident


@dataclass(frozen=True, slots=True)
class Judged:
    """Prompt tokens of one step: whose they are, how many of each, and what the logits say of them."""

    residents: list[Resident]
    counts: list[int]
    num_top: list[int]
    logprobs: TokenLogprobs

    def note(self) -> None:
        """Hands the logprobs to those whose prompt it is, once the step's tokens are here."""
        messages = iter(self.logprobs.messages(np.repeat(self.num_top, self.counts).tolist()))
        for resident, count in zip(self.residents, self.counts, strict=True):
            taken = [next(messages) for _ in range(count)]
            if resident.prompt_logprobs is not None:
                resident.prompt_logprobs.extend(taken)


class PromptLogprobs:
    """The rows of one worker whose prompts are to be judged."""

    def __init__(self, state: BatchState) -> None:
        self._state = state
        self._rows: set[int] = set()

    def enter(self, row: int) -> None:
        """A sequence that asks for them moves in at position 0: nothing judges the first token."""
        self._rows.add(row)
        self._state.at(row).prompt_logprobs = [None]

    def leave(self, row: int) -> None:
        self._rows.discard(row)

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
                if start + count >= self._state.num_prompt[row] - 1:
                    self._rows.discard(row)
            at += count
        return found

    def judge(self, logits: torch.Tensor, wanted: list[tuple[int, int, int, int]]) -> Judged:
        """`logits` [tokens, vocabulary] are those of the wanted tokens, in order."""
        residents = [self._state.at(row) for row, _, _, _ in wanted]
        tokens = [self._state.tokens[row, first : first + count] for row, _, first, count in wanted]
        ids = send(np.concatenate(tokens).astype(np.int64), logits.device)
        num_top = [resident.sampling.prompt_logprobs or 0 for resident in residents]
        counts = [count for _, _, _, count in wanted]
        return Judged(residents, counts, num_top, token_logprobs(logits, ids, max(num_top)).leaving())


def token_rows(wanted: list[tuple[int, int, int, int]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which tokens of the step the wanted logits belong to."""
    parts = [np.arange(at, at + count) for _, at, _, count in wanted]
    return np.concatenate([np.zeros(0, np.int64), *parts])
