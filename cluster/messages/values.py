"""What every message is made of: flat arrays of ids, the numbers of attempts, and why a sequence ended."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from enum import IntEnum
from typing import TypeAlias

Ids: TypeAlias = "array[int]"
"""Token ids or block ids: array('i'), one C int each; bytes on the wire."""

EPOCH_BITS = 40
"""A seq is `epoch << EPOCH_BITS | number`: a scheduler that takes over never gives a number that was given before."""

ATTEMPT_BITS = 16
"""What a scheduler restarts for want of news it numbers from `(epoch - 1) << ATTEMPT_BITS` on: behind every attempt
that one before it may have ordered without anybody hearing of it."""


def ids(values: Iterable[int] = ()) -> Ids:
    return array("i", values)


def no_ids() -> Ids:
    return array("i")


def no_seqs() -> array[int]:
    return array("q")


class Reason(IntEnum):
    """Why a sequence ended on a worker."""

    NONE = 0
    STOP = 1  # an end token or a stop id
    LENGTH = 2  # max_tokens reached
    DROPPED = 3  # the scheduler said so; it goes on elsewhere, or nobody wants it any more
    FAILED = 4  # the worker could not compute it; `detail` says why
