"""How large a pool of KV memory should be: the rule, and what a model's configuration says about bytes per token.

`quire size` calls it. Pure arithmetic over a config.json that was read elsewhere: no torch, no device, no pool. What a
worker really takes is decided in worker/model/budget.py from measured memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import ConfigError, ModelError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32"}
# Blocks start on this many bytes in every pool.
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token of one sequence keeps, over all layers of a model."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    max_model_len: int | None

    @property
    def token_bytes(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    def block_bytes(self, block_size: int) -> int:
        return -(-self.token_bytes * block_size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class ExpectedLoad:
    """What is expected at the busiest time: requests at once, their mean length in tokens (prompt and output), and how
    many times that the pool is to hold."""

    requests: int
    length: float
    safety: float = 1.5

    def __post_init__(self) -> None:
        checks = (("requests", self.requests, 1), ("length", self.length, 1), ("safety", self.safety, 1.0))
        for name, figure, least in checks:
            if not math.isfinite(figure) or figure < least:
                raise ConfigError(f"{name} is {figure}; give {least} or more")

    def num_blocks(self, block_size: int) -> int:
        """The rule: requests x length x safety / block size, rounded up."""
        if not 1 <= block_size <= 256:
            raise ConfigError(f"block_size is {block_size}; give 1 to 256")
        return math.ceil(self.requests * self.length * self.safety / block_size)

    def expected_waste(self, block_size: int) -> float:
        """The share of held slots that hold no token, because each sequence's last block is not full.

        Exact for lengths that are spread geometrically around the mean, where a sequence of mean length L holds
        block_size / (1 - (1 - 1/L)^block_size) slots. For L far above the block size it comes to half a block of L.
        """
        held = block_size / -math.expm1(block_size * math.log1p(-1 / self.length)) if self.length > 1 else block_size
        return 1 - self.length / held


def kv_shape(config: Mapping[str, Any], dtype: str = "auto") -> KvShape:
    """Reads a transformers config.json. `dtype`: "auto" is the checkpoint's own, else one of DTYPE_BYTES or short."""
    text = config.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else config
    if "kv_lora_rank" in inner:
        raise ModelError(f"model_type {inner.get('model_type')!r} keeps compressed keys, which `size` does not count")
    num_layers = _count(inner, "num_hidden_layers", "n_layer", "num_layers")
    num_heads = _count(inner, "num_attention_heads", "n_head")
    hidden = _count(inner, "hidden_size", "n_embd") if not inner.get("head_dim") else 0
    num_kv_heads = _count(inner, "num_key_value_heads") if inner.get("num_key_value_heads") else num_heads
    head_dim = _count(inner, "head_dim") if inner.get("head_dim") else hidden // num_heads
    if head_dim < 1 or num_heads % num_kv_heads:
        raise ModelError(
            f"config.json contradicts itself: {num_heads} heads, {num_kv_heads} key-value heads, head size {head_dim}"
        )
    longest = inner.get("max_position_embeddings")
    named = dtype if dtype != "auto" else inner.get("dtype") or config.get("dtype") or config.get("torch_dtype")
    return KvShape(
        num_layers,
        num_kv_heads,
        head_dim,
        dtype_name(str(named or "float32")),
        longest if isinstance(longest, int) else None,
    )


def dtype_name(name: str) -> str:
    """The full name of a dtype; raises ConfigError for one that pools cannot have."""
    full = name.removeprefix("torch.")
    full = _ALIASES.get(full, full)
    if full not in DTYPE_BYTES:
        raise ConfigError(f"dtype is {name!r}; give one of {', '.join(DTYPE_BYTES)}")
    return full


def _count(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"config.json has {name} = {value!r}; it must be a whole number of 1 or more")
            return value
    raise ModelError(f"config.json has no {names[0]}; is it the configuration of a decoder model?")
