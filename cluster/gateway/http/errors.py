"""How the errors of `cluster/errors.py` look over HTTP: a status, OpenAI's shape, and when to come back."""

from __future__ import annotations

import math
from typing import Any

from cluster.errors import (
    Aborted,
    AccessDenied,
    AlreadyExists,
    DeadlineExceeded,
    InvalidRequest,
    NeverFits,
    NotAuthenticated,
    NotFound,
    QueueFull,
    QuireError,
    Unavailable,
)

# The first that fits counts.
_STATUS: tuple[tuple[type[QuireError], int, str], ...] = (
    (AlreadyExists, 409, "invalid_request_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    (QueueFull, 429, "rate_limit_error"),
    (Unavailable, 503, "service_unavailable_error"),
    (DeadlineExceeded, 408, "timeout_error"),
    (NotAuthenticated, 401, "authentication_error"),
    (AccessDenied, 403, "permission_error"),
    (NotFound, 404, "not_found_error"),
    (Aborted, 409, "aborted_error"),
)


def status_of(error: QuireError) -> int:
    return next((status for kind, status, _ in _STATUS if isinstance(error, kind)), 500)


def body_of(error: QuireError) -> dict[str, Any]:
    kind = next((name for of, _, name in _STATUS if isinstance(error, of)), "server_error")
    param = error.field.removeprefix("sampling.") if isinstance(error, InvalidRequest) else None
    code = (
        "context_length_exceeded" if isinstance(error, NeverFits) and error.unit == "tokens" else error.reason().lower()
    )
    # Names of fields are the client's own, and may hold half of a surrogate pair.
    message = str(error)[:2_000].encode(errors="replace").decode()
    param = param and param.encode(errors="replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def headers_of(error: QuireError) -> dict[str, str]:
    headers = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers
