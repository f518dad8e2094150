"""What the gateways are told: tokens by sequence, made when they are taken and not per step.

A row only remembers how far its tokens were sent, so a consumer that comes rarely gets longer messages at the same
cost. Ended sequences leave their last message here before their row is given away.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.desk.rows import RowResident, Rows
from cluster.desk.words import Hypothesis
from cluster.messages import Logprobs, Reason, Start, Tokens, ids


class Outbox:
    """Tokens that gateways have not got yet."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._ended: dict[str, list[Tokens]] = {}

    def end(self, resident: RowResident, reason: Reason, detail: str = "") -> None:
        """A sequence has ended: its last tokens, and why."""
        self._ended.setdefault(resident.gateway, []).extend(self._messages(resident, reason, detail))

    def end_group(self, resident: RowResident, reason: Reason, detail: str, outputs: Sequence[Hypothesis]) -> None:
        """A beam group has ended: all its outputs at once, best first; none if it was dropped."""
        if reason is Reason.DROPPED:
            return
        if reason is Reason.FAILED:
            for index in range(resident.sampling.n):
                self._refuse(resident.gateway, resident.route, index, resident.attempt, detail)
            return
        prompt = tuple(resident.prompt_logprobs or ())
        self._ended.setdefault(resident.gateway, []).extend(
            Tokens(
                route=resident.route,
                index=index,
                attempt=resident.attempt,
                position=0,
                ids=output.ids,
                reason=output.reason,
                logprobs=output.logprobs,
                prompt_logprobs=prompt if index == 0 else (),
                score=output.score,
            )
            for index, output in enumerate(outputs)
        )

    def refuse(self, start: Start, detail: str) -> None:
        """Nothing of this Start can be computed, and none of its sequences has tokens."""
        indexes = [start.index, *(fork.index for fork in start.forks)]
        for index in indexes if start.beams is None else range(start.sampling.n):
            self._refuse(start.gateway, start.route, index, start.attempt, detail)

    def _refuse(self, gateway: str, route: int, index: int, attempt: int, detail: str) -> None:
        self._ended.setdefault(gateway, []).append(Tokens(route, index, attempt, 0, ids(), Reason.FAILED, (), detail))

    def take(self) -> dict[str, list[Tokens]]:
        """All that is new, by gateway; per sequence in order of position."""
        taken, self._ended = self._ended, {}
        rows = self._rows
        for row in (rows.known > rows.sent).nonzero()[0].tolist():
            resident = rows.residents[row]
            if resident is not None:
                taken.setdefault(resident.gateway, []).extend(self._messages(resident, Reason.NONE, ""))
        return taken

    def _messages(self, resident: RowResident, reason: Reason, detail: str) -> list[Tokens]:
        rows, row = self._rows, resident.row
        first, known, num_prompt = int(rows.sent[row]), int(rows.known[row]), int(rows.num_prompt[row])
        rows.sent[row] = known
        logprobs: tuple[Logprobs, ...] = ()
        # They go with the first tokens: another gateway that takes the request up is told them again.
        prompt = tuple(resident.prompt_logprobs or ()) if known > num_prompt >= first else ()
        messages = []
        if resident.logprobs is not None:
            # Tokens that an earlier attempt wrote come without: only the worker that drew a token knows its logprobs.
            own = max(first, resident.first_logprob)
            if first < own:
                earlier = rows.ids(row, first, own)
                messages.append(Tokens(resident.route, resident.index, resident.attempt, first - num_prompt, earlier))
            logprobs = tuple(resident.logprobs[own - resident.first_logprob : known - resident.first_logprob])
            first = own
        messages.append(
            Tokens(
                route=resident.route,
                index=resident.index,
                attempt=resident.attempt,
                position=first - num_prompt,
                ids=rows.ids(row, first, known),
                reason=reason,
                logprobs=logprobs,
                detail=detail,
                prompt_logprobs=prompt,
            )
        )
        return messages
