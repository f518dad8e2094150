"""What the scheduler says to a door: notices, answers to what was asked, and to a new one all that is kept."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from cluster.errors import QuireError, Unavailable
from cluster.gateway.door.kept import Kept
from cluster.gateway.door.refusals import FINAL, error_of
from cluster.messages import (
    Accepted,
    Adopt,
    Closed,
    Done,
    Found,
    GatewayState,
    HandOver,
    Ids,
    Reason,
    Refused,
    Replay,
    Seal,
    Sealed,
    Started,
)

Notice: TypeAlias = Accepted | Started | Refused | Seal | HandOver | Found | Replay | Done

LAST_TOKENS_S = 10.0
"""The scheduler's Done and a worker's last tokens come by different roads; tokens that are later than this are lost."""

HANDED_S = 10.0
"""What was handed over is remembered for so long: its new owner may not have it yet when the scheduler dies."""


class Notices:
    """Obeys the scheduler."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
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

    def take(self, notice: Notice, now: float) -> None:
        """What the scheduler says. The tokens of a Replay come like a worker's before it."""
        self._obey[type(notice)](notice, now)

    def meet(self, now: float, *, wants_state: bool) -> None:
        """The scheduler is there, again perhaps: whose client is away has a grace from now on, because what it told
        another gateway meanwhile nobody could hear. `wants_state`: it is new, or had given this gateway up. Where the
        same one is met again and again, nobody is kept for more than twice a grace: a link may flap."""
        for entry in self._kept.entries.values():
            if entry.grace_until is not None and entry.ended is None:
                if wants_state:
                    entry.away_since = now
                self._kept.set_grace(entry, min(now, entry.away_since + entry.grace_s) + entry.grace_s)
        if wants_state:
            self._tell_state()

    def _tell_state(self) -> None:
        """All that is kept, and what was on its way to the scheduler and may be lost."""
        entries = self._kept.entries.values()
        told = [entry.open_request() for entry in entries if not entry.is_asking]
        told += [request for _, request in self._kept.handed.values()]
        self._kept.tell(GatewayState(self._kept.settings.gateway, tuple(told)))
        for entry in entries:
            if entry.ended is not None:
                continue
            if entry.is_cancelled or entry.failure is not None:
                # A state cannot say that a client has gone.
                entry.num_answered = entry.num_claims
                self._kept.tell(entry.given_up())
            elif entry.is_asking:
                self._kept.tell(Adopt(entry.submit))
            elif entry.is_claiming:
                self._kept.tell(entry.claim())
        for pin in self._kept.pins.values():
            self._kept.tell(pin)
        for find in self._kept.finds.values():
            self._kept.tell(find)

    def _on_accepted(self, accepted: Accepted, now: float) -> None:
        entry = self._kept.entries.get(accepted.route)
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
                self._kept.by_id[entry.request_id] = entry
                self._kept.news(entry)
                if entry.is_adopted and entry.is_cancelled:
                    # A scheduler that is new did not know the request when its client cancelled it.
                    self._kept.tell(entry.given_up())

    def _on_started(self, started: Started, now: float) -> None:
        entry = self._kept.entries.get(started.route)
        # A request that was preempted starts again; its client was told once.
        if entry is not None and entry.started is None:
            entry.started = started
            self._kept.news(entry)

    def _on_refused(self, refused: Refused, now: float) -> None:
        if self._end_pin(refused.route, error_of(refused, "of this prefix")):
            return
        if self._kept.finds.pop(refused.route, None) is not None:
            name = refused.request_id.partition("/")[2]
            self._kept.orders.found.append((refused.route, error_of(refused, name)))
            return
        entry = self._kept.entries.get(refused.route)
        if entry is None or entry.ended is not None:
            return
        is_last = entry.accepted is None or refused.code in FINAL
        if entry.failure is None and (is_last or not entry.is_cancelled):
            self._kept.fail(entry, error_of(refused, entry.client_id))
        if is_last:
            # Nothing more is said of it.
            self._kept.forget(entry)
        else:
            # An earlier scheduler may have said Done already, and the last tokens did not come.
            self._kept.settle(entry, now)

    def _on_seal(self, seal: Seal, now: float) -> None:
        entry, place = self._kept.entries.get(seal.route), (seal.request_id, seal.gateway, seal.route)
        if entry is None:
            self._kept.tell(Sealed(*place, seal.attempt, *self._handed(seal.route)))
            return
        before = entry.submit.digest
        if seal.digest != before:
            # It was asked of other weights: names of its blocks mean nothing.
            entry.submit = replace(entry.submit, digest=seal.digest, hashes=())
            if seal.attempt:
                entry.digest_before = entry.digest_before or before
        entry.log.seal(seal.attempt)
        self._kept.tell(Sealed(*place, seal.attempt, entry.log.outputs, entry.finished))
        self._kept.refuse_others(entry, now)

    def _on_hand_over(self, order: HandOver, now: float) -> None:
        entry, place = self._kept.entries.get(order.route), (order.request_id, order.gateway, order.route)
        if entry is None:
            self._kept.tell(Sealed(*place, 0, *self._handed(order.route)))
            return
        if entry.is_claiming:
            # The client has been back here since: the scheduler is about to hear so.
            return
        self._kept.tell(Sealed(*place, 0, entry.log.outputs, entry.finished))
        if entry.ended is not None and entry.is_read:
            # It is whole, and told to the end.
            return
        if not entry.is_cancelled and entry.failure is None:
            self._kept.handed[entry.route] = now + HANDED_S, entry.open_request()
            heapq.heappush(self._kept.deadlines, (now + HANDED_S, entry.route))
        if entry.ended is None:
            # Whoever still reads here comes back: words of gateways reach the scheduler in any order.
            detail = "the request went on through another gateway; resume to have it here"
            self._kept.fail(entry, Unavailable(detail, 0.1))
        self._kept.forget(entry, goes_on=True)

    def _handed(self, route: int) -> tuple[tuple[Ids, ...], tuple[Reason, ...]]:
        """What this gateway had of a request that went on through another."""
        known = self._kept.handed.get(route)
        return ((), ()) if known is None else (known[1].outputs, known[1].finished)

    def _on_found(self, found: Found, now: float) -> None:
        if self._kept.finds.pop(found.route, None) is not None:
            self._kept.orders.found.append((found.route, found))

    def _on_replay(self, replay: Replay, now: float) -> None:
        """The scheduler's own record of a sequence that has ended, whose tokens may have died with their worker."""
        entry = self._kept.entries.get(replay.tokens.route)
        if entry is not None and replay.tokens.reason is Reason.DROPPED:
            # From a worker that means that another goes on; here it is the end.
            entry.log.abort(replay.tokens.index)
            self._kept.settle(entry, now)
            self._kept.news(entry)

    def _on_done(self, done: Done, now: float) -> None:
        if self._end_pin(done.route, None):
            return
        entry = self._kept.entries.get(done.route)
        if entry is None:
            # A route of an earlier life may belong to a client who is about to come back for it; one that was handed
            # over has an owner, whose word a new scheduler may not have heard yet.
            is_of_this_life = self._kept.is_of_this_life(done.route)
            if is_of_this_life and done.route not in self._kept.handed:
                self._kept.tell(Closed(done.request_id, done.gateway, done.route))
            return
        entry.done = done
        if not entry.log.is_complete:
            self._kept.wait(entry, now + LAST_TOKENS_S)
        self._kept.settle(entry, now)
        self._kept.news(entry)

    def _end_pin(self, route: int, error: QuireError | None) -> bool:
        pin = self._kept.pins.pop(route, None)
        if pin is None:
            return False
        if error is not None:
            self._kept.quotas.unpin(pin.tenant, route)
        self._kept.orders.pins.append((route, error))
        return True
