"""What a worker tells the gateways: tokens by sequence, made when they are taken and not per step.

A row only remembers how far its tokens were sent, so a consumer that comes rarely gets longer messages at the same
cost. Ended sequences leave their last message here before their row is given away.
"""

from __future__ import annotations

from cluster.messages import Logprobs, Reason, Tokens, ids
from worker.sampling.beam_search import Hypothesis
from worker.state import BatchState, Resident


class Outbox:
    """Tokens that gateways have not got yet."""

    def __init__(self, state: BatchState) -> None:
        self._state = state
        self._ended: dict[str, list[Tokens]] = {}

    def end(self, resident: Resident, reason: Reason, detail: str = "") -> None:
        """A sequence has ended: its last tokens, and why."""
        self._ended.setdefault(resident.gateway, []).extend(self._messages(resident, reason, detail))

    def end_group(self, resident: Resident, hypotheses: list[Hypothesis], reason: Reason, detail: str) -> None:
        """A beam group has ended: all its outputs at once, best first; none if it was dropped."""
        if reason is Reason.DROPPED:
            return
        if reason is Reason.FAILED:
            for index in range(resident.sampling.n):
                self.refuse(resident.gateway, resident.route, index, resident.attempt, detail)
            return
        prompt = tuple(resident.prompt_logprobs or ())
        self._ended.setdefault(resident.gateway, []).extend(
            Tokens(
                route=resident.route,
                index=index,
                attempt=resident.attempt,
                position=0,
                ids=hypothesis.ids,
                reason=hypothesis.reason,
                logprobs=hypothesis.logprobs,
                prompt_logprobs=prompt if index == 0 else (),
                score=hypothesis.score,
            )
            for index, hypothesis in enumerate(hypotheses)
        )

    def refuse(self, gateway: str, route: int, index: int, attempt: int, detail: str) -> None:
        """A sequence that could not be computed, and has no tokens."""
        self._ended.setdefault(gateway, []).append(Tokens(route, index, attempt, 0, ids(), Reason.FAILED, (), detail))

    def take(self) -> dict[str, list[Tokens]]:
        """All that is new, by gateway; per sequence in order of position."""
        taken, self._ended = self._ended, {}
        state = self._state
        for row in (state.known > state.sent).nonzero()[0].tolist():
            resident = state.residents[row]
            if resident is not None:
                taken.setdefault(resident.gateway, []).extend(self._messages(resident, Reason.NONE, ""))
        return taken

    def _messages(self, resident: Resident, reason: Reason, detail: str) -> list[Tokens]:
        state, row = self._state, resident.row
        first, known, num_prompt = int(state.sent[row]), int(state.known[row]), int(state.num_prompt[row])
        state.sent[row] = known
        logprobs: tuple[Logprobs, ...] = ()
        # They go with the first tokens: another gateway that takes the request up is told them again.
        prompt = tuple(resident.prompt_logprobs or ()) if known > num_prompt >= first else ()
        messages = []
        if resident.logprobs is not None:
            # Tokens that an earlier attempt wrote come without: only the worker that drew a token knows its logprobs.
            own = max(first, resident.first_logprob)
            if first < own:
                earlier = state.ids(row, first, own)
                messages.append(Tokens(resident.route, resident.index, resident.attempt, first - num_prompt, earlier))
            logprobs = tuple(resident.logprobs[own - resident.first_logprob : known - resident.first_logprob])
            first = own
        messages.append(
            Tokens(
                route=resident.route,
                index=resident.index,
                attempt=resident.attempt,
                position=first - num_prompt,
                ids=state.ids(row, first, known),
                reason=reason,
                logprobs=logprobs,
                detail=detail,
                prompt_logprobs=prompt,
            )
        )
        return messages
