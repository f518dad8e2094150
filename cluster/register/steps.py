"""What an errand asks its surroundings to do, one step at a time, and what it is told then.

Whoever carries out a step answers with its outcome: a value that is named with the step, or the error that ended it
(`Refused`, `Lost`, or another `QuireError`). While it does, it asks `Errand.why_stop` now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cluster.messages import Transferred
from cluster.register.states import Blocks, Carrier, Range, Reservation, Sums, TransferKey, TransferName


@dataclass(frozen=True, slots=True)
class Ready:
    """Wait until steps issued before this order can no longer write its blocks. Outcome: None."""


@dataclass(frozen=True, slots=True)
class PauseCopy:
    seconds: float


@dataclass(frozen=True, slots=True)
class Meet:
    """Look the peer up, join it, and see which of `carriers` can be used. Outcome: Met; Lost where it cannot be reached
    (`Unknown`: nobody knows where)."""

    peer: str
    incarnation: int
    write: bool
    carriers: tuple[Carrier, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class PoolsMet:
    """`carriers` can be used between the two pools, those of the step, the best first; `session` is this process's
    leave to reach the peer's memory."""

    incarnation: int
    carriers: tuple[Carrier, ...]
    session: int = 0


@dataclass(frozen=True, slots=True)
class Covered:
    """What one reservation covers: `mine` and `theirs` block by block. Its name `here` and `there` names the same
    transfer in the two pools."""

    key: TransferKey
    here: TransferName
    there: TransferName
    write: bool  # from `mine` to `theirs`
    mine: Blocks
    theirs: Blocks
    carrier: Carrier


@dataclass(frozen=True, slots=True)
class Reserve:
    """Say it to the peer. Outcome: Reserved."""

    asked: Reservation
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Reserved:
    """`sums`: of the blocks that are read, as they came into the peer's pool; None where it sums them as they go."""

    token: bytes = b""
    sums: Sums | None = None


@dataclass(frozen=True, slots=True)
class MoveChunks:
    """Move these chunks. Outcome: once nothing of this process copies any more, Copied (chunks into this pool went
    through its register). Lost: what arrived counts, the rest is asked for again."""

    part: Covered
    chunks: list[Range]
    reserved: Reserved


@dataclass(frozen=True, slots=True)
class Copied:
    """Of a write through shared memory: what chunks from `first` on summed to as they were copied. They go with the
    commit, to whoever reads."""

    first: int = 0
    sums: Sums | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """All chunks are here: bring them into this pool and commit them there (`here`). Outcome: None."""

    part: Covered


@dataclass(frozen=True, slots=True)
class Commit:
    """Say it to the peer. Outcome: Committed."""

    name: TransferName
    copied: Copied
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Committed:
    """`missing`: these chunks are, and nothing was committed."""

    missing: list[Range]
    done: bool


@dataclass(frozen=True, slots=True)
class CallOff:
    """Say to the peer that nothing of this end writes any more. Outcome: True if it was heard, else False."""

    name: TransferName
    reason: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class AnswerScheduler:
    """For the scheduler. Outcome: None."""

    transferred: Transferred


Step: TypeAlias = Ready | PauseCopy | Meet | Reserve | MoveChunks | Finish | Commit | CallOff | AnswerScheduler
Outcome: TypeAlias = PoolsMet | Reserved | Copied | Committed | bool | Exception | None
