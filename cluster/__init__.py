"""Decides: scheduler, gateway, client and command line; this file is the public surface of Quire.

The names below are loaded when they are first used, so that `import cluster` needs no torch, no ray and no grpc:
the base install is the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it. `CLIENT` needs only the base install, `SERVING` needs quire[serve].
CLIENT: dict[str, str] = {
    "Client": "cluster.client_sync",
    "AsyncClient": "cluster.client",
    "Options": "cluster.client_request",
    "Tls": "cluster.client_connection",
    "SamplingParams": "cluster.sampling",
    "QuireError": "cluster.errors",
    "InvalidRequest": "cluster.errors",
    "NeverFits": "cluster.errors",
    "QueueFull": "cluster.errors",
    "Unavailable": "cluster.errors",
    "DeadlineExceeded": "cluster.errors",
    "Aborted": "cluster.errors",
    "NotFound": "cluster.errors",
    "AccessDenied": "cluster.errors",
    "ConfigError": "cluster.errors",
    "ModelError": "cluster.errors",
}
SERVING: dict[str, str] = {
    "LLM": "cluster.engine",
    "RequestOutput": "cluster.outputs",
    "CompletionOutput": "cluster.outputs",
    "StreamOutput": "cluster.outputs",
    "Logprob": "cluster.outputs",
}

if TYPE_CHECKING:
    from cluster.client import AsyncClient as AsyncClient
    from cluster.client_connection import Tls as Tls
    from cluster.client_request import Options as Options
    from cluster.client_sync import Client as Client
    from cluster.engine import LLM as LLM
    from cluster.errors import Aborted as Aborted
    from cluster.errors import AccessDenied as AccessDenied
    from cluster.errors import ConfigError as ConfigError
    from cluster.errors import DeadlineExceeded as DeadlineExceeded
    from cluster.errors import InvalidRequest as InvalidRequest
    from cluster.errors import ModelError as ModelError
    from cluster.errors import NeverFits as NeverFits
    from cluster.errors import NotFound as NotFound
    from cluster.errors import QueueFull as QueueFull
    from cluster.errors import QuireError as QuireError
    from cluster.errors import Unavailable as Unavailable
    from cluster.outputs import CompletionOutput as CompletionOutput
    from cluster.outputs import Logprob as Logprob
    from cluster.outputs import RequestOutput as RequestOutput
    from cluster.outputs import StreamOutput as StreamOutput
    from cluster.sampling import SamplingParams as SamplingParams


def __getattr__(name: str) -> object:
    module = CLIENT.get(name) or SERVING.get(name)
    if module is None:
        raise AttributeError(f"module 'cluster' has no attribute {name!r}; it offers {', '.join((*CLIENT, *SERVING))}")
    try:
        value = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if name in CLIENT or (error.name or "").split(".")[0] in ("cluster", "worker", "kernels", "protos"):
            raise
        why = f"cluster.{name} needs the serving side, and {error.name} is not installed: pip install 'quire[serve]'"
        raise ImportError(why) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *CLIENT, *SERVING})
