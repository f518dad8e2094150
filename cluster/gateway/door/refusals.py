"""What the scheduler refuses, as errors of the tree, in the words of the client who asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.errors import (
    Aborted,
    AccessDenied,
    AlreadyExists,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    QueueFull,
    QuireError,
    Unavailable,
    WorkFailed,
)
from cluster.messages import Refused

FINAL = ("NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT")
"""Refusals behind which the scheduler says no more: it does not know the request, or another one under its name."""


def error_of(refused: Refused, shown_id: str) -> QuireError:
    """The scheduler's refusal as an error; `shown_id` is the request's id as the client knows it."""
    detail = refused.detail.replace(refused.request_id, shown_id) if refused.request_id else refused.detail
    code = refused.code
    if code == "INVALID_ARGUMENT":
        return InvalidRequest(refused.field or "request", detail)
    if code == "ALREADY_EXISTS":
        return AlreadyExists("request_id", detail, "give another id, or resume")
    if code == "RESOURCE_EXHAUSTED":
        return QueueFull(detail, refused.retry_after_s)
    if code == "UNAVAILABLE":
        return Unavailable(detail, refused.retry_after_s or None)
    kinds: Mapping[str, type[QuireError]] = {
        kind.grpc_status: kind for kind in (NotFound, DeadlineExceeded, Aborted, AccessDenied)
    }
    return kinds.get(code, WorkFailed)(detail)


def check_positions(positions: Sequence[int], sent: Sequence[int]) -> None:
    """`sent`: how many tokens of each sequence a client can have."""
    for at, (position, most) in enumerate(zip(positions, sent, strict=True)):
        if position > most:
            problem = f"is {position:,}, and {most:,} tokens can have come"
            raise InvalidRequest(f"resume.positions[{at}]", problem, "give how many tokens you have")
