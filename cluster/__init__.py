"""Decides: scheduler, gateway, client and command line; this file is the public surface of Quire.

The names below are loaded when they are first used, so that `import cluster` needs no torch, no ray and no grpc:
the base install is the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it. `CLIENT` needs only the base install, `SERVING` needs quire[serve].
CLIENT: dict[str, str] = {
    "Client": "cluster.client.blocking",
    "AsyncClient": "cluster.client.asynchronous",
    "Options": "cluster.client.request",
    "Tls": "cluster.client.connection",
    "SamplingParams": "cluster.sampling",
    "StructuredOutputsParams": "cluster.structure",
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
    "LLM": "cluster.offline.engine",
    "RequestOutput": "cluster.offline.outputs",
    "CompletionOutput": "cluster.offline.outputs",
    "StreamOutput": "cluster.offline.outputs",
    "Logprob": "cluster.offline.outputs",
}

if TYPE_CHECKING:
    from cluster.client.asynchronous import AsyncClient as AsyncClient
    from cluster.client.blocking import Client as Client
    from cluster.client.connection import Tls as Tls
    from cluster.client.request import Options as Options
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
    from cluster.offline.engine import LLM as LLM
    from cluster.offline.outputs import CompletionOutput as CompletionOutput
    from cluster.offline.outputs import Logprob as Logprob
    from cluster.offline.outputs import RequestOutput as RequestOutput
    from cluster.offline.outputs import StreamOutput as StreamOutput
    from cluster.sampling import SamplingParams as SamplingParams
    from cluster.structure import StructuredOutputsParams as StructuredOutputsParams


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
