"""What a desk and the device beside it say to each other: orders, flights, and what the device drew.

A device is whatever holds the bytes: a model with its sampler and pool, or the made-up blocks of the simulator. It does
orders in the order in which they come and before the next launch. Nothing here is for the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cluster.desk.batcher import Batch
from cluster.messages import Copy, Ids, Logprobs, Reason, Transfer

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DeskSettings:
    """What a desk must know beyond what its replica says of itself when it joins."""

    token_budget: int
    vocab_size: int
    hash_key: bytes = b""
    names_blocks: bool = True  # prefix caching


# -- orders to the device


@dataclass(frozen=True, slots=True)
class Enter:
    """A sequence has moved into this batch row; who it is says `Rows.at`."""

    row: int


@dataclass(frozen=True, slots=True)
class EnterGroup:
    """A beam group has moved in. The device begins its search; where the Start brings one, it loads that and answers
    with `Desk.resumed`, or with `Desk.fail` where it can't."""

    row: int  # of its leader


@dataclass(frozen=True, slots=True)
class Leave:
    """These rows are empty: no step that could touch their blocks is under way."""

    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HandOverBeams:
    """A beam group is dropped behind its prompt: the device answers with `Desk.handed_over` and its search."""

    row: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Overwrite these blocks: their tenant asked for it."""

    blocks: Ids


@dataclass(frozen=True, slots=True)
class Copies:
    """Copy the first slots of blocks, all in one call; a device may copy whole blocks instead."""

    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """The slots of these blocks hold nothing of worth, in the first of them from slot `first` on."""

    blocks: Sequence[int]
    first: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """Give this transfer up."""

    transfer: int


DeviceOrder: TypeAlias = Enter | EnterGroup | Leave | HandOverBeams | Clear | Copies | Forget | Transfer | Abort


# -- steps


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched and is not retired yet, or a run of steps."""

    batch: Batch
    sampled: Int32  # rows that get a token, those of beams included, as they stand in the batch
    rows: Int32  # the same without beams
    num_steps: int
    woken: tuple[int, ...] = ()  # forks that go on behind it: it writes the last of their prompt


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A complete output of a beam search. `score`: its total divided by its length to the length penalty's power."""

    ids: Ids
    score: float
    reason: Reason
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupStep:
    """What a group's search made of a step. By slot: whose table goes on there, and with which token. A parent that
    lives on keeps its own slot. With a `reason` the search is over, and `outputs` are its hypotheses, best first."""

    row: int  # of its leader
    parents: Int64
    tokens: Int64
    reason: Reason = Reason.NONE
    detail: str = ""
    outputs: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the device drew in a flight, for each of `Flight.rows`; and what the searches of its beam groups chose."""

    ids: Int64  # of the last step
    broken: Bools  # logits that were no numbers: the token means nothing
    earlier: Int64  # of the steps before it, [steps - 1, rows]
    logprobs: Sequence[tuple[int, Logprobs]] = ()  # by row, of those that asked for them
    prompt_logprobs: Sequence[tuple[int, list[Logprobs]]] = ()  # by row, of prompt tokens that this flight judged
    groups: Sequence[GroupStep] = field(default=())

    @classmethod
    def of(cls, ids: Int64, groups: Sequence[GroupStep] = ()) -> Drawn:
        """Tokens alone, [steps, rows]."""
        return cls(ids[-1], np.zeros(ids.shape[1], np.bool_), ids[:-1], groups=groups)


NO_IDS: Int64 = np.zeros(0, np.int64)
# Why a sequence fails whose logits can't be compared.
NOT_NUMBERS = "the model's logits are not numbers; try another dtype"
NO_TOKEN_OF_STRUCTURE = (
    "no token could be drawn: the structure of the answer takes too much work behind what was said, or the model's "
    "logits are not numbers; make the structure simpler"
)
