"""What a gateway tells a scheduler beside single requests: all that is under way, when it must; and what has ended.

The first is for a scheduler that knows nothing of this gateway, or no longer: pure functions from answers to events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from cluster.gateway.answer import Answer
from cluster.gateway.front import SchedulerLink
from cluster.messages import Adopt, Closed, GatewayState, OpenRequest
from cluster.wire.front import FrontEvent


def state_events(gateway: str, answers: Iterable[Answer]) -> list[FrontEvent]:
    """For a scheduler that knows nothing of this gateway: all that is under way, then what waits for an answer."""
    under_way = [answer for answer in answers if answer.ended is None]
    adopting = [answer for answer in under_way if answer.is_adopted and answer.accepted is None]
    requests = tuple(
        OpenRequest(answer.submit, answer.log.next_attempt, answer.log.outputs, answer.log.reasons, answer.turn)
        for answer in under_way
        if answer not in adopting
    )
    events: list[FrontEvent] = [GatewayState(gateway, requests)]
    for answer in under_way:
        if answer.is_cancelled or answer.failure is not None:
            # A state cannot say that a client has gone.
            events.append(answer.given_up())
        elif answer in adopting:
            events.append(Adopt(answer.submit))
        elif answer.num_claims:
            answer.num_claims = 1
            events.append(answer.claim())
    return events


CLOSE_AFTER_S = 1.0


class Closing:
    """Requests that have ended, until the scheduler is told that it may forget them.

    That is a little later than here: what was written last may die with this process on its way to the client, who then
    asks another gateway for it.
    """

    def __init__(self, link: SchedulerLink) -> None:
        self._link = link
        self._waiting: list[Closed] = []

    def add(self, closed: Closed) -> None:
        self._waiting.append(closed)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(CLOSE_AFTER_S, self._tell)

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for closed in waiting:
            self._link.send(closed)
