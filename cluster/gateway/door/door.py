"""The door: what each client of a gateway was sent, and what follows from it. Its page (README.md) states the rules.

A method for each event; what is to be told afterwards is fetched with `take_orders`. It has no clock, no text, and
talks to nobody: the gateway and the simulator's gateway each put a shell around it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from cluster.errors import (
    Aborted,
    AlreadyExists,
    InvalidRequest,
    ProtocolError,
    QueueFull,
    QuireError,
    Unavailable,
    WorkFailed,
)
from cluster.gateway.door.entry import Entry, Part, Reader
from cluster.gateway.door.quotas import Quotas, num_asked
from cluster.gateway.door.refusals import FINAL, check_positions, error_of
from cluster.gateway.door.unread import Unread, UnreadBounds
from cluster.messages import (
    Accepted,
    Adopt,
    Cancel,
    Claim,
    Closed,
    Done,
    Find,
    Found,
    GatewayState,
    HandOver,
    Ids,
    OpenRequest,
    Pin,
    Reason,
    Refused,
    Replay,
    Seal,
    Sealed,
    Started,
    StopAt,
    Submit,
    Tokens,
)
from cluster.messages.resume import difference, why_replaced
from cluster.tenants import NO_LIMITS, TenantLimits

ToldEvent: TypeAlias = Submit | Cancel | StopAt | Sealed | Closed | Adopt | Find | Claim | Pin | GatewayState
Notice: TypeAlias = Accepted | Started | Refused | Seal | HandOver | Found | Replay | Done

ROUTE_BITS = 32
"""A route is `life << ROUTE_BITS | number`: routes of an earlier life of a gateway mean nothing to this one."""

LAST_TOKENS_S = 10.0
"""The scheduler's Done and a worker's last tokens come by different roads; tokens that are later than this are lost."""

LINGER_S = 2.0
"""A client that was told all has it, unless its connection broke just then; such a one is back within this."""

HANDED_S = 10.0
"""What was handed over is remembered for so long: its new owner may not have it yet when the scheduler dies."""

CLOSE_AFTER_S = 1.0
"""The scheduler is told a little later that it may forget a request: what was written last may die with this process on
its way to the client, who then asks another gateway for it."""


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Of one door. Times in seconds."""

    gateway: str
    life: int = 1
    max_open: int = 20_000
    # A request that the scheduler has not taken by then is given up.
    accept_timeout_s: float = 30.0
    unread: UnreadBounds = field(default_factory=UnreadBounds)


@dataclass(slots=True)
class Orders:
    """What is to be told: events to the scheduler in this order; entries that have news, or are gone, to whoever shows
    them; pins that are warm (None) or refused; what was looked for and is found or refused."""

    events: list[ToldEvent] = field(default_factory=list)
    news: dict[int, Entry] = field(default_factory=dict)
    pins: list[tuple[int, QuireError | None]] = field(default_factory=list)
    found: list[tuple[int, Found | QuireError]] = field(default_factory=list)


class Door:
    """All requests under way at one gateway, by route."""

    def __init__(self, settings: DoorSettings) -> None:
        self.settings = settings
        self.entries: dict[int, Entry] = {}
        self.by_id: dict[str, Entry] = {}
        self.pins: dict[int, Pin] = {}
        # Requests that clients name who come back, and that are not known here.
        self.finds: dict[int, Find] = {}
        # Requests that went on through another gateway, as they were here, and until when they are remembered.
        self.handed: dict[int, tuple[float, OpenRequest]] = {}
        # Tokens that came too late, from old attempts, or for nobody.
        self.num_stale = 0
        self.unread = Unread(settings.unread)
        self.quotas = Quotas()
        # Closed is said of these from then on.
        self.closing: list[tuple[float, Closed]] = []
        self._num_routes = (settings.life & 0x7FFF_FFFF) << ROUTE_BITS
        self._deadlines: list[tuple[float, int]] = []
        self._orders = Orders()
        self._obey: dict[type, Callable[[Any, float], None]] = {
            Accepted: self._on_accepted,
            Started: self._on_started,
            Refused: self._on_refused,
            Seal: self._on_seal,
            HandOver: self._on_hand_over,
            Found: self._on_found,
            Replay: self._on_replay,
            Done: self._on_done,
        }

    def take_orders(self) -> Orders:
        orders, self._orders = self._orders, Orders()
        return orders

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do, at the latest."""
        first = self._deadlines[0][0] if self._deadlines else None
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
            self._close(known, now)
        self.quotas.enter(submit, limits, now)
        self.unread.limit(submit.tenant, limits.unread_bytes)
        entry = self._enter(submit, grace_s, now)
        self._tell(entry.submit)
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
        route = self._next_route()
        self.finds[route] = Find(request_id, self.settings.gateway, route)
        self._tell(self.finds[route])
        return route

    def leave_find(self, route: int) -> None:
        """Nobody waits for it any more."""
        find = self.finds.pop(route, None)
        if find is not None:
            self._tell(Cancel(find.request_id, find.gateway, route))

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
            entry = self._enter(asked, grace_s, now)
            entry.is_adopted = True
            self._tell(Adopt(entry.submit))
        else:
            if entry.accepted is not None and entry.ended is None:
                # The client may have been at another gateway meanwhile.
                entry.num_claims += 1
                self._tell(entry.claim())
        # An older stream ends when it finds itself followed: its client was back before the death of its connection
        # was noticed.
        entry.reader = Reader(entry, positions, tag)
        entry.is_behind |= entry.reader.is_ahead
        entry.grace_until = None
        self.unread.set(entry, entry.reader.unread_bytes())
        self._news(entry)
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
            _part(entry)
            return
        if entry.grace_s > 0 and not is_final and entry.failure is None:
            entry.away_since = now
            self._set_grace(entry, now + (min(entry.grace_s, LINGER_S) if reader.is_told else entry.grace_s))
        else:
            self._abandon(entry, now)

    def cancel(self, request_id: str, now: float) -> bool:
        """Ends a request; False: none of that id is under way here."""
        entry = self.by_id.get(request_id)
        if entry is None:
            # It may run at another gateway.
            self._tell(Cancel(request_id))
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
        self._tell(Cancel(entry.request_id))
        self._settle(entry, now)
        self._news(entry)

    def forget(self, entry: Entry, *, goes_on: bool = False) -> None:
        """Nothing more is said of it: not by this gateway, nor to it. `goes_on`: another gateway has it, where it costs
        its tenant nothing."""
        is_new = not entry.is_gone
        if is_new:
            # What was written costs its tenant, had anybody read it or not.
            num_written = entry.log.num_tokens + entry.log.num_dropped
            unwritten = num_asked(entry.submit) - len(entry.submit.prompt) - num_written
            self.quotas.leave(entry.submit, 0 if entry.is_adopted or goes_on else unwritten)
        self.entries.pop(entry.route, None)
        if self.by_id.get(entry.request_id) is entry:
            del self.by_id[entry.request_id]
        self.unread.set(entry, 0)
        entry.is_gone = True
        self._news(entry)
        if is_new and not entry.is_read:
            _part(entry)

    # -- prefixes

    def pin(self, pin: Pin, now: float, limits: TenantLimits = NO_LIMITS) -> int:
        """A prefix that is to be kept; returns its route, by which `Orders.pins` answers. Raises QueueFull."""
        route = self._next_route()
        self.quotas.pin(pin.tenant, route, pin.until, limits, now)
        self.pins[route] = replace(pin, gateway=self.settings.gateway, route=route)
        self._tell(self.pins[route])
        return route

    def leave_pin(self, route: int) -> None:
        """Nobody waits for it any more."""
        pin = self.pins.pop(route, None)
        if pin is not None:
            self.quotas.unpin(pin.tenant, route)
            self._tell(Cancel(pin.request_id))

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
        self._drop(entry, WorkFailed(f"tokens of request {entry.client_id} did not fit together: {error}"), now)

    def take_tokens(self, tokens: Tokens, fresh: Ids, cut: int | None, now: float) -> int:
        """Logs what `fresh` has found; returns how many tokens that is. `cut`: their text has a stop string in it, and
        the sequence so many tokens in all."""
        entry = self.entries[tokens.route]
        before = len(entry.log.sequences[tokens.index].ids)
        sequence = entry.log.take(tokens, fresh, cut)
        if cut is not None:
            self._tell(StopAt(entry.request_id, sequence.index, cut))
        if sequence.reason is not Reason.NONE:
            self._settle(entry, now)
        self._news(entry)
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
            self._drop(large, error, now)
        return num_new

    # -- the scheduler

    def take(self, notice: Notice, now: float) -> None:
        """What the scheduler says. The tokens of a Replay come like a worker's before it."""
        self._obey[type(notice)](notice, now)

    def meet(self, now: float, *, wants_state: bool) -> None:
        """The scheduler is there, again perhaps: whose client is away has a grace from now on, because what it told
        another gateway meanwhile nobody could hear. `wants_state`: it is new, or had given this gateway up. Where the
        same one is met again and again, nobody is kept for more than twice a grace: a link may flap."""
        for entry in self.entries.values():
            if entry.grace_until is not None and entry.ended is None:
                if wants_state:
                    entry.away_since = now
                self._set_grace(entry, min(now, entry.away_since + entry.grace_s) + entry.grace_s)
        if wants_state:
            self._tell_state()

    def _tell_state(self) -> None:
        """All that is kept, and what was on its way to the scheduler and may be lost."""
        entries = self.entries.values()
        told = [entry.open_request() for entry in entries if not entry.is_asking]
        told += [request for _, request in self.handed.values()]
        self._tell(GatewayState(self.settings.gateway, tuple(told)))
        for entry in entries:
            if entry.ended is not None:
                continue
            if entry.is_cancelled or entry.failure is not None:
                # A state cannot say that a client has gone.
                entry.num_answered = entry.num_claims
                self._tell(entry.given_up())
            elif entry.is_asking:
                self._tell(Adopt(entry.submit))
            elif entry.is_claiming:
                self._tell(entry.claim())
        for pin in self.pins.values():
            self._tell(pin)
        for find in self.finds.values():
            self._tell(find)

    def _on_accepted(self, accepted: Accepted, now: float) -> None:
        entry = self.entries.get(accepted.route)
        if entry is not None:
            entry.turn = accepted.turn
            # What answers a state answers no claim behind it.
            entry.num_answered = max(entry.num_answered, accepted.claim)
            if not accepted.claim and entry.done is not None and not entry.log.is_complete:
                # It is under way again, however long that takes: its last tokens were lost with who had told them.
                entry.done = entry.waits_until = None
            if entry.accepted is None:
                entry.accepted = accepted
                entry.waits_until = None
                # Of two that asked to go on with a request of this name, this is the one.
                self.by_id[entry.request_id] = entry
                self._news(entry)
                if entry.is_adopted and entry.is_cancelled:
                    # A scheduler that is new did not know the request when its client cancelled it.
                    self._tell(entry.given_up())

    def _on_started(self, started: Started, now: float) -> None:
        entry = self.entries.get(started.route)
        # A request that was preempted starts again; its client was told once.
        if entry is not None and entry.started is None:
            entry.started = started
            self._news(entry)

    def _on_refused(self, refused: Refused, now: float) -> None:
        if self._end_pin(refused.route, error_of(refused, "of this prefix")):
            return
        if self.finds.pop(refused.route, None) is not None:
            name = refused.request_id.partition("/")[2]
            self._orders.found.append((refused.route, error_of(refused, name)))
            return
        entry = self.entries.get(refused.route)
        if entry is None or entry.ended is not None:
            return
        is_last = entry.accepted is None or refused.code in FINAL
        if entry.failure is None and (is_last or not entry.is_cancelled):
            self._fail(entry, error_of(refused, entry.client_id))
        if is_last:
            # Nothing more is said of it.
            self.forget(entry)
        else:
            # An earlier scheduler may have said Done already, and the last tokens did not come.
            self._settle(entry, now)

    def _on_seal(self, seal: Seal, now: float) -> None:
        entry, place = self.entries.get(seal.route), (seal.request_id, seal.gateway, seal.route)
        if entry is None:
            self._tell(Sealed(*place, seal.attempt, *self._handed(seal.route)))
            return
        before = entry.submit.digest
        if seal.digest != before:
            # It was asked of other weights: names of its blocks mean nothing.
            entry.submit = replace(entry.submit, digest=seal.digest, hashes=())
        entry.log.seal(seal.attempt)
        self._tell(Sealed(*place, seal.attempt, entry.log.outputs, entry.finished))
        if seal.attempt and seal.digest != before and entry.is_behind and entry.failure is None:
            # What its client has nobody else knows of: these weights would go on with another answer.
            self._drop(entry, Aborted(why_replaced(entry.submit.model, before, seal.digest)), now)

    def _on_hand_over(self, order: HandOver, now: float) -> None:
        entry, place = self.entries.get(order.route), (order.request_id, order.gateway, order.route)
        if entry is None:
            self._tell(Sealed(*place, 0, *self._handed(order.route)))
            return
        if entry.is_claiming:
            # The client has been back here since: the scheduler is about to hear so.
            return
        self._tell(Sealed(*place, 0, entry.log.outputs, entry.finished))
        if entry.ended is not None and entry.is_read:
            # It is whole, and told to the end.
            return
        if not entry.is_cancelled and entry.failure is None:
            self.handed[entry.route] = now + HANDED_S, entry.open_request()
            heapq.heappush(self._deadlines, (now + HANDED_S, entry.route))
        if entry.ended is None:
            # Whoever still reads here comes back: words of gateways reach the scheduler in any order.
            detail = "the request went on through another gateway; resume to have it here"
            self._fail(entry, Unavailable(detail, 0.1))
        self.forget(entry, goes_on=True)

    def _handed(self, route: int) -> tuple[tuple[Ids, ...], tuple[Reason, ...]]:
        """What this gateway had of a request that went on through another."""
        known = self.handed.get(route)
        return ((), ()) if known is None else (known[1].outputs, known[1].finished)

    def _on_found(self, found: Found, now: float) -> None:
        if self.finds.pop(found.route, None) is not None:
            self._orders.found.append((found.route, found))

    def _on_replay(self, replay: Replay, now: float) -> None:
        """The scheduler's own record of a sequence that has ended, whose tokens may have died with their worker."""
        entry = self.entries.get(replay.tokens.route)
        if entry is not None and replay.tokens.reason is Reason.DROPPED:
            # From a worker that means that another goes on; here it is the end.
            entry.log.abort(replay.tokens.index)
            self._settle(entry, now)
            self._news(entry)

    def _on_done(self, done: Done, now: float) -> None:
        if self._end_pin(done.route, None):
            return
        entry = self.entries.get(done.route)
        if entry is None:
            # A route of an earlier life may belong to a client who is about to come back for it; one that was handed
            # over has an owner, whose word a new scheduler may not have heard yet.
            if done.route not in self.handed and done.route >> ROUTE_BITS == self.settings.life & 0x7FFF_FFFF:
                self._tell(Closed(done.request_id, done.gateway, done.route))
            return
        entry.done = done
        if not entry.log.is_complete:
            self._wait(entry, now + LAST_TOKENS_S)
        self._settle(entry, now)
        self._news(entry)

    def _end_pin(self, route: int, error: QuireError | None) -> bool:
        pin = self.pins.pop(route, None)
        if pin is None:
            return False
        if error is not None:
            self.quotas.unpin(pin.tenant, route)
        self._orders.pins.append((route, error))
        return True

    # -- time

    def tick(self, now: float, *, is_met: bool) -> None:
        """What is due: words that did not come, clients that did not come back, requests to be closed. `is_met`: the
        scheduler is there; without it no grace ends."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, route = heapq.heappop(self._deadlines)
            if route in self.handed and self.handed[route][0] <= now:
                _, request = self.handed.pop(route)
                # A scheduler that is new may have taken it for ours: it ends, and is closed.
                self._tell(Closed(request.submit.request_id, self.settings.gateway, route))
            entry = self.entries.get(route)
            if entry is not None and entry.waits_until is not None and entry.waits_until <= now:
                entry.waits_until = None
                self._give_up(entry, now)
            if entry is None or entry.grace_until is None or entry.grace_until > now:
                continue
            entry.grace_until = None
            if not is_met and entry.ended is None:
                entry.away_since = now
                self._set_grace(entry, now + entry.grace_s)
            elif not entry.is_gone:
                self._abandon(entry, now)
        due = sum(1 for when, _ in self.closing if when <= now)
        for _, closed in self.closing[:due]:
            self._tell(closed)
        del self.closing[:due]

    def _wait(self, entry: Entry, until: float) -> None:
        entry.waits_until = until
        heapq.heappush(self._deadlines, (until, entry.route))

    def _set_grace(self, entry: Entry, until: float) -> None:
        entry.grace_until = until
        heapq.heappush(self._deadlines, (until, entry.route))

    def _give_up(self, entry: Entry, now: float) -> None:
        """The scheduler did not take it, or its last tokens did not come behind its Done."""
        if entry.done is not None:
            detail = f"request {entry.client_id} was ended in the cluster, and its last tokens did not come"
            self._drop(entry, Aborted(detail), now)
        else:
            waited = self.settings.accept_timeout_s
            self._drop(entry, Unavailable(f"the scheduler did not take the request within {waited:g} s", 1.0), now)

    # -- endings

    def _settle(self, entry: Entry, now: float) -> None:
        """Notes when an answer is complete; one that nobody waits for is then closed."""
        if entry.done is None or not entry.log.is_complete or entry.is_gone:
            return
        entry.waits_until = None
        failed = entry.log.failed
        if failed is not None and entry.failure is None and not entry.is_cancelled:
            # As the scheduler says too, unless it died before anybody heard that.
            self._fail(entry, WorkFailed(failed.detail or f"a worker could not go on with {entry.client_id}"))
        if entry.ended is None:
            entry.ended = now
        if not entry.is_read and (entry.failure is not None or entry.is_cancelled):
            self._close(entry, now)

    def _abandon(self, entry: Entry, now: float) -> None:
        """Nobody waits for it any more: what still runs is cancelled, and closed here when the scheduler says Done."""
        if entry.ended is not None:
            self._close(entry, now)
            return
        entry.is_cancelled = True
        entry.log.abort()
        self._tell(entry.given_up())
        self._settle(entry, now)
        self._news(entry)

    def _drop(self, entry: Entry, error: QuireError, now: float) -> None:
        """This gateway gives the request up."""
        self._fail(entry, error)
        self._tell(entry.given_up())
        if entry.accepted is None:
            self.forget(entry)
        else:
            self._settle(entry, now)

    def _fail(self, entry: Entry, error: QuireError) -> None:
        entry.waits_until = None
        entry.failure = error
        entry.log.abort()
        self._news(entry)

    def _close(self, entry: Entry, now: float) -> None:
        self.forget(entry)
        self.closing.append((now + CLOSE_AFTER_S, Closed(*entry.place)))

    # -- small things

    def _enter(self, submit: Submit, grace_s: float, now: float) -> Entry:
        submit = replace(submit, gateway=self.settings.gateway, route=self._next_route())
        entry = Entry(submit, grace_s)
        self.entries[entry.route] = self.by_id[submit.request_id] = entry
        self._wait(entry, now + self.settings.accept_timeout_s)
        return entry

    def _next_route(self) -> int:
        self._num_routes += 1
        return self._num_routes

    def _tell(self, event: ToldEvent) -> None:
        self._orders.events.append(event)

    def _news(self, entry: Entry) -> None:
        self._orders.news[entry.route] = entry


def _part(entry: Entry) -> None:
    """It is gone, and so is its last stream. They name each other: taken apart they are freed at once, without the
    collector."""
    del entry.reader.entry


def differs(asked: Submit, entry: Entry) -> tuple[str, str]:
    """In what a resume is not the request that is kept here (see `cluster/messages/resume.py`)."""
    known = entry.submit
    return difference(asked, known.model, known.prompt, known.sampling, known.priority)
