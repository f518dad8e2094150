"""What an operator asks about afterwards: preemptions, losses and failures, each with its reason, the latest few.

The scheduler writes a note when it decides such a thing, never per token or per block. Its host logs new notes and the
admin door shows the latest. Notes change no decision; they are bounded and not part of the scheduler's state.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

MAX_NOTES = 1_024


@dataclass(frozen=True, slots=True)
class Note:
    """`subject`: the request or replica that it happened to. `kind`: preempted, lost, failed, ..."""

    number: int
    at: float
    kind: str
    subject: str
    why: str


class Notes:
    """The latest notes, and preemptions counted by (way, cause)."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=MAX_NOTES)
        self.num_notes = 0
        self.preemptions: Counter[tuple[str, str]] = Counter()

    def add(self, at: float, kind: str, subject: str, why: str) -> None:
        self.num_notes += 1
        self._notes.append(Note(self.num_notes, at, kind, subject, why))

    def since(self, number: int) -> list[Note]:
        """Notes with a higher number, oldest first, as far as they are kept."""
        count = min(len(self._notes), self.num_notes - number)
        return [self._notes[at] for at in range(len(self._notes) - count, len(self._notes))]
