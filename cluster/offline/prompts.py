"""The forms in which the embedded engine takes prompts, brought to one: token ids, with the text where there was one.

The forms are vLLM's: text, token ids, {"prompt": text}, {"prompt_token_ids": ids}, one of them or a list. What is none
of these is an InvalidRequest that names the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.errors import InvalidRequest
from cluster.gateway.models import TextModel
from cluster.sampling import SamplingParams

_FORMS = 'give text, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}'


def listed(prompts: Any) -> list[Any]:
    """One prompt, many or none, as a list. A bare list of numbers is one prompt."""
    if isinstance(prompts, str | Mapping) or (_is_ids(prompts) and len(prompts)):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise InvalidRequest("prompts", f"is of type {type(prompts).__name__}", _FORMS + ", or a list of them")
    return list(prompts)


def one_each(params: Any, count: int) -> list[SamplingParams]:
    """Settings for each of `count` prompts: one for all, one each, or None for the model's own."""
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(one, SamplingParams) for one in params):
        raise InvalidRequest("sampling_params", f"is {params!r:.80}", "give SamplingParams(...), or a list of them")
    found = list(params)
    if len(found) != count:
        raise InvalidRequest(
            "sampling_params", f"has {len(found)} entries for {count} prompts", "give one, or one each"
        )
    return found


def tokens_of(prompt: Any, field: str, text: TextModel) -> tuple[str | None, list[int]]:
    """The text of a prompt, if it came as text, and its token ids."""
    if isinstance(prompt, Mapping):
        if "prompt_token_ids" in prompt:
            return prompt.get("prompt"), _ids(prompt["prompt_token_ids"], f"{field}.prompt_token_ids")
        prompt = prompt.get("prompt")
    if isinstance(prompt, str):
        if text.tokenizer is None:
            raise InvalidRequest(field, "is text, and the model's folder has no tokenizer", "give token ids")
        return prompt, list(text.encode(prompt))
    return None, _ids(prompt, field)


def conversations(messages: Any) -> list[list[Mapping[str, str]]]:
    """One conversation or many, as a list. The content of a message is text, or a list of parts that are text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequest("messages", "is no conversation", 'give a list of {"role": ..., "content": ...}')
    found = [messages] if isinstance(messages[0], Mapping) else list(messages)
    return [[_message(message, f"messages[{i}]") for message in one] for i, one in enumerate(found)]


def _message(message: Any, field: str) -> Mapping[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise InvalidRequest(field, "holds a message without role and content", "give both")
    content = message["content"]
    if isinstance(content, str):
        return message
    is_list = isinstance(content, Sequence)
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content] if is_list else [content]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(field, f"holds a message whose content is {content!r:.80}", "give text")
    return {**message, "content": "\n".join(map(str, texts))}


def _is_ids(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and bool(np.issubdtype(value.dtype, np.integer))
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and all(_is_id(token) for token in value)


def _is_id(token: Any) -> bool:
    return isinstance(token, int | np.integer) and not isinstance(token, bool)


def _ids(value: Any, field: str) -> list[int]:
    if not _is_ids(value):
        raise InvalidRequest(field, "is neither text nor a list of whole numbers", _FORMS)
    return [int(token) for token in value]
