"""How the errors of `cluster/errors.py` look on the wire: a gRPC status with google.rpc details.

Every door that speaks gRPC asks `status_of`. The reason in ErrorInfo is the name of the error's class, its metadata the
figures by name, so that a client can raise the same error again (`cluster/client/errors.py`). Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from cluster.errors import Aborted, InvalidRequest, NeverFits, QueueFull, QuireError, Unavailable

DOMAIN = "quire"
DETAILS_KEY = "grpc-status-details-bin"
MAX_DETAIL_BYTES = 1_500
"""Details travel as metadata, of which a peer takes 8 KiB by default, and whatever is no plain ASCII as %XX."""

Metadata = tuple[tuple[str, bytes], ...]


def status_of(error: QuireError) -> status_pb2.Status:
    """The whole status: code, one line, details."""
    code: int = grpc.StatusCode[error.grpc_status].value[0]
    text = _short(str(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason(), domain=DOMAIN, metadata=_figures(error))
    details: list[Message] = [info]
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=_short(error.field), description=text)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, QueueFull):
        violation = error_details_pb2.QuotaFailure.Violation(subject="queue", description=text)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=code, message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def trailer_of(error: QuireError) -> tuple[grpc.StatusCode, str, Metadata]:
    """What `context.abort` takes."""
    status = status_of(error)
    return grpc.StatusCode[error.grpc_status], status.message, ((DETAILS_KEY, status.SerializeToString()),)


def without_frames(error: QuireError) -> QuireError:
    """The same, once it was caught for good. Its traceback names frames that hold the request, and the request holds
    the error: such rings pile up until Python's collector looks for them, and all streams wait while it does."""
    error.__traceback__ = None
    return error


def _figures(error: QuireError) -> Mapping[str, str]:
    names: tuple[str, ...] = ()
    if isinstance(error, NeverFits):
        names = ("field", "needed", "available", "unit", "remedy")
    elif isinstance(error, InvalidRequest):
        names = ("field", "problem", "remedy")
    elif isinstance(error, QueueFull | Unavailable):
        names = ("message", "retry_after_s")
    figures = {name: getattr(error, name) for name in names}
    return {name: _short(str(value)) for name, value in figures.items() if value is not None}


def _short(text: str) -> str:
    size = 0
    for at, letter in enumerate(text):
        size += 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode(errors="replace"))
        if size > MAX_DETAIL_BYTES:
            return f"{text[:at]}..."
    return text


def resumed_elsewhere() -> Aborted:
    return Aborted("the request was resumed on another connection")
