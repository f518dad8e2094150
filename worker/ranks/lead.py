"""What rank 0 of a tensor-parallel replica tells the other ranks of each step: the batch, and tables that have changed.

The worker calls it between preparing a step and running it. Everything is on the host already and goes out in one
message, so that no rank waits for a device. Sampled tokens reach the others as the ids of the next step; where that is
issued before they are known here, they go from device to device (`share`), and the step says which of them go where.
"""

from __future__ import annotations

from worker.batch import Step, StepBuilder
from worker.ranks.team import STEP, Team
from worker.state import Int64
from worker.tables import TableChanges


class Lead:
    """Rank 0's side; `worker/ranks/member.py` is the other."""

    def __init__(self, team: Team, builder: StepBuilder, *, shares: bool) -> None:
        """`shares`: steps are issued before the tokens of the step before are known here."""
        self.shares = shares
        self._team = team
        self._builder = builder
        self._changes = TableChanges(builder.state.rows)
        self._num_shared = 0

    def step(self, step: Step, more_logits: Int64, padded: int = 0, num_shared: int = 0) -> None:
        """Everybody runs the step that was built last now, by the graph of so many rows if it is `padded`.
        `more_logits`: tokens whose logits are wanted beside; `num_shared`: how many tokens `share` will bring."""
        self._num_shared = num_shared if self.shares else 0
        words = (*self._changes.take(), more_logits, *self._builder.words(step))
        self._team.say(STEP, [padded, self._num_shared], *words)

    def share(self) -> None:
        """The tokens of the step that was said last, on their way from the builder's place to that of every rank."""
        if self._num_shared:
            self._team.share(self._builder.last[: self._num_shared])
