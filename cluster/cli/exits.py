"""What the exit codes of `quire` mean, and which error ends with which.

Scripts may rely on these numbers. The commands raise errors of `cluster.errors`; only `cluster.cli.main` exits.
"""

from __future__ import annotations

from cluster.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    NotFound,
    QueueFull,
    QuireError,
    Unavailable,
)

DONE = 0
FAILED = 1  # it ran, and something failed: a check, a request, or a mistake of ours
WRONG_INPUT = 2  # a command line, setting, file or model that cannot be used
NOBODY = 3  # no cluster to talk to, or none that can serve this now
DENIED = 4
INTERRUPTED = 130  # Ctrl-C, as shells count it

EPILOG = (
    "Exit codes: 0 done; 1 something failed; 2 wrong command line, setting or model; "
    "3 no cluster that can serve now; 4 access denied; 130 interrupted."
)


def code_of(error: QuireError) -> int:
    """The exit code that a command ends with when `error` reached the top."""
    if isinstance(error, AccessDenied):
        return DENIED
    if isinstance(error, Unavailable | QueueFull | DeadlineExceeded):
        return NOBODY
    if isinstance(error, ConfigError | InvalidRequest | ModelError | NotFound):
        return WRONG_INPUT
    return FAILED
