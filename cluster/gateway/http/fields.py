"""Which fields of OpenAI's bodies, and of vLLM's additions, are honoured, and how; all others are refused by name.

One table per kind of body, from a field's name to what reads it. What has no effect on an answer is taken only in a
form that asks for nothing. `asks.py` walks the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.errors import InvalidRequest
from protos.quire.v1 import common_pb2

Set = Callable[[common_pb2.Sampling, str, Any], None]

MAX_ENTRIES = 20_000
"""Of a list or mapping in a body: what the wire's own bounds would refuse later is refused before it is copied."""


def number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(field, f"is {_shown(value)}", "give a number")
    return value


def whole(field: str, value: Any, low: int = -(1 << 31), high: int = (1 << 31) - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(field, f"is {_shown(value)}", "give a whole number")
    if not low <= value <= high:
        raise InvalidRequest(field, f"is {value:,}", f"give {low:,} to {high:,}")
    return value


def truth(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"is {_shown(value)}", "give true or false")
    return value


def text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(field, f"is {_shown(value)}", "give a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, "holds half of a surrogate pair", "give whole characters") from error
    return value


def listed(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(field, f"is {_shown(value)}", "give a list")
    if len(value) > MAX_ENTRIES:
        raise InvalidRequest(field, f"has {len(value):,} entries", f"give at most {MAX_ENTRIES:,}")
    return value


def mapping(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(field, f"is {_shown(value)}", "give an object")
    if len(value) > MAX_ENTRIES:
        raise InvalidRequest(field, f"has {len(value):,} entries", f"give at most {MAX_ENTRIES:,}")
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


# -- what sets a field of Sampling


def _float(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    setattr(sampling, field, number(field, value))


def _int(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    setattr(sampling, field, whole(field, value, -(1 << 62), 1 << 62))


def _bool(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    setattr(sampling, field, truth(field, value))


def _seed(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    sampling.seed = whole(field, value, -(1 << 63), (1 << 64) - 1) & ((1 << 64) - 1)


def _stop(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    given = [value] if isinstance(value, str) else listed(field, value)
    sampling.stop.extend([text(f"{field}[{at}]", one) for at, one in enumerate(given)])


def _ids(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    given = [whole(f"{field}[{at}]", one) for at, one in enumerate(listed(field, value))]
    if field == "stop_token_ids":
        sampling.stop_token_ids.extend(given)
    else:
        sampling.allowed_token_ids.ids.extend(given)
        sampling.allowed_token_ids.SetInParent()


def _words(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    sampling.bad_words.extend([text(f"{field}[{at}]", one) for at, one in enumerate(listed(field, value))])


def _bias(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    for token, added in mapping(field, value).items():
        digits = token.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 11):
            raise InvalidRequest(field, f"names token {_shown(token)}", "token ids are whole numbers")
        sampling.logit_bias[whole(field, int(token))] = number(f"{field}.{token}", added)


def _early(sampling: common_pb2.Sampling, field: str, value: Any) -> None:
    kinds = common_pb2.EarlyStopping
    if value == "never":
        sampling.early_stopping = kinds.EARLY_STOPPING_NEVER
    else:
        sampling.early_stopping = kinds.EARLY_STOPPING_ON if truth(field, value) else kinds.EARLY_STOPPING_OFF


SAMPLING: dict[str, Set] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"), _float),
    **dict.fromkeys(("repetition_penalty", "length_penalty"), _float),
    **dict.fromkeys(("n", "top_k", "min_tokens", "beam_width", "prompt_logprobs"), _int),
    **dict.fromkeys(("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"), _bool),
    "seed": _seed,
    "stop": _stop,
    "stop_token_ids": _ids,
    "allowed_token_ids": _ids,
    "bad_words": _words,
    "logit_bias": _bias,
    "early_stopping": _early,
}
"""Honoured in every body, under the names that OpenAI and vLLM have for them."""

_BOTH = {
    "model", "stream", "stream_options", "max_tokens", "logprobs", "priority", "structured_outputs", "response_format",
    "request_id", "resume_grace_s", "return_token_ids", "timeout",
}  # fmt: skip
READ_ELSEWHERE = {
    "chat": _BOTH | {"messages", "max_completion_tokens", "top_logprobs", "add_generation_prompt"},
    "completion": _BOTH | {"prompt"},
}
"""Honoured by `asks.py` itself."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "metadata": None,
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "spaces_between_special_tokens": (True,),
}
"""What asks for nothing, and is taken only so: any value (None), or one of these. Null is always the same as absent."""


def check_without_effect(field: str, value: Any) -> None:
    """Raises `InvalidRequest` for a field that is not honoured, by its name."""
    if field not in WITHOUT_EFFECT:
        raise InvalidRequest(field, "is not a field that is honoured here", "leave it out")
    taken = WITHOUT_EFFECT[field]
    if taken is not None and not any(value == one and type(value) is type(one) for one in taken):
        shown = " or ".join(_shown(one) for one in taken)
        raise InvalidRequest(field, f"is {_shown(value)}, which is not honoured here", f"leave it out, or give {shown}")
