"""Which fields of OpenAI's bodies, and of vLLM's additions, are honoured, and how; all others are refused by name.

One table per kind of body, from a field's name to what reads it. What has no effect on an answer is taken only in a
form that asks for nothing. `asks.py` walks the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.errors import InvalidRequest
from cluster.wire.values import listed, mapping, number, shown, text, truth, whole
from protos.quire.v1 import common_pb2

Set = Callable[[common_pb2.Sampling, str, Any], None]

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
            raise InvalidRequest(field, f"names token {shown(token)}", "token ids are whole numbers")
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

SCHEMAS: dict[Set, dict[str, Any]] = {
    _float: {"type": "number"},
    _int: {"type": "integer"},
    _bool: {"type": "boolean"},
    _seed: {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 64) - 1},
    _stop: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    _ids: {"type": "array", "items": {"type": "integer", "minimum": 0}},
    _words: {"type": "array", "items": {"type": "string"}},
    _bias: {"type": "object", "additionalProperties": {"type": "number"}},
    _early: {"enum": [True, False, "never"]},
}
"""What each of these reads, as the door's own description says it (`openapi.py`)."""

_BOTH = {
    "model", "stream", "stream_options", "max_tokens", "logprobs", "priority", "structured_outputs", "response_format",
    "request_id", "resume_grace_s", "return_token_ids", "timeout",
}  # fmt: skip
READ_ELSEWHERE = {
    "chat": _BOTH
    | {"messages", "max_completion_tokens", "top_logprobs", "add_generation_prompt"}
    | {"tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort"},
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
        takes = " or ".join(shown(one) for one in taken)
        raise InvalidRequest(field, f"is {shown(value)}, which is not honoured here", f"leave it out, or give {takes}")
