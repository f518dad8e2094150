"""The errors that Quire raises for what the world does wrong, as one small tree.

    QuireError
    |- InvalidRequest          a request that no retry can help: the field, what is wrong, what to change
    |  |- NeverFits            it could never run here, however long it waited: needed against available
    |  |- Unsupported          it asks for something that Quire does not do
    |  `- AlreadyExists        a request of that id is under way
    |- QueueFull               the bounded queue is full: try again after `retry_after_s`
    |- Unavailable             nobody can serve now (no worker, draining, scheduler away): try again
    |- DeadlineExceeded        the request's own deadline passed
    |- Aborted                 the client, an operator or a broken connection ended the request
    |- NotFound                no such request, model, worker or transfer
    |- AccessDenied            a token without this right
    |  `- NotAuthenticated     no token, or a wrong one
    |- WorkFailed              a worker could not compute the request, through no fault of the client
    |- ConfigError             a setting or a command line that cannot be obeyed
    |- ModelError              a model folder that cannot be loaded or run
    |- TransferError           blocks that did not arrive whole; the source is kept
    `- ProtocolError           a message that breaks the rules: stale epoch, gap, unknown id

Every door (embedded engine, gateway, command line) turns these into its own form and invents no others. Each class
knows its gRPC status by name, so that this file needs no grpc. Mistakes of our own are assertions, not errors here.
"""

from __future__ import annotations

import re
from typing import ClassVar


class QuireError(Exception):
    """Root of the tree. `str(error)` is one clear line: what was wrong, the figure, what to change."""

    grpc_status: ClassVar[str] = "INTERNAL"

    @classmethod
    def reason(cls) -> str:
        """The name of the error on the wire: NeverFits is NEVER_FITS."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


class InvalidRequest(QuireError, ValueError):
    """A request that is wrong in itself.

    `field` is the path of the setting as the client wrote it ("sampling.top_p"), `problem` says what is wrong with the
    figure in it, `remedy` what to change.
    """

    grpc_status = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        # All arguments go to Exception, so that the error survives pickling between processes.
        super().__init__(field, problem, remedy)
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


class NeverFits(InvalidRequest):
    """A request that needs more (of `unit`: tokens, blocks, bytes) than this place can ever have."""

    def __init__(self, field: str, needed: int, available: int, unit: str, remedy: str) -> None:
        problem = f"needs {needed:,} {unit}, and there are never more than {available:,}"
        super().__init__(field, problem, remedy)
        self.needed = needed
        self.available = available
        self.unit = unit

    def __reduce__(self) -> tuple[type[NeverFits], tuple[str, int, int, str, str]]:
        return type(self), (self.field, self.needed, self.available, self.unit, self.remedy)


class Unsupported(InvalidRequest):
    """A request for something that Quire does not do, by the name of the field that asks for it."""

    grpc_status = "UNIMPLEMENTED"


class AlreadyExists(InvalidRequest):
    """The tenant has a request of this id under way."""

    grpc_status = "ALREADY_EXISTS"


class QueueFull(QuireError):
    """The waiting queue is at its bound. `retry_after_s` is an estimate of when a place will be free."""

    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message}; try again in {self.retry_after_s:.1f} s"


class Unavailable(QuireError):
    """Nobody can serve this now, though the request is good. `retry_after_s` is None where no one can tell."""

    grpc_status = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return (
            self.message if self.retry_after_s is None else f"{self.message}; try again in {self.retry_after_s:.1f} s"
        )


class DeadlineExceeded(QuireError):
    """The deadline that the request came with has passed."""

    grpc_status = "DEADLINE_EXCEEDED"


class Aborted(QuireError):
    """The request was ended before it finished: by its client, by an operator, or with its connection."""

    grpc_status = "CANCELLED"


class NotFound(QuireError):
    """No request, model, worker or transfer of that name here."""

    grpc_status = "NOT_FOUND"


class AccessDenied(QuireError):
    """The caller may not do this."""

    grpc_status = "PERMISSION_DENIED"


class NotAuthenticated(AccessDenied):
    """The caller showed no token, or one that is not known."""

    grpc_status = "UNAUTHENTICATED"


class WorkFailed(QuireError):
    """A worker could not compute the request; its own words say why."""

    grpc_status = "INTERNAL"


class ConfigError(QuireError, ValueError):
    """A setting that cannot be obeyed; the line names the setting, its figure and one that would do."""

    grpc_status = "FAILED_PRECONDITION"


class ModelError(QuireError):
    """A model that cannot be loaded or run: files missing or broken, shapes that disagree, unknown architecture."""

    grpc_status = "FAILED_PRECONDITION"


def unreadable(what: object, error: Exception, remedy: str = "", kind: type[QuireError] = ConfigError) -> QuireError:
    """A file of a user's that does not open or does not parse, in one line."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return kind(f"{what} cannot be read: {why}{'; ' if remedy else ''}{remedy}")


class TransferError(QuireError):
    """A transfer that did not commit. Its source blocks are whole; recompute is always possible."""

    grpc_status = "ABORTED"


class ProtocolError(QuireError):
    """A message between our own processes that breaks the rules, such as a stale epoch or a gap in the numbers."""

    grpc_status = "FAILED_PRECONDITION"
