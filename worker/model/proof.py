"""Shows, before a model serves, that it says through paged attention what it says through transformers' own.

`worker/model/startup.py` calls `prove` for every model that keeps transformers' modules. Two short sequences run in
chunks and decodes, flat in one batch, over blocks that are out of order; their logits are compared with those of each
sequence alone under plain attention. A model that keeps something beside keys and values, looks at its neighbours in
the batch or counts positions by itself is found here and refused, whatever its name.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.desk.batcher import Batch
from cluster.desk.rows import Rows
from cluster.errors import ModelError
from kernels.device.seam import device_of
from kernels.layout import BlockLayout
from worker.batch import StepBuilder
from worker.model.model import Model
from worker.pool import DevicePool
from worker.state import BatchState

# Tokens of each sequence; how many of them are computed in each step.
LENGTHS = (37, 22)
STEPS = ((20, 9), (15, 12), (1, 1), (1, 0))
# How far logits may differ, of their length, and for which share of a sequence's tokens that must hold. In fp32 on a
# CPU: more than rounding comes to, and less than what any of those mistakes do.
EXACT_ALLOWED, EXACT_SHARE = 0.001, 0.75
# With fewer bits: so much beside what rounding does, which is measured between two of transformers' own attentions.
# Rounding sends some tokens to other experts, and those behind them see it; a mistake is in nearly all tokens.
ALLOWED, ROUNDINGS, SHARE = 0.05, 4.0, 0.25
MOST_ROUNDING, UNMEASURED = 0.1, 0.05


def prove(model: Model, layout: BlockLayout) -> None:
    """Raises ModelError for a model whose logits differ; the model is left without a pool."""
    tokens = _sequences(model)
    name = type(model.loaded.module).__name__
    try:
        found = _paged(model, layout, tokens)
    except (AttributeError, TypeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        why = " ".join(str(error).split())
        raise ModelError(f"{name} does not run with paged attention: {why}; give another model") from error
    is_exact = model.loaded.dtype == torch.float32 and device_of(model.device).facts().family == "interpreter"
    for own, ids in zip(found, tokens, strict=True):
        device_ids = torch.from_numpy(ids).to(model.device)
        wanted = model.plain_logits(device_ids).float()
        if is_exact:
            differs, allowed = _difference(own, wanted, EXACT_SHARE), EXACT_ALLOWED
        else:
            differs, allowed = _difference(own, wanted, SHARE), ALLOWED + _rounding(model, device_ids, wanted)
        if differs > allowed:
            raise ModelError(
                f"{name} says other things through paged attention than through transformers' own (logits differ by "
                f"{differs:.1%}, and {allowed:.1%} is rounding), so that it can't be run exactly; give another model"
            )


def try_out(model: Model, layout: BlockLayout) -> None:
    """Runs both sequences and looks at nothing; the model is left without a pool."""
    _paged(model, layout, _sequences(model))


def _sequences(model: Model) -> list[NDArray[np.int64]]:
    lengths = [min(length, model.loaded.max_model_len) for length in LENGTHS]
    return [(np.arange(length) * (13 + row) + 7) % min(model.vocab_size, 997) for row, length in enumerate(lengths)]


def _rounding(model: Model, ids: torch.Tensor, wanted: torch.Tensor) -> float:
    try:
        found = _difference(model.plain_logits(ids, "sdpa").float(), wanted, SHARE)
    except (ModelError, ValueError):
        # Not every architecture has it.
        found = UNMEASURED
    return ROUNDINGS * min(MOST_ROUNDING, found)


def _difference(found: torch.Tensor, wanted: torch.Tensor, share: float) -> float:
    """What this share of the tokens stays under. A token whose weights are no numbers proves nothing."""
    differs = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    differs = differs[differs.isfinite()]
    return float(differs.quantile(share)) if differs.numel() else 0.0


def _paged(model: Model, layout: BlockLayout, tokens: list[NDArray[np.int64]]) -> list[torch.Tensor]:
    """The logits of all tokens of each sequence, in fp32."""
    size, count = layout.block_size, len(tokens)
    longest = max(map(len, tokens))
    rows = Rows(count, longest, size)
    state = BatchState(rows, model.device)
    pool = DevicePool(layout, count * state.max_blocks, model.device)
    model.attach_pool(pool)
    for row, ids in enumerate(tokens):
        state.tokens[row, : len(ids)] = ids
        rows.extend(row, 0, np.arange(pool.num_blocks, dtype=np.int32)[::-1][row::count])
    builder = StepBuilder(state, count * longest, model.backend)
    done = np.zeros(count, np.int32)
    found: list[list[torch.Tensor]] = [[] for _ in tokens]
    for step in STEPS:
        ends = np.minimum(done + np.array(step), [len(ids) for ids in tokens]).astype(np.int32)
        which = np.flatnonzero(ends > done).astype(np.int32)
        counts = (ends - done)[which]
        total = int(counts.sum())
        if not total:
            continue
        decodes = len(which) if (counts == 1).all() else 0
        built = builder.build(Batch(which, done[which], counts, decodes, total, 0), ends)
        model.prepare(built.attention)
        logits = model.forward(built.ids, built.positions, torch.arange(total, device=model.device)).float()
        for row, part in zip(which.tolist(), torch.split(logits, counts.tolist()), strict=True):
            found[row].append(part.clone())
        done = ends
    return [torch.cat(parts) for parts in found]
