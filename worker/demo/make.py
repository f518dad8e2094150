"""Makes the demo model: learns a tokenizer and a small Llama from the grammar beside it and writes both here.

Run as `python -m worker.demo.make [--out FOLDER]`; two cores need about ten minutes. The seed is fixed and nothing is
downloaded. Weights are trained in fp32 and written in bf16. No part of the serving code imports this file.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from worker.demo import PATH
from worker.demo.lessons import Lesson, lesson

SEED = 20261121
BOS, EOS, USER, ASSISTANT, SYSTEM, PAD = "<|start|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"
SPECIALS = (BOS, EOS, USER, ASSISTANT, SYSTEM, PAD)
IGNORE = -100  # a label that costs nothing

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

CONFIG: dict[str, Any] = {
    "vocab_size": 1536,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "bos_token_id": SPECIALS.index(BOS),
    "eos_token_id": SPECIALS.index(EOS),
    "pad_token_id": SPECIALS.index(PAD),
}

NUM_STEPS = 3100
DECAY = 0.25  # the last part of the steps, in which the rate falls
# Of so many steps one has a long row, which teaches the late positions; the others are short, which is faster.
LONG_EVERY = 16
SHORT_ROWS, LONG_ROWS = (512, 4), (2048, 1)  # tokens in a row, rows in a step
SAVE_EVERY = 100


def learn_tokenizer() -> Tokenizer:
    rng = random.Random(SEED)
    texts = [part for _ in range(12000) for turn in lesson(rng).turns for part in turn if part]
    tokenizer = Tokenizer(models.BPE())
    # A number is apart from the space before it, so that 7+8 and 7 plus 8 are the same tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIALS.index(BOS))]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, taught: Lesson) -> tuple[list[int], list[int]]:
    """Token ids as the chat template would write them, and labels that count only what the model is to say."""
    ids, labels = [SPECIALS.index(BOS)], [IGNORE]

    def add(before: list[str], text: str, end: list[str], counts: bool) -> None:
        said = [*tokenizer.encode(text, add_special_tokens=False).ids, *map(SPECIALS.index, end)]
        ids.extend([*map(SPECIALS.index, before), *said])
        labels.extend([IGNORE] * len(before) + (said if counts else [IGNORE] * len(said)))

    if taught.system is not None:
        add([SYSTEM], taught.system, [EOS], counts=False)
    for asked, answer in taught.turns:
        if taught.chat:
            add([USER], asked, [EOS], counts=False)
            add([ASSISTANT], answer, [EOS], counts=True)
        else:
            add([], asked, [], counts=False)
            add([], f" {answer}" if asked else answer, [EOS], counts=True)
    return ids, labels


def rows(tokenizer: Tokenizer, length: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Endless rows of `length` tokens and labels, each beginning with a document; what does not fit is cut off."""
    rng = random.Random(seed)
    while True:
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            more_ids, more_labels = encode(tokenizer, lesson(rng))
            ids += more_ids
            labels += more_labels
        yield ids[:length], labels[:length]


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, Adam for embeddings and norms; each group keeps its peak rate as `peak`."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    chosen = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, ns_steps=5),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return chosen


def rate(step: int, num_steps: int) -> float:
    """Share of the peak rate: a short rise, a plateau, then a straight fall to almost nothing.

    Until the fall begins it is the same for any number of steps, so that a run that was stopped can be made
    longer or shorter and still be what one run of that many steps gives.
    """
    warm, left = 30, (num_steps - step) / (DECAY * num_steps)
    return min((step + 1) / warm, 1.0, max(left, 0.01))


def train(tokenizer: Tokenizer, num_steps: int, state: Path) -> LlamaForCausalLM:
    """Trains for `num_steps`, keeping what is needed to go on in the file `state`; goes on from there if it exists."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).train()
    chosen, begun, first = optimizers(model), time.monotonic(), 0
    if state.exists():
        first = take_up(state, model, chosen)
        print(f"going on from step {first} ({state})", flush=True)
    short, long = (rows(tokenizer, shape[0], SEED + 1 + i) for i, shape in enumerate((SHORT_ROWS, LONG_ROWS)))
    for step in range(num_steps):
        is_long = step % LONG_EVERY == LONG_EVERY - 1
        drawn = [next(long if is_long else short) for _ in range((LONG_ROWS if is_long else SHORT_ROWS)[1])]
        if step < first:
            continue
        ids, labels = (torch.tensor(part) for part in zip(*drawn, strict=True))
        loss = learn(model, chosen, ids, labels, rate(step, num_steps))
        done = step + 1
        if done % 50 == 0 or done == num_steps:
            print(f"step {done}/{num_steps}  loss {loss:.3f}  {time.monotonic() - begun:.0f} s", flush=True)
        if done % SAVE_EVERY == 0:
            put_down(state, model, chosen, done)
    return model.eval()


def put_down(state: Path, model: LlamaForCausalLM, chosen: list[torch.optim.Optimizer], step: int) -> None:
    """Weights and what the optimizers remember of each, by its name."""
    tensors = {name: weight.detach() for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        for optimizer in chosen:
            remembered = optimizer.state.get(weight, {})
            tensors |= {f"{name}/{key}": value.clone() for key, value in remembered.items()}
    written = state.with_suffix(".new")
    written.write_bytes(save(tensors, metadata={"step": str(step)}))
    written.replace(state)


def take_up(state: Path, model: LlamaForCausalLM, chosen: list[torch.optim.Optimizer]) -> int:
    """What `put_down` left; the step to go on with."""
    with safe_open(state, framework="pt") as file:
        for name, weight in model.named_parameters():
            weight.data.copy_(file.get_tensor(name))
            owner = next(
                one for one in chosen if any(weight is w for group in one.param_groups for w in group["params"])
            )
            keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118 - it is no mapping
            owner.state[weight] = {key.rpartition("/")[2]: file.get_tensor(key) for key in keys}
        return int(file.metadata()["step"])


def learn(
    model: LlamaForCausalLM,
    chosen: list[torch.optim.Optimizer],
    ids: torch.Tensor,
    labels: torch.Tensor,
    share: float,
) -> float:
    """One step at `share` of the peak rates; the loss."""
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        # Only positions with a label go through the vocabulary: that saves a third of the work there.
        counted = labels[:, 1:] != IGNORE
        logits = model.lm_head(hidden[:, :-1][counted])
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][counted])
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in chosen:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def write(out: Path, tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    tensors = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **CONFIG,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_theta": 10000.0,
        "dtype": "bfloat16",
    }
    _write_json(out / "config.json", config)
    ends = {key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(out / "generation_config.json", {**ends, "do_sample": False, "max_new_tokens": 300})
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
            "model_max_length": CONFIG["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the demo model from its grammar.")
    parser.add_argument("--out", type=Path, default=PATH, help="folder to write to (default: beside this file)")
    parser.add_argument("--threads", type=int, default=2, help="threads to train with (default 2)")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help=f"steps to train (default {NUM_STEPS})")
    args = parser.parse_args()
    if shutil.disk_usage(args.out.parent).free < 1 << 26:
        parser.error(f"less than 64 MiB free at {args.out.parent}; free some space or give another --out")
    torch.set_num_threads(args.threads)
    tokenizer = learn_tokenizer()
    print(f"vocabulary: {tokenizer.get_vocab_size()} tokens", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    state = args.out / "training.safetensors"
    write(args.out, tokenizer, train(tokenizer, args.steps, state))
    state.unlink(missing_ok=True)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
