"""What a step and a transfer cost on a given machine: the cost model of capacity planning.

A step takes `base + max(weights, tokens * per_token) + pairs * per_pair + context * per_context`: a fixed part, the
weights read once or the products computed, whichever is longer, attention of prefill chunks (query and key pairs), and
the keys and values that decodes read. Constants come from the shapes of a GPU and a model, or from `quire bench
capacity`, which fits them to a real run. Pure arithmetic; nothing here knows the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.desk.batcher import Batch
from cluster.errors import ConfigError

Float64 = NDArray[np.float64]

# Shares of a GPU's figures that good kernels reach (dense bf16 products, reads of weights and of keys and values).
PRODUCT_SHARE, READ_SHARE = 0.6, 0.8
# What a step costs beside the model: host work that is not hidden, launches, sampling.
STEP_BASE_S = 0.001
# Of a GPU's memory for weights, working space and blocks together.
MEMORY_SHARE, WORKING_BYTES = 0.92, 4e9
# What each copied block costs beside its bytes: a descriptor in a batched copy.
COPY_S = 2e-6
# What tensor parallelism keeps of each further GPU.
PARALLEL_SHARE = 0.85


def figures(batch: Batch) -> tuple[float, float, float]:
    """Tokens of a step, pairs of prefill attention, and context that decodes read."""
    starts, counts, first = batch.starts.astype(np.float64), batch.counts.astype(np.float64), batch.num_decodes
    context = float((starts[:first] + 1).sum())
    pairs = float((counts[first:] * (starts[first:] + counts[first:] / 2)).sum()) if first < len(counts) else 0.0
    return float(batch.num_tokens), pairs, context


@dataclass(frozen=True, slots=True)
class Gpu:
    """Public figures: dense bf16 FLOP/s, bytes/s of its memory, its bytes, bytes/s to host memory one way."""

    flops: float
    bytes_per_s: float
    memory_bytes: float
    host_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """A dense decoder in bf16."""

    parameters: float
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim


GPUS = {
    "a100": Gpu(312e12, 2.0e12, 80e9, 24e9),
    "a100-40": Gpu(312e12, 1.555e12, 40e9, 24e9),
    "h100": Gpu(989e12, 3.35e12, 80e9, 50e9),
    "h200": Gpu(989e12, 4.8e12, 141e9, 50e9),
}
MODELS = {
    "1b": ModelCosts(1.24e9, 16, 32, 8, 64),
    "8b": ModelCosts(8.03e9, 32, 32, 8, 128),
    "70b": ModelCosts(70.6e9, 80, 64, 8, 128),
    # The shapes of the PagedAttention paper.
    "opt-13b": ModelCosts(12.9e9, 40, 40, 40, 128),
    "opt-66b": ModelCosts(65.7e9, 64, 72, 72, 128),
    "opt-175b": ModelCosts(174.6e9, 96, 96, 96, 128),
}


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds; see the head of this file for the formula."""

    base_s: float
    weights_s: float
    per_token_s: float
    per_pair_s: float
    per_context_s: float

    def seconds(self, tokens: Float64 | float, pairs: Float64 | float, context: Float64 | float) -> Any:
        """Of steps with so many tokens, pairs of prefill attention, and tokens of context that decodes read."""
        products = np.maximum(self.weights_s, tokens * self.per_token_s)
        return self.base_s + products + pairs * self.per_pair_s + context * self.per_context_s

    def prefill_tokens_per_s(self, chunk: int) -> float:
        """What a worker would measure with prompts of one chunk."""
        step = self.seconds(np.array([float(chunk)]), np.array([chunk * chunk / 2.0]), np.zeros(1))
        return chunk / float(step[0])


@dataclass(frozen=True, slots=True)
class Machine:
    """What one replica runs on."""

    cost: StepCost
    num_blocks: int
    block_size: int
    block_bytes: int
    host_bytes_per_s: float
    network_bytes_per_s: float = 12.5e9
    # The part of a swap's time that steps lose; the copy engine takes the rest.
    swap_share: float = 0.03


def copy_rate(bytes_per_s: float, block_bytes: int) -> float:
    """Bytes/s of scattered blocks over a road that carries `bytes_per_s` of one large run."""
    return block_bytes / (block_bytes / bytes_per_s + COPY_S)


def machine(gpu: str, model: str, block_size: int, num_gpus: int = 1, kv_bytes: float | None = None) -> Machine:
    """A replica of `model` on `num_gpus` of these. `kv_bytes`: memory of its pool, else what the weights leave."""
    if gpu not in GPUS or model not in MODELS:
        wrong, known = (gpu, GPUS) if gpu not in GPUS else (model, MODELS)
        raise ConfigError(f"no figures for {wrong!r}; there is {', '.join(known)}")
    one, shape = GPUS[gpu], MODELS[model]
    gpus = 1.0 + (num_gpus - 1) * PARALLEL_SHARE
    weights = 2.0 * shape.parameters
    memory = num_gpus * one.memory_bytes * MEMORY_SHARE - weights - num_gpus * WORKING_BYTES
    room = memory if kv_bytes is None else kv_bytes
    block_bytes = shape.kv_bytes * block_size
    if room < 2 * block_bytes:
        raise ConfigError(f"{num_gpus} {gpu} have {memory / 1e9:.1f} GB left beside the weights of {model}; give more")
    flops, read = gpus * one.flops * PRODUCT_SHARE, gpus * one.bytes_per_s * READ_SHARE
    cost = StepCost(
        base_s=STEP_BASE_S,
        weights_s=weights / read,
        per_token_s=2.0 * shape.parameters / flops,
        per_pair_s=4.0 * shape.num_layers * shape.num_heads * shape.head_dim / flops,
        per_context_s=shape.kv_bytes / read,
    )
    host_rate = copy_rate(gpus * one.host_bytes_per_s, block_bytes)
    return Machine(cost, int(room / block_bytes), block_size, block_bytes, host_rate)


def fit(steps: Sequence[tuple[float, float, float, float]]) -> StepCost:
    """The constants that come closest to measured steps (tokens, pairs, context, seconds), none of them negative.

    On a CPU the products are a straight line in the tokens, so weights have no part of their own. Errors count as
    shares of a step's own time: a long prefill does not outweigh a hundred decodes. Steps that something else held up
    are left out in a second round, and the sum of the others is kept.
    """
    assert len(steps) >= 8, f"{len(steps)} steps say too little"
    measured = np.array(steps)
    first = _fit(measured)
    ratio = measured[:, 3] / first.seconds(*measured[:, :3].T)
    middle = float(np.median(ratio))
    kept = measured[(ratio > 0.5 * middle) & (ratio < 1.5 * middle)]
    found = _fit(kept)
    scale = float(kept[:, 3].sum() / found.seconds(*kept[:, :3].T).sum())
    return StepCost(
        scale * found.base_s, 0.0, scale * found.per_token_s, scale * found.per_pair_s, scale * found.per_context_s
    )


def _fit(measured: Float64) -> StepCost:
    columns = np.column_stack([np.ones(len(measured)), measured[:, :3]]) / measured[:, 3:]
    kept = list(range(4))
    while True:
        found, *_ = np.linalg.lstsq(columns[:, kept], np.ones(len(measured)), rcond=None)
        if (found >= 0).all():
            break
        kept.pop(int(np.argmin(found)))
    constants = dict.fromkeys(range(4), 0.0) | dict(zip(kept, found.tolist(), strict=True))
    return StepCost(constants[0], 0.0, constants[1], constants[2], constants[3])
