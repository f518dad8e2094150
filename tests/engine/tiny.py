"""Configurations of any causal language model of transformers, made so small that a test can afford it.

Every figure of a configuration that this file knows by name is set to a small one; what an architecture wants besides
stands in `CHANGES`, and variants of one that run other code in `VARIANTS`. The tests of all decoders build from here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.engine import models

MAX_PARAMETERS = 15_000_000
DROP = object()

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("lru_width", "backbone_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("dense_intermediate_size", "prefix_dense_intermediate_size", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "q_lora_rank"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "num_key_value_heads"), 2),
    **dict.fromkeys(("index_n_heads", "num_layers", "o_groups", "index_topk_blocks", "max_window_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "decoder_attention_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "index_local_blocks"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "n_shared_experts", "mamba_expand"), 1),
    **dict.fromkeys(("num_kv_shared_layers", "num_nextn_predict_layers"), 0),
    **dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "o_lora_rank", "index_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("attention_chunk_size", "block_size", "router_hidden_size", "num_centroids"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "index_topk", "index_block_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_size"), 19),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), models.VOCAB),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), models.MAX_LEN),
    **dict.fromkeys(("eos_token_id", "eod_token_id"), models.EOS),
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "v_head_dim": 12,
    "attn_logit_softcapping": 5.0,
    "original_max_position_embeddings": models.MAX_LEN,
    "use_sliding_window": True,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 16,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT += ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window", "bos_token_id")
_DECODER = {name: _SIZES[name] for name in (*_TEXT, "eos_token_id", "pad_token_id", "tie_word_embeddings")}
_NO_HEAD_DIM = {name: value for name, value in _DECODER.items() if name != "head_dim"}
_EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_EYES |= {"image_size": 28, "patch_size": 14}
# Latent attention has as many key heads as heads, and sizes of its own.
_LATENT = {"head_dim": DROP, "num_key_value_heads": 4}
_WIDE = {"global_head_dim": 32, "num_global_key_value_heads": 2}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_SHARED = {"num_kv_shared_layers": 2, "num_hidden_layers": 6, "layer_types": _MIXED["layer_types"] * 2}
_SHARED["layer_types"] = _SHARED["layer_types"][:6]

CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _WIDE),
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "diffllama": {"head_dim": DROP},
    "emu3": {"text_config": _NO_HEAD_DIM},
    "fuyu": {"text_config": {"model_type": "persimmon", **_NO_HEAD_DIM}},
    "gemma3": {"text_config": _DECODER, "vision_config": _EYES, "mm_tokens_per_image": 4},
    "gemma4": {
        "text_config": {**_DECODER, **_WIDE, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 211},
        "vision_config": _EYES,
    },
    "helium": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["full_attention"] * 4},
    "llama4": {
        "text_config": {**_DECODER, "intermediate_size_mlp": 96, "num_local_experts": 4}, "vision_config": _EYES
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# Architecture and changes, by a name of ours.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{name}, mixed layers": (name, _MIXED) for name in ("cohere2", "exaone4", "gpt_oss", "mimo_v2_flash", "olmo3")},
    **{f"{name}, mixed layers": (name, _MIXED) for name in ("kolibri1", "modernbert-decoder")},
    **{f"{name}, every layer full": (name, {"layer_types": ["full_attention"] * 4}) for name in ("llama4_text",)},
    **{
        f"{name}, every layer full": (name, {**_LATENT, "layer_types": ["full_attention"] * 4})
        for name in ("deepseek_v32", "glm_moe_dsa")
    },
    "gemma2 without a cap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma3, both sides": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma3n, keys of other layers": ("gemma3n_text", _SHARED),
    "gemma4, keys of other layers": ("gemma4_text", {**_WIDE, **_SHARED}),
    "gemma4, keys as values": ("gemma4_text", {**_WIDE, "num_global_key_value_heads": 1, "attention_k_eq_v": True}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, upcast": ("gpt2", {"reorder_and_upcast_attn": True}),
    "gpt_bigcode, a key head each": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox, serial": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox without biases": ("gpt_neox", {"attention_bias": False}),
    "granitemoehybrid, attention alone": ("granitemoehybrid", {"layer_types": ["full_attention"] * 4}),
    "lfm2, convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}),
    "minimax_m3, sparse": ("minimax_m3_vl_text", {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2}),
    "opt, projected": ("opt", {"word_embed_proj_dim": 32}),
    "opt, norm behind": ("opt", {"do_layer_norm_before": False}),
    "phi, norms of heads": ("phi", {"qk_layernorm": True}),
    "smollm3, layers without rotation": ("smollm3", {"no_rope_layers": [1, 1, 0, 0]}),
}


def names() -> list[str]:
    """All architectures that transformers has a causal language model for, and the variants."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


def build(name: str, **changes: Any) -> torch.nn.Module | str:
    """A model of this name with random weights; or why none can be made this small."""
    kind, more = VARIANTS.get(name, (name, CHANGES.get(name, {})))
    config_class = CONFIG_MAPPING[kind]
    known = {field.name for field in dataclasses.fields(config_class)}
    wanted = {**{key: value for key, value in _SIZES.items() if key in known}, **more, **changes}
    try:
        config = config_class(**{key: value for key, value in wanted.items() if value is not DROP})
        with torch.device("meta"):
            size = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
        if size > MAX_PARAMETERS:
            return f"{size:,} parameters"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    except Exception as error:
        # Whatever a configuration dislikes of such figures.
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    models.sharpen(model)
    return model
