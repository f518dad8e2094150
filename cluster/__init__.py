"""Decides: scheduler, gateway, client and command line; this file is the public surface of Quire.

The names below are loaded when they are first used, so that `import cluster` needs no torch, no ray and no grpc:
the base install is the client.
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS: dict[str, str] = {}

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'cluster' has no attribute '{name}'; it offers {', '.join(sorted(_EXPORTS))}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
