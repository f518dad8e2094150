"""Sampling settings: what they become for a model, and what is refused with which words."""

import inspect
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import errors, limits
from cluster.errors import ConfigError, InvalidRequest, NeverFits, QueueFull, QuireError
from cluster.generation_config import not_honoured
from cluster.sampling import SETTING_NAMES, SamplingParams, required, sequence_seed

MODEL = {"vocab_size": 100, "max_model_len": 50}


def refused(**settings) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**settings).resolve({}, **MODEL, num_prompt_tokens=10)
    return caught.value


def test_neutral_values_where_neither_request_nor_model_says_anything() -> None:
    params = SamplingParams(max_tokens=None).resolve({}, **MODEL, num_prompt_tokens=10)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (params.max_tokens, params.min_tokens) == (40, 0)
    assert (params.length_penalty, params.early_stopping) == (1.0, False)
    assert params.stop_ids == ()
    assert not params.is_greedy


def test_defaults_of_the_model_and_the_request_over_them() -> None:
    defaults = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.1,
        "max_new_tokens": 30,
        "min_new_tokens": 2,
        "eos_token_id": [7, 8],
        "bad_words_ids": [[7], [9, 10], [11]],
        "suppress_tokens": [12],
        "transformers_version": "5.17.0",
    }
    params = SamplingParams(top_p=0.5, max_tokens=None).resolve(defaults, **MODEL)
    assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (0.6, 0.5, 20, 1.1)
    assert (params.max_tokens, params.min_tokens) == (30, 2)
    assert params.eos_token_ids == (7, 8)
    # End tokens are spared by bad words, as in transformers.
    assert params.bad_words_token_ids == ((9, 10), (11,), (12,))
    assert SamplingParams(min_tokens=0).resolve(defaults, **MODEL).min_tokens == 0
    # The model's minimum gives way where the request's own maximum is below it.
    assert SamplingParams(max_tokens=1).resolve(defaults, **MODEL).min_tokens == 1


def test_a_config_that_says_no_sampling_is_greedy_unless_a_temperature_is_asked() -> None:
    defaults = {"do_sample": False, "temperature": 0.6}
    assert SamplingParams().resolve(defaults, **MODEL).is_greedy
    assert SamplingParams(temperature=0.9).resolve(defaults, **MODEL).temperature == 0.9
    assert SamplingParams(temperature=1e-6).resolve({}, **MODEL).is_greedy
    assert not SamplingParams(temperature=0, beam_width=2).resolve({}, **MODEL).is_greedy


def test_end_tokens_stops_and_seed() -> None:
    params = SamplingParams(stop_token_ids=[5, 7], stop="END").resolve({"eos_token_id": 7}, **MODEL, seed=42)
    assert params.stop_ids == (7, 5)
    assert params.stop == ("END",)
    assert params.seed == 42
    assert SamplingParams(seed=0).resolve({}, **MODEL, seed=42).seed == 0
    ignoring = SamplingParams(ignore_eos=True, stop_token_ids=[5]).resolve({"eos_token_id": 7}, **MODEL)
    assert ignoring.stop_ids == (5,)
    assert SamplingParams().resolve({"eos_token_id": 7}, **MODEL, eos_token_ids=[1, 2]).eos_token_ids == (1, 2)


def test_max_tokens_is_cut_to_the_room_and_forced_positions_follow() -> None:
    params = SamplingParams(max_tokens=1000, forced_tokens={0: 3, -1: 9, 60: 4})
    resolved = params.resolve({}, **MODEL, num_prompt_tokens=20)
    assert resolved.max_tokens == 30
    assert resolved.forced_tokens == {0: 3, 29: 9}
    with pytest.raises(NeverFits, match=r"prompt: needs 51 tokens, and there are never more than 50; shorten"):
        params.resolve({}, **MODEL, num_prompt_tokens=50)


def test_resolving_twice_changes_nothing() -> None:
    params = SamplingParams(temperature=0.5, stop=["a"], bad_words_token_ids=[3, [4, 5]], forced_tokens={-1: 2})
    once = params.resolve({"eos_token_id": 1}, **MODEL, seed=3)
    again = once.resolve({}, **MODEL, eos_token_ids=once.eos_token_ids)
    assert again == once
    assert pickle.loads(pickle.dumps(once)) == once


def test_bad_words_become_ids_with_and_without_a_space_before() -> None:
    params = SamplingParams(bad_words=["no", "way"]).with_bad_word_ids(lambda text: [ord(c) for c in text])
    space, n, o = ord(" "), ord("n"), ord("o")
    assert params.bad_words == ()
    assert params.bad_words_token_ids[:2] == ((n, o), (space, n, o))
    assert len(params.bad_words_token_ids) == 4


@pytest.mark.parametrize(
    ("settings", "field", "figure"),
    [
        ({"n": 0}, "n", "0"),
        ({"n": 17}, "n", "17"),
        ({"n": None}, "n", "None"),
        ({"n": True}, "n", "True"),
        ({"temperature": math.nan}, "temperature", "nan"),
        ({"temperature": math.inf}, "temperature", "inf"),
        ({"temperature": -0.1}, "temperature", "-0.1"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"top_p": 0}, "top_p", "0"),
        ({"top_p": 1.01}, "top_p", "1.01"),
        ({"top_p": math.nan}, "top_p", "nan"),
        ({"top_k": -2}, "top_k", "-2"),
        ({"top_k": 1.5}, "top_k", "1.5"),
        ({"min_p": -0.5}, "min_p", "-0.5"),
        ({"min_p": 2}, "min_p", "2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty", "5e-324"),
        ({"presence_penalty": 2.5}, "presence_penalty", "2.5"),
        ({"frequency_penalty": -3}, "frequency_penalty", "-3"),
        ({"seed": 2**64}, "seed", "18,446,744,073,709,551,616"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"min_tokens": -1}, "min_tokens", "-1"),
        ({"min_tokens": 20, "max_tokens": 10}, "min_tokens", "20"),
        ({"min_tokens": 45, "max_tokens": 45}, "min_tokens", "45"),
        ({"logprobs": 21}, "logprobs", "21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "-1"),
        ({"stop": [""]}, "stop[0]", "''"),
        ({"stop": ["x" * 257]}, "stop[0]", "257"),
        ({"stop": ["x"] * 17}, "stop", "17"),
        ({"stop": 3}, "stop", "3"),
        ({"stop": "x", "detokenize": False}, "stop", "detokenize"),
        ({"stop_token_ids": [100]}, "stop_token_ids", "100"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "-1"),
        ({"stop_token_ids": range(65)}, "stop_token_ids", "65"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "empty"),
        ({"allowed_token_ids": [3, 4, 100]}, "allowed_token_ids", "100"),
        ({"allowed_token_ids": [3], "bad_words_token_ids": [[3]]}, "allowed_token_ids", "1"),
        ({"allowed_token_ids": [3], "stop_token_ids": [3], "min_tokens": 1}, "min_tokens", "end tokens"),
        ({"bad_words_token_ids": [[]]}, "bad_words_token_ids[0]", "()"),
        ({"bad_words_token_ids": [[1], [2, 100]]}, "bad_words_token_ids[1]", "100"),
        ({"bad_words_token_ids": [list(range(17))]}, "bad_words_token_ids[0]", "17"),
        ({"bad_words_token_ids": [[i] for i in range(100)]}, "bad_words_token_ids", "100"),
        ({"logit_bias": {100: 1.0}}, "logit_bias", "100"),
        ({"logit_bias": {"3": 1.0}}, "logit_bias", "'3'"),
        ({"logit_bias": {3: math.nan}}, "logit_bias[3]", "nan"),
        ({"logit_bias": {3: 101}}, "logit_bias[3]", "101"),
        ({"logit_bias": [3]}, "logit_bias", "[3]"),
        ({"forced_tokens": {0: 100}}, "forced_tokens", "100"),
        ({"forced_tokens": {-2: 1}}, "forced_tokens", "-2"),
        ({"beam_width": 9}, "beam_width", "9"),
        ({"beam_width": 2, "n": 3}, "n", "3"),
        ({"early_stopping": "sometimes"}, "early_stopping", "'sometimes'"),
        ({"ignore_eos": "yes"}, "ignore_eos", "'yes'"),
    ],
)
def test_what_is_wrong_is_refused_with_field_figure_and_remedy(settings, field: str, figure: str) -> None:
    error = refused(**settings)
    assert error.field == "sampling." + field
    assert figure in error.problem
    assert error.remedy
    assert str(error) == f"sampling.{field}: {error.problem}; {error.remedy}"
    assert "\n" not in str(error)


def test_a_wrong_figure_of_the_model_is_the_models_fault() -> None:
    with pytest.raises(ConfigError, match=r"generation_config.json of the model: sampling.top_p: is 7"):
        SamplingParams().resolve({"top_p": 7}, **MODEL)


@given(
    st.builds(
        SamplingParams,
        n=st.integers(1, limits.MAX_N),
        temperature=st.none() | st.floats(0, 10),
        top_p=st.none() | st.floats(0.001, 1),
        top_k=st.none() | st.integers(-1, 10**6),
        min_p=st.none() | st.floats(0, 1),
        seed=st.none() | st.integers(-(2**63), 2**64 - 1),
        max_tokens=st.none() | st.integers(1, 10**9),
        stop=st.lists(st.text(min_size=1, max_size=5), max_size=4),
        stop_token_ids=st.lists(st.integers(0, 99), max_size=10),
        logit_bias=st.dictionaries(st.integers(0, 99), st.floats(-100, 100), max_size=5),
    )
)
def test_what_is_in_bounds_resolves_to_values_that_are_in_bounds(params: SamplingParams) -> None:
    resolved = params.resolve({}, **MODEL, num_prompt_tokens=3, seed=1)
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "min_tokens", "seed"):
        required(getattr(resolved, name))
    assert 1 <= required(resolved.max_tokens) <= 47
    assert resolved.resolve({}, **MODEL, num_prompt_tokens=3) == resolved


def test_seeds_of_sequences_differ_and_the_first_is_the_request_s() -> None:
    seeds = {sequence_seed(seed, j) for seed in range(500) for j in range(limits.MAX_N)}
    assert len(seeds) == 500 * limits.MAX_N
    assert sequence_seed(-1, 0) == 2**64 - 1
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_caller_s_own_collections_are_not_shared() -> None:
    bias, stops = {3: 1.0}, [1, 2]
    params = SamplingParams(logit_bias=bias, stop_token_ids=stops)
    bias[5] = math.nan
    stops.append(99)
    assert params.logit_bias == {3: 1.0}
    assert params.stop_token_ids == (1, 2)


def test_every_setting_can_be_read_by_name() -> None:
    assert set(SETTING_NAMES) < set(inspect.signature(SamplingParams).parameters)
    assert "eos_token_ids" not in SETTING_NAMES


def test_errors_are_one_tree_and_survive_the_way_between_processes() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    assert len(classes) >= 12
    for each in classes:
        assert issubclass(each, QuireError)
        assert each.__name__ in (errors.__doc__ or ""), "the tree at the top of the file lacks a class"
    raised = [
        InvalidRequest("sampling.n", "is 0", "give 1"),
        NeverFits("prompt", 5000, 4096, "tokens", "shorten the prompt"),
        QueueFull("the queue of 64 is full", 2.5),
        errors.Unavailable("no worker", None),
        ConfigError("bad"),
    ]
    for error in raised:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)
    assert isinstance(raised[0], ValueError)


def test_the_forced_end_token_of_the_model_comes_last() -> None:
    defaults = {"forced_eos_token_id": 7, "eos_token_id": 7}
    assert SamplingParams(max_tokens=5).resolve(defaults, **MODEL).forced_tokens == {4: 7}
    assert SamplingParams(max_tokens=5, forced_tokens={-1: 3}).resolve(defaults, **MODEL).forced_tokens == {4: 3}
    assert SamplingParams(max_tokens=5, ignore_eos=True).resolve(defaults, **MODEL).forced_tokens == {}


def test_what_is_left_out_of_a_generation_config_is_named() -> None:
    neutral = {
        "no_repeat_ngram_size": 0,
        "typical_p": 1.0,
        "num_beams": 1,
        "temperature": 0.5,
        "top_k": 9,
        "pad_token_id": 0,
    }
    assert not_honoured(neutral) == []
    wanted = ["no_repeat_ngram_size=3", "begin_suppress_tokens=[5]"]
    assert not_honoured(neutral | {"no_repeat_ngram_size": 3, "begin_suppress_tokens": [5]}) == wanted
