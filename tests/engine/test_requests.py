"""What a request can ask of the engine: several sequences, stops, seeds, logprobs, streams, priorities, giving up."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import LLM, SamplingParams
from cluster.centre.scheduler import Scheduler
from cluster.hashing import BlockHasher
from cluster.messages import Plan, Submit, ids
from cluster.sampling import sequence_seed
from cluster.settings import SchedulerSettings
from tests.engine import models

PROMPTS = models.prompts([5, 16, 40, 33, 90], seed=3)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return models.reference(tiny_llama)


def engine(folder: Path, **settings: Any) -> LLM:
    chosen = {"dtype": "float32", "debug": True, "quiet": True, "kv_blocks": 120, "max_batch": 12, "token_budget": 64}
    # Short leases, so that sequences outgrow a small pool.
    scheduler = SchedulerSettings(ahead=4, prefix_caching=bool(settings.get("prefix_caching", True)))
    return LLM(str(folder), **{**chosen, "scheduler": scheduler, **settings})


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_greedy_forks_say_the_same(tiny_llama: Path, model: Any, prefix_caching: bool) -> None:
    """Prompts whose last block is full, part-filled, and shorter than a block."""
    llm = engine(tiny_llama, block_size=8, prefix_caching=prefix_caching)
    wanted = [models.greedy(model, prompt, 12) for prompt in PROMPTS]
    for _ in range(2):
        outputs = llm.generate(PROMPTS, SamplingParams(n=3, temperature=0, max_tokens=12, ignore_eos=True))
        assert [[one.token_ids for one in output.outputs] for output in outputs] == [[want] * 3 for want in wanted]
        assert [[one.index for one in output.outputs] for output in outputs] == [[0, 1, 2]] * 5


def test_an_answer_that_is_cut_to_a_pool_of_two_blocks_says_so(tiny_llama: Path) -> None:
    llm = engine(tiny_llama, block_size=16, kv_blocks=2)
    told = "prompt and answer have 32 tokens, the most that this model takes here"
    for asked, detail in ((100, told), (26, "")):
        params = SamplingParams(temperature=0, max_tokens=asked, ignore_eos=True)
        ((output,),) = [one.outputs for one in llm.generate(PROMPTS[:1], params)]
        assert (len(output.token_ids), output.finish_reason) == (min(asked, 27), "length")
        assert output.detail == detail
        assert [one.detail for one in llm.stream(PROMPTS[:1], params)][-1] == detail


def test_n_sequences_say_what_n_single_requests_say(tiny_llama: Path) -> None:
    """For every n, with the seeds that the sequences of a request draw with."""
    llm = engine(tiny_llama, block_size=8, kv_blocks=200, max_batch=24)
    draws: dict[str, Any] = {"temperature": 1.1, "top_p": 0.95, "max_tokens": 11, "ignore_eos": True}
    single = [SamplingParams(seed=sequence_seed(7, index), **draws) for index in range(16)]
    for prompt in PROMPTS:
        alone = [output.outputs[0].token_ids for output in llm.generate([prompt] * 16, single)]
        assert len({tuple(ids) for ids in alone}) > 8
        for n in range(1, 17) if prompt is PROMPTS[0] else (2, 16):
            (output,) = llm.generate([prompt], SamplingParams(n=n, seed=7, **draws))
            assert [one.token_ids for one in output.outputs] == alone[:n], f"n = {n}"


def test_forks_survive_preemption(tiny_llama: Path) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=40, ignore_eos=True)
    alone = [engine(tiny_llama, block_size=8).generate(prompt, params)[0] for prompt in PROMPTS]
    llm = engine(tiny_llama, block_size=8, kv_blocks=42)
    together = llm.generate(PROMPTS, params)
    assert llm.load_stats()["preempted recompute"] > 0
    for one, other in zip(alone, together, strict=True):
        assert [seq.token_ids for seq in one.outputs] == [seq.token_ids for seq in other.outputs]


def test_a_new_scheduler_has_prefix_hits_at_once(tiny_llama: Path) -> None:
    """The names of what a worker has cached are told, and taken: of prompts and of what was written behind them."""
    llm = engine(tiny_llama, block_size=8)
    (said,) = llm.generate([PROMPTS[-1]], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    conversation = ids([*PROMPTS[-1], *said.outputs[0].token_ids, 7])
    worker = llm._worker
    scheduler = Scheduler(SchedulerSettings(), epoch=2)
    scheduler.turn([worker.hold_for(2)], 0.0)
    hasher = BlockHasher(worker.settings.hash_key, worker.parts.digest, b"", 8)
    sampling = SamplingParams(temperature=0.0, max_tokens=4)
    asked = Submit(
        "q", "g", 1, worker.settings.model, "", conversation, hasher.prompt(conversation), sampling,
        digest=worker.parts.digest,
    )  # fmt: skip
    plans = [order for order in scheduler.turn([asked], 0.1) if isinstance(order, Plan)]
    (start,) = [start for plan in plans for start in plan.starts]
    assert len(PROMPTS[-1]) == 90 and start.position >= 104, (
        "ninety tokens asked, and full blocks of those that were said"
    )
    scheduler.check()


def test_one_token_of_many_sequences(tiny_llama: Path, model: Any) -> None:
    wanted = [models.greedy(model, prompt, 1) for prompt in PROMPTS]
    outputs = engine(tiny_llama).generate(PROMPTS, SamplingParams(n=4, temperature=0, max_tokens=1, ignore_eos=True))
    assert [[one.token_ids for one in output.outputs] for output in outputs] == [[want] * 4 for want in wanted]


def test_same_seed_same_tokens_alone_and_in_any_batch(tiny_llama: Path) -> None:
    params = [
        SamplingParams(temperature=1.1, top_k=40, top_p=0.95, seed=i, max_tokens=24, ignore_eos=True) for i in range(5)
    ]
    llm = engine(tiny_llama)
    together = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
    alone = [llm.generate(prompt, one)[0].outputs[0].token_ids for prompt, one in zip(PROMPTS, params, strict=True)]
    small = engine(tiny_llama, block_size=4, kv_blocks=36, token_budget=17)
    pressed = [output.outputs[0].token_ids for output in small.generate(PROMPTS, params)]
    assert small.load_stats()["preempted recompute"] > 0
    assert together == alone == pressed
    other = llm.generate(PROMPTS[0], SamplingParams(temperature=1.1, seed=99, max_tokens=24, ignore_eos=True))
    assert other[0].outputs[0].token_ids != alone[0]


def test_stop_ids_end_tokens_and_min_tokens(tiny_llama: Path, model: Any) -> None:
    free = models.greedy(model, PROMPTS[2], 20)
    stop = next(token for token in free[4:] if token not in free[:4])
    at = free.index(stop)
    llm = engine(tiny_llama)
    cut = llm.generate(PROMPTS[2], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=[stop]))
    assert cut[0].outputs[0].token_ids == free[: at + 1]
    assert (cut[0].outputs[0].finish_reason, cut[0].outputs[0].stop_reason) == ("stop", stop)
    held = llm.generate(
        PROMPTS[2],
        SamplingParams(temperature=0, max_tokens=20, min_tokens=at + 5, stop_token_ids=[stop], ignore_eos=True),
    )
    assert len(held[0].outputs[0].token_ids) > at + 1
    assert held[0].outputs[0].token_ids[:at] == free[:at]


def test_end_tokens_of_the_generation_config(tmp_path: Path) -> None:
    folder = models.build(tmp_path, "llama")
    free = models.greedy(models.reference(folder), PROMPTS[2], 20)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [1, {free[6]}], "do_sample": false}}')
    output = engine(folder).generate(PROMPTS[2], SamplingParams(max_tokens=20))[0].outputs[0]
    assert output.token_ids == free[: free.index(free[6]) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)


def test_logprobs_of_prompt_and_output(tiny_llama: Path, model: Any) -> None:
    prompt = PROMPTS[4]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    llm = engine(tiny_llama, token_budget=32, block_size=8)
    llm.generate(prompt, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    # The prompt is cached now; its logprobs need it computed all the same.
    output = llm.generate(prompt, params)[0]
    tokens = prompt + output.outputs[0].token_ids
    with torch.inference_mode():
        wanted = torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)
    assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    assert output.prompt_logprobs[0] is None
    judged = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    assert len(judged) == len(tokens) - 1
    for at, found in enumerate(judged):
        assert found is not None
        top = wanted[at].topk(3 if at >= len(prompt) - 1 else 2)
        assert {tokens[at + 1], *top.indices.tolist()} == set(found)
        for token, one in found.items():
            assert one.logprob == pytest.approx(float(wanted[at, token]), abs=1e-4)
            assert one.rank == int((wanted[at] > wanted[at, token]).sum()) + 1
    total = sum(float(wanted[len(prompt) - 1 + i, token]) for i, token in enumerate(output.outputs[0].token_ids))
    assert output.outputs[0].cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_logprobs_are_whole_after_preemption(tiny_llama: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=0)
    llm = engine(tiny_llama, block_size=4, kv_blocks=45)
    outputs = llm.generate(PROMPTS, params)
    assert llm.load_stats()["preempted recompute"] > 0
    for output in outputs:
        found = output.outputs[0].logprobs
        assert found is not None
        assert [list(one) for one in found] == [[token] for token in output.outputs[0].token_ids]


def test_stream_gives_the_tokens_as_they_come(tiny_llama: Path, model: Any) -> None:
    wanted = [models.greedy(model, prompt, 10) for prompt in PROMPTS]
    got: dict[int, list[int]] = {}
    ends: dict[int, str] = {}
    num_pieces = 0
    for piece in engine(tiny_llama).stream(PROMPTS, SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)):
        got.setdefault(piece.prompt_index, []).extend(piece.token_ids)
        num_pieces += 1
        assert piece.prompt_index not in ends
        if piece.finish_reason:
            ends[piece.prompt_index] = piece.finish_reason
    assert [got[i] for i in range(5)] == wanted
    assert ends == dict.fromkeys(range(5), "length")
    assert num_pieces > 5 * 5


def test_a_stream_that_is_left_gives_everything_back(tiny_llama: Path) -> None:
    llm = engine(tiny_llama)
    stream = llm.stream(PROMPTS, SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
    for _ in range(7):
        next(stream)
    stream.close()
    stats = llm.load_stats()
    assert (stats["running"], stats["waiting"], stats["cancelled"]) == (0, 0, 5)
    # The pool is whole: a request that needs nearly all of it runs.
    longest = llm.generate(
        models.prompts([900], seed=1), SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    )
    assert len(longest[0].outputs[0].token_ids) == 100


def test_priority_goes_first(tiny_llama: Path) -> None:
    llm = engine(tiny_llama, max_batch=1)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, priority=[5, 4, 3, 2, 1])
    finished = [output.metrics.finished_s for output in outputs]
    assert finished == sorted(finished, reverse=True)
