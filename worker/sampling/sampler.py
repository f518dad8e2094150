"""Chooses the next tokens of a batch: edits of the logits, filters, draw, logprobs.

The worker enters a sequence once, with all that is known of it, and calls `sample` in each step with the rows that get
a token. Settings lie in arrays by batch row, so that no Python runs per sequence in a step, and what nobody in the
batch asks for costs nothing. The sampler never waits for the device; `Sampled` does, when its numbers are asked for.

Order of operations, that of transformers' `generate`: bias, allowed and banned ids; repetition, presence, frequency;
stop ids before `min_tokens`, banned runs; then temperature, top-k, top-p, min-p and the draw; forced tokens last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.messages import Logprobs
from cluster.sampling import SamplingParams, required, sequence_seed
from kernels import sampling
from kernels.device.seam import device_of
from kernels.dispatch import BackendName
from kernels.noise import noise_keys
from kernels.sampling import DrawSettings, send
from worker.sampling.bans import BannedRuns, Biases, EarlyStops, ForcedTokens
from worker.sampling.logprobs import TokenLogprobs, token_logprobs, topk_logprobs
from worker.sampling.penalties import Penalties
from worker.sampling.row_slots import Ints, some
from worker.sampling.structures import Structures

if TYPE_CHECKING:
    from kernels.cpu.sampling import CpuDraw

# What a row asks for beyond temperature and filters.
_BIAS: Final = 1
_PENALTIES: Final = 2
_RUNS: Final = 4
_EARLY: Final = 8
_FORCED: Final = 16
_LOGPROBS: Final = 32
_DRAWN: Final = 64  # it is not greedy
_STRUCTURE: Final = 128
_EDITS: Final = _BIAS | _PENALTIES | _RUNS | _EARLY | _STRUCTURE
# All but a draw from the logits as they come.
_SPECIAL: Final = _EDITS | _FORCED | _LOGPROBS
# Logits that are edited at once.
_EDITED: Final = 1 << 23

Draw = Callable[[torch.Tensor, DrawSettings], tuple[torch.Tensor, torch.Tensor]]


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [rows] of the best tokens, and bool [rows]: whether the logits were no numbers."""
    top, ids = logits.max(-1)
    broken = ~top.isfinite()
    return ids.masked_fill(broken, 0), broken


class Sampled:
    """The tokens of one step, which may still be under way on the device."""

    def __init__(
        self,
        ids: torch.Tensor,
        broken: torch.Tensor,
        logprobs: TokenLogprobs | None = None,
        logprob_rows: Ints | None = None,
        num_top: Ints | None = None,
        heard: Callable[[NDArray[np.int64]], None] | None = None,
        both: torch.Tensor | None = None,
    ) -> None:
        """`heard` is called once, when the host first asks for the tokens. `both`: int64 [2, rows or more], where ids
        and broken lie in one piece."""
        self.device_ids = ids  # int64 [rows]: what the next step can take without the host
        self._logprobs = None if logprobs is None else logprobs.leaving()
        # On their way at once: whoever asks later must not wait for the steps that were issued meanwhile.
        seam = device_of(ids.device)
        if both is None:
            self._ids, self._broken = seam.fetch(ids), seam.fetch(broken)
        else:
            self._ids, self._broken = seam.fetch(both)[:, : len(ids)]
        self._done = seam.event()
        self._done.record()
        self._logprob_rows = logprob_rows
        self._num_top = num_top
        self._heard = heard

    def ids(self) -> NDArray[np.int64]:
        """The tokens, in the order of the rows. Waits for the device."""
        self._wait()
        ids: NDArray[np.int64] = self._ids.numpy()
        heard, self._heard = self._heard, None
        if heard is not None:
            heard(ids)
        return ids

    def _wait(self) -> None:
        self._done.wait()

    def broken(self) -> NDArray[np.bool_]:
        """True where the logits were NaN or infinite: the token means nothing. Waits for the device."""
        self._wait()
        broken: NDArray[np.bool_] = self._broken.numpy() != 0
        return broken

    def logprobs(self) -> list[tuple[int, Logprobs]]:
        """By row, of those that asked for them. Waits for the device."""
        if self._logprobs is None:
            return []
        self._wait()
        assert self._logprob_rows is not None and self._num_top is not None
        messages = self._logprobs.messages(self._num_top.tolist())
        return list(zip(self._logprob_rows.tolist(), messages, strict=True))


class Sampler:
    """The sampling state of all batch rows of one worker."""

    def __init__(
        self,
        max_batch: int,
        vocab_size: int,
        device: torch.device,
        draw: Draw | None = None,
        kernels: BackendName | None = None,
    ) -> None:
        """`draw` replaces the way to draw of the device and its kernels, which gives the same tokens."""
        self._vocab_size = vocab_size
        self._device = device
        # The compilers behind them are loaded only where they are used.
        self._cpu: CpuDraw | None = None
        if draw is None and not device_of(device).is_apart:
            from kernels.cpu.sampling import CpuDraw

            self._cpu = CpuDraw(max_batch, vocab_size)
            draw = self._cpu.draw
        elif draw is None and kernels == "triton":
            from kernels.gpu.sampling import draw as triton_draw

            draw = triton_draw
        self._draw: Draw = draw or sampling.draw
        self._resident = np.zeros(max_batch, np.bool_)
        # Tokens known of each row, those in flight included; the next one stands at this position.
        self._length = np.zeros(max_batch, np.int64)
        self._num_prompt = np.zeros(max_batch, np.int64)
        self._temperature = np.zeros(max_batch, np.float32)
        self._top_k = np.zeros(max_batch, np.int32)
        self._top_p = np.ones(max_batch, np.float32)
        self._min_p = np.zeros(max_batch, np.float32)
        self._seed = np.zeros(max_batch, np.uint64)
        self._num_top = np.zeros(max_batch, np.int64)
        self._asks = np.zeros(max_batch, np.uint8)
        self._biases = Biases(max_batch, vocab_size, device)
        self._penalties = Penalties(max_batch, vocab_size, device, fused=self._cpu is not None)
        self._runs = BannedRuns(max_batch, device)
        self._early = EarlyStops(max_batch)
        self._forced = ForcedTokens(max_batch)
        self.structures = Structures(vocab_size, device, fused=self._cpu is not None)

    def guide_by(self, tokenizer: Callable[[], Any]) -> None:
        """`tokenizer` makes llguidance's tokenizer of the model when the first structure is asked for."""
        self.structures.tokenizer = tokenizer

    @property
    def is_guided(self) -> bool:
        """Whether any row must know a step's tokens before the next one can be issued."""
        return self.structures.num_rows > 0

    def _guide(self, rows: Ints, which: Ints) -> Callable[[NDArray[np.int64]], None]:
        """What goes on with the structures of some rows once the host knows their tokens."""
        return lambda ids: self.structures.heard(rows[which], ids[which])

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compiles what logits of this type need, so that no request waits for it."""
        if self._cpu:
            self._cpu.warm_up(dtype)
            self._penalties.warm_up()
            self.structures.warm_up()
            return
        keys = noise_keys(np.zeros(1, np.uint64), np.zeros(1, np.int64))
        one = np.ones(1, np.float32)
        settings = DrawSettings(one, np.ones(1, np.int32), 0.5 * one, 0 * one, keys)
        # Edited logits are of another type.
        for kind in {dtype, torch.float32}:
            self._draw(torch.zeros((1, self._vocab_size), dtype=kind, device=self._device), settings)

    def enter(self, row: int, params: SamplingParams, index: int, tokens: Ints, num_prompt: int) -> None:
        """Sequence `index` of a request moves in, its settings resolved; `tokens`: prompt, then outputs so far."""
        assert not self._resident[row], f"batch row {row} is taken"
        assert params.is_greedy or params.seed is not None, "a draw needs a seed, and the door gave none"
        self._resident[row] = True
        self._length[row] = len(tokens)
        self._num_prompt[row] = num_prompt
        self._temperature[row] = 0.0 if params.is_greedy else required(params.temperature)
        self._top_k[row] = max(0, min(required(params.top_k), self._vocab_size))
        self._top_p[row] = required(params.top_p)
        self._min_p[row] = required(params.min_p)
        self._seed[row] = sequence_seed(params.seed or 0, index)
        self._num_top[row] = params.logprobs or 0
        asks = _LOGPROBS if params.logprobs is not None else 0
        if not params.is_greedy:
            asks |= _DRAWN
        if self._biases.asked(params):
            self._biases.enter(row, params)
            asks |= _BIAS
        if self._penalties.asked(params):
            self._penalties.enter(row, params, tokens, num_prompt)
            asks |= _PENALTIES
        if self._runs.asked(params):
            self._runs.enter(row, params, tokens)
            asks |= _RUNS
        if self._early.asked(params):
            self._early.enter(row, params)
            asks |= _EARLY
        if self._forced.asked(params):
            self._forced.enter(row, params)
            asks |= _FORCED
        if self.structures.asked(params):
            self.structures.enter(row, params, tokens[num_prompt:])
            asks |= _STRUCTURE
        self._asks[row] = asks

    def leave(self, row: int) -> None:
        assert self._resident[row], f"batch row {row} is free already"
        self._resident[row] = False
        self._asks[row] = 0
        self._biases.leave(row)
        self._penalties.leave(row)
        self._runs.leave(row)
        self._forced.leave(row)
        self.structures.leave(row)

    def is_plain(self, rows: Ints) -> bool:
        """Whether these rows ask for nothing but their likeliest token, or a draw from the logits as they come."""
        return not (self._asks[rows] & _SPECIAL).any()

    def is_greedy(self, rows: Ints) -> bool:
        """Whether these rows ask for nothing but their likeliest token."""
        return not self._asks[rows].any()

    @property
    def held_bytes(self) -> int:
        """What it holds on the device between two steps."""
        held = [*vars(self._biases).values(), *vars(self._penalties).values(), *vars(self._runs).values()]
        return sum(part.nbytes for part in held if isinstance(part, torch.Tensor))

    def draws(self, rows: Ints, num_steps: int) -> DrawSettings | None:
        """How plain rows are drawn elsewhere, with the keys of so many steps; None where all want the likeliest."""
        if not self._asks[rows].any():
            return None
        lengths = self._length[rows] + np.arange(num_steps)[:, None]
        return self._settings(rows, noise_keys(self._seed[rows], lengths))

    def next_draw(self, rows: Ints) -> DrawSettings:
        """How each of these rows gets its next token."""
        return self._settings(rows, noise_keys(self._seed[rows], self._length[rows]))

    def took(self, rows: Ints, num_steps: int) -> None:
        """They got so many tokens, chosen elsewhere."""
        self._length[rows] += num_steps

    def sample(self, logits: torch.Tensor, rows: Ints, *, in_place: bool = False) -> Sampled:
        """The next token of each row from its `logits` [rows, vocabulary]. `in_place`: they may be changed."""
        asks = self._asks[rows]
        asked = int(np.bitwise_or.reduce(asks)) if asks.size else 0
        if not asked:
            self._length[rows] += 1
            return Sampled(*self._best(logits))
        settings = self.next_draw(rows)
        edited = logits
        if asked & _EDITS:
            edited = self.edited(logits, rows, in_place=in_place and not asked & _LOGPROBS)
        if asked & _DRAWN or not self._cpu:
            ids, broken = self._draw(edited, settings)
        else:
            ids, broken = self._cpu.best(edited)
        if asked & _FORCED:
            which, tokens = self._forced.due(rows, self._length[rows] - self._num_prompt[rows])
            if which.size:
                ids[send(which, ids.device)] = send(tokens, ids.device)
        self._length[rows] += 1
        for ask, group in ((_PENALTIES, self._penalties), (_RUNS, self._runs)):
            if asked & ask:
                which = np.flatnonzero(asks & ask)
                group.observe(rows[which], some(ids, which))
        heard = self._guide(rows, np.flatnonzero(asks & _STRUCTURE)) if asked & _STRUCTURE else None
        if not asked & _LOGPROBS:
            return Sampled(ids, broken, heard=heard)
        which = np.flatnonzero(asks & _LOGPROBS)
        num_top = self._num_top[rows[which]]
        logprobs = token_logprobs(some(logits, which), some(ids, which), int(num_top.max()))
        return Sampled(ids, broken, logprobs, rows[which], num_top, heard)

    def rank(self, logits: torch.Tensor, rows: Ints, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For beams: the `num` likeliest next tokens of each row, best first, as log-probabilities fp32 and ids int64.
        As in transformers it is log-probabilities that are edited here; afterwards they need not add up to one."""
        asks = self._asks[rows]
        asked = int(np.bitwise_or.reduce(asks))
        if not asked & (_EDITS | _FORCED):
            return topk_logprobs(logits, num)
        values = self.edited(logits.float().log_softmax(-1), rows)
        if asked & _FORCED:
            which, tokens = self._forced.due(rows, self._length[rows] - self._num_prompt[rows])
            at = send(which, values.device)
            values[at] = -torch.inf
            values[at, send(tokens, values.device)] = 0.0
        best, ids = values.topk(num, dim=-1)
        return best, ids

    def go_on(self, rows: Ints, parents: Ints, ids: Ints) -> None:
        """For beams, instead of `sample`: each row goes on from what its parent's row knew, with one more token."""
        self._length[rows] = self._length[parents] + 1
        asks = self._asks[rows]
        asked = int(np.bitwise_or.reduce(asks))
        for ask, group in ((_PENALTIES, self._penalties), (_RUNS, self._runs)):
            if asked & ask:
                which = np.flatnonzero(asks & ask)
                group.inherit(rows[which], parents[which])
                group.observe(rows[which], send(ids[which], self._device))

    def _best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where nobody asks for anything but the likeliest token."""
        if self._cpu:
            return self._cpu.best(logits)
        return likeliest(logits)

    def _settings(self, rows: Ints, keys: NDArray[np.uint64]) -> DrawSettings:
        return DrawSettings(
            temperature=self._temperature[rows],
            top_k=self._top_k[rows],
            top_p=self._top_p[rows],
            min_p=self._min_p[rows],
            keys=keys,
        )

    def edited(self, logits: torch.Tensor, rows: Ints, in_place: bool = False) -> torch.Tensor:
        """fp32 logits as the temperature finds them: after bias, penalties and bans, for the rows that ask for any.
        `in_place`: the logits themselves may be changed; on a CPU a copy costs more than the edits."""
        is_ready = in_place and self._cpu is not None and logits.dtype == torch.float32 and logits.is_contiguous()
        values = logits if is_ready else logits.to(torch.float32, copy=True)
        asks = self._asks[rows]
        # Some rows at a time: an edit takes several times the memory of what it changes.
        most = max(1, _EDITED // self._vocab_size)
        # Runs come late, because they give way where nothing else would be left; all else gives way to a structure.
        edits = (
            (_BIAS, self._biases),
            (_PENALTIES, self._penalties),
            (_EARLY, self._early),
            (_RUNS, self._runs),
            (_STRUCTURE, self.structures),
        )
        for ask, edit in edits:
            which = np.flatnonzero(asks & ask)
            if ask == _EARLY:
                due = self._early.due(rows[which], self._length[rows[which]] - self._num_prompt[rows[which]])
                which = which[due]
            for first in range(0, which.size, most):
                part = which[first : first + most]
                edit.apply(values, part, rows[part])
        return values
