"""Seals: gateways are asked what they have sent of a request, and it goes on from there. What was sent never changes.

A request that was on a lost replica is sealed: all gateways that have owned it say what they have of every sequence and
are deaf to older attempts from then on. One that had ended is asked about as well, because its last tokens may have
died with their worker. Who has no more to say, or is lost, is waited for no longer; but what is lost may live on and
send, so without an owner no attempt begins: it waits for that one to return, or for the client at another gateway.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.deadlines import Deadlines
from cluster.centre.endings import Endings
from cluster.centre.host_memory import HostMemory
from cluster.centre.nouns import Request, Sequence, State
from cluster.centre.waiting import Waiting
from cluster.messages import GatewayLost, Ids, Reason, Replay, Seal, Sealed, Submit, Tokens, ids
from cluster.messages.resume import why_replaced


class Sealing:
    """Asks, hears, and sends on from what was heard."""

    def __init__(
        self, books: Books, waiting: Waiting, deadlines: Deadlines, host_memory: HostMemory, endings: Endings
    ) -> None:
        self._books = books
        self._waiting = waiting
        self._deadlines = deadlines
        self._host_memory = host_memory
        self._endings = endings

    def seal(self, request: Request) -> None:
        """Its gateway is asked what it has of the request, which starts again from there."""
        request.state = State.SEALING
        if request.pin_until is not None and not request.is_cancelled and request.live:
            # Nothing of it goes to anybody: it is computed again, and answered when that is done.
            self._waiting.queue(request)
            return
        if request.is_cancelled or request.pin_until is not None:
            for sequence in request.live:
                sequence.reason = Reason.DROPPED
            self._endings.finish(request)
            return
        self.ask(request)

    def ask(self, request: Request) -> None:
        request.is_sealing = True
        for sequence in request.live:
            sequence.cut = None
        if request.orphaned_until is not None:
            self._go_on_if_said(request)
            return
        self._wait(request)
        owner = request.gateway, request.route
        if owner not in request.witnesses:
            request.witnesses.append(owner)
        self._books.tell(Seal(*owner, request.request_id, request.attempt, request.digest))

    def meet_other_weights(self, request: Request, digest: bytes) -> None:
        """Another model has the name of this waiting request's model by now: all replicas went, and then came others.
        Nothing that is known of its blocks counts there; an answer that has begun, and what was to be kept, end here.
        What has not begins there once its gateway knows, which tells a scheduler after this one with which weights its
        tokens were drawn."""
        if request.pin_until is not None or any(sequence.outputs for sequence in request.sequences):
            detail = why_replaced(request.model, request.digest, digest)
            self._endings.break_off(request, "CANCELLED", detail, Reason.DROPPED)
            return
        self._waiting.withdraw(request)
        self._host_memory.forget(request)
        request.take_weights(digest)
        self.seal(request)

    def tell_weights(self, request: Request, submit: Submit) -> None:
        """A gateway asked for it as of other weights than those that it is computed with."""
        if submit.digest != request.digest:
            self._books.tell(Seal(submit.gateway, submit.route, request.request_id, 0, request.digest))

    def _wait(self, request: Request) -> None:
        request.seal_deadline = self._books.now + self._books.settings.seal_timeout_s
        self._deadlines.wake_at(request.seal_deadline, request)

    def is_late(self, request: Request) -> None:
        """Who has not said what it has is asked again, wherever its client is now: it may have sent more than was
        reported. Who is lost is waited for no longer."""
        books = self._books
        if not books.hearing.may_hear(books.now):
            # One that this scheduler has never met can't be lost to it: it died with the one before.
            request.witnesses = [place for place in request.witnesses if place[0] in books.gateways]
        if request.witnesses:
            self._wait(request)
        for gateway, route in request.witnesses:
            self._books.tell(Seal(gateway, route, request.request_id, request.attempt, request.digest))
        self._go_on_if_said(request)

    def on_sealed(self, sealed: Sealed) -> None:
        counters = self._books.counters
        request = self._books.find(sealed.request_id)
        place = sealed.gateway, sealed.route
        if request is None or place not in request.witnesses:
            # Attempt 0 was no seal, and only news.
            counters["stale seals"] += sealed.attempt > 0
            return
        is_owner = place == (request.gateway, request.route)
        if is_owner and sealed.attempt != request.attempt:
            counters["stale seals"] += 1
            return
        flaw = _flaw(request, sealed)
        if flaw:
            counters["events refused"] += 1
            if request.state is State.SEALING:
                self._endings.break_off(request, "ABORTED", f"{sealed.request_id}: {flaw}", Reason.DROPPED)
            return
        request.witnesses.remove(place)
        self.hear(request, place, sealed.outputs, sealed.finished)
        self._go_on_if_said(request)

    def hear(
        self, request: Request, place: tuple[str, int], outputs: tuple[Ids, ...], finished: tuple[Reason, ...]
    ) -> None:
        """A gateway's word on what it has sent of each sequence; the longest counts. Nothing is heard of one that does
        not know the request. Beams come whole or not at all, and those of two searches do not mix."""
        if not outputs:
            return
        told = list(zip(outputs, finished, strict=True))
        if request.width:
            is_owner = place == (request.gateway, request.route)
            if Reason.NONE not in finished or (is_owner and request.heard is None):
                request.heard = told
            return
        known = request.heard or [(ids(), Reason.NONE)] * len(told)
        request.heard = [
            max(pair, key=lambda one: (len(one[0]), one[1] is not Reason.NONE))
            for pair in zip(known, told, strict=True)
        ]

    def stop(self, request: Request, index: int, num_outputs: int) -> None:
        """A stop string was found in tokens of which nothing is known here yet. Whoever found it says so in its answer
        to the seal; if that does not come, they are drawn again, and so is it. Before it is asked, a replica may tell
        of the request."""
        if not request.is_sealing:
            request.sequences[index].cut = num_outputs
        elif request.heard is not None and len(request.heard[index][0]) >= num_outputs:
            request.heard[index] = request.heard[index][0][:num_outputs], Reason.STOP

    def forget_outputs(self, request: Request) -> None:
        """What was told of this request was drawn with other weights. What a replica still runs of it stays."""
        if request.state in (State.SEALING, State.QUEUED, State.PARKED):
            request.heard = None
            request.witnesses.clear()
            for sequence in request.sequences:
                sequence.outputs, sequence.reason = ids(), Reason.NONE

    def on_gateway_lost(self, lost: GatewayLost) -> None:
        """Its requests run on for a grace in which their clients can come back through another gateway."""
        books = self._books
        books.gateways.discard(lost.gateway)
        for request in [*books.requests.values(), *books.unclosed.values()]:
            if request.gateway == lost.gateway and request.pin_until is None:
                grace_s = max(books.settings.orphan_grace_s, request.grace_s)
                request.orphaned_until = books.now + grace_s
                self._deadlines.wake_at(request.orphaned_until, request)
            if any(gateway == lost.gateway for gateway, _ in request.witnesses):
                # What it had sent nobody can say now. What the workers reported is a prefix of it.
                request.witnesses = [place for place in request.witnesses if place[0] != lost.gateway]
                self._go_on_if_said(request)

    def on_owner(self, request: Request) -> None:
        """It has another owner, who is asked if nobody is, or where what it lacks is drawn again for its logprobs."""
        if request.is_sealing and (request.wants_logprobs or not request.witnesses):
            self.ask(request)

    def _go_on_if_said(self, request: Request) -> None:
        """Nobody is waited for any more. An owner that was lost may live, and have more of the last attempt than the
        workers reported; another replica may draw other tokens: without its word, or a new owner, nothing is drawn."""
        has_owner = request.orphaned_until is None or request.state is not State.SEALING
        if request.is_sealing and has_owner and not request.witnesses:
            self._go_on(request)

    def _go_on(self, request: Request) -> None:
        """All who may know have said what was sent: an attempt that was lost starts again from there."""
        request.is_sealing = False
        self._endings.deaf(request)
        heard, request.heard = request.heard, None
        if heard is not None:
            if request.width:
                self._take_group(request, heard)
            else:
                self._take_outputs(request, heard)
        if request.state is State.SEALING:
            request.is_partial = False
            if request.live:
                self._waiting.queue(request)
            else:
                self._endings.finish(request)

    def _take_outputs(self, request: Request, heard: list[tuple[Ids, Reason]]) -> None:
        # Only the worker that drew a token knows its logprobs: what the gateway lacks of it is drawn again.
        sampling = request.sampling
        assert sampling is not None
        of_prompt = sampling.prompt_logprobs is not None
        for sequence, (known, finished) in zip(request.sequences, heard, strict=True):
            draws_again = not request.is_cancelled and (sampling.logprobs is not None or (of_prompt and not known))
            if draws_again and finished is Reason.NONE and len(known) < len(sequence.outputs):
                self._draw_again(request, sequence, known)
            elif len(known) > len(sequence.outputs) and not sequence.is_ended:
                sequence.outputs = ids(known)
            if finished is not Reason.NONE and not sequence.is_ended:
                sequence.reason = finished
            # A gateway that came to it after the end may lack what one before had.
            if sequence.is_ended and (finished is Reason.NONE or request.is_adopted):
                self.replay(request, sequence)
        if request.state is State.ENDED and request.live:
            self._endings.revive(request)

    def _draw_again(self, request: Request, sequence: Sequence, known: Ids) -> None:
        """The sequence goes on behind what its gateway has, also if it had ended."""
        self._host_memory.forget(request)
        sequence.outputs, sequence.reason = ids(known), Reason.NONE
        sequence.names = request.names

    def _take_group(self, request: Request, heard: list[tuple[Ids, Reason]]) -> None:
        """Beams go out whole at the end: a gateway has all of them, or the search is made again."""
        group = request.sequences[0]
        if all(reason is not Reason.NONE for _, reason in heard):
            group.reason = heard[0][1]
            if request.is_adopted:
                # Its client may have read them at the gateway before this one.
                for index, (outputs, reason) in enumerate(heard):
                    self._replay(request, index, outputs, reason)
        elif group.is_ended and not request.is_cancelled:
            group.reason = Reason.NONE
            group.outputs = ids()
            if request.state is State.ENDED:
                self._endings.revive(request)

    def replay(self, request: Request, sequence: Sequence) -> None:
        """Its gateway is told all of this sequence again."""
        if request.width:
            # Nobody but the worker had its beams: if they have not arrived, the search is made again.
            if sequence.is_ended:
                self.ask(request)
            return
        self._replay(request, sequence.index, sequence.outputs, sequence.reason)

    def _replay(self, request: Request, index: int, outputs: Ids, reason: Reason) -> None:
        # An attempt that runs is not sealed; of one that does not, the gateway may have been told to take no more.
        attempt = request.attempt + (request.state is not State.RUNNING)
        tokens = Tokens(request.route, index, attempt, 0, outputs, reason=reason)
        self._books.tell(Replay(request.gateway, tokens))


def _flaw(request: Request, sealed: Sealed) -> str:
    """Why a gateway cannot have of this request what it says. One that does not know the route says nothing."""
    assert request.sampling is not None
    longest = max(map(len, sealed.outputs), default=0)
    if len(sealed.outputs) not in (0, request.sampling.n) or longest > request.max_tokens:
        count = f"{len(sealed.outputs)} of {request.sampling.n} sequences, of {longest} tokens at most"
        return f"its gateway has {count}; {request.max_tokens} were asked for"
    return ""
