"""What left this desk last, with all that was known of it: remembered for a new scheduler, and bounded.

A gateway and the scheduler may die at once, while the tokens of a sequence that has just ended, or waits to start
again, are on their way to its client. Then nobody but its worker knows them.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.desk.rows import RowResident
from cluster.messages import Departed, Ids, Reason, ids

MAX_SEQUENCES, MAX_TOKENS = 64, 1 << 16
"""The newest are kept, so many of them, and so many tokens in all, prompts included."""


class Departures:
    """One desk's memory of who has left."""

    def __init__(self) -> None:
        # Of each sequence of a request the last attempt, oldest first.
        self._kept: dict[tuple[str, int], Departed] = {}
        self._num_tokens = 0

    def note(self, resident: RowResident, reason: Reason, tokens: Ids) -> None:
        """An attempt leaves. One that failed is not gone on with, and one that has written nothing begins anew."""
        start, num_prompt = resident.start, resident.start.num_prompt
        if start.sampling.width:
            # Of beams nothing is told before their end, and who may have read them then has them searched for again.
            tokens = tokens[:num_prompt]
        is_ended = reason in (Reason.STOP, Reason.LENGTH)
        if reason is Reason.FAILED or not (is_ended or len(tokens) > num_prompt):
            return
        key = start.request_id, resident.index
        self._forget(key)
        told = replace(
            start,
            gateway=resident.gateway,
            route=resident.route,
            tokens=tokens,
            position=0,
            table=ids(),
            lease_end=0,
            forks=(),
            beams=None,
        )
        self._kept[key] = Departed(resident.seq, resident.index, told, reason)
        self._num_tokens += len(tokens)
        while len(self._kept) > MAX_SEQUENCES or (self._num_tokens > MAX_TOKENS and len(self._kept) > 1):
            self._forget(next(iter(self._kept)))

    def _forget(self, key: tuple[str, int]) -> None:
        known = self._kept.pop(key, None)
        if known is not None:
            self._num_tokens -= len(known.start.tokens)

    def told(self) -> tuple[Departed, ...]:
        return tuple(self._kept.values())
