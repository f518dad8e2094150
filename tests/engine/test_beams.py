"""Beam search is that of transformers' `generate`: the same tokens, the same scores, whatever else is in the batch and
however small the pool; and afterwards no block is held."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster import LLM, SamplingParams
from cluster.errors import InvalidRequest, QuireError
from cluster.offline.outputs import RequestOutput
from tests.engine import models
from worker.demo import PATH as DEMO

EOS = models.EOS
PLAIN = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return models.reference(tiny_llama)


def engine(folder: Path | str, **settings: Any) -> LLM:
    chosen = {"dtype": "float32", "debug": True, "quiet": True, "max_batch": 32, "token_budget": 64, **settings}
    return LLM(str(folder), **chosen)


def assert_same(output: RequestOutput, want: models.Found) -> None:
    assert [one.token_ids for one in output.outputs] == [tokens for tokens, _ in want]
    scores = [one.score for one in output.outputs]
    assert scores == pytest.approx([score for _, score in want], abs=1e-4, rel=1e-4)


def assert_settled(llm: LLM) -> None:
    """Nothing runs, nothing is held: every block is free or cached, every row of the batch is free."""
    while llm._engine._events:
        llm._engine.turn(eager=True)
    scheduler, worker = llm._engine.scheduler, llm._worker
    scheduler.check()
    for replica in scheduler.replicas.values():
        assert replica.ledger.num_available == replica.ledger.num_blocks
        assert replica.num_places == 0
    desk = worker.desk
    desk.check()
    assert not worker.searches and not desk.beams.groups and desk.is_idle and not desk.batcher.resident.any()
    assert len(desk.rows.free) == worker.settings.max_batch


def mixed(seed: int, count: int, longest: int = 100) -> tuple[list[list[int]], list[SamplingParams]]:
    """Beam requests of all kinds; a third of them with so many stop ids that hypotheses end early."""
    rng = random.Random(seed)
    params = []
    for i in range(count):
        width = 2 + i % 7
        params.append(
            SamplingParams(
                beam_width=width,
                n=rng.randint(1, width),
                length_penalty=rng.choice([0.0, 0.5, 1.0, 2.0, -1.0]),
                early_stopping=rng.choice([True, False, "never"]),
                max_tokens=rng.choice([1, 2, 7, 20, 26]),
                stop_token_ids=rng.sample(range(3, models.VOCAB), 20) if i % 3 == 0 else (),
            )
        )
    lengths = [rng.choice([1, 2, 15, 16, 17, 32, rng.randint(1, longest)]) for _ in range(count)]
    return models.prompts(lengths, seed), params


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_equals_transformers_beside_plain_requests(tiny_llama: Path, model: Any, block_size: int) -> None:
    prompts, params = mixed(block_size, 14)
    plain = models.prompts([3, 64, 90], seed=9)
    llm = engine(tiny_llama, block_size=block_size, kv_blocks=6000 // block_size)
    outputs = llm.generate([*prompts, *plain], [*params, *[PLAIN] * 3])
    for output, prompt, settings in zip(outputs, prompts, params, strict=False):
        assert_same(output, models.beams(model, prompt, settings))
        for one in output.outputs:
            ends = one.token_ids[-1] in (EOS, *settings.stop_token_ids)
            assert one.finish_reason == ("stop" if ends else "length")
    assert any(one.finish_reason == "stop" for output in outputs for one in output.outputs)
    for output, prompt in zip(outputs[14:], plain, strict=True):
        assert output.outputs[0].token_ids == models.greedy(model, prompt, 30)
        assert output.outputs[0].score is None
    assert_settled(llm)


def test_each_kind_of_early_stopping_stops_where_transformers_does(tiny_llama: Path, model: Any) -> None:
    """Seeds with which the three kinds find different outputs."""
    llm = engine(tiny_llama, block_size=8, kv_blocks=300)
    differ = set()
    for seed in (3, 5, 18, 26, 32):
        rng = random.Random(seed)
        prompt = models.prompts([rng.randint(2, 30)], seed)[0]
        params = SamplingParams(
            beam_width=rng.choice([2, 3, 4]),
            n=2,
            length_penalty=rng.choice([1.0, 2.0]),
            max_tokens=20,
            stop_token_ids=rng.sample(range(3, models.VOCAB), 12),
        )
        kinds = [replace(params, early_stopping=kind) for kind in (True, False, "never")]
        wants = [models.beams(model, prompt, kind) for kind in kinds]
        for output, want in zip(llm.generate([prompt] * 3, kinds), wants, strict=True):
            assert_same(output, want)
        tokens = [[ids for ids, _ in want] for want in wants]
        differ |= {(a, b) for a in range(3) for b in range(a) if tokens[a] != tokens[b]}
    assert len(differ) == 3, "two of the kinds never differ here, so this does not tell them apart"
    assert_settled(llm)


@pytest.mark.parametrize("seed", [11, 12])
def test_other_random_models(tmp_path: Path, seed: int) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1}
    folder = models.build(tmp_path / "llama", "llama", seed=seed, **shape)
    model = models.reference(folder)
    prompts, params = mixed(seed, 7)
    llm = engine(folder, block_size=8, kv_blocks=800)
    for output, prompt, settings in zip(llm.generate(prompts, params), prompts, params, strict=True):
        assert_same(output, models.beams(model, prompt, settings))
    assert_settled(llm)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_the_demo_model(early_stopping: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    texts = ["Once upon a time", "Long ago, by the sea,", "Mira"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    params = [
        SamplingParams(beam_width=width, n=2, length_penalty=penalty, early_stopping=early_stopping, max_tokens=40)
        for width, penalty in ((4, 1.0), (2, 0.6), (8, 1.4))
    ]
    llm = engine("demo", kv_blocks=300)
    outputs = llm.generate(texts, params)
    ends = [model.generation_config.eos_token_id]
    for output, prompt, settings in zip(outputs, prompts, params, strict=True):
        # What the model's generation config bans or penalises holds on both sides.
        assert_same(output, models.beams(model, prompt, settings, ends))
        assert all(one.text for one in output.outputs)
    assert_settled(llm)


@pytest.mark.parametrize(("block_size", "kv_blocks"), [(1, 330), (4, 90), (16, 30)])
def test_restarts_in_a_pool_that_is_too_small_for_all(
    tiny_llama: Path, model: Any, block_size: int, kv_blocks: int
) -> None:
    """What is preempted starts again from its prompt and finds the same."""
    prompts = models.prompts([20, 33, 7, 40, 26, 11], seed=21)
    params = [
        SamplingParams(beam_width=width, n=2, max_tokens=24, length_penalty=0.5, early_stopping="never")
        for width in (6, 2, 8, 5, 3, 4)
    ]
    llm = engine(tiny_llama, block_size=block_size, kv_blocks=kv_blocks, token_budget=40)
    outputs = llm.generate([*prompts, *prompts[:2]], [*params, *[replace(PLAIN, max_tokens=24)] * 2])
    for output, prompt, settings in zip(outputs, prompts, params, strict=False):
        assert_same(output, models.beams(model, prompt, settings))
    for output, prompt in zip(outputs[6:], prompts, strict=False):
        assert output.outputs[0].token_ids == models.greedy(model, prompt, 24)
    assert llm.load_stats()["preempted recompute"] > 0
    assert_settled(llm)


def test_alone_in_a_pool_that_just_holds_it(tiny_llama: Path, model: Any) -> None:
    """2 full blocks of the prompt, and 5 beams that each need the blocks from there to the last written position."""
    prompt = models.prompts([37], seed=4)[0]
    params = SamplingParams(beam_width=5, n=5, max_tokens=24, ignore_eos=True)
    needed = 2 + 5 * (-(-(37 + 24 - 1) // 16) - 2)
    llm = engine(tiny_llama, block_size=16, kv_blocks=needed)
    assert_same(llm.generate(prompt, params)[0], models.beams(model, prompt, params, ends=()))
    assert "preempted recompute" not in llm.load_stats()
    assert_settled(llm)
    with pytest.raises(InvalidRequest, match="lower max_tokens or beam_width"):
        engine(tiny_llama, block_size=16, kv_blocks=needed - 1).generate(prompt, params)


def test_a_budget_that_holds_one_group_at_a_time(tiny_llama: Path, model: Any) -> None:
    """A group goes into a step whole or not at all, and none waits for ever."""
    prompts, params = mixed(31, 6, longest=30)
    llm = engine(tiny_llama, block_size=4, kv_blocks=600, token_budget=9)
    for output, prompt, settings in zip(llm.generate(prompts, params), prompts, params, strict=True):
        assert_same(output, models.beams(model, prompt, settings))
    assert_settled(llm)


def test_places_in_the_batch_are_counted_by_beam(tiny_llama: Path, model: Any) -> None:
    prompts, params = mixed(32, 9, longest=30)
    llm = engine(tiny_llama, block_size=4, kv_blocks=900, max_batch=9)
    for output, prompt, settings in zip(llm.generate(prompts, params), prompts, params, strict=True):
        assert_same(output, models.beams(model, prompt, settings))
    assert_settled(llm)
    with pytest.raises(InvalidRequest, match="never more than 4"):
        engine(tiny_llama, kv_blocks=100, max_batch=4).generate(prompts[0], SamplingParams(beam_width=5))
    with pytest.raises(InvalidRequest, match="raise token_budget"):
        engine(tiny_llama, kv_blocks=100, token_budget=4).generate(prompts[0], SamplingParams(beam_width=5))


def test_a_cached_prompt_is_shared_and_no_block_of_a_beam_is(tiny_llama: Path, model: Any) -> None:
    prompts, params = mixed(41, 7)
    llm = engine(tiny_llama, block_size=4, kv_blocks=1000)
    for turn in range(2):
        for output, prompt, settings in zip(llm.generate(prompts, params), prompts, params, strict=True):
            assert_same(output, models.beams(model, prompt, settings))
            if turn:
                assert output.num_cached_tokens >= (len(prompt) - 1) // 4 * 4
    # A plain request over the whole of a beam's text finds only the prompt cached.
    longest = max(range(7), key=lambda i: len(prompts[i]))
    text = prompts[longest] + output_ids(llm, prompts[longest], params[longest])
    again = llm.generate(text, PLAIN)[0]
    assert again.num_cached_tokens <= len(prompts[longest])
    assert again.outputs[0].token_ids == models.greedy(model, text, 30)
    assert_settled(llm)


def output_ids(llm: LLM, prompt: list[int], params: SamplingParams) -> list[int]:
    return llm.generate(prompt, params)[0].outputs[0].token_ids


def test_edits_are_made_to_log_probabilities(tiny_llama: Path, model: Any) -> None:
    """Penalties and banned runs follow their beams; each setting under the name that transformers has for it."""
    prompts = models.prompts([9, 30, 17, 22, 5], seed=51)
    base = SamplingParams(beam_width=4, n=3, max_tokens=18)
    runs = models.beams(model, prompts[2], base)[0][0]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"min_tokens": 12, "stop_token_ids": range(3, 60)}, {"min_new_tokens": 12}),
        (
            {"bad_words_token_ids": [runs[3:5], runs[6:9], [runs[0]]]},
            {"bad_words_ids": [runs[3:5], runs[6:9], [runs[0]]]},
        ),
        ({"logit_bias": {7: 4.0, 8: -3.0}}, {"sequence_bias": [[[7], 4.0], [[8], -3.0]]}),
        ({"forced_tokens": {-1: EOS}}, {"forced_eos_token_id": EOS}),
    ]
    params = [replace(base, **ours) for ours, _ in cases]
    llm = engine(tiny_llama, block_size=4, kv_blocks=600)
    outputs = llm.generate(prompts, params)
    for output, prompt, settings, (_, theirs) in zip(outputs, prompts, params, cases, strict=True):
        want = models.beams(model, prompt, settings, **theirs)
        assert want != models.beams(model, prompt, base), "the setting changes nothing, so this proves nothing"
        assert_same(output, want)
    assert_settled(llm)


def test_logprobs_are_those_of_the_tokens(tiny_llama: Path, model: Any) -> None:
    prompts = models.prompts([21, 6], seed=61)
    params = SamplingParams(beam_width=4, n=4, max_tokens=15, length_penalty=0.7, logprobs=2, prompt_logprobs=1)
    outputs = engine(tiny_llama, block_size=4, kv_blocks=300).generate(prompts, params)
    for output, prompt in zip(outputs, prompts, strict=True):
        assert_same(output, models.beams(model, prompt, params))
        assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(prompt)
        for one in output.outputs:
            assert one.logprobs is not None and len(one.logprobs) == len(one.token_ids)
            own = [found[token].logprob for found, token in zip(one.logprobs, one.token_ids, strict=True)]
            assert sum(own) / len(own) ** 0.7 == pytest.approx(one.score, abs=1e-4)
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + one.token_ids])).logits[0, len(prompt) - 1 : -1]
            truth = logits.log_softmax(-1)[torch.arange(len(own)), torch.tensor(one.token_ids)]
            assert own == pytest.approx(truth.tolist(), abs=1e-4)


def test_only_tails_are_copied_and_all_of_a_step_at_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(tiny_llama, block_size=8, kv_blocks=400, prefix_caching=False)
    worker = llm._worker
    backend, copy_blocks = worker.parts.backend, worker.parts.backend.copy_blocks
    steps: list[int] = []

    def watched(pool: torch.Tensor, sources: list[int], targets: list[int]) -> None:
        steps.append(worker.num_steps)
        assert len(set(targets)) == len(targets) and not set(sources) & set(targets)
        tails = {}
        for group in worker.desk.beams.groups.values():
            position = int(worker.desk.batcher.position[group.rows[0]])
            for row in group.rows.tolist():
                tails[int(worker.state.tables[row, position // 8])] = position % 8
        assert all(tails[block] for block in (*sources, *targets)), "a full block was copied"
        copy_blocks(pool, sources, targets)

    monkeypatch.setattr(backend, "copy_blocks", watched)
    prompts = models.prompts([13, 24, 30], seed=71)
    llm.generate(prompts, SamplingParams(beam_width=5, max_tokens=40, ignore_eos=True))
    assert len(steps) == len(set(steps)) > 10
    assert_settled(llm)


def test_one_beam_is_greedy(tiny_llama: Path, model: Any) -> None:
    prompt = models.prompts([12], seed=81)[0]
    output = engine(tiny_llama, kv_blocks=50).generate(prompt, SamplingParams(beam_width=1, max_tokens=12))[0]
    want = models.greedy(model, prompt, 12, ignore_eos=False)
    assert output.outputs[0].token_ids == want and output.outputs[0].score is None


def test_fewer_outputs_exist_than_were_asked_for(tiny_llama: Path) -> None:
    """With two tokens allowed and two to write there are four outputs."""
    prompt = models.prompts([12], seed=82)[0]
    params = SamplingParams(beam_width=6, n=4, max_tokens=2, allowed_token_ids=[5, 9], ignore_eos=True)
    llm = engine(tiny_llama, kv_blocks=100, block_size=4)
    found = llm.generate(prompt, params)[0].outputs
    assert sorted(one.token_ids for one in found) == [[5, 5], [5, 9], [9, 5], [9, 9]]
    assert [one.score for one in found] == sorted([one.score or 0 for one in found], reverse=True)
    with pytest.raises(QuireError, match="found 4 outputs and n asks for 5"):
        llm.generate(prompt, replace(params, n=5))
    assert_settled(llm)


def test_given_up_in_the_middle(tiny_llama: Path, model: Any) -> None:
    """A caller that goes away leaves nothing behind, and the next is served as ever."""
    llm = engine(tiny_llama, block_size=4, kv_blocks=400)
    prompts, params = mixed(91, 4)
    texts = llm.stream([*prompts, prompts[0]], [*(replace(one, max_tokens=400 - 150) for one in params), PLAIN])
    assert next(texts).prompt_index == 4
    texts.close()  # type: ignore[attr-defined]
    assert_settled(llm)
    assert_same(llm.generate(prompts[1], params[1])[0], models.beams(model, prompts[1], params[1]))


def test_streams_bring_hypotheses_whole(tiny_llama: Path, model: Any) -> None:
    prompt = models.prompts([10], seed=92)[0]
    params = SamplingParams(beam_width=3, n=2, max_tokens=14)
    pieces = list(engine(tiny_llama, kv_blocks=60).stream(prompt, params))
    assert [(piece.index, piece.token_ids) for piece in pieces] == [
        (index, tokens) for index, (tokens, _) in enumerate(models.beams(model, prompt, params))
    ]
