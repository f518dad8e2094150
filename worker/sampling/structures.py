"""Answers of a given structure: for each row that asks for one, which tokens may come next.

The state of a row is a function of its tokens so far, so that it is made anew wherever the row moves in. What the host
hears of a step (`heard`) moves it on and begins the next masks on a thread of its own, beside the next step's model;
`apply` takes them. A step must not be issued before the tokens of the one before it are known: see `Sampler.is_guided`.
No step waits for a structure that is still compiled, or whose masks take long: its row waits instead (`late`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.sampling import SamplingParams
from cluster.structure import StructuredOutputsParams
from kernels.sampling import send
from worker.sampling.guide import matcher_of
from worker.sampling.row_slots import Ints, put, some

MAX_REMEMBERED = 32
"""Structures. A large one takes megabytes."""
_WORD_BITS = 32

LONG_S = 0.002
"""A row whose last mask took longer gets its next one outside of steps, which would wait for it, and on a thread of its
own, so that nobody else's masks wait either."""
MOST_TAKING_S = 0.05
MOST_MASKING_S = 0.5
"""Of a processor, for one token: to take it, while no other thread of this process runs, and to make the mask behind
it. In an ambiguous grammar both grow with the cube of the answer's length. A row that needs more has failed."""


@dataclass(slots=True)
class _Guide:
    """What tells the next tokens of one row: `mask`, as bits, which took `mask_s` seconds to make."""

    matcher: Any
    mask: NDArray[np.int32]
    mask_s: float = 0.0

    def fill(self) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        if self.matcher.is_error():
            raise ValueError(self.matcher.get_error())
        began, worked = time.perf_counter(), time.thread_time()
        fill_next_token_bitmask(self.matcher, self.mask, 0)
        self.mask_s = time.perf_counter() - began
        _check_work("the next mask", time.thread_time() - worked, MOST_MASKING_S)

    def take(self, token: int) -> None:
        worked = time.thread_time()
        self.matcher.consume_token(token)
        _check_work("a token", time.thread_time() - worked, MOST_TAKING_S)


@dataclass(slots=True)
class _Row:
    """`coming` has the next mask once it is done; where that `is_long`, the row is in no step before."""

    coming: Future[_Guide]
    is_compiled: bool = False
    is_long: bool = True


class Structures:
    """The matchers of all batch rows of one worker. `tokenizer` makes llguidance's tokenizer once it is wanted."""

    def __init__(self, vocab_size: int, device: torch.device, fused: bool = False) -> None:
        """`fused`: masks are applied by the CPU's kernel."""
        self._fused = fused
        self.tokenizer: Callable[[], Any] | None = None
        # Called on a thread of ours when a row that was late is so no more.
        self.wake: Callable[[], None] = lambda: None
        self._words: Any = None
        self._vocab_size = vocab_size
        self._num_words = -(-vocab_size // _WORD_BITS)
        self._rows: dict[int, _Row] = {}
        # What compiles for long holds up no other row's masks.
        self._compiler: ThreadPoolExecutor | None = None
        # The last structures that were asked for, compiled, by kind and text. The compiler's alone.
        self._beginnings: dict[tuple[str, str], Any] = {}
        self._masker: ThreadPoolExecutor | None = None
        self._long_masker: ThreadPoolExecutor | None = None
        self._shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=device)

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @staticmethod
    def asked(params: SamplingParams) -> bool:
        return params.structured_outputs is not None

    @staticmethod
    def warm_up() -> None:
        """Compiles the CPU's kernel, or loads it from the cache."""
        from kernels.cpu.masks import mask_rows

        mask_rows(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), np.zeros((0, 1), np.uint32))

    def enter(self, row: int, params: SamplingParams, outputs: Ints) -> None:
        """`outputs`: what of the answer is known already. The matcher is made beside the prompt's steps."""
        assert params.structured_outputs is not None
        if self._compiler is None:
            self._compiler = ThreadPoolExecutor(1, thread_name_prefix="quire-structures")
            self._masker = ThreadPoolExecutor(1, thread_name_prefix="quire-masks")
            self._long_masker = ThreadPoolExecutor(1, thread_name_prefix="quire-long-masks")
        structure, known = params.structured_outputs, [int(token) for token in outputs]

        def make() -> _Guide:
            matcher = self._beginning(structure)
            guide = _Guide(matcher, np.zeros((1, self._num_words), np.int32))
            # One by one: between two of them other threads run.
            for token in known:
                guide.take(token)
            guide.fill()
            return guide

        coming = self._compiler.submit(make)
        self._rows[row] = _Row(coming)
        coming.add_done_callback(self._woken)

    def _beginning(self, structure: StructuredOutputsParams) -> Any:
        """A matcher of its own. Clients send the same structure again and again: it is compiled once."""
        if self._words is None:
            assert self.tokenizer is not None
            self._words = self.tokenizer()
        asked = structure.kind, structure.text
        first = self._beginnings.pop(asked, None) or matcher_of(structure, self._words)
        self._beginnings[asked] = first
        if len(self._beginnings) > MAX_REMEMBERED:
            del self._beginnings[next(iter(self._beginnings))]
        return first.deep_copy()

    def leave(self, row: int) -> None:
        left = self._rows.pop(row, None)
        if left is not None:
            left.coming.cancel()

    def late(self) -> list[int]:
        """Rows that are to be in no step that draws for them."""
        return [row for row, state in self._rows.items() if state.is_long and not state.coming.done()]

    @property
    def has_long(self) -> bool:
        """Whether some row's tokens must be heard before it is asked who is late."""
        return any(state.is_long and state.is_compiled for state in self._rows.values())

    def wait(self, timeout_s: float) -> None:
        """Until a row that was late is so no more. For those who have nothing else to do."""
        coming = [self._rows[row].coming for row in self.late()]
        if coming:
            wait(coming, timeout_s, FIRST_COMPLETED)

    def heard(self, rows: Ints, ids: NDArray[np.int64]) -> None:
        """These rows got these tokens; the next masks are made meanwhile."""
        work: list[tuple[Future[_Guide], Future[_Guide], int]] = []
        for row, token in zip(rows.tolist(), ids.tolist(), strict=True):
            state = self._rows.get(row)
            if state is None:
                continue
            before, coming = state.coming, Future[_Guide]()
            is_long = before.exception() is None and before.result().mask_s > LONG_S
            self._rows[row] = _Row(coming, True, is_long)
            if is_long and self._long_masker is not None:
                coming.add_done_callback(self._woken)
                self._long_masker.submit(_go_on_all, [(coming, before, token)])
            else:
                work.append((coming, before, token))
        if work and self._masker is not None:
            # All as one job: each that is handed over takes the interpreter from the step.
            self._masker.submit(_go_on_all, work)

    def _woken(self, done: Future[_Guide]) -> None:
        self.wake()

    def apply(self, values: torch.Tensor, which: Ints, rows: Ints) -> None:
        """Bans what the structure does not allow. Where all else has banned what it allows, all else gives way. A row
        whose structure failed bans everything, so that it ends as one that could not be computed."""
        masks = np.zeros((len(rows), self._num_words), np.int32)
        for at, row in enumerate(rows.tolist()):
            coming = self._rows[row].coming
            if coming.exception() is None:
                masks[at] = coming.result().mask[0]
        if self._fused:
            from kernels.cpu.masks import mask_rows

            mask_rows(values.numpy(), which, masks.view(np.uint32))
            return
        words = send(masks, values.device)
        bits = (words[:, :, None] >> self._shifts) & 1
        allowed = bits.flatten(1)[:, : self._vocab_size] != 0
        part = some(values, which)
        masked = part.masked_fill(~allowed, -torch.inf)
        nothing = masked.amax(-1, keepdim=True) == -torch.inf
        put(values, which, torch.where(nothing & allowed, 0.0, masked))


def _go_on_all(work: list[tuple[Future[_Guide], Future[_Guide], int]]) -> None:
    for coming, before, token in work:
        # Its row may have left.
        if coming.set_running_or_notify_cancel():
            try:
                coming.set_result(_go_on(before, token))
            except Exception as error:
                coming.set_exception(error)


def _go_on(before: Future[_Guide], token: int) -> _Guide:
    # The step that drew the token has had the mask before it: it is done.
    guide = before.result()
    if not guide.matcher.is_stopped():
        guide.take(token)
    guide.fill()
    return guide


def _check_work(what: str, took_s: float, most_s: float) -> None:
    if took_s > most_s:
        raise ValueError(
            f"{what} of the structure took {took_s:.2f} s of a processor, and {most_s:g} is the "
            "most; give a grammar that reads an answer in fewer ways"
        )
