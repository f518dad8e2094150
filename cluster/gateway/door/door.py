"""The door: what each client of a gateway was sent, and what follows from it. Its page (README.md) states the rules.

A method for each event; what is to be told afterwards is fetched with `take_orders`. It has no clock, no text, and
talks to nobody: the gateway and the simulator's gateway each put a shell around it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from cluster.errors import (
    Aborted,
    AlreadyExists,
    InvalidRequest,
    ProtocolError,
    QueueFull,
    Unavailable,
    WorkFailed,
)
from cluster.gateway.door.entry import Entry, Part, Reader
from cluster.gateway.door.kept import DoorSettings, Kept, Orders, part
from cluster.gateway.door.notices import Notice, Notices
from cluster.gateway.door.refusals import check_positions
from cluster.messages import Adopt, Cancel, Closed, Find, Ids, Pin, Reason, StopAt, Submit, Tokens
from cluster.messages.resume import difference
from cluster.tenants import NO_LIMITS, TenantLimits

LINGER_S = 2.0
"""A client that was told all has it, unless its connection broke just then; such a one is back within this."""


class Door:
    """All requests under way at one gateway: what clients and workers do, and what time brings."""

    def __init__(self, settings: DoorSettings) -> None:
        kept = self._kept = Kept(settings)
        self._notices = Notices(kept)
        self.settings, self.entries, self.by_id = settings, kept.entries, kept.by_id
        self.pins, self.finds, self.handed = kept.pins, kept.finds, kept.handed
        self.unread, self.quotas, self.closing = kept.unread, kept.quotas, kept.closing
        # Tokens that came too late, from old attempts, or for nobody.
        self.num_stale = 0

    def take_orders(self) -> Orders:
        return self._kept.take_orders()

    def take(self, notice: Notice, now: float) -> None:
        """What the scheduler says (see `Notices.take`)."""
        self._notices.take(notice, now)

    def meet(self, now: float, *, wants_state: bool) -> None:
        """The scheduler is there (see `Notices.meet`)."""
        self._notices.meet(now, wants_state=wants_state)

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do, at the latest."""
        first = self._kept.deadlines[0][0] if self._kept.deadlines else None
        if self.closing and (first is None or self.closing[0][0] < first):
            return self.closing[0][0]
        return first

    @property
    def num_open(self) -> int:
        """Requests that have not ended, or whose end was not told yet."""
        return sum(1 for entry in self.entries.values() if entry.ended is None or entry.is_read)

    # -- clients

    def ask(self, submit: Submit, grace_s: float, now: float, tag: int = 0, limits: TenantLimits = NO_LIMITS) -> Reader:
        """A new request. `submit` needs no route; `limits` are its tenant's. Raises `QuireError`."""
        self.check_open()
        known = self.by_id.get(submit.request_id)
        if known is not None:
            if known.ended is None or known.is_read:
                raise AlreadyExists("request_id", f"{known.client_id} is under way", "give another id, or resume")
            self._kept.close(known, now)
        self.quotas.enter(submit, limits, now)
        self.unread.limit(submit.tenant, limits.unread_bytes)
        entry = self._kept.enter(submit, grace_s, now)
        self._kept.tell(entry.submit)
        entry.reader.tag = tag
        return entry.reader

    def check_open(self) -> None:
        """Raises QueueFull where nothing new is taken."""
        if len(self.entries) + len(self.finds) + len(self.pins) >= self.settings.max_open:
            raise QueueFull(f"{self.settings.max_open:,} requests are under way here, which is the bound", 1.0)

    def find(self, request_id: str, most_open: int = 0) -> int:
        """Looks for a request that a client names; returns the route by which `Orders.found` answers. What is found can
        be resumed here. Its tenant looks for no more than `most_open` at once (0: any number). Raises QueueFull."""
        self.check_open()
        of_it = request_id.partition("/")[0] + "/"
        if most_open and sum(find.request_id.startswith(of_it) for find in self.finds.values()) >= most_open:
            raise QueueFull(f"{most_open:,} requests are looked for, which is the bound of this tenant", 1.0)
        route = self._kept.next_route()
        self.finds[route] = Find(request_id, self.settings.gateway, route)
        self._kept.tell(self.finds[route])
        return route

    def leave_find(self, route: int) -> None:
        """Nobody waits for it any more."""
        find = self.finds.pop(route, None)
        if find is not None:
            self._kept.tell(Cancel(find.request_id, find.gateway, route))

    def resume(
        self, asked: Submit, positions: Sequence[int], grace_s: float, now: float, tag: int = 0, most_open: int = 0
    ) -> Reader:
        """A client comes back with so many tokens of each sequence, whichever gateway it was at. `asked` is the request
        as it says now. Its tenant brings none beyond `most_open` (0: any number). Raises `QuireError`."""
        entry = self.by_id.get(asked.request_id)
        if entry is not None:
            field_name, problem = differs(asked, entry)
            if field_name and not entry.is_asking:
                remedy = "resume with the request as it was asked, or give another id"
                raise InvalidRequest(field_name, problem, remedy)
            if field_name:
                # Which of the two is the request that is known, the scheduler says.
                entry = None
        if entry is None or entry.ended is None:
            # What another gateway sent may still be on its way here.
            check_positions(positions, [asked.sampling.max_tokens or 1] * len(positions))
        else:
            check_positions(positions, [len(sequence.ids) for sequence in entry.log.sequences])
        if entry is None:
            self.check_open()
            self.quotas.adopt(asked, most_open)
            entry = self._kept.enter(asked, grace_s, now)
            entry.is_adopted = True
            self._kept.tell(Adopt(entry.submit))
        else:
            if entry.accepted is not None and entry.ended is None:
                # The client may have been at another gateway meanwhile.
                entry.num_claims += 1
                self._kept.tell(entry.claim())
        # An older stream ends when it finds itself followed: its client was back before the death of its connection
        # was noticed.
        entry.reader = Reader(entry, positions, tag)
        entry.is_behind |= entry.reader.is_ahead
        entry.grace_until = None
        self._kept.refuse_others(entry, now)
        self.unread.set(entry, entry.reader.unread_bytes())
        self._kept.news(entry)
        return entry.reader

    def read(self, reader: Reader, most_bytes: int) -> tuple[list[Part], int]:
        """What this stream does not have yet, and about how many bytes that is on the wire. One that was followed by
        another must not ask."""
        entry = reader.entry
        assert entry.reader is reader, f"a stream that was followed reads {entry.request_id}"
        found = reader.read(most_bytes)
        if entry.unread:
            self.unread.set(entry, 0 if entry.is_gone else reader.unread_bytes())
        return found

    def leave(self, reader: Reader, now: float, *, is_final: bool) -> None:
        """The stream has ended. `is_final`: nobody will come back for the answer."""
        if reader.has_left:
            return
        entry = reader.entry
        if entry.reader is not reader:
            return  # Another stream has taken it over.
        reader.has_left = True
        if entry.is_gone:
            part(entry)
            return
        if entry.grace_s > 0 and not is_final and entry.failure is None:
            entry.away_since = now
            self._kept.set_grace(entry, now + (min(entry.grace_s, LINGER_S) if reader.is_told else entry.grace_s))
        else:
            self._kept.abandon(entry, now)

    def cancel(self, request_id: str, now: float) -> bool:
        """Ends a request; False: none of that id is under way here."""
        entry = self.by_id.get(request_id)
        if entry is None:
            # It may run at another gateway.
            self._kept.tell(Cancel(request_id))
            return False
        if entry.is_over or entry.is_cancelled:
            return False
        self.abort(entry, now)
        return True

    def abort(self, entry: Entry, now: float) -> None:
        """What has come stands; nothing more will. A stream that is there gets the rest of its answer."""
        if entry.is_over or entry.is_cancelled:
            return
        entry.is_cancelled = True
        entry.log.abort()
        self._kept.tell(Cancel(entry.request_id))
        self._kept.settle(entry, now)
        self._kept.news(entry)

    # -- prefixes

    def pin(self, pin: Pin, now: float, limits: TenantLimits = NO_LIMITS) -> int:
        """A prefix that is to be kept; returns its route, by which `Orders.pins` answers. Raises QueueFull."""
        route = self._kept.next_route()
        self.quotas.pin(pin.tenant, route, pin.until, limits, now)
        self.pins[route] = replace(pin, gateway=self.settings.gateway, route=route)
        self._kept.tell(self.pins[route])
        return route

    def leave_pin(self, route: int) -> None:
        """Nobody waits for it any more."""
        pin = self.pins.pop(route, None)
        if pin is not None:
            self.quotas.unpin(pin.tenant, route)
            self._kept.tell(Cancel(pin.request_id))

    # -- tokens

    def fresh(self, tokens: Tokens, now: float) -> Ids | None:
        """Those of these tokens that are new here; None: nothing of them counts, and there is nothing to `take`."""
        entry = self.entries.get(tokens.route)
        if entry is None:
            self.num_stale += 1
            return None
        try:
            new = entry.log.fresh(tokens)
        except ProtocolError as error:
            self.misfit(entry, error, now)
            return None
        if new is None:
            self.num_stale += 1
        return new

    def misfit(self, entry: Entry, error: ProtocolError, now: float) -> None:
        """What a worker says of a request cannot be so: the request fails."""
        self._kept.drop(entry, WorkFailed(f"tokens of request {entry.client_id} did not fit together: {error}"), now)

    def take_tokens(self, tokens: Tokens, fresh: Ids, cut: int | None, now: float) -> int:
        """Logs what `fresh` has found; returns how many tokens that is. `cut`: their text has a stop string in it, and
        the sequence so many tokens in all."""
        entry = self.entries[tokens.route]
        before = len(entry.log.sequences[tokens.index].ids)
        sequence = entry.log.take(tokens, fresh, cut)
        if cut is not None:
            self._kept.tell(StopAt(entry.request_id, sequence.index, cut))
        if sequence.reason is not Reason.NONE:
            self._kept.settle(entry, now)
        self._kept.news(entry)
        num_new = len(sequence.ids) - before
        if entry.is_gone or not num_new:
            return num_new
        # A client that was elsewhere may have what comes only now.
        is_simple = not entry.reader.is_ahead and not tokens.prompt_logprobs
        simply = entry.unread + num_new * entry.token_bytes
        self.unread.set(entry, simply if is_simple else entry.reader.unread_bytes())
        while (found := self.unread.too_much(entry, self.entries.values())) is not None:
            large, error = found
            large.log.drop(large.reader.sent)
            self.unread.set(large, 0)
            self._kept.drop(large, error, now)
        return num_new

    # -- time

    def tick(self, now: float, *, is_met: bool) -> None:
        """What is due: words that did not come, clients that did not come back, requests to be closed. `is_met`: the
        scheduler is there; without it no grace ends."""
        while self._kept.deadlines and self._kept.deadlines[0][0] <= now:
            _, route = heapq.heappop(self._kept.deadlines)
            if route in self.handed and self.handed[route][0] <= now:
                _, request = self.handed.pop(route)
                # A scheduler that is new may have taken it for ours: it ends, and is closed.
                self._kept.tell(Closed(request.submit.request_id, self.settings.gateway, route))
            entry = self.entries.get(route)
            if entry is not None and entry.waits_until is not None and entry.waits_until <= now:
                entry.waits_until = None
                self._give_up(entry, now)
            if entry is None or entry.grace_until is None or entry.grace_until > now:
                continue
            entry.grace_until = None
            if not is_met and entry.ended is None:
                entry.away_since = now
                self._kept.set_grace(entry, now + entry.grace_s)
            elif not entry.is_gone:
                self._kept.abandon(entry, now)
        due = sum(1 for when, _ in self.closing if when <= now)
        for _, closed in self.closing[:due]:
            self._kept.tell(closed)
        del self.closing[:due]

    def _give_up(self, entry: Entry, now: float) -> None:
        """The scheduler did not take it, or its last tokens did not come behind its Done."""
        if entry.done is not None:
            detail = f"request {entry.client_id} was ended in the cluster, and its last tokens did not come"
            self._kept.drop(entry, Aborted(detail), now)
        else:
            waited = self.settings.accept_timeout_s
            self._kept.drop(entry, Unavailable(f"the scheduler did not take the request within {waited:g} s", 1.0), now)


def differs(asked: Submit, entry: Entry) -> tuple[str, str]:
    """In what a resume is not the request that is kept here (see `cluster/messages/resume.py`)."""
    known = entry.submit
    return difference(asked, known.model, known.prompt, known.sampling, known.priority)
