"""The one call that stands for a recognised decoder: token-exact beside its modules, the same bits in any batch, bf16
close to transformers, and what is not recognised is left as it is."""

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import LLM, SamplingParams
from kernels.cpu import call
from kernels.cpu.jit import Kernel
from tests.engine import models
from worker.model.packed_experts import PackedExperts

FUSED = ["gpt2", "llama", "mistral", "opt", "phi3", "qwen2", "qwen2_windows", "qwen3"]
# As it stands in the table its embeddings are narrower than its layers, which is not recognised.
WIDER: dict[str, dict[str, Any]] = {"opt": {"word_embed_proj_dim": 48}}
PROMPTS = models.prompts([1, 9, 17, 40, 120], seed=5)


def engine(folder: Path, **settings: Any) -> LLM:
    return LLM(
        str(folder), **{"quiet": True, "debug": True, "dtype": "float32", "kv_blocks": 80, "max_batch": 8, **settings}
    )


@pytest.mark.parametrize("kind", FUSED)
def test_fused_and_unfused_say_the_same(kind: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path, kind, **WIDER.get(kind, {}))
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    said = []
    for fuse in (True, False):
        llm = engine(folder, fuse=fuse, token_budget=40)
        assert (llm._worker.parts.model._fused is not None) == fuse
        said.append([output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)])
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_norms_with_weights_of_their_own(kind: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path, kind, **WIDER.get(kind, {}))
    model = models.reference(folder)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.4, 1.6)
    model.save_pretrained(folder)
    wanted = [models.greedy(model, prompt, 12) for prompt in PROMPTS]
    llm = engine(folder, token_budget=64)
    assert llm._worker.parts.model._fused is not None
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    assert [output.outputs[0].token_ids for output in outputs] == wanted


@pytest.mark.parametrize("kind", sorted({*models.CONFIGS} - {*FUSED} | {*WIDER}))
def test_what_is_not_recognised_keeps_its_modules_and_has_its_products_packed(kind: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path, kind)
    model = engine(folder, token_budget=40)._worker.parts.model
    assert model._fused is None and model.num_packed >= 4
    experts = sum(isinstance(one, PackedExperts) for one in model.loaded.module.modules())
    assert experts == (models.CONFIGS[kind][1].get("num_hidden_layers", 0) if kind in ("gpt_oss", "mixtral") else 0)
    # Tokens with packed products are compared in test_architectures. Weights that went are not counted twice.
    plain = engine(folder, token_budget=40, fuse=False)._worker.parts.model
    assert plain.num_packed == 0
    assert plain.weights_bytes <= model.weights_bytes < 2 * plain.weights_bytes


def test_biases_and_many_threads(tmp_path: Path) -> None:
    folder = models.build(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    wanted = [models.greedy(models.reference(folder), prompt, 12) for prompt in PROMPTS]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            llm = engine(folder, token_budget=64)
            assert llm._worker.parts.model._fused is not None
            outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
            assert [output.outputs[0].token_ids for output in outputs] == wanted
    finally:
        torch.set_num_threads(before)


class LateTeam:
    """Threads that come one after the other, when the first is somewhere in the program, at its end or past it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.num_calls = 0

    def run(self, kernel: Kernel, address: int, num_threads: int) -> None:
        self.num_calls += 1
        others = [threading.Thread(target=self._come, args=(kernel, address)) for _ in range(num_threads - 1)]
        for other in others:
            other.start()
        kernel(address)
        for other in others:
            other.join()

    def _come(self, kernel: Kernel, address: int) -> None:
        time.sleep(self._random.choice((0.0, 0.0002, 0.001)))
        kernel(address)


def test_threads_that_come_late(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They find what is left to do, in any op of a prompt or of steps in one go, greedy or drawn."""
    folder = models.build(tmp_path, "qwen2")
    params = [SamplingParams(temperature=0.8 * (at % 2), seed=at, max_tokens=24, ignore_eos=True) for at in range(5)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = engine(folder, debug=False).generate(PROMPTS, params)
        torch.set_num_threads(3)
        llm, late = engine(folder, debug=False), LateTeam(seed)
        monkeypatch.setattr(call, "_team", lambda: late)
        for asked in (params, params[::2], params[1::2]):
            picked = [at for at, one in enumerate(params) if one in asked]
            outputs = llm.generate([PROMPTS[at] for at in picked], asked)
            assert [one.outputs[0].token_ids for one in outputs] == [wanted[at].outputs[0].token_ids for at in picked]
        assert late.num_calls >= 6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_checkpoint_is_let_go(kind: str, tmp_path: Path) -> None:
    """Its weights lie packed in memory: a file that stays mapped would be there twice."""
    if sys.platform != "linux":
        pytest.skip("maps are read from /proc")
    folder = models.build(tmp_path, kind)
    llm = engine(folder)
    assert llm._worker.parts.model._fused is not None
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_logprobs_are_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    folder = models.build(tmp_path, "llama")
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=0)
    llm = engine(folder, prefix_caching=False)
    together = llm.generate(PROMPTS, params)
    for prompt, beside in zip(PROMPTS, together, strict=True):
        alone = llm.generate(prompt, params)[0]
        assert alone.outputs[0].logprobs == beside.outputs[0].logprobs


def test_bf16_is_close_to_transformers(tmp_path: Path) -> None:
    folder = models.build(tmp_path, "llama")
    llm = engine(folder, dtype="bfloat16")
    if llm._worker.parts.model._fused is None:
        pytest.skip("this processor has no products of bf16 pairs")
    prompt = PROMPTS[4]
    found = llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))[0].prompt_logprobs
    assert found is not None
    with torch.inference_mode():
        logits = models.reference(folder)(torch.tensor([prompt])).logits[0].float()
    exact = torch.log_softmax(logits, -1)[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    own = torch.tensor(
        [one[token].logprob for one, token in zip(found[1:], prompt[1:], strict=True) if one is not None]
    )
    # Eight bits of mantissa through three layers, on logits of about ten.
    assert (own - exact).abs().median() < 0.1
    assert (own - exact).abs().max() < 1.0


@pytest.mark.parametrize("threads", [1, 2])
def test_steps_at_once_say_what_single_steps_say(threads: int, tmp_path: Path) -> None:
    """Leases, ends of different lengths, stop ids in the middle of a run, contexts across the cuts of attention."""
    folder = models.build(tmp_path, "qwen2", max_position_embeddings=1200)
    long, *short = models.prompts([1000, 3, 16, 50, 31], seed=9)
    free = [models.greedy(models.reference(folder), prompt, 40) for prompt in (long, *short)]
    counts = [40, 37, 40, 5, 23]
    stops = [[], [free[1][20]], [free[2][7], free[2][30]], [], []]
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, stop_token_ids=stop)
        for count, stop in zip(counts, stops, strict=True)
    ]
    wanted = []
    for tokens, count, stop in zip(free, counts, stops, strict=True):
        end = next((at + 1 for at, token in enumerate(tokens) if token in stop), count)
        wanted.append(tokens[: min(end, count)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        llm = engine(folder, debug=False, kv_blocks=200, block_size=8)
        outputs = llm.generate([long, *short], params)
    finally:
        torch.set_num_threads(before)
    assert [output.outputs[0].token_ids for output in outputs] == wanted
    stats = llm.load_stats()
    assert stats["launches"] < 0.5 * stats["steps"], "steps were run one by one"


@pytest.mark.parametrize("threads", [1, 2])
def test_draws_at_once_are_those_of_single_steps(threads: int, tmp_path: Path) -> None:
    """Each row with settings of its own, one greedy, ends and stop ids inside a run. Who asks for logprobs is drawn for
    by the sampler, step by step, from logits that have left the call."""
    folder = models.build(tmp_path, "qwen2")
    kinds = [
        {"temperature": 0.9, "top_k": 40, "top_p": 0.95},
        {"temperature": 0.0},
        {"temperature": 1.3, "min_p": 0.02},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
    ]
    counts = [40, 37, 40, 5, 23]

    def params(stops: list[list[int]], **asks: Any) -> list[SamplingParams]:
        return [
            SamplingParams(seed=seed, max_tokens=count, ignore_eos=True, stop_token_ids=stop, **kind, **asks)
            for seed, (kind, count, stop) in enumerate(zip(kinds, counts, stops, strict=True))
        ]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        llm = engine(folder, debug=False, kv_blocks=200, block_size=8)
        free = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params([[]] * 5, logprobs=0))]
        stops = [[], [free[1][20]], [free[2][13]], [], []]
        single = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params(stops, logprobs=0))]
        earlier = llm.load_stats()
        assert earlier["launches"] == earlier["steps"]
        at_once = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params(stops))]
        stats = llm.load_stats()
    finally:
        torch.set_num_threads(before)
    assert at_once == single
    assert [tokens for tokens, stop in zip(at_once, stops, strict=True) if not stop] == [free[0], free[3], free[4]]
    launches, steps = (stats[name] - earlier[name] for name in ("launches", "steps"))
    assert launches < 0.5 * steps, "steps were run one by one"
