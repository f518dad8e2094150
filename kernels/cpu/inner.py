"""Compiled Python that only other compiled Python calls.

The draw is made of two dozen such functions. Without the wrappers with which the interpreter could call them a first
start, which compiles them all, is shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def inner(function: Callable[..., Any] | None = None, *, fastmath: bool | set[str] = False) -> Any:
    """Compiles a function for its callers; the machine code goes to theirs and is cached with it."""
    if function is None:
        return lambda given: inner(given, fastmath=fastmath)
    return njit(
        error_model="numpy", nogil=True, cache=True, fastmath=fastmath, no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
