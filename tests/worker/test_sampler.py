"""The whole sampler against a pipeline of transformers' processors, step by step, with sequences that grow."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cluster.messages import Logprobs
from cluster.sampling import SamplingParams, sequence_seed
from kernels import sampling
from kernels.noise import noise_keys, token_noise
from worker.sampling.logprobs import token_logprobs, topk_logprobs
from worker.sampling.sampler import Sampler

VOCABULARY = 97
EOS = (1, 2)
CPU = torch.device("cpu")


def resolved(num_prompt: int = 5, vocabulary: int = VOCABULARY, **settings) -> SamplingParams:
    asked = SamplingParams(**{"max_tokens": 64, "seed": 11, **settings})
    return asked.resolve({}, vocab_size=vocabulary, max_model_len=200, eos_token_ids=EOS, num_prompt_tokens=num_prompt)


def logits_of(tokens: list[int], vocabulary: int = VOCABULARY) -> torch.Tensor:
    """A model of sorts: logits that follow from the tokens alone. Ids that came before are likely to come again."""
    generator = torch.Generator().manual_seed(hash(tuple(tokens)) & 0x7FFFFFFF)
    logits = torch.randn(vocabulary, generator=generator) * 2
    logits[torch.tensor(tokens[-6:])] += 3
    return logits


@dataclass
class Sequence:
    """A sequence and the pipeline of transformers that it would go through."""

    params: SamplingParams
    tokens: list[int]
    index: int = 0
    num_prompt: int = field(init=False)
    logprobs: list[Logprobs] | None = None

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)
        if self.params.logprobs is not None:
            self.logprobs = []

    def processed(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits before the temperature, as `generate` would order it, with OpenAI's two penalties in between."""
        params = self.params
        ids = torch.tensor([self.tokens])
        scores = logits[None].double()
        if params.logit_bias:
            bias = {(token,): value for token, value in params.logit_bias.items()}
            scores = SequenceBiasLogitsProcessor(bias)(ids, scores.float()).double()
        if params.repetition_penalty != 1.0:
            scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
        for token in self.tokens[self.num_prompt :]:
            scores[0, token] -= params.frequency_penalty
        for token in set(self.tokens[self.num_prompt :]):
            scores[0, token] -= params.presence_penalty
        processors = LogitsProcessorList()
        if params.bad_words_token_ids:
            runs = [list(run) for run in params.bad_words_token_ids]
            processors.append(NoBadWordsLogitsProcessor(runs))
        if params.min_tokens and params.stop_ids:
            stops = list(params.stop_ids)
            processors.append(MinNewTokensLengthLogitsProcessor(self.num_prompt, params.min_tokens, stops))
        if params.allowed_token_ids is not None:
            allowed = list(params.allowed_token_ids)
            processors.append(PrefixConstrainedLogitsProcessor(lambda batch, sent: allowed, 1))
        return processors(ids, scores.float())

    def expected(self, logits: torch.Tensor) -> int:
        """The token that transformers' pipeline and the noise of this draw leave."""
        params, position = self.params, len(self.tokens)
        if position - self.num_prompt in params.forced_tokens:
            return params.forced_tokens[position - self.num_prompt]
        scores = self.processed(logits)
        if params.is_greedy:
            return int(scores.argmax())
        warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
        if params.top_k:
            warpers.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            warpers.append(TopPLogitsWarper(params.top_p))
        if params.min_p:
            warpers.append(MinPLogitsWarper(params.min_p))
        probabilities = warpers(None, scores).softmax(-1)
        seed = np.array([sequence_seed(params.seed, self.index)], np.uint64)
        key = torch.from_numpy(noise_keys(seed, np.array([position])).view(np.int64))
        return int((token_noise(key, torch.arange(len(logits))) / probabilities).argmin())


def run(sampler: Sampler, sequences: dict[int, Sequence], num_steps: int, check: bool = False) -> None:
    """Steps all sequences on, by batch row, and checks each token against `expected`."""
    rows = np.array(list(sequences), np.int32)
    for _ in range(num_steps):
        logits = torch.stack([logits_of(sequence.tokens) for sequence in sequences.values()])
        before = logits.clone()
        edited = sampler.edited(logits, rows)
        sampled = sampler.sample(logits, rows)
        assert (logits == before).all(), "the logits of the model were changed"
        assert not sampled.broken().any()
        for row, logprob in sampled.logprobs():
            sequences[row].logprobs.append(logprob)
        for i, sequence in enumerate(sequences.values()):
            token = int(sampled.ids()[i])
            if check:
                torch.testing.assert_close(edited[i], sequence.processed(logits[i])[0], atol=1e-5, rtol=1e-5)
                assert token == sequence.expected(logits[i]), (sequence.params, len(sequence.tokens))
            sequence.tokens.append(token)


def entered(sampler: Sampler, sequences: dict[int, Sequence]) -> None:
    for row, sequence in sequences.items():
        tokens = np.array(sequence.tokens, np.int32)
        sampler.enter(row, sequence.params, sequence.index, tokens, sequence.num_prompt)


SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 10},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.2, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.8, "repetition_penalty": 0.7, "top_p": 0.9},
    {"temperature": 0.0, "presence_penalty": 1.5},
    {"temperature": 0.0, "frequency_penalty": 0.8},
    {"temperature": 1.0, "frequency_penalty": -0.5, "presence_penalty": -1.0, "repetition_penalty": 1.1},
    {"temperature": 0.0, "logit_bias": {3: 5.0, 4: -100.0, 50: 2.5}},
    {"temperature": 1.0, "allowed_token_ids": [5, 6, 7, 30, 31]},
    {"temperature": 0.0, "bad_words_token_ids": [[7], [9], [1]]},
    {"temperature": 1.0, "top_k": 5, "bad_words_token_ids": [[3], [5, 6], [10, 11, 12], [8, 8]]},
    {"temperature": 0.0, "min_tokens": 7, "logit_bias": {1: 50.0}},
    {"temperature": 1.0, "min_tokens": 5, "stop_token_ids": [9, 10, 11], "logit_bias": {9: 30.0}},
    {"temperature": 1.0, "forced_tokens": {0: 42, 3: 1, 11: 96}},
    {
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "logit_bias": {20: 1.0, 1: 9.0},
        "bad_words_token_ids": [[4], [20, 21], [20, 20]],
        "min_tokens": 6,
        "forced_tokens": {2: 20},
        "logprobs": 3,
    },
]


@pytest.mark.parametrize("draw", [None, sampling.draw], ids=["device", "torch"])
def test_every_setting_gives_the_tokens_of_transformers_pipeline(draw) -> None:
    """All settings in one batch for 14 steps: each token is the one that their processors, warpers and our noise give.
    Prompts shorter than a banned run's head, and words that a run would complete, are among them."""
    sampler = Sampler(32, VOCABULARY, CPU, draw=draw)
    prompts = [[3], [20, 20, 5, 8, 10, 11], [5, 5, 9, 7, 8]]
    sequences = {}
    for number, settings in enumerate(SETTINGS):
        prompt = prompts[number % 3]
        sequences[31 - number] = Sequence(resolved(len(prompt), **settings), list(prompt), index=number % 2)
    entered(sampler, sequences)
    run(sampler, sequences, 14, check=True)


def test_banned_runs_stay_out_and_single_ones_are_used_up_to_the_last() -> None:
    runs = [[a, b] for a in range(10, 14) for b in range(10, 14) if a != b]
    params = resolved(temperature=1.0, allowed_token_ids=[10, 11, 12, 13], bad_words_token_ids=runs)
    sampler = Sampler(2, VOCABULARY, CPU)
    sequences = {0: Sequence(params, [4, 4, 4, 4, 10])}
    entered(sampler, sequences)
    run(sampler, sequences, 12)
    assert sequences[0].tokens[4:] == [10] * 13, "only the token itself may follow it"


def test_a_sequence_goes_on_though_a_run_bans_all_that_is_left() -> None:
    params = resolved(temperature=0.0, allowed_token_ids=[10], bad_words_token_ids=[[10, 10]])
    sampler = Sampler(2, VOCABULARY, CPU)
    sequences = {0: Sequence(params, [4, 10])}
    entered(sampler, sequences)
    run(sampler, sequences, 3)
    assert sequences[0].tokens == [4, 10, 10, 10, 10]


@pytest.mark.parametrize("number", range(0, len(SETTINGS), 3))
def test_the_same_alone_in_a_batch_and_after_preemption(number: int) -> None:
    """Bit for bit in fp32 on the CPU: what stands beside a sequence, its row, and a restart in between are not felt."""
    alone = {0: Sequence(resolved(**SETTINGS[number]), [6, 7, 8, 9, 10])}
    sampler = Sampler(1, VOCABULARY, CPU)
    entered(sampler, alone)
    run(sampler, alone, 12)

    crowd = Sampler(32, VOCABULARY, CPU)
    beside = {row: Sequence(resolved(seed=row, **SETTINGS[row % len(SETTINGS)]), [row + 20] * 5) for row in range(24)}
    entered(crowd, beside)
    run(crowd, beside, 2)
    sequence = Sequence(resolved(**SETTINGS[number]), [6, 7, 8, 9, 10])
    entered(crowd, {29: sequence})
    run(crowd, {7: beside[7], 29: sequence, 3: beside[3]}, 5)
    crowd.leave(29)
    run(crowd, beside, 1)
    crowd.leave(7)
    entered(crowd, {7: sequence})
    run(crowd, {7: sequence}, 7)
    assert sequence.tokens == alone[0].tokens


def test_n_sequences_are_n_requests_with_their_seeds() -> None:
    settings = {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 0.3}
    together = {j: Sequence(resolved(seed=99, **settings), [5, 6, 7], index=j) for j in range(4)}
    sampler = Sampler(8, VOCABULARY, CPU)
    entered(sampler, together)
    run(sampler, together, 10)
    singles = {4 + j: Sequence(resolved(seed=sequence_seed(99, j), **settings), [5, 6, 7]) for j in range(4)}
    entered(sampler, singles)
    run(sampler, singles, 10)
    written = [sequence.tokens for sequence in together.values()]
    assert written == [sequence.tokens for sequence in singles.values()]
    assert len({tuple(tokens) for tokens in written}) == 4, "sequences of a request must differ"
    assert sequence_seed(99, 0) == 99


def test_rows_start_clean_and_state_grows_with_what_is_asked() -> None:
    """Penalties, bias, runs and forced tokens are those of who lives there now, also in slots shared and added."""
    heavy = {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 1.0, "logit_bias": {8: 3.0}}
    heavy |= {"bad_words_token_ids": [[8, 8]], "forced_tokens": {1: 20}}
    sampler = Sampler(40, VOCABULARY, CPU)
    for generation in range(3):
        sequences = {row: Sequence(resolved(**heavy), [row + generation] * 4) for row in range(5 + 15 * generation)}
        entered(sampler, sequences)
        run(sampler, sequences, 4, check=True)
        for row in sequences:
            sampler.leave(row)
    plain = {row: Sequence(resolved(temperature=0.0), [row + 1] * 3) for row in range(39)}
    plain[39] = Sequence(resolved(temperature=0.0, forced_tokens={0: 5}), [4] * 3)
    entered(sampler, plain)
    run(sampler, plain, 2, check=True)


def test_logprobs_are_those_of_the_raw_logits_with_ranks() -> None:
    settings = {"temperature": 0.5, "top_k": 30, "logit_bias": {4: 6.0}, "repetition_penalty": 1.4}
    sequences = {
        1: Sequence(resolved(logprobs=0, **settings), [3, 4, 5]),
        2: Sequence(resolved(temperature=0.0), [3, 4, 5]),
        5: Sequence(resolved(logprobs=7, **settings), [4, 4, 5]),
    }
    sampler = Sampler(6, VOCABULARY, CPU)
    entered(sampler, sequences)
    run(sampler, sequences, 8)
    assert sequences[2].logprobs is None
    for row, num_top in ((1, 0), (5, 7)):
        sequence = sequences[row]
        assert sequence.logprobs is not None and len(sequence.logprobs) == 8
        for at, entry in enumerate(sequence.logprobs):
            raw = logits_of(sequence.tokens[: 3 + at]).double().log_softmax(0)
            assert entry.token == sequence.tokens[3 + at]
            assert entry.logprob == pytest.approx(raw[entry.token].item(), abs=1e-5)
            order = raw.argsort(descending=True).tolist()
            assert entry.rank == order.index(entry.token) + 1
            assert [token for token, _ in entry.top] == order[:num_top]
            assert [value for _, value in entry.top] == pytest.approx(raw[order[:num_top]].tolist(), abs=1e-5)


def test_logprobs_of_a_block_of_prompt_and_of_beams(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(12, VOCABULARY, generator=generator) * 3).bfloat16()
    following = torch.randint(VOCABULARY, (12,), generator=generator)
    exact = logits.double().log_softmax(-1)
    messages = token_logprobs(logits, following, 4).messages([4] * 12)
    for at, entry in enumerate(messages):
        assert entry.token == following[at]
        assert entry.logprob == pytest.approx(exact[at, entry.token].item(), abs=1e-5)
        assert entry.rank == (exact[at] > exact[at, entry.token]).sum() + 1
        assert [value for _, value in entry.top] == pytest.approx(
            exact[at].sort(descending=True)[0][:4].tolist(), abs=1e-5
        )
    values, ids = topk_logprobs(logits, 6)
    torch.testing.assert_close(values.double(), exact.topk(6)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact.gather(1, ids), exact.topk(6)[0])


def test_broken_logits_stop_one_sequence_only() -> None:
    sampler = Sampler(3, VOCABULARY, CPU)
    sequences = {row: Sequence(resolved(**SETTINGS[3 * row + 2]), [5, 6, 7]) for row in range(3)}
    entered(sampler, sequences)
    logits = torch.stack([logits_of([5, 6, 7])] * 3)
    logits[1, 50] = float("nan")
    sampled = sampler.sample(logits, np.arange(3, dtype=np.int32))
    assert sampled.broken().tolist() == [False, True, False]
    for row in (0, 2):
        assert sampled.ids()[row] == sequences[row].expected(logits[row])


def test_a_step_that_samples_nothing() -> None:
    sampler = Sampler(3, VOCABULARY, CPU)
    sampled = sampler.sample(torch.zeros(0, VOCABULARY), np.zeros(0, np.int32))
    assert sampled.ids().size == 0 and sampled.broken().size == 0


def test_a_draw_without_a_seed_is_our_own_mistake() -> None:
    params = replace(resolved(temperature=1.0), seed=None)
    with pytest.raises(AssertionError, match="seed"):
        Sampler(1, VOCABULARY, CPU).enter(0, params, 0, np.array([1]), 1)
