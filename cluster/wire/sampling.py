"""Sampling settings between `SamplingParams` and protobuf, for clients, gateways, scheduler and workers.

A scalar that is absent on the wire is one that the client left alone. Values go over as they are: the one validator
(`cluster/sampling_rules.py`) judges them when the settings are made. Nothing here imports grpc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import InvalidRequest
from cluster.sampling import SamplingParams
from cluster.structure import StructuredOutputsParams, structure_from
from protos.quire.v1 import common_pb2 as pb
from protos.quire.v1 import control_pb2

_MASK = (1 << 64) - 1
_STOPPING_TO_WIRE = {
    False: pb.EARLY_STOPPING_OFF,
    True: pb.EARLY_STOPPING_ON,
    "never": pb.EARLY_STOPPING_NEVER,
}
_STOPPING_FROM_WIRE: dict[int, object] = {number: value for value, number in _STOPPING_TO_WIRE.items()}

# Fields that both sides hold under one name and in one form.
_SCALARS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "logprobs",
    "prompt_logprobs",
    "detokenize",
    "skip_special_tokens",
    "beam_width",
    "length_penalty",
)
_LISTS = ("stop", "stop_token_ids", "bad_words")
_MAPS = ("logit_bias", "forced_tokens")


def fill_sampling(message: pb.Sampling, params: SamplingParams) -> None:
    """Writes every setting that is not None. Raises `InvalidRequest` for a figure that the wire cannot hold."""
    for name in _SCALARS:
        value = getattr(params, name)
        if value is not None:
            _set(message, name, value)
    for name in _LISTS:
        values = getattr(params, name)
        if values:
            _extend(getattr(message, name), name, values)
    for name in _MAPS:
        entries = getattr(params, name)
        if entries:
            _update(getattr(message, name), name, entries)
    if params.allowed_token_ids is not None:
        message.allowed_token_ids.SetInParent()
        _extend(message.allowed_token_ids.ids, "allowed_token_ids", params.allowed_token_ids)
    for run in params.bad_words_token_ids:
        _extend(message.bad_words_token_ids.add().ids, "bad_words_token_ids", run)
    if params.max_tokens is None:
        message.unlimited_tokens = True
    else:
        _set(message, "max_tokens", params.max_tokens)
    if params.seed is not None:
        message.seed = params.seed & _MASK
    if params.early_stopping is not None:
        message.early_stopping = _STOPPING_TO_WIRE[params.early_stopping]


def sampling_from(message: pb.Sampling, structured_outputs: StructuredOutputsParams | None = None) -> SamplingParams:
    """The settings of a message from a client. Raises `InvalidRequest` for what is wrong in it."""
    return SamplingParams(**_settings(message), structured_outputs=structured_outputs)


def fill_resolved(message: control_pb2.ResolvedSampling, params: SamplingParams) -> None:
    fill_sampling(message.sampling, params)
    message.eos_token_ids.extend(params.eos_token_ids)
    if params.structured_outputs is not None:
        message.structure.kind = params.structured_outputs.kind
        message.structure.text = params.structured_outputs.text


def resolved_from(message: control_pb2.ResolvedSampling) -> SamplingParams:
    structure = None
    if message.HasField("structure"):
        structure = structure_from(message.structure.kind, message.structure.text)
    ends = tuple(message.eos_token_ids)
    return SamplingParams(**_settings(message.sampling), eos_token_ids=ends, structured_outputs=structure)


def _settings(message: pb.Sampling) -> dict[str, Any]:
    """Only what the message has: walking its set fields costs less than asking for each."""
    chosen: dict[str, Any] = {}
    for field, value in message.ListFields():
        name = field.name
        if name in _SCALAR_SET:
            chosen[name] = value
        else:
            chosen.update(_SPECIAL[name](value))
    if chosen.pop("unlimited_tokens", False):
        if "max_tokens" in chosen:
            problem = f"is {chosen['max_tokens']:,}, and unlimited_tokens is true"
            raise InvalidRequest("sampling.max_tokens", problem, "give one of the two")
        chosen["max_tokens"] = None
    return chosen


def _early_stopping(number: int) -> dict[str, object]:
    if number and number not in _STOPPING_FROM_WIRE:
        problem = f"is {number}, which is no EarlyStopping"
        raise InvalidRequest("sampling.early_stopping", problem, "give EARLY_STOPPING_OFF, _ON or _NEVER")
    return {"early_stopping": _STOPPING_FROM_WIRE.get(number)}


_SCALAR_SET = frozenset((*_SCALARS, "max_tokens", "unlimited_tokens", "seed"))
_SPECIAL: Mapping[str, Any] = {
    # Lists go on as they are: the settings count them before they copy them.
    "stop": lambda value: {"stop": value},
    "stop_token_ids": lambda value: {"stop_token_ids": value},
    "bad_words": lambda value: {"bad_words": value},
    "logit_bias": lambda value: {"logit_bias": value},
    "forced_tokens": lambda value: {"forced_tokens": value},
    "allowed_token_ids": lambda value: {"allowed_token_ids": value.ids},
    "bad_words_token_ids": lambda value: {"bad_words_token_ids": [run.ids for run in value]},
    "early_stopping": _early_stopping,
}


def _set(message: pb.Sampling, name: str, value: object) -> None:
    try:
        setattr(message, name, value)
    except (ValueError, OverflowError) as error:
        raise _too_large(name, value) from error


def _extend(target: Any, name: str, values: Iterable[object]) -> None:
    try:
        target.extend(values)
    except (ValueError, OverflowError) as error:
        raise _too_large(name, values) from error


def _update(target: Any, name: str, entries: Mapping[int, object]) -> None:
    try:
        target.update(entries)
    except (ValueError, OverflowError) as error:
        raise _too_large(name, entries) from error


def _too_large(name: str, value: object) -> InvalidRequest:
    return InvalidRequest(f"sampling.{name}", f"is {value!r}, more than any model could mean", "give a smaller figure")
