"""Tiny models with random weights, one per architecture that must be token-exact, and what transformers says of them.

Weights are scaled up, so that the best token leads by a margin that rounding does not reach; each is saved to a folder
and loaded by the engine like any other checkpoint. References are computed with `generate`, greedy, one prompt at a
time, with transformers' plain attention.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cluster import SamplingParams

VOCAB = 211
MAX_LEN = 1024
EOS = 2

Found = list[tuple[list[int], float]]

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WINDOWED = {**_LLAMA_LIKE, "num_hidden_layers": 4, "sliding_window": 19, "head_dim": 16}
_MIXED_LAYERS = ["sliding_attention", "full_attention"] * 2
# Tied random embeddings make a model repeat its last token.
_UNTIED = {"tie_word_embeddings": False}
_GEMMA = {"query_pre_attn_scalar": 16, "layer_types": _MIXED_LAYERS, **_UNTIED}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA_LIKE),
    "mistral": ("mistral", _WINDOWED),
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "qwen2_windows": (
        "qwen2",
        {
            **_LLAMA_LIKE,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 19,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {**_WINDOWED, **_GEMMA, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": ("gemma3_text", {**_WINDOWED, **_GEMMA}),
    "phi3": ("phi3", {**_LLAMA_LIKE, "sliding_window": 31}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": MAX_LEN,
            "eos_token_id": 2,
            **_UNTIED,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "ffn_dim": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_LEN,
            "word_embed_proj_dim": 32,
            **_UNTIED,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("gpt_neox", {**_LLAMA_LIKE, "rotary_pct": 0.5}),
    "mixtral": ("mixtral", {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 23}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_WINDOWED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": _MIXED_LAYERS,
            "rope_scaling": None,
        },
    ),
}


def build(folder: Path, kind: str, *, seed: int = 0, **changes: Any) -> Path:
    """Saves a model of this kind with random weights and returns its folder."""
    name, settings = CONFIGS[kind]
    config = CONFIG_MAPPING[name](**{**settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    sharpen(model)
    model.save_pretrained(folder)
    return folder


def sharpen(model: torch.nn.Module) -> None:
    """Random weights of about unit gain: the usual 0.02 leaves logits so close together that rounding decides."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 1.4 * parameter.shape[-1] ** -0.5)
                if "position" in name or "wpe" in name:
                    parameter.mul_(0.5)
                elif "embed" in name or "wte" in name or "lm_head" in name:
                    parameter.mul_(2.0)
            elif "sinks" in name or name.endswith("bias"):
                # Larger biases would say the same whatever the prompt is.
                parameter.normal_(0.0, 0.5 if "sinks" in name else 0.1)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))


def reference(folder: Path) -> torch.nn.Module:
    """The same checkpoint in transformers, with its plain attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], num_tokens: int, *, ignore_eos: bool = True) -> list[int]:
    """The tokens that `generate` writes for one prompt, without the prompt."""
    stop: dict[str, Any] = {"eos_token_id": None} if ignore_eos else {}
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        **stop,
    )
    return [int(token) for token in out[0, len(prompt) :]]


@torch.inference_mode()
def beams(model: Any, prompt: list[int], params: SamplingParams, ends: Sequence[int] = (EOS,), **extra: Any) -> Found:
    """What the beam search of `generate` finds: outputs up to their end token, and scores."""
    ends = [*ends, *params.stop_token_ids]
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        num_beams=params.beam_width,
        num_return_sequences=params.n,
        length_penalty=1.0 if params.length_penalty is None else params.length_penalty,
        early_stopping=False if params.early_stopping is None else params.early_stopping,
        max_new_tokens=params.max_tokens,
        eos_token_id=ends or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **extra,
    )
    outputs = []
    for row, score in zip(found.sequences[:, len(prompt) :].tolist(), found.sequences_scores.tolist(), strict=True):
        end = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
        outputs.append((row[: end + 1], score))
    return outputs


def prompts(lengths: list[int], seed: int, vocab: int = VOCAB) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in lengths]
