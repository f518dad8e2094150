"""How a new scheduler learns what its dead predecessor knew: from what replicas hold (`takeover.py`) and gateways have.

Replicas list their residents (ReplicaState), gateways their open requests (GatewayState), in any order. A resident goes
on where it is: its table, position and lease are taken over as they stand, so streams never notice. When both sides had
`rebuild_s` to report, what nobody runs is sealed and starts again as a new attempt, what no gateway knows is dropped
after the grace of an orphan, and every block that no table names is free. What lay in host memory is computed again.
"""

from __future__ import annotations

from cluster.centre.adoption import Adoption
from cluster.centre.books import Books
from cluster.centre.confirming import Confirming
from cluster.centre.deadlines import Deadlines
from cluster.centre.endings import Endings
from cluster.centre.flaws import flaw_of_open
from cluster.centre.nouns import Request, State
from cluster.centre.sealing import Sealing
from cluster.centre.takeover import Takeover
from cluster.centre.waiting import Waiting
from cluster.messages import (
    ATTEMPT_BITS,
    Accepted,
    GatewayState,
    HandOver,
    Ids,
    OpenRequest,
    Reason,
    Refused,
    Submit,
    ids,
)
from cluster.messages.resume import difference


class Rebuild:
    """Takes over open requests. Active from the first turn of a later epoch, or from a late report, until `rebuild_s`
    later; meanwhile nothing is refused for what is not known yet (`Hearing`)."""

    def __init__(
        self,
        books: Books,
        waiting: Waiting,
        deadlines: Deadlines,
        endings: Endings,
        sealing: Sealing,
        confirming: Confirming,
        adoption: Adoption,
        takeover: Takeover,
    ) -> None:
        self._books = books
        self._waiting = waiting
        self._deadlines = deadlines
        self._endings = endings
        self._sealing = sealing
        self._confirming = confirming
        self._adoption = adoption
        self._takeover = takeover
        self._is_due = books.epoch > 1

    def begin_if_due(self) -> None:
        """Called in every turn, before its events: the first one of a scheduler that has a predecessor begins it."""
        if self._is_due:
            self._is_due = False
            self._books.hearing.begin_anew(self._books.now)

    # -- what gateways have

    def on_gateway_state(self, state: GatewayState) -> None:
        books, unplaced = self._books, self._books.hearing.unplaced
        books.hearing.begin(books.now)
        books.gateways.add(state.gateway)
        for open_request in state.requests:
            submit = open_request.submit
            known = books.find(submit.request_id)
            if self._is_flawed(state.gateway, open_request):
                continue
            if known is None:
                request = unplaced[submit.request_id] = self._from_gateway(open_request)
                # Its Submit may have been on its way when the old scheduler died.
                books.tell(Accepted(submit.gateway, submit.route, submit.request_id, 0, "", request.turn))
            elif known.sampling is None or _differs(submit, known):
                self._refuse(submit)
            else:
                self._hear(known, open_request)

    def _is_flawed(self, gateway: str, told: OpenRequest) -> bool:
        """What a gateway tells of one request cannot be so: it is counted, and the others are taken."""
        request_id, num_outputs = told.submit.request_id, len(told.outputs)
        flaw = flaw_of_open(told.submit, told.attempt, num_outputs, len(told.finished))
        if not flaw and not told.submit.sampling.width:
            longest, most = max(map(len, told.outputs)), told.submit.sampling.max_tokens or 1
            flaw = f"{longest} tokens are told of at most {most}" if longest > most else ""
        if flaw:
            self._books.counters["events refused"] += 1
            self._books.note("refused", request_id, f"what {gateway} told: {flaw}")
        return bool(flaw)

    def _refuse(self, submit: Submit) -> None:
        """Another request runs under this id."""
        self._books.counters["events refused"] += 1
        detail = f"a request {submit.request_id} with other parameters is under way"
        self._books.tell(Refused(submit.gateway, submit.route, submit.request_id, "ALREADY_EXISTS", detail))

    def _hear(self, request: Request, open_request: OpenRequest) -> None:
        """A gateway tells of a request that a replica or another gateway has told of, or that it was thought to have
        left: it is the owner unless another one is since."""
        books, submit = self._books, open_request.submit
        place, known = (submit.gateway, submit.route), (request.gateway, request.route)
        is_first = self._confirming.told(request, submit)
        if not is_first and place != known and open_request.turn <= request.turn:
            # What is older than the attempt that runs, or of other weights, nobody goes on from.
            is_older = request.state is State.RUNNING and open_request.attempt < request.attempt
            if submit.digest == request.digest and not is_older:
                self._sealing.hear(request, place, open_request.outputs, open_request.finished)
            books.tell(HandOver(*place, submit.request_id))
            return
        # What was sent to one that was given up has not arrived.
        is_behind = not is_first and (place != known or request.orphaned_until is not None)
        if is_first:
            request.gateway, request.route, request.turn = *place, open_request.turn
            request.is_adopted |= open_request.turn > 0
        elif place != known:
            self._adoption.own(request, *place, open_request.turn)
            if request.state is not State.RUNNING and request.digest != submit.digest:
                # What it holds was computed with these weights, and what another one told was not.
                request.take_weights(submit.digest)
                self._sealing.forget_outputs(request)
        request.orphaned_until = None
        self._sealing.tell_weights(request, submit)
        if request.state is State.ENDED:
            # A seal of the scheduler before may have made it deaf to the attempt that has ended here; its answer to a
            # seal of that attempt counts no more.
            is_deaf = request.attempt < open_request.attempt
            request.attempt = max(request.attempt, open_request.attempt)
            # It may not have heard of the end, nor of what led to it. What it lacks of logprobs is drawn again.
            lacks_logprobs = place == known and request.wants_logprobs and not request.is_adopted
            if lacks_logprobs or (is_deaf and request.is_sealing):
                self._sealing.ask(request)
            self._adoption.tell_all(request)
        elif request.state is State.RUNNING and request.attempt < open_request.attempt:
            self._begin_anew(request, open_request)
        else:
            # No replica that was given up goes on with an attempt that is sealed.
            request.attempt = max(request.attempt, open_request.attempt)
            self._confirm(request, open_request)
            if is_behind:
                self._adoption.tell_all(request)
            else:
                books.tell(Accepted(*place, submit.request_id, 0, "", request.turn))
                self._takeover.reroute(request, *known)
                # Its replica tells this very gateway itself, and with logprobs, which only it knows.
                replica_tells = place == known and request.wants_logprobs
                if is_first and request.state is State.RUNNING and not replica_tells:
                    self._tell_ended(request, open_request.finished)

    def _begin_anew(self, request: Request, open_request: OpenRequest) -> None:
        """What runs was given up, and its gateway takes nothing from it any more. Owners before it are still heard."""
        self._takeover.disown(request)
        anew = self._books.hearing.unplaced[open_request.submit.request_id] = self._from_gateway(open_request)
        anew.witnesses, anew.heard = request.witnesses, request.heard
        anew.is_adopted |= request.is_adopted

    def _tell_ended(self, request: Request, finished: tuple[Reason, ...]) -> None:
        """Of what had ended on its replica before, its gateway may lack all: it may have come to it later."""
        for sequence, known in zip(request.sequences, finished if not request.width else (), strict=False):
            if sequence.is_ended and known is Reason.NONE:
                self._sealing.replay(request, sequence)

    def _confirm(self, request: Request, open_request: OpenRequest) -> None:
        """A running request is known to its gateway: the two reports are of one."""
        self._take_outputs(request, open_request)
        if request.state is State.SEALING and request.request_id not in self._books.hearing.unplaced:
            self._sealing.ask(request)
        elif request.state in (State.QUEUED, State.PARKED) and not request.live:
            # Its gateway had ended it.
            self._waiting.withdraw(request)
            self._endings.finish(request)

    def _from_gateway(self, open_request: OpenRequest) -> Request:
        request = self._endings.enter(open_request.submit)
        request.state = State.SEALING
        request.attempt = open_request.attempt
        request.turn = open_request.turn
        # It came to this gateway from another one, and may lack what that one had.
        request.is_adopted = open_request.turn > 0
        request.is_cacheable = False
        self._take_outputs(request, open_request)
        return request

    def _take_outputs(self, request: Request, open_request: OpenRequest) -> None:
        known: tuple[Ids, ...] = open_request.outputs
        if request.width:
            # Beams come whole or not at all.
            if Reason.NONE not in open_request.finished and not request.sequences[0].seq:
                request.sequences[0].reason = open_request.finished[0]
            return
        for sequence, outputs, reason in zip(request.sequences, known, open_request.finished, strict=True):
            if sequence.is_ended:
                continue
            if not sequence.seq:
                # What a replica has told meanwhile may be on its way to the gateway.
                if len(outputs) > len(sequence.outputs):
                    sequence.outputs = ids(outputs)
                sequence.reason = reason
            elif reason is not Reason.NONE and request.state is State.RUNNING:
                # Cut at a stop string while nobody could pass that on.
                self._endings.stop(request, sequence, reason, len(outputs))

    # -- the end

    def expire(self) -> None:
        """Everybody had time to report: what nobody runs starts again, what no gateway knows is an orphan."""
        books, hearing = self._books, self._books.hearing
        for request in self._waiting.take_unserved():
            detail = self._waiting.not_served(request.model)
            self._endings.break_off(request, "NOT_FOUND", detail, Reason.DROPPED)
        if hearing.ends_at is None or books.now < hearing.ends_at:
            return
        hearing.ends_at = None
        unplaced, hearing.unplaced = list(hearing.unplaced.values()), {}
        before = (books.epoch - 1) << ATTEMPT_BITS
        for request in unplaced:
            if request.state is State.SEALING:
                # The old scheduler may have started it where nobody has reported yet, under a number nobody knows.
                request.attempt = max(request.attempt, before)
                self._sealing.ask(request)
        for request in [*books.requests.values(), *books.unclosed.values()]:
            if not request.is_confirmed and request.orphaned_until is None:
                request.orphaned_until = books.now + max(books.settings.orphan_grace_s, request.grace_s)
                self._deadlines.wake_at(request.orphaned_until, request)


def _differs(submit: Submit, request: Request) -> bool:
    assert request.sampling is not None
    return bool(difference(submit, request.model, request.prompt, request.sampling, request.priority)[0])
