"""The one validator of sampling settings, used by every door.

`check_values` runs whenever settings are made and looks at what is wrong under any model; `check_against_model` runs
once per request, when it is known which model will serve it. Both raise `InvalidRequest` that names the field as the
client wrote it, the figure, and what to give instead. Bounds come from `cluster/limits.py`; nothing is mended here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from cluster import limits
from cluster.errors import InvalidRequest, NeverFits
from cluster.sampling_fields import SamplingFields
from cluster.structure import StructuredOutputsParams

PREFIX = "sampling."

# name -> (lowest, highest, what to give); None stands for "no bound" and the value itself may be None everywhere.
_FLOATS: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.0, limits.MAX_TEMPERATURE, f"give 0 (greedy) to {limits.MAX_TEMPERATURE:g}"),
    "top_p": (math.ulp(0.0), 1.0, "give more than 0 and at most 1 (1 is off)"),
    "min_p": (0.0, 1.0, "give 0 (off) to 1"),
    "repetition_penalty": (
        limits.MIN_REPETITION_PENALTY,
        limits.MAX_REPETITION_PENALTY,
        f"give {limits.MIN_REPETITION_PENALTY:g} to {limits.MAX_REPETITION_PENALTY:g} (1 is off)",
    ),
    "presence_penalty": (-limits.MAX_PENALTY, limits.MAX_PENALTY, "give -2 to 2 (0 is off)"),
    "frequency_penalty": (-limits.MAX_PENALTY, limits.MAX_PENALTY, "give -2 to 2 (0 is off)"),
    "length_penalty": (-10.0, 10.0, "give -10 to 10 (1 is off)"),
}
_INTS: Mapping[str, tuple[int, int | None, str]] = {
    "n": (1, limits.MAX_N, f"give 1 to {limits.MAX_N} sequences"),
    "top_k": (-1, None, "give the number of tokens to keep, or 0 for off"),
    "seed": (-(2**63), limits.MAX_SEED, "give a 64-bit number"),
    "max_tokens": (1, None, "give 1 or more"),
    "min_tokens": (0, None, "give 0 or more"),
    "logprobs": (0, limits.MAX_LOGPROBS, f"give 0 to {limits.MAX_LOGPROBS} top tokens"),
    "prompt_logprobs": (0, limits.MAX_LOGPROBS, f"give 0 to {limits.MAX_LOGPROBS} top tokens"),
    "beam_width": (1, limits.MAX_BEAM_WIDTH, f"give 1 to {limits.MAX_BEAM_WIDTH} beams"),
}
_COUNTS: Mapping[str, tuple[int, str]] = {
    "stop": (limits.MAX_STOP_STRINGS, "strings"),
    "stop_token_ids": (limits.MAX_STOP_TOKEN_IDS, "ids, end tokens included"),
    "bad_words": (limits.MAX_BAD_WORDS, "strings"),
    "bad_words_token_ids": (limits.MAX_LISTED_RUNS, "entries"),
    "logit_bias": (limits.MAX_LOGIT_BIAS_ENTRIES, "entries"),
    "forced_tokens": (limits.MAX_FORCED_TOKENS, "entries"),
    "allowed_token_ids": (limits.MAX_ALLOWED_TOKEN_IDS, "ids"),
}
_BOOLS = ("ignore_eos", "include_stop_str_in_output", "detokenize", "skip_special_tokens")


def check_counts(params: SamplingFields) -> None:
    """Raise `InvalidRequest` for a list that has more entries than any request may, whatever they are."""
    for name, (bound, unit) in _COUNTS.items():
        items = getattr(params, name)
        if items and isinstance(items, Sequence | Mapping) and not isinstance(items, str):
            _check_count(name, items, bound, unit)
    runs: object = params.bad_words_token_ids
    for at, run in enumerate(runs if isinstance(runs, Sequence) else ()):
        if isinstance(run, Sequence):
            _check_count(f"bad_words_token_ids[{at}]", run, limits.MAX_BAD_WORD_TOKENS, "tokens")


def check_values(params: SamplingFields) -> None:
    """Raise `InvalidRequest` for the first setting that is wrong whatever the model."""
    for name, (low, high, remedy) in _FLOATS.items():
        _check_number(name, getattr(params, name), low, high, remedy)
    for name, (lowest, highest, remedy) in _INTS.items():
        value = getattr(params, name)
        if value is not None or name == "n":
            _check_int(name, value, lowest, highest, remedy)
    for name in _BOOLS:
        if not isinstance(getattr(params, name), bool):
            raise _wrong(name, f"is {getattr(params, name)!r}", "give true or false")
    if params.early_stopping not in (None, True, False, "never"):
        raise _wrong("early_stopping", f"is {params.early_stopping!r}", 'give true, false or "never"')
    _check_strings(params)
    _check_ids(params)
    _check_together(params)


def check_against_model(params: SamplingFields, vocab_size: int, max_model_len: int, num_prompt_tokens: int) -> None:
    """Raise `InvalidRequest` for what a model of this vocabulary and length cannot do with this prompt."""
    if num_prompt_tokens >= max_model_len:
        raise NeverFits("prompt", num_prompt_tokens + 1, max_model_len, "tokens", "shorten the prompt")
    # Not counted when settings are made: a model's own list may be longer than a client's.
    _check_count("bad_words_token_ids", params.bad_words_token_ids, limits.MAX_BAD_WORD_RUNS, "entries")
    room = max_model_len - num_prompt_tokens
    if params.min_tokens is not None and params.min_tokens > room:
        problem = f"is {params.min_tokens:,}, and the model has room for {room:,} tokens behind this prompt"
        raise _wrong("min_tokens", problem, f"give at most {room:,}")
    for name, ids in _all_ids(params):
        largest = max(ids, default=0)
        if largest >= vocab_size:
            raise _wrong(name, f"holds token id {largest:,}", f"ids of this model are 0 to {vocab_size - 1:,}")


def check_something_left(params: SamplingFields, vocab_size: int) -> None:
    """Raise `InvalidRequest` when resolved settings ban every token at once."""
    banned = {run[0] for run in params.bad_words_token_ids if len(run) == 1}
    early = banned.union(params.stop_ids) if params.min_tokens else banned
    allowed = range(vocab_size) if params.allowed_token_ids is None else params.allowed_token_ids
    name = "bad_words_token_ids" if params.allowed_token_ids is None else "allowed_token_ids"
    if all(token in banned for token in allowed):
        raise _wrong(name, f"leaves none of {len(allowed):,} tokens that is not banned as a bad word", "leave one")
    if all(token in early for token in allowed):
        raise _wrong("min_tokens", "bans the end tokens, and nothing but those is allowed", "set min_tokens to 0")


def _wrong(name: str, problem: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(PREFIX + name, problem, remedy)


def _check_number(name: str, value: object, low: float, high: float, remedy: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, f"is {value!r}, not a number", remedy)
    if not low <= value <= high:  # NaN fails this too.
        raise _wrong(name, f"is {value}", remedy)


def _check_int(name: str, value: object, low: int, high: int | None, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, f"is {value!r}, not a whole number", remedy)
    if value < low or (high is not None and value > high):
        raise _wrong(name, f"is {value:,}", remedy)


def _check_strings(params: SamplingFields) -> None:
    for name in ("stop", "bad_words"):
        strings = getattr(params, name)
        if not isinstance(strings, tuple):
            raise _wrong(name, f"is {strings!r}", "give a string or a list of strings")
        for at, text in enumerate(strings):
            if not isinstance(text, str) or not text:
                raise _wrong(f"{name}[{at}]", f"is {text!r}", "give a string that is not empty")
            if len(text) > limits.MAX_STOP_STRING_CHARS:
                remedy = f"give at most {limits.MAX_STOP_STRING_CHARS}"
                raise _wrong(f"{name}[{at}]", f"has {len(text)} characters", remedy)
    if params.stop and not params.detokenize:
        raise _wrong("stop", "needs text, and detokenize is false", "use stop_token_ids, or leave detokenize on")


def _check_ids(params: SamplingFields) -> None:
    for name in ("logit_bias", "forced_tokens"):
        if not isinstance(getattr(params, name), dict):
            raise _wrong(name, f"is {getattr(params, name)!r}", "give a map")
    for name in ("stop_token_ids", "eos_token_ids", "allowed_token_ids"):
        ids = getattr(params, name)
        if not isinstance(ids, tuple) and not (ids is None and name == "allowed_token_ids"):
            raise _wrong(name, f"is {ids!r}", "give a list of token ids")
    _check_runs(params.bad_words_token_ids)
    _check_count("stop_token_ids", params.stop_ids, limits.MAX_STOP_TOKEN_IDS, "ids, end tokens included")
    for name, ids in _all_ids(params):
        # All at once, because there can be as many as the vocabulary has; one by one to name the wrong one.
        if ids and (set(map(type, ids)) != {int} or min(ids) < 0):
            for token in ids:
                _check_int(name, token, 0, None, "token ids are 0 or more")
    for token, bias in params.logit_bias.items():
        remedy = f"give -{limits.MAX_LOGIT_BIAS:g} to {limits.MAX_LOGIT_BIAS:g}"
        _check_number(f"logit_bias[{token}]", bias, -limits.MAX_LOGIT_BIAS, limits.MAX_LOGIT_BIAS, remedy)
    for at in params.forced_tokens:
        _check_int("forced_tokens", at, -1, None, "positions are 0 or more, or -1 for the last")
    if params.allowed_token_ids is not None and not params.allowed_token_ids:
        raise _wrong("allowed_token_ids", "is empty", "name at least one token, or leave it out")


def _check_runs(runs: object) -> None:
    if not isinstance(runs, tuple):
        raise _wrong("bad_words_token_ids", f"is {runs!r}", "give a list of lists of token ids")
    for at, run in enumerate(runs):
        name = f"bad_words_token_ids[{at}]"
        if not isinstance(run, tuple) or not run:
            raise _wrong(name, f"is {run!r}", "give a token id, or a list of them that is not empty")


def _check_together(params: SamplingFields) -> None:
    """What is wrong only in company."""
    if params.max_tokens is not None and params.min_tokens is not None and params.min_tokens > params.max_tokens:
        problem = f"is {params.min_tokens:,}, more than max_tokens = {params.max_tokens:,}"
        raise _wrong("min_tokens", problem, "raise max_tokens or lower min_tokens")
    if params.beam_width is not None and params.n > params.beam_width:
        problem = f"is {params.n}, more than beam_width = {params.beam_width}"
        raise _wrong("n", problem, "ask for at most as many sequences as there are beams")
    if params.structured_outputs is not None:
        _check_structured(params)


def _check_structured(params: SamplingFields) -> None:
    """Nothing else may say which tokens come, where a structure does."""
    if not isinstance(params.structured_outputs, StructuredOutputsParams):
        raise _wrong(
            "structured_outputs", f"is {str(params.structured_outputs)[:60]!r}", "give StructuredOutputsParams"
        )
    others = ("beam_width", "forced_tokens", "allowed_token_ids", "ignore_eos")
    for name in others:
        if getattr(params, name):
            problem = f"is {str(getattr(params, name))[:40]}, and structured_outputs is set"
            raise _wrong(name, problem, "ask for one of the two")


def _check_count(name: str, items: Sequence[object] | Mapping[int, object], bound: int, unit: str) -> None:
    if len(items) > bound:
        raise _wrong(name, f"has {len(items)} {unit}", f"give at most {bound}")


def _all_ids(params: SamplingFields) -> Iterable[tuple[str, Collection[int]]]:
    """Every place where a client names token ids, with its field name."""
    yield "stop_token_ids", params.stop_token_ids
    yield "allowed_token_ids", params.allowed_token_ids or ()
    yield "logit_bias", params.logit_bias
    yield "forced_tokens", params.forced_tokens.values()
    for at, run in enumerate(params.bad_words_token_ids):
        yield f"bad_words_token_ids[{at}]", run
