"""Whether a client that comes back asks for the request that it began, and whether that can go on: doors and the
scheduler compare by these rules.

What a client may change is how long it waits. Prompt, model, sampling and priority are those of the request under way.
"""

from __future__ import annotations

from dataclasses import fields

from cluster.messages.events import Submit
from cluster.messages.values import Ids
from cluster.sampling import SamplingParams

REPLACED = "was replaced by another of this name"
_SAMPLING = tuple(field.name for field in fields(SamplingParams))


def difference(asked: Submit, model: str, prompt: Ids, sampling: SamplingParams, priority: int) -> tuple[str, str]:
    """The first field in which a resume differs from the request under way, and what is wrong with it; ("", ""): none.

    An empty `model` is not known yet.
    """
    if model and asked.model != model:
        return "model", f"is {asked.model!r}, and the request was asked of {model!r}"
    if asked.prompt != prompt:
        return "prompt", f"has other tokens ({len(asked.prompt):,}) than the request under way ({len(prompt):,})"
    if asked.sampling != sampling:
        for name in _SAMPLING:
            mine, known = getattr(asked.sampling, name), getattr(sampling, name)
            if mine != known:
                return f"sampling.{name}", f"is {_short(mine)}, and the request was asked with {_short(known)}"
    if asked.priority != priority:
        return "priority", f"is {asked.priority}, and the request was asked with {priority}"
    return "", ""


def why_replaced(model: str, before: bytes, now: bytes) -> str:
    """Weights of another digest can't go on with what these had begun."""
    digests = f"digest {before.hex()} before and {now.hex()} now"
    return f"model {model} {REPLACED} before the end ({digests}); ask again"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
