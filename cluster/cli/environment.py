"""Variables of the environment that look like ours and are not: each is told in one line with the nearest that is.

Nothing ends over one: others may set variables that begin so (Kubernetes does, for a service that is named quire).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches

from cluster.lifecycle.cluster_settings import ENVIRONMENT, ClusterSettings

# Beside those of a cluster's settings: of clients and operators, of every command, and of deploy/setup.sh.
OTHERS = (
    "TOKEN", "TOKEN_FILE", "TLS_AUTHORITY", "CLIENT_CERTIFICATE", "CLIENT_KEY", "ADMIN_TOKEN", "ADMIN_TOKEN_FILE",
    "HOME", "DEBUG", "PYTHON", "VENV", "BIN", "ROOT",
)  # fmt: skip
LIKENESS = 0.8


def misspelt(names: Iterable[str]) -> Iterator[str]:
    """A line for each name that is nearly one of ours."""
    known = [*(one.name.upper() for one in fields(ClusterSettings)), *OTHERS]
    for name in names:
        given = name.removeprefix(ENVIRONMENT)
        if name.startswith(ENVIRONMENT) and given not in known:
            for near in get_close_matches(given.upper(), known, 1, LIKENESS):
                yield f"{name} is passed over; is {ENVIRONMENT}{near} meant?"
