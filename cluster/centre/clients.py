"""What gateways ask: requests and pins are accepted or refused, cancelled, cut at a stop string, closed.

Accepted tells a request's place in the queue; who could not start in the same turn is told why.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.centre.admission import Admission
from cluster.centre.adoption import Adoption
from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.deadlines import Deadlines
from cluster.centre.endings import Endings
from cluster.centre.nouns import Request, State
from cluster.centre.pins import Pins
from cluster.centre.sealing import Sealing
from cluster.centre.waiting import Waiting
from cluster.messages import Accepted, Cancel, Closed, Order, Pin, Reason, StopAt, Submit


class Clients:
    """The clients' side of the scheduler."""

    def __init__(
        self,
        books: Books,
        boards: Boards,
        waiting: Waiting,
        deadlines: Deadlines,
        endings: Endings,
        sealing: Sealing,
        pins: Pins,
        adoption: Adoption,
        admission: Admission,
    ) -> None:
        self._books = books
        self._boards = boards
        self._waiting = waiting
        self._deadlines = deadlines
        self._endings = endings
        self._sealing = sealing
        self._pins = pins
        self._adoption = adoption
        self._admission = admission
        # Those that were accepted in this turn, and where among its orders they were told so.
        self._accepted: list[tuple[int, Request]] = []

    def on_submit(self, submit: Submit) -> None:
        books = self._books
        if submit.request_id in books.requests:
            books.refuse(submit, "ALREADY_EXISTS", f"a request {submit.request_id} is under way")
            return
        # Its client has begun anew: nobody waits for what there was under this name.
        books.unclosed.pop(submit.request_id, None)
        request = self._enter(submit)
        if request is None:
            return
        reason = self._waiting.accept(request)
        place = self._waiting.num_waiting(request.model) - 1
        if not reason:
            self._accepted.append((len(books.orders), request))
        books.tell(Accepted(request.gateway, request.route, request.request_id, place, reason))

    def _enter(self, event: Submit | Pin) -> Request | None:
        """None: it was refused."""
        request = self._endings.enter(event)
        refusal = self._waiting.refusal(request)
        if refusal is None:
            return request
        self._endings.forget(request)
        request.sequences = []
        self._books.refuse(event, *refusal)
        return None

    def say_why(self, orders: list[Order]) -> None:
        """Who was accepted in this turn and could not start is told why."""
        for at, request in self._accepted:
            accepted = orders[at]
            if request.state in (State.QUEUED, State.PARKED) and isinstance(accepted, Accepted):
                orders[at] = replace(accepted, reason=self._admission.why_waiting(request))
        self._accepted.clear()

    def on_pin(self, pin: Pin) -> None:
        books = self._books
        known = books.requests.get(pin.request_id) or books.pinned.get(pin.request_id)
        if known is not None:
            if (known.gateway, known.route) != (pin.gateway, pin.route):
                books.refuse(pin, "ALREADY_EXISTS", f"a request {pin.request_id} is under way")
            elif known.state is State.ENDED:
                # Its gateway had been given up, and may not have heard of the end.
                self._endings.tell_done(known)
            return
        is_known = books.hearing.may_join(books.now) or self._boards.find(pin.model) is not None
        if is_known and not self._boards.replicas_of(pin.model):
            retry_after_s = max(1.0, books.hearing.rest_s(books.now))
            books.refuse(pin, "UNAVAILABLE", f"{self._waiting.nobody_is_here(pin.model)}; try again", retry_after_s)
            return
        limit, pinned = self._boards.pin_limit(pin.model), self._pins.num_blocks(pin.model)
        if len(pin.hashes) > limit > 0:
            detail = f"needs {len(pin.hashes)} blocks, and {limit} may be pinned in all; pin a shorter prefix"
            books.refuse(pin, "INVALID_ARGUMENT", detail)
            return
        if pinned + len(pin.hashes) > limit:
            detail = f"{len(pin.hashes)} blocks beside the {pinned} pinned now pass the bound of {limit} on pins"
            books.refuse(pin, "RESOURCE_EXHAUSTED", detail, 1.0)
            return
        request = self._enter(pin)
        if request is not None:
            self._waiting.queue(request)

    def on_cancel(self, cancel: Cancel) -> None:
        request = self._books.requests.get(cancel.request_id)
        if cancel.gateway:
            self._adoption.give_up(cancel.gateway, cancel.route)
            if request is not None and (request.gateway, request.route) != (cancel.gateway, cancel.route):
                # Its client has come back elsewhere.
                self._books.counters["stale cancels"] += 1
                return
        if request is not None and not request.is_cancelled:
            # The cancel may have come through another gateway than the one that shows the answer.
            code, detail = cancel.code or "CANCELLED", cancel.detail or "the request was cancelled"
            self._endings.break_off(request, code, detail, Reason.DROPPED)

    def on_stop_at(self, stop: StopAt) -> None:
        """A stop string was found: the sequence ends where the gateway says, whatever was sampled behind it."""
        request = self._books.requests.get(stop.request_id)
        if request is None or not 0 <= stop.index < len(request.sequences) or request.sequences[stop.index].is_ended:
            return
        if request.width:
            # Its gateway cuts the text of whole hypotheses; the search goes on as it is.
            return
        sequence = request.sequences[stop.index]
        if request.state is State.RUNNING and sequence.seq:
            self._endings.stop(request, sequence, Reason.STOP, stop.num_outputs)
            return
        if request.state is State.SEALING and len(sequence.outputs) < stop.num_outputs:
            self._sealing.stop(request, stop.index, stop.num_outputs)
            return
        sequence.reason, sequence.cut = Reason.STOP, stop.num_outputs
        if request.state in (State.QUEUED, State.PARKED, State.SEALING) and not request.live:
            self._waiting.withdraw(request)
            self._endings.finish(request)

    def on_closed(self, closed: Closed) -> None:
        under_way = self._books.requests.get(closed.request_id)
        if under_way is not None and (under_way.gateway, under_way.route) == (closed.gateway, closed.route):
            # A gateway that told a new scheduler its state may get the last tokens only then, of an old attempt or from
            # the old scheduler. Under another route the client has asked again.
            self._endings.abort(under_way, Reason.DROPPED)
        request = self._books.unclosed.get(closed.request_id)
        if request is not None and (request.gateway, request.route) == (closed.gateway, closed.route):
            del self._books.unclosed[closed.request_id]
            # Requests and sequences name each other: taken apart they are freed at once, without the collector.
            request.sequences = []

    def expire(self) -> None:
        """Whatever is due now: pins end, orphans are given up, deadlines pass, seals are late."""
        books = self._books
        while (request := self._deadlines.due()) is not None:
            if books.pinned.get(request.request_id) is request:
                self._pins.release(request)
            elif request.orphaned_until is not None and request.orphaned_until <= books.now:
                books.unclosed.pop(request.request_id, None)
                if request.state is not State.ENDED:
                    books.counters["orphans given up"] += 1
                    self._endings.abort(request, Reason.DROPPED)
            elif request.deadline is not None and request.deadline <= books.now and request.state is not State.ENDED:
                if not request.is_cancelled:
                    detail = "the deadline of the request has passed"
                    self._endings.break_off(request, "DEADLINE_EXCEEDED", detail, Reason.DROPPED)
            elif request.state is State.SEALING and request.seal_deadline <= books.now:
                self._sealing.is_late(request)
