"""Whose a request is: which gateway's client it is told to, and how that changes.

The last word of a client decides. A resume through a gateway that holds nothing (Adopt), or through one that still
holds an answer (Claim), makes that gateway the owner; the one before hands over what it has (HandOver) and forgets.
Every change has a number, the turn, so that of two gateways that a new scheduler hears the later owner is believed.
What was sent is known to whoever owned the request and has not handed over: a seal waits for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.centre.sequences import Request, State
from cluster.messages import Accepted, Adopt, Claim, HandOver, Refused, Reroute, Submit
from cluster.messages.resume import difference

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler

TURN_BITS = 20
"""Turns of an epoch begin at `epoch << TURN_BITS`: behind all that schedulers before it may have given."""

MAX_KEPT = 10_000
"""Resumes that wait for a scheduler that does not know all requests yet."""


class Adoption:
    """Clients that come back, and the owners of requests."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # Resumes of requests that nobody has told this scheduler of yet, by (gateway, route), and until when they wait.
        self._kept: dict[tuple[str, int], tuple[float, Adopt]] = {}

    @property
    def next_deadline(self) -> float | None:
        """When the first resume has waited for too long."""
        return min((until for until, _ in self._kept.values()), default=None)

    def on_adopt(self, adopt: Adopt) -> None:
        """A client came back through another gateway: tokens go there from now on."""
        scheduler, submit = self._scheduler, adopt.submit
        if self._take(submit):
            return
        wait_s = scheduler.rebuild.time_to_hear_s
        if wait_s <= 0:
            self._refuse_unknown(submit)
        elif len(self._kept) < MAX_KEPT:
            self._kept[submit.gateway, submit.route] = (scheduler.now + wait_s, adopt)
        else:
            scheduler.refuse(submit, "UNAVAILABLE", f"{MAX_KEPT:,} resumes wait for a scheduler that is new", 1.0)

    def turn(self) -> None:
        """Called in every turn, behind its events: what waits may be known by now, or have waited for too long."""
        for place, (until, adopt) in list(self._kept.items()):
            if self._take(adopt.submit):
                del self._kept[place]
            elif until <= self._scheduler.now:
                del self._kept[place]
                self._refuse_unknown(adopt.submit)

    def give_up(self, gateway: str, route: int | None = None) -> None:
        """Nobody waits for this resume any more, or for any of this gateway."""
        for place in [place for place in self._kept if place[0] == gateway and route in (None, place[1])]:
            del self._kept[place]

    def _refuse_unknown(self, submit: Submit) -> None:
        detail = f"no request {submit.request_id} of this tenant is under way"
        self._scheduler.tell(Refused(submit.gateway, submit.route, submit.request_id, "NOT_FOUND", detail))

    def _take(self, submit: Submit) -> bool:
        """False: no such request is known."""
        scheduler = self._scheduler
        request = scheduler.requests.get(submit.request_id) or scheduler.unclosed.get(submit.request_id)
        if request is None or request.sampling is None or request.tenant.name not in ("", submit.tenant):
            return False
        field, problem = difference(submit, request.model, request.prompt, request.sampling, request.priority)
        if field:
            scheduler.counters["refused resumes"] += 1
            where = submit.gateway, submit.route, submit.request_id
            scheduler.tell(Refused(*where, "INVALID_ARGUMENT", problem, 0.0, field))
            return True
        scheduler.rebuild.told(request, submit)
        self.own(request, submit.gateway, submit.route)
        self.tell_all(request)
        return True

    def on_claim(self, claim: Claim) -> None:
        """A client came back to a gateway that holds its request. It may have been elsewhere, and that one is told."""
        scheduler = self._scheduler
        request = scheduler.requests.get(claim.request_id) or scheduler.unclosed.get(claim.request_id)
        if request is None or request.sampling is None:
            # It ended and was closed, or a state that is on its way will tell of it.
            scheduler.tell(Refused(claim.gateway, claim.route, claim.request_id, "NOT_FOUND", "it is not known"))
        elif (request.gateway, request.route) == (claim.gateway, claim.route):
            scheduler.tell(Accepted(claim.gateway, claim.route, claim.request_id, 0, "", request.turn))
        else:
            self.own(request, claim.gateway, claim.route)
            self.tell_all(request)

    def own(self, request: Request, gateway: str, route: int, turn: int = 0) -> None:
        """This gateway is told of the request from now on, in a new turn unless it was told which one it has."""
        before, after = (request.gateway, request.route), (gateway, route)
        if before != after:
            # One that is known to be dead has nothing to hand over.
            if request.orphaned_until is None:
                self._scheduler.tell(HandOver(*before, request.request_id))
                if before not in request.witnesses:
                    request.witnesses.append(before)
            if after in request.witnesses:
                request.witnesses.remove(after)
            request.gateway, request.route = after
        request.turn = turn or max(request.turn + 1, self._scheduler.epoch << TURN_BITS)
        request.orphaned_until = None
        request.is_adopted = True

    def tell_all(self, request: Request) -> None:
        """Its owner, which may have nothing of it, is told all that came of it."""
        scheduler = self._scheduler
        if request.refusal is not None:
            code, detail = request.refusal
            scheduler.tell(Refused(request.gateway, request.route, request.request_id, code, detail))
            if request.state is State.ENDED:
                scheduler.tell_done(request)
            return
        accepted = Accepted(request.gateway, request.route, request.request_id, 0, "resumed", request.turn)
        scheduler.tell(accepted)
        for sequence in request.sequences:
            if sequence.seq and request.replica is not None:
                request.replica.write().reroutes.append(Reroute(sequence.seq, request.gateway, request.route))
            elif sequence.outputs or sequence.is_ended:
                scheduler.recovery.replay(request, sequence)
        if request.state is State.ENDED:
            # Its first gateway may have died before it could pass this on.
            scheduler.tell_done(request)
