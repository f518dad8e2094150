"""What the offline benchmark runs: models of two shapes with random weights, and workloads with the lengths of
real ones.

Models are built from a configuration once and kept in a temporary folder, so that every engine loads the same files.
Lengths are drawn from log-normals with the means of the published data sets; the seed fixes them.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LEN = 2048
# A context of 128 K and what is written behind it.
LONG_LEN = 132 * 1024
SHAPES: dict[str, dict[str, Any]] = {
    "14m": {
        "hidden_size": 256,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "tie_word_embeddings": False,
    },
    "125m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    # For GPUs.
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": LONG_LEN,
        "dtype": "bfloat16",
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "max_position_embeddings": LONG_LEN,
        "dtype": "bfloat16",
    },
    # Layers of Qwen3-30B-A3B, as many as 64 GB of disk take beside the others.
    "mixture": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "max_position_embeddings": LONG_LEN,
        "dtype": "bfloat16",
    },
    # For rehearsals of what is meant for GPUs.
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "tie_word_embeddings": False,
    },
    "tiny-mixture": {
        "model_type": "qwen3_moe",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 64,
        "tie_word_embeddings": False,
    },
}
# Changes whenever the files would differ.
_VERSION = 2


@dataclass(frozen=True)
class Workload:
    """Prompts, how many tokens are wanted for each, and how many sequences of each."""

    name: str
    prompts: list[list[int]]
    max_tokens: list[int]
    n: int = 1

    @property
    def num_output(self) -> int:
        return sum(self.max_tokens) * self.n

    @property
    def num_prompt(self) -> int:
        return sum(map(len, self.prompts))


def folder_of(shape: str) -> Path:
    """The checkpoint of this shape, made at its first use."""
    folder = Path(tempfile.gettempdir()) / f"quire-bench-{shape}-{_VERSION}"
    if not (folder / "model.safetensors").is_file():
        _build(folder, SHAPES[shape])
    return folder


def _build(folder: Path, settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from kernels.device.seam import find_device

    kind = {"model_type": "llama", "dtype": "float32", "max_position_embeddings": MAX_LEN, **settings}
    config = AutoConfig.for_model(
        **kind,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        rope_theta=10000.0,
    )
    torch.manual_seed(0)
    # Large ones are made where that takes seconds.
    with find_device("auto"):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            # The depth of a product is its last dimension, of experts too.
            # Of about unit gain, so that the best token leads by more than rounding moves it.
            gain = 3.0 if "lm_head" in name or "embed" in name else 1.2
            torch.nn.init.normal_(parameter, 0.0, gain * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))


def workload(name: str, shape: str, num_requests: int, seed: int) -> Workload:
    """One of `WORKLOADS` with so many requests."""
    rng = random.Random(f"{name} {seed}")
    vocab = SHAPES[shape]["vocab_size"]

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, vocab) for _ in range(count)]

    def length(mean: float, sigma: float, low: int, high: int) -> int:
        drawn = rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
        return min(high, max(low, round(drawn)))

    def draw(mean_in: float, mean_out: float) -> tuple[list[int], int]:
        return tokens(length(mean_in, 0.9, 4, 1024)), length(mean_out, 0.7, 4, 1000)

    if name == "single":
        return Workload(name, [tokens(64)], [128])
    if name == "short":
        return Workload(name, [tokens(10)], [5])
    if name == "prefix":
        shared = tokens(512)
        drawn = [draw(32, 64) for _ in range(num_requests)]
        return Workload(name, [shared + prompt for prompt, _ in drawn], [out for _, out in drawn])
    means = {"sharegpt": (161, 338), "alpaca": (19, 58), "n4": (161, 128)}[name]
    drawn = [draw(*means) for _ in range(num_requests)]
    return Workload(name, [prompt for prompt, _ in drawn], [out for _, out in drawn], 4 if name == "n4" else 1)


WORKLOADS = ("sharegpt", "alpaca", "prefix", "n4", "single", "short")
# Requests by shape and workload for a run of a minute or two on two cores; the other engines set the time.
DEFAULT_REQUESTS = {
    "14m": {"sharegpt": 24, "alpaca": 64, "prefix": 32, "n4": 12},
    "125m": {"sharegpt": 6, "alpaca": 16, "prefix": 8, "n4": 4},
    "1b": {"sharegpt": 256, "alpaca": 256, "prefix": 256, "n4": 64},
    "8b": {"sharegpt": 256, "alpaca": 256, "prefix": 256, "n4": 64},
    "mixture": {"sharegpt": 256, "alpaca": 256, "prefix": 256, "n4": 64},
    "tiny": {"sharegpt": 24, "alpaca": 64, "prefix": 32, "n4": 12},
    "tiny-mixture": {"sharegpt": 24, "alpaca": 64, "prefix": 32, "n4": 12},
}
