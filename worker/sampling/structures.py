"""Answers of a given structure: for each row that asks for one, which tokens may come next.

The state of a row is a function of its tokens so far, so that it is made anew wherever the row moves in. What the host
hears of a step (`heard`) moves it on and begins the next masks on a thread of its own, beside the next step's model;
`apply` takes them. A step must not be issued before the tokens of the one before it are known: see `Sampler.is_guided`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.sampling import SamplingParams
from kernels.sampling import send
from worker.sampling.guide import matcher_of
from worker.sampling.row_slots import Ints, put, some

_WORD_BITS = 32


class Structures:
    """The matchers of all batch rows of one worker. `tokenizer` makes llguidance's tokenizer once it is wanted."""

    def __init__(self, max_batch: int, vocab_size: int, device: torch.device) -> None:
        self.tokenizer: Callable[[], Any] | None = None
        self._guide: Any = None
        self._vocab_size = vocab_size
        self._num_words = -(-vocab_size // _WORD_BITS)
        self._device = device
        self._matchers: dict[int, Future[Any]] = {}
        # One mask a row, as bits; good once the row's future is done.
        self._masks = np.zeros((max_batch, self._num_words), np.int32)
        self._threads: ThreadPoolExecutor | None = None
        self._shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=device)

    @property
    def num_rows(self) -> int:
        return len(self._matchers)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        return params.structured_outputs is not None

    def enter(self, row: int, params: SamplingParams, outputs: Ints) -> None:
        """`outputs`: what of the answer is known already. The matcher is made beside the prompt's steps."""
        assert params.structured_outputs is not None
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="quire-structures")
        structure, known = params.structured_outputs, [int(token) for token in outputs]

        def make() -> Any:
            if self._guide is None:
                assert self.tokenizer is not None
                self._guide = self.tokenizer()
            matcher = matcher_of(structure, self._guide)
            matcher.consume_tokens(known)
            self._fill(row, matcher)
            return matcher

        self._matchers[row] = self._threads.submit(make)

    def leave(self, row: int) -> None:
        self._matchers.pop(row, None)

    def _fill(self, row: int, matcher: Any) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        if matcher.is_error():
            raise ValueError(matcher.get_error())
        fill_next_token_bitmask(matcher, self._masks[row : row + 1], 0)

    def heard(self, rows: Ints, ids: NDArray[np.int64]) -> None:
        """These rows got these tokens; the next masks are made meanwhile."""
        for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
            before = self._matchers.get(row)
            if before is not None and self._threads is not None:
                self._matchers[row] = self._threads.submit(self._go_on, row, before, token)

    def _go_on(self, row: int, before: Future[Any], token: int) -> Any:
        # The one thread does its work in order: what was before is done.
        matcher = before.result()
        if not matcher.is_stopped():
            matcher.consume_token(token)
        self._fill(row, matcher)
        return matcher

    def apply(self, values: torch.Tensor, which: Ints, rows: Ints) -> None:
        """Bans what the structure does not allow. Where all else has banned what it allows, all else gives way. A row
        whose structure failed bans everything, so that it ends as one that could not be computed."""
        for row in rows.tolist():
            if self._matchers[row].exception() is not None:
                self._masks[row] = 0
        words = send(self._masks[rows], values.device)
        bits = (words[:, :, None] >> self._shifts) & 1
        allowed = bits.flatten(1)[:, : self._vocab_size] != 0
        part = some(values, which)
        masked = part.masked_fill(~allowed, -torch.inf)
        nothing = masked.amax(-1, keepdim=True) == -torch.inf
        put(values, which, torch.where(nothing & allowed, 0.0, masked))
