"""The scheduler: a pure, deterministic machine that owns every block table of the cluster.

`turn(events, now)` takes what happened and returns what is to be done: plans for replicas, notices for gateways. No
clock, no I/O, no randomness, no torch. The embedded engine, the Ray actor and the simulator run this same code.

The road of a request: submit -> waiting queue -> `Admission` finds room and a cached prefix -> Start in a replica's
plan -> the replica's results renew leases (`Replica.advance`, once per block) -> Stopped frees the blocks -> Done.
Under pressure `_relieve` sends the request of lowest precedence back into the queue. When a replica is lost, the
gateway is asked what it has (Seal), and the request starts again from there.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from cluster.admission import Admission
from cluster.fairness import Tenants
from cluster.hashing import HASH_BYTES
from cluster.ledger import Clock
from cluster.messages import (
    Accepted,
    Adopt,
    Cancel,
    Closed,
    Done,
    Drain,
    Drop,
    Event,
    GatewayLost,
    Ids,
    Order,
    Pin,
    Reason,
    Refused,
    Replay,
    ReplicaJoined,
    ReplicaLost,
    Reroute,
    Result,
    Seal,
    Sealed,
    StopAt,
    Stopped,
    Submit,
    Tick,
    Tokens,
    ids,
)
from cluster.prefix import PrefixIndex
from cluster.replica import Replica
from cluster.rows import Rows
from cluster.sampling import SamplingParams
from cluster.sequences import Request, State
from cluster.sequences import Sequence as TokenSequence
from cluster.settings import SchedulerSettings


class Scheduler:
    """Owns requests, tables, ledgers and leases. One turn at a time; nothing of it is shared."""

    def __init__(self, settings: SchedulerSettings, epoch: int = 1) -> None:
        self.settings = settings
        self.epoch = epoch
        self.replicas: dict[str, Replica] = {}
        self.requests: dict[str, Request] = {}
        self.tenants = Tenants(settings.tenant_weights)
        self.counters: Counter[str] = Counter()
        self.index = PrefixIndex()
        self.rows = Rows()
        self._clock = Clock()
        self.admission = Admission(self)
        self.pin_sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        # Replicas that something happened to in this turn: no others are looked at.
        self._touched: dict[str, Replica] = {}
        self._orders: list[Order] = []
        self._num_arrivals = 0
        self._num_pools = 0
        self._deadlines: list[tuple[float, int, str]] = []
        # Ended requests whose gateway may still lack tokens, until it says Closed.
        self._unclosed: dict[str, Request] = {}
        self._pinned: dict[str, Request] = {}
        self._obey: dict[type, Callable[[Any], None]] = {
            Submit: self._on_submit,
            Pin: self._on_pin,
            Cancel: self._on_cancel,
            StopAt: self._on_stop_at,
            Sealed: self._on_sealed,
            Closed: self._on_closed,
            Adopt: self._on_adopt,
            Result: self._on_result,
            ReplicaJoined: self._on_replica_joined,
            ReplicaLost: self._on_replica_lost,
            GatewayLost: self._on_gateway_lost,
            Drain: self._on_drain,
            Tick: lambda event: None,
        }

    def turn(self, events: Sequence[Event], now: float) -> list[Order]:
        """Takes all that has happened since the last turn, in order, and says what is to be done."""
        self._clock.now = now
        for event in events:
            self._obey[type(event)](event)
        self._expire(now)
        for replica in list(self._touched.values()):
            if replica.wanting:
                self._relieve(replica)
        self.admission.admit(now, list(self._touched.values()))
        orders, self._orders = self._orders, []
        for replica in self._touched.values():
            plan = replica.plan(self.epoch)
            if plan is not None:
                orders.append(plan)
            replica.watch_pressure()
        self._touched.clear()
        return orders

    @property
    def next_deadline(self) -> float | None:
        """When a turn is due even if nothing happens."""
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def now(self) -> float:
        return self._clock.now

    # -- requests come and go

    def _on_submit(self, submit: Submit) -> None:
        if submit.request_id in self.requests:
            self._refuse(submit, "ALREADY_EXISTS", f"a request {submit.request_id} is under way")
            return
        request = self._enter(submit)
        refusal = self.admission.refusal(request)
        if refusal is not None:
            self._forget(request)
            code, detail, retry_after_s = refusal
            self._refuse(submit, code, detail, retry_after_s)
            return
        self.admission.queue(request)
        place = self.admission.num_waiting(request.model) - 1
        self.tell(Accepted(request.gateway, request.route, request.request_id, place, ""))
        if request.deadline is not None:
            self._wake_at(request.deadline, request)

    def _enter(self, event: Submit | Pin) -> Request:
        self._num_arrivals += 1
        request = Request(event, self._num_arrivals, self.tenants.get(event.tenant), self._clock.now)
        size = self.admission.block_size(event.model)
        request.is_cacheable = self.settings.prefix_caching and len(event.hashes) == len(event.prompt) // size
        self.tenants.enter(request.tenant)
        self.requests[request.request_id] = request
        return request

    def _refuse(self, event: Submit | Pin, code: str, detail: str, retry_after_s: float = 0.0) -> None:
        self.counters[f"refused {code}"] += 1
        self.tell(Refused(event.gateway, event.route, event.request_id, code, detail, retry_after_s))

    def tell(self, order: Order) -> None:
        self._orders.append(order)

    def _on_pin(self, pin: Pin) -> None:
        if pin.request_id in self.requests or pin.request_id in self._pinned:
            self._refuse(pin, "ALREADY_EXISTS", f"a request {pin.request_id} is under way")
            return
        num_blocks = len(pin.hashes)
        limit = self.admission.pin_limit(pin.model)
        pinned = sum(len(other.names) // HASH_BYTES for other in self._pinned.values() if other.model == pin.model)
        if pinned + num_blocks > limit:
            detail = f"{num_blocks} blocks more than the {pinned} pinned now would pass the bound of {limit} on pins"
            self._refuse(pin, "RESOURCE_EXHAUSTED", detail)
            return
        self.admission.queue(self._enter(pin))

    def _on_cancel(self, cancel: Cancel) -> None:
        request = self.requests.get(cancel.request_id)
        if request is not None:
            self._abort(request, Reason.DROPPED)

    def _abort(self, request: Request, reason: Reason) -> None:
        """Nobody wants it any more: what runs is dropped, what waits goes at once."""
        request.is_cancelled = True
        if request.state is State.RUNNING:
            self.drop(request)
        elif request.state in (State.QUEUED, State.PARKED, State.SEALING):
            self.admission.withdraw(request)
            for sequence in request.live:
                sequence.reason = reason
            self._finish(request)

    def drop(self, request: Request) -> None:
        """Takes a running request off its replica; its blocks are held until the worker has answered."""
        replica = request.replica
        assert replica is not None and request.state is State.RUNNING
        request.state = State.STOPPING
        replica.num_stopping += 1
        for sequence in request.sequences:
            if sequence.seq:
                replica.wanting.pop(sequence.seq, None)
                replica.write().drops.append(Drop(sequence.seq))

    def _on_stop_at(self, stop: StopAt) -> None:
        """A stop string was found: the sequence ends where the gateway says, whatever was sampled behind it."""
        request = self.requests.get(stop.request_id)
        if request is None or stop.index >= len(request.sequences) or request.sequences[stop.index].is_ended:
            return
        sequence = request.sequences[stop.index]
        sequence.reason = Reason.STOP
        if request.state is State.RUNNING and sequence.seq:
            assert request.replica is not None
            request.replica.write().drops.append(Drop(sequence.seq))
            request.replica.wanting.pop(sequence.seq, None)
        elif request.state in (State.QUEUED, State.PARKED, State.SEALING) and not request.live:
            self.admission.withdraw(request)
            self._finish(request)

    def _finish(self, request: Request) -> None:
        """All its sequences have ended and hold nothing."""
        assert not any(sequence.seq for sequence in request.sequences)
        request.state = State.ENDED
        self._forget(request)
        if request.pin_until is None:
            self._unclosed[request.request_id] = request
        request.tenant.charge(0, request.block_seconds, self.settings.tokens_per_block_second)
        self.counters["cancelled" if request.is_cancelled else "finished"] += 1
        self._tell_done(request)

    def _tell_done(self, request: Request) -> None:
        self.tell(
            Done(
                request.gateway,
                request.route,
                request.request_id,
                request.cached_tokens,
                request.preemptions,
                request.queue_seconds,
                request.block_seconds,
                0.0,
            )
        )

    def _forget(self, request: Request) -> None:
        del self.requests[request.request_id]
        self.tenants.leave(request.tenant)

    def _on_closed(self, closed: Closed) -> None:
        self._unclosed.pop(closed.request_id, None)

    # -- results

    def _on_result(self, result: Result) -> None:
        replica = self.replicas.get(result.replica)
        if replica is None or result.epoch != self.epoch or not replica.take(result):
            self.counters["stale results"] += 1
            return
        replica.advance(result.advances)
        for stopped in result.stopped:
            self._on_stopped(replica, stopped)
        self.admission.wake_waiters(replica)

    def _on_stopped(self, replica: Replica, stopped: Stopped) -> None:
        sequence = self.rows.get(stopped.seq)
        if sequence is None:
            replica.num_stale += 1
            return
        request = sequence.request
        sequence.outputs.extend(stopped.ids)
        request.tenant.charge(len(stopped.ids), 0.0, 0.0)
        replica.fill(sequence, stopped.position, stopped.hashes)
        if sequence.reason is Reason.NONE and stopped.reason is not Reason.DROPPED:
            sequence.reason = stopped.reason
        if request.is_adopted and sequence.is_ended:
            self._replay(request, sequence)
        self._detach(replica, sequence)
        if stopped.reason is Reason.FAILED:
            self._fail(request, stopped.detail)
        if not any(other.seq for other in request.sequences):
            self._off_replica(replica, request)

    def _detach(self, replica: Replica, sequence: TokenSequence) -> None:
        """The attempt is over: blocks are released, and who waited for its prefix looks again."""
        request = sequence.request
        self.index.end_computing(sequence.names, sequence)
        waiters, sequence.waiters = sequence.waiters, ()
        if request.pin_until is not None and sequence.reason in (Reason.LENGTH, Reason.STOP):
            self._hold_pin(replica, sequence)
        replica.leave(sequence)
        for _, waiter in waiters:
            self.admission.unpark(waiter)

    def _off_replica(self, replica: Replica, request: Request) -> None:
        """No sequence of the request is on the replica any more: it has ended, or it waits to start again."""
        del replica.requests[request.request_id]
        if request.state is State.STOPPING:
            replica.num_stopping -= 1
        request.replica = None
        if request.is_cancelled:
            for sequence in request.live:
                sequence.reason = Reason.DROPPED
        if request.live:
            request.state = State.QUEUED
            self.admission.queue(request)
        else:
            self._finish(request)

    def _fail(self, request: Request, detail: str) -> None:
        self.counters["failed"] += 1
        self.tell(Refused(request.gateway, request.route, request.request_id, "INTERNAL", detail))
        self._abort(request, Reason.FAILED)

    # -- pressure

    def _relieve(self, replica: Replica) -> None:
        """Sequences cannot grow: the request of lowest precedence gives its blocks back, one at a time."""
        while True:
            starving = replica.serve_wanting()
            if starving is None or replica.num_stopping:
                return
            running = [request for request in replica.requests.values() if request.state is State.RUNNING]
            victim = max(running, key=lambda request: request.precedence)
            if len(running) == 1 and self.unpin_one(replica):
                continue
            self.preempt(victim, f"{starving.request.request_id} needs a block and none is free")

    def preempt(self, request: Request, why: str) -> None:
        request.preemptions += 1
        request.why_preempted = why
        self.counters["preempted recompute"] += 1
        self.drop(request)

    # -- pins

    def _hold_pin(self, replica: Replica, sequence: TokenSequence) -> None:
        request = sequence.request
        assert request.pin_until is not None
        if request.is_cacheable and request.names:
            replica.pin(request.request_id, list(sequence.table[: len(request.names) // HASH_BYTES]))
            self._pinned[request.request_id] = request
            self._wake_at(request.pin_until, request)

    def _unpin(self, request: Request) -> None:
        del self._pinned[request.request_id]
        for replica in self.replicas.values():
            replica.unpin(request.request_id)

    def unpin_one(self, replica: Replica) -> bool:
        """Memory for running work goes before pins: the oldest one gives way."""
        for request_id in replica.pins:
            self._unpin(self._pinned[request_id])
            self.counters["pins given up"] += 1
            return True
        return False

    # -- replicas come and go

    def _on_replica_joined(self, joined: ReplicaJoined) -> None:
        known = self.replicas.get(joined.replica)
        if known is not None:
            if known.incarnation >= joined.incarnation:
                self.counters["stale joins"] += 1
                return
            self._lose(known)
        self._num_pools += 1
        replica = Replica(joined, self._num_pools, self.settings, self.index, self.rows, self._clock, self._touched)
        self.replicas[joined.replica] = replica
        self.admission.add(replica)
        replica.write()

    def _on_replica_lost(self, lost: ReplicaLost) -> None:
        replica = self.replicas.get(lost.replica)
        if replica is not None and replica.incarnation == lost.incarnation:
            self._lose(replica)

    def _lose(self, replica: Replica) -> None:
        """Its memory is gone. What ran there starts again from what the gateways have."""
        self.counters["replicas lost"] += 1
        del self.replicas[replica.name]
        self.admission.remove(replica)
        for request_id in list(replica.pins):
            self._unpin(self._pinned[request_id])
        for sequence in list(replica.residents.values()):
            self._detach(replica, sequence)
        replica.close()
        self._touched.pop(replica.name, None)
        for request in list(replica.requests.values()):
            request.replica = None
            self._seal(request)
        # The tokens of requests that ended there may have died with it: their gateways are asked as well.
        for request in self._unclosed.values():
            if request.last_replica is replica:
                self._ask_seal(request)

    def _seal(self, request: Request) -> None:
        request.state = State.SEALING
        if request.is_cancelled or request.pin_until is not None:
            for sequence in request.live:
                sequence.reason = Reason.DROPPED
            self._finish(request)
            return
        self._ask_seal(request)

    def _ask_seal(self, request: Request) -> None:
        request.seal_deadline = self._clock.now + self.settings.seal_timeout_s
        self._wake_at(request.seal_deadline, request)
        self.tell(Seal(request.gateway, request.route, request.request_id, request.attempt))

    def _on_sealed(self, sealed: Sealed) -> None:
        request = self.requests.get(sealed.request_id) or self._unclosed.get(sealed.request_id)
        if request is None or sealed.attempt != request.attempt:
            self.counters["stale seals"] += 1
            return
        for sequence, known, finished in zip(request.sequences, sealed.outputs, sealed.finished, strict=True):
            if len(known) > len(sequence.outputs) and not sequence.is_ended:
                sequence.outputs = ids(known)
            if finished is not Reason.NONE and not sequence.is_ended:
                sequence.reason = finished
            if sequence.is_ended and finished is Reason.NONE:
                self._replay(request, sequence)
        if request.state is State.SEALING:
            if request.live:
                request.state = State.QUEUED
                self.admission.queue(request)
            else:
                self._finish(request)

    def _replay(self, request: Request, sequence: TokenSequence) -> None:
        tokens = Tokens(request.route, sequence.index, request.attempt + 1, 0, sequence.outputs, reason=sequence.reason)
        self.tell(Replay(request.gateway, tokens))

    def _on_drain(self, drain: Drain) -> None:
        replica = self.replicas.get(drain.replica)
        if replica is None:
            return
        replica.is_draining = drain.on
        replica.write()
        if drain.on:
            for request in list(replica.requests.values()):
                if request.state is State.RUNNING:
                    self.preempt(request, f"replica {replica.name} is draining")

    # -- gateways come and go

    def _on_adopt(self, adopt: Adopt) -> None:
        """A client came back through another gateway: tokens go there from now on."""
        request = self.requests.get(adopt.request_id) or self._unclosed.get(adopt.request_id)
        if request is None or request.tenant.name != adopt.tenant:
            detail = f"no request {adopt.request_id} of this tenant is under way"
            self.tell(Refused(adopt.gateway, adopt.route, adopt.request_id, "NOT_FOUND", detail))
            return
        request.gateway, request.route = adopt.gateway, adopt.route
        request.orphaned_until = None
        request.is_adopted = True
        self.tell(Accepted(request.gateway, request.route, request.request_id, 0, "resumed"))
        for sequence in request.sequences:
            if sequence.seq and request.replica is not None:
                request.replica.write().reroutes.append(Reroute(sequence.seq, adopt.gateway, adopt.route))
            elif sequence.outputs or sequence.is_ended:
                self._replay(request, sequence)
        if request.state is State.ENDED:
            # Its first gateway may have died before it could pass this on.
            self._tell_done(request)

    def _on_gateway_lost(self, lost: GatewayLost) -> None:
        """Its requests run on for a grace in which their clients can come back through another gateway."""
        until = self._clock.now + self.settings.orphan_grace_s
        for request in [*self.requests.values(), *self._unclosed.values()]:
            if request.gateway == lost.gateway and request.pin_until is None:
                request.orphaned_until = until
                self._wake_at(until, request)
                if request.state is State.SEALING:
                    # Nobody is left to say what was sent; what the workers reported is a prefix of it, and the same
                    # draws give the same tokens again.
                    self._on_sealed(self._own_word(request))

    def _own_word(self, request: Request) -> Sealed:
        outputs: tuple[Ids, ...] = tuple(sequence.outputs for sequence in request.sequences)
        return Sealed(request.request_id, request.attempt, outputs, tuple(s.reason for s in request.sequences))

    # -- time

    def _wake_at(self, when: float, request: Request) -> None:
        heapq.heappush(self._deadlines, (when, request.arrival, request.request_id))

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival, request_id = heapq.heappop(self._deadlines)
            pinned = self._pinned.get(request_id)
            if pinned is not None and pinned.arrival == arrival and (pinned.pin_until or 0.0) <= now:
                self._unpin(pinned)
                continue
            request = self.requests.get(request_id) or self._unclosed.get(request_id)
            if request is not None and request.arrival == arrival:
                self._expire_request(request, now)

    def _expire_request(self, request: Request, now: float) -> None:
        if request.orphaned_until is not None and request.orphaned_until <= now:
            self._unclosed.pop(request.request_id, None)
            if request.state is not State.ENDED:
                self.counters["orphans given up"] += 1
                self._abort(request, Reason.DROPPED)
        elif request.deadline is not None and request.deadline <= now and request.state is not State.ENDED:
            if not request.is_cancelled:
                detail = "the deadline of the request has passed"
                self.tell(Refused(request.gateway, request.route, request.request_id, "DEADLINE_EXCEEDED", detail))
                self._abort(request, Reason.DROPPED)
        elif request.state is State.SEALING and request.seal_deadline <= now:
            self._ask_seal(request)

    # -- proof

    def check(self) -> None:
        """Proves the rules of the ledgers and of every request; raises AssertionError with the figures."""
        for replica in self.replicas.values():
            replica.check()
        for request in self.requests.values():
            on_replica = [sequence for sequence in request.sequences if sequence.seq]
            assert bool(on_replica) == (request.state in (State.RUNNING, State.STOPPING)), f"{request}: {on_replica}"
            assert request.state is not State.PARKED or request.parked_on is not None, f"{request} waits for nobody"
        assert len(self.rows) == sum(len(replica.residents) for replica in self.replicas.values())
