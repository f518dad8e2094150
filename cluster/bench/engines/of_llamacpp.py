"""llama.cpp's server in this process (`xllamacpp`). The checkpoint is converted to GGUF once, with made-up words.

All requests have a place at once, in one cache, in float32 where that is asked for; road.py asks it as any running
server, but through the door where it says token ids. With `ignore_eos` it never says the end token: there its
tokens part from those who pass over it.
"""

from __future__ import annotations

import json
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

MOST_AT_ONCE = 256


def llamacpp(job: dict[str, Any]) -> str:
    """The address of the server; it lives as long as this process."""
    import xllamacpp  # type: ignore[import-not-found]

    folder = Path(job["folder"])
    path = folder.with_name(f"{folder.name}-llamacpp.gguf")
    if not path.is_file():
        _convert(folder, path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.n_gpu_layers = 99 if job["device"] == "cuda" else 0
    params.n_parallel = min(MOST_AT_ONCE, len(job["prompts"]))
    params.n_ctx = max(job["longest"], 16 * (job["blocks"] + params.n_parallel))
    params.kv_unified, params.cont_batching = True, True
    # It takes queries in half precision.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if job["dtype"] == "float32":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.fit_params = params.use_jinja = params.ui = False
    params.verbosity = 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        params.port = free.getsockname()[1]
    global _running
    _running = xllamacpp.Server(params)
    job["door"] = "/completion", "return_tokens"
    return str(_running.listening_address)


_running: Any = None


def _convert(folder: Path, path: Path) -> None:
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(str(folder / "model.safetensors"))
    heads, kv_heads, vocab = config["num_attention_heads"], config["num_key_value_heads"], config["vocab_size"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    _add_words(writer, gguf.TokenType, vocab)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in weights.items():
        stem, _, kind = name.rpartition(".")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Its rotation takes neighbours where the checkpoint's takes halves.
            count = heads if "q_proj" in name else kv_heads
            halves = weight.reshape(count, 2, weight.shape[0] // count // 2, weight.shape[1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_words(writer: Any, kinds: Any, vocab: int) -> None:
    """No word is a lone byte: it would hold back those of which a character is not whole."""
    made_up = range(3, vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"t{token}" for token in made_up)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.NORMAL] * len(made_up))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def version(job: dict[str, Any]) -> str:
    return metadata.version("xllamacpp")
