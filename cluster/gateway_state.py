"""What a gateway says to a scheduler that knows nothing of it, or no longer: pure functions from answers to events."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.gateway_answer import Answer
from cluster.messages import Adopt, Cancel, GatewayState, OpenRequest, StopAt, Submit
from cluster.wire_front import FrontEvent


def adopt(submit: Submit) -> Adopt:
    return Adopt(submit.request_id, submit.tenant, submit.gateway, submit.route)


def state_events(gateway: str, answers: Iterable[Answer]) -> list[FrontEvent]:
    """For a new scheduler: all that is under way, then what was asked of the old one and not answered."""
    under_way = [answer for answer in answers if answer.ended is None]
    adopting = [answer for answer in under_way if answer.is_adopted and answer.accepted is None]
    requests = tuple(
        OpenRequest(answer.submit, answer.log.attempt, answer.log.outputs, answer.log.reasons)
        for answer in under_way
        if answer not in adopting
    )
    events: list[FrontEvent] = [GatewayState(gateway, requests)]
    for answer in under_way:
        if answer.is_cancelled or answer.failure is not None:
            # A state cannot say that a client has gone.
            events.append(Cancel(answer.request_id))
        elif answer in adopting:
            events.append(adopt(answer.submit))
    return events


def ask_again_events(answers: Iterable[Answer]) -> list[FrontEvent]:
    """For a scheduler that had given this gateway up: each request is taken up again, or ended."""
    events: list[FrontEvent] = []
    for answer in answers:
        if answer.ended is not None:
            continue
        if answer.is_cancelled or answer.failure is not None:
            events.append(Cancel(answer.request_id))
            continue
        answer.is_asked_again = True
        events.append(adopt(answer.submit))
        for sequence in answer.log.sequences:
            if sequence.stop_string is not None:
                events.append(StopAt(answer.request_id, sequence.index, len(sequence.ids)))
    return events
