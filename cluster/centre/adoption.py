"""Whose a request is: which gateway's client it is told to, and how that changes.

The last word of a client decides. A resume through a gateway that holds nothing (Adopt), or through one that still
holds an answer (Claim), makes that gateway the owner; the one before hands over what it has (HandOver) and forgets. A
client that names its request and says nothing else of it is looked up first (Find): its gateway then adopts it whole.
Every change has a number, the turn, so that of two gateways that a new scheduler hears the later owner is believed.
What was sent is known to whoever owned the request and has not handed over: a seal waits for all of them.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.confirming import Confirming
from cluster.centre.endings import Endings
from cluster.centre.nouns import Request, State
from cluster.centre.recall import Recall
from cluster.centre.sealing import Sealing
from cluster.messages import Accepted, Adopt, Claim, Find, Found, HandOver, Refused, Reroute, Submit
from cluster.messages.resume import difference

TURN_BITS = 20
"""Turns of an epoch begin at `epoch << TURN_BITS`: behind all that schedulers before it may have given."""

MAX_KEPT = 10_000
"""Resumes that wait for a scheduler that does not know all requests yet."""


class Adoption:
    """Clients that come back, and the owners of requests."""

    def __init__(
        self, books: Books, endings: Endings, sealing: Sealing, confirming: Confirming, recall: Recall
    ) -> None:
        self._books = books
        self._endings = endings
        self._sealing = sealing
        self._confirming = confirming
        self._recall = recall
        # Resumes of requests that nobody has told this scheduler of yet, by (gateway, route), and until when they wait.
        self._kept: dict[tuple[str, int], tuple[float, Submit | Find]] = {}

    @property
    def next_deadline(self) -> float | None:
        """When the first resume has waited for too long."""
        return min((until for until, _ in self._kept.values()), default=None)

    def on_adopt(self, adopt: Adopt) -> None:
        """A client came back through another gateway: tokens go there from now on."""
        self._take_or_keep(adopt.submit)

    def on_find(self, find: Find) -> None:
        """A client will come back through this gateway, which must know what it asked."""
        self._take_or_keep(find)

    def _take_or_keep(self, asked: Submit | Find) -> None:
        books = self._books
        if self._take(asked):
            return
        wait_s = books.hearing.rest_s(books.now)
        if wait_s <= 0:
            self._refuse_unknown(asked)
        elif len(self._kept) < MAX_KEPT:
            self._kept[asked.gateway, asked.route] = (books.now + wait_s, asked)
        else:
            books.refuse(asked, "UNAVAILABLE", f"{MAX_KEPT:,} resumes wait for a scheduler that is new", 1.0)

    def turn(self) -> None:
        """Called in every turn, behind its events: what waits may be known by now, or have waited for too long."""
        for place, (until, asked) in list(self._kept.items()):
            if self._take(asked):
                del self._kept[place]
            elif until <= self._books.now:
                del self._kept[place]
                self._refuse_unknown(asked)

    def give_up(self, gateway: str, route: int | None = None) -> None:
        """Nobody waits for this resume any more, or for any of this gateway."""
        for place in [place for place in self._kept if place[0] == gateway and route in (None, place[1])]:
            del self._kept[place]

    def _refuse_unknown(self, asked: Submit | Find) -> None:
        books = self._books
        if books.hearing.may_hear(books.now) and books.find(asked.request_id) is None:
            # Its gateway may be late: the client tries again. To be told that it is not known ends it for good.
            detail = f"no gateway has told this scheduler, which is new, of a request {asked.request_id} yet"
            books.refuse(asked, "UNAVAILABLE", detail, 1.0)
            return
        detail = f"no request {asked.request_id} of this tenant is under way"
        books.tell(Refused(asked.gateway, asked.route, asked.request_id, "NOT_FOUND", detail))

    def _take(self, asked: Submit | Find) -> bool:
        """False: no such request is known."""
        request = self._books.find(asked.request_id)
        if request is None:
            whole = None if isinstance(asked, Find) else asked
            request = self._recall.recall(whole, asked.request_id)
        if request is None or request.sampling is None:
            return False
        return self._show(request, asked) if isinstance(asked, Find) else self._adopt(request, asked)

    def _show(self, request: Request, find: Find) -> bool:
        books = self._books
        if not request.is_confirmed:
            # What its client asked beside prompt and sampling no gateway has told.
            return False
        rest_s = 0.0 if request.deadline is None else max(request.deadline - books.now, 0.001)
        books.tell(Found(find.gateway, find.route, request.as_asked(), rest_s))
        return True

    def _adopt(self, request: Request, submit: Submit) -> bool:
        books = self._books
        if request.tenant.name not in ("", submit.tenant):
            return False
        assert request.sampling is not None
        field, problem = difference(submit, request.model, request.prompt, request.sampling, request.priority)
        if field:
            books.counters["refused resumes"] += 1
            where = submit.gateway, submit.route, submit.request_id
            books.tell(Refused(*where, "INVALID_ARGUMENT", problem, 0.0, field))
            return True
        self._confirming.told(request, submit)
        self._sealing.tell_weights(request, submit)
        self.own(request, submit.gateway, submit.route)
        self.tell_all(request)
        return True

    def on_claim(self, claim: Claim) -> None:
        """A client came back to a gateway that holds its request. It may have been elsewhere, and that one is told."""
        books = self._books
        request = books.find(claim.request_id)
        if request is None or request.sampling is None:
            # It ended and was closed, or a state that is on its way will tell of it.
            books.tell(Refused(claim.gateway, claim.route, claim.request_id, "NOT_FOUND", "it is not known"))
        elif (request.gateway, request.route) == (claim.gateway, claim.route):
            books.tell(Accepted(claim.gateway, claim.route, claim.request_id, 0, "", request.turn, claim.number))
        else:
            self.own(request, claim.gateway, claim.route)
            self.tell_all(request, claim.number)

    def own(self, request: Request, gateway: str, route: int, turn: int = 0) -> None:
        """This gateway is told of the request from now on, in a new turn unless it was told which one it has."""
        before, after = (request.gateway, request.route), (gateway, route)
        self._books.gateways.add(gateway)
        if before != after:
            # One that is known to be dead has nothing to hand over.
            if request.orphaned_until is None:
                self._books.tell(HandOver(*before, request.request_id))
                if before not in request.witnesses:
                    request.witnesses.append(before)
            if after in request.witnesses:
                request.witnesses.remove(after)
            request.gateway, request.route = after
        request.turn = turn or max(request.turn + 1, self._books.epoch << TURN_BITS)
        request.orphaned_until = None
        request.is_adopted = True
        self._sealing.on_owner(request)

    def tell_all(self, request: Request, claim: int = 0) -> None:
        """Its owner, which may have nothing of it, is told all that came of it; `claim` is what that answers."""
        books = self._books
        if request.refusal is not None:
            code, detail = request.refusal
            books.tell(Refused(request.gateway, request.route, request.request_id, code, detail))
            if request.state is State.ENDED:
                self._endings.tell_done(request)
            return
        accepted = Accepted(request.gateway, request.route, request.request_id, 0, "resumed", request.turn, claim)
        books.tell(accepted)
        # Where logprobs are asked for, what the owner lacks by its answer to the seal is drawn again.
        waits = request.is_sealing and request.wants_logprobs
        for sequence in request.sequences:
            if sequence.seq and request.replica is not None:
                request.replica.write().reroutes.append(Reroute(sequence.seq, request.gateway, request.route))
            elif not waits and (sequence.outputs or sequence.is_ended):
                self._sealing.replay(request, sequence)
        if request.state is State.ENDED:
            # Its first gateway may have died before it could pass this on.
            self._endings.tell_done(request)
