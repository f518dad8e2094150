"""The scheduler: a pure, deterministic machine that owns every block table of the cluster.

`turn(events, now)` takes what happened and returns what is to be done: plans for replicas, notices for gateways. No
clock, no I/O, no randomness, no torch. The embedded engine, the Ray actor and the simulator run this same code.

The road of a request: submit -> waiting queue -> `Admission` finds room and a cached prefix -> Start in a replica's
plan -> the replica's results renew leases (`Replica.advance`, once per block) -> Stopped frees the blocks -> Done.
Under pressure `Pressure.relieve` sends a request back into the queue. When a replica is lost, the
gateway is asked what it has (Seal), and the request starts again from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.centre.admission import Admission
from cluster.centre.adoption import Adoption
from cluster.centre.balance import Balance
from cluster.centre.deadlines import Deadlines
from cluster.centre.fairness import Tenants
from cluster.centre.fetch import Fetches
from cluster.centre.flaws import flaw_of
from cluster.centre.host_cache import HostCache
from cluster.centre.ledger import Clock, Ledger
from cluster.centre.moves import Moves
from cluster.centre.notes import Notes
from cluster.centre.pins import Pins
from cluster.centre.prefix import PrefixIndex
from cluster.centre.pressure import Pressure
from cluster.centre.rebuild import Rebuild
from cluster.centre.recovery import Recovery
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, State
from cluster.centre.sequences import Sequence as TokenSequence
from cluster.centre.swap import Swapper
from cluster.errors import ProtocolError
from cluster.messages import (
    EPOCH_BITS,
    Accepted,
    Adopt,
    Cancel,
    Claim,
    Closed,
    CloseModel,
    Done,
    Drain,
    Drop,
    Event,
    Expel,
    GatewayLost,
    GatewayState,
    HostPoolJoined,
    HostPoolLost,
    HostPoolSettled,
    Order,
    Pin,
    Reason,
    Refused,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Result,
    Sealed,
    StopAt,
    Stopped,
    Submit,
    Tick,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings


class Scheduler:
    """Owns requests, tables, ledgers and leases. One turn at a time; nothing of it is shared."""

    def __init__(self, settings: SchedulerSettings, epoch: int = 1) -> None:
        self.settings = settings
        self.epoch = epoch
        self.replicas: dict[str, Replica] = {}
        self.requests: dict[str, Request] = {}
        self.tenants = Tenants(settings.tenant_weights, settings.clear_tenants)
        self.counters: Counter[str] = Counter()
        self.notes = Notes()
        self.index = PrefixIndex()
        self._num_attempts = 0
        self.clock = Clock()
        self.admission = Admission(self)
        self.swapper = Swapper(self)
        self.moves = Moves(self)
        self.balance = Balance(self)
        self.fetches = Fetches(self)
        self.host_cache = HostCache(self)
        self.pins = Pins(self)
        self.pressure = Pressure(self)
        self.deadlines = Deadlines(self)
        self.recovery = Recovery(self)
        self.adoption = Adoption(self)
        self.rebuild = Rebuild(self)
        # Of any model: what a pin computes is thrown away but for its blocks.
        self.pin_sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, seed=0).resolve(
            {}, vocab_size=2**31 - 1, max_model_len=2**31 - 1
        )
        # Replicas that something happened to in this turn: no others are looked at.
        self.touched: dict[str, Replica] = {}
        self._orders: list[Order] = []
        # Those that were accepted in this turn, and where among its orders they were told so.
        self._accepted: list[tuple[int, Request]] = []
        # Behind all requests of schedulers before this one, whose numbers stay theirs.
        self._num_arrivals = ((epoch - 1) & 0xFF) << 32
        self.num_pools = 0
        # Ended requests whose gateway may still lack tokens, until it says Closed.
        self.unclosed: dict[str, Request] = {}
        self._obey: dict[type, Callable[[Any], None]] = {
            Submit: self._on_submit,
            Pin: self.pins.on_pin,
            Cancel: self._on_cancel,
            StopAt: self._on_stop_at,
            Sealed: self.recovery.on_sealed,
            Closed: self._on_closed,
            Adopt: self.adoption.on_adopt,
            Claim: self.adoption.on_claim,
            Result: self._on_result,
            ReplicaJoined: self.recovery.on_replica_joined,
            ReplicaLost: self.recovery.on_replica_lost,
            HostPoolJoined: self._on_host_pool_joined,
            HostPoolLost: self._on_host_pool_lost,
            HostPoolSettled: self.swapper.on_settled,
            GatewayLost: self.recovery.on_gateway_lost,
            ReplicaState: self.rebuild.on_replica_state,
            GatewayState: self.rebuild.on_gateway_state,
            Drain: self._on_drain,
            CloseModel: self._on_close_model,
            Tick: lambda event: None,
        }

    def turn(self, events: Sequence[Event], now: float) -> list[Order]:
        """Takes all that has happened since the last turn, in order, and says what is to be done."""
        self.clock.now = now
        self.admission.expire(now)
        self.rebuild.begin_if_due()
        for event in events:
            flaw = flaw_of(event)
            if flaw:
                self._refuse_event(event, flaw)
            else:
                self._obey[type(event)](event)
        self.adoption.turn()
        self.rebuild.expire(now)
        self.deadlines.expire(now)
        for replica in list(self.touched.values()):
            if replica.is_draining and replica.requests:
                self.balance.drain(replica)
            if replica.wanting:
                self.pressure.relieve(replica)
        self.balance.level(now)
        self.admission.admit(now, list(self.touched.values()))
        orders, self._orders = self._orders, []
        self._say_why(orders)
        for replica in self.touched.values():
            self.host_cache.turn(replica)
            plan = replica.plan(self.epoch)
            if plan is not None:
                orders.append(plan)
            replica.watch_pressure()
        self.touched.clear()
        return orders

    @property
    def next_deadline(self) -> float | None:
        """When a turn is due even if nothing happens."""
        times = (
            self.deadlines.next,
            self.rebuild.ends_at,
            self.admission.next_due,
            self.adoption.next_deadline,
        )
        return min((time for time in times if time is not None), default=None)

    @property
    def now(self) -> float:
        return self.clock.now

    # -- what cannot be so

    def _refuse_event(self, event: Event, flaw: str) -> None:
        """Nothing that comes over a stream ends the scheduler: it is refused by name and counted."""
        self.counters["events refused"] += 1
        if isinstance(event, Submit | Pin | Adopt):
            self.refuse(event.submit if isinstance(event, Adopt) else event, "INVALID_ARGUMENT", flaw)
        elif isinstance(event, ReplicaJoined):
            self.recovery.turn_away(event, flaw)
        elif isinstance(event, ReplicaState):
            self.recovery.turn_away(event.joined, flaw)
        elif isinstance(event, Result):
            replica = self.replicas.get(event.replica)
            if replica is not None and (event.incarnation, event.epoch) == (replica.incarnation, self.epoch):
                self.expel(replica, flaw)
        else:
            self.notes.add(self.now, "refused", type(event).__name__, flaw)

    def expel(self, replica: Replica, detail: str) -> None:
        """What its worker told cannot be so: nothing that it holds can be believed. Its requests go on elsewhere."""
        self.counters["replicas expelled"] += 1
        self.tell(Expel(replica.name, replica.incarnation, detail))
        self.recovery.on_replica_lost(
            ReplicaLost(replica.name, replica.incarnation, f"it told what cannot be: {detail}")
        )

    # -- requests come and go

    def _on_submit(self, submit: Submit) -> None:
        if submit.request_id in self.requests:
            self.refuse(submit, "ALREADY_EXISTS", f"a request {submit.request_id} is under way")
            return
        # Its client has begun anew: nobody waits for what there was under this name.
        self.unclosed.pop(submit.request_id, None)
        request = self.enter(submit)
        refusal = self.admission.refusal(request)
        if refusal is not None:
            self.forget(request)
            code, detail, retry_after_s = refusal
            self.refuse(submit, code, detail, retry_after_s)
            return
        reason = self.admission.accept(request)
        place = self.admission.num_waiting(request.model) - 1
        if not reason:
            self._accepted.append((len(self._orders), request))
        self.tell(Accepted(request.gateway, request.route, request.request_id, place, reason))
        if request.deadline is not None:
            self.deadlines.wake_at(request.deadline, request)

    def _say_why(self, orders: list[Order]) -> None:
        """Who was accepted in this turn and could not start is told why."""
        for at, request in self._accepted:
            accepted = orders[at]
            if request.state in (State.QUEUED, State.PARKED) and isinstance(accepted, Accepted):
                orders[at] = replace(accepted, reason=self.admission.why_waiting(request))
        self._accepted.clear()

    def enter(self, event: Submit | Pin) -> Request:
        request = Request(event, self.next_arrival(), self.tenants.get(event.tenant), self.clock.now)
        size = self.admission.block_size(event.model)
        names_fit = len(event.hashes) == len(event.prompt) // size
        request.is_cacheable = self.settings.prefix_caching and names_fit and not request.tenant.is_cleared
        self.tenants.enter(request.tenant)
        self.requests[request.request_id] = request
        return request

    def next_arrival(self) -> int:
        self._num_arrivals += 1
        return self._num_arrivals

    def is_before_this_epoch(self, arrival: int) -> bool:
        """No request of this scheduler can have this number."""
        return arrival <= ((self.epoch - 1) & 0xFF) << 32

    def next_seq(self) -> int:
        """A number for an attempt of a sequence, never given before, in no epoch."""
        self._num_attempts += 1
        return self.epoch << EPOCH_BITS | self._num_attempts

    def refuse(self, event: Submit | Pin, code: str, detail: str, retry_after_s: float = 0.0) -> None:
        self.counters[f"refused {code}"] += 1
        self.tell(Refused(event.gateway, event.route, event.request_id, code, detail, retry_after_s))

    def tell(self, order: Order) -> None:
        self._orders.append(order)

    def _on_cancel(self, cancel: Cancel) -> None:
        request = self.requests.get(cancel.request_id)
        if cancel.gateway:
            self.adoption.give_up(cancel.gateway, cancel.route)
            if request is not None and (request.gateway, request.route) != (cancel.gateway, cancel.route):
                # Its client has come back elsewhere.
                self.counters["stale cancels"] += 1
                return
        if request is not None and not request.is_cancelled:
            # The cancel may have come through another gateway than the one that shows the answer.
            self.break_off(request, "CANCELLED", "the request was cancelled", Reason.DROPPED)

    def abort(self, request: Request, reason: Reason) -> None:
        """Nobody wants it any more: what runs is dropped, what waits goes at once."""
        request.is_cancelled = True
        if request.state is State.RUNNING:
            self.drop(request)
        elif request.state in (State.SWAPPING, State.RESTORING):
            self.swapper.abort(request)
            self.moves.abort(request)
            self.fetches.abort(request)
        elif request.state in (State.QUEUED, State.PARKED, State.SEALING):
            self.admission.withdraw(request)
            for sequence in request.live:
                sequence.reason = reason
            self.finish(request)

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
        if request is None or not 0 <= stop.index < len(request.sequences) or request.sequences[stop.index].is_ended:
            return
        if request.width:
            # Its gateway cuts the text of whole hypotheses; the search goes on as it is.
            return
        sequence = request.sequences[stop.index]
        if request.state is State.RUNNING and sequence.seq:
            self.stop_sequence(request, sequence, Reason.STOP, stop.num_outputs)
            return
        sequence.reason, sequence.cut = Reason.STOP, stop.num_outputs
        if request.state in (State.QUEUED, State.PARKED, State.SEALING) and not request.live:
            self.admission.withdraw(request)
            self.finish(request)

    def stop_sequence(self, request: Request, sequence: TokenSequence, reason: Reason, num_outputs: int) -> None:
        """One that runs has all its tokens: its worker is told."""
        assert request.replica is not None and request.state is State.RUNNING
        sequence.reason, sequence.cut = reason, num_outputs
        request.replica.write().drops.append(Drop(sequence.seq))
        request.replica.wanting.pop(sequence.seq, None)

    def finish(self, request: Request) -> None:
        """All its sequences have ended and hold nothing."""
        assert not any(sequence.seq for sequence in request.sequences)
        self.swapper.forget(request)
        self.recovery.deaf(request)
        request.state = State.ENDED
        if self.requests.get(request.request_id) is not request:
            # What a replica still ran of a request that goes on elsewhere (see Rebuild): nobody waits for it.
            self.tenants.leave(request.tenant)
            return
        self.forget(request)
        given_up = request.orphaned_until is not None and request.orphaned_until <= self.now
        if request.pin_until is None and not given_up:
            self.unclosed[request.request_id] = request
        request.tenant.charge_memory(request, self.settings.tokens_per_block_second)
        request.tenant.bill(request)
        self.counters["cancelled" if request.is_cancelled else "finished"] += 1
        self.tell_done(request)

    def tell_done(self, request: Request) -> None:
        self.tell(
            Done(
                request.gateway,
                request.route,
                request.request_id,
                request.cached_tokens,
                request.preemptions,
                request.queue_seconds,
                request.block_seconds,
                request.host_block_seconds,
            )
        )

    def revive(self, request: Request) -> None:
        """It had ended, but what came of it was lost with its worker: it is made again."""
        del self.unclosed[request.request_id]
        self.requests[request.request_id] = request
        self.tenants.enter(request.tenant)
        self.admission.queue(request)

    def forget(self, request: Request) -> None:
        if self.requests.get(request.request_id) is request:
            del self.requests[request.request_id]
        self.tenants.leave(request.tenant)

    def _on_closed(self, closed: Closed) -> None:
        under_way = self.requests.get(closed.request_id)
        if under_way is not None and (under_way.gateway, under_way.route) == (closed.gateway, closed.route):
            # A gateway that told a new scheduler its state may get the last tokens only then, of an old attempt or from
            # the old scheduler. Under another route the client has asked again.
            self.abort(under_way, Reason.DROPPED)
        request = self.unclosed.get(closed.request_id)
        if request is not None and (request.gateway, request.route) == (closed.gateway, closed.route):
            del self.unclosed[closed.request_id]
            # Requests and sequences name each other: taken apart they are freed at once, without the collector.
            request.sequences = []

    # -- results

    def _on_result(self, result: Result) -> None:
        replica = self.replicas.get(result.replica)
        if replica is None or result.epoch != self.epoch:
            self.counters["stale results"] += 1
            return
        try:
            if replica.take(result):
                self._take_result(replica, result)
            else:
                self.counters["stale results"] += 1
        except ProtocolError as error:
            self.counters["events refused"] += 1
            self.expel(replica, str(error))

    def _take_result(self, replica: Replica, result: Result) -> None:
        for transferred in result.transferred:
            if not any(
                owner.on_transferred(replica, transferred) for owner in (self.moves, self.fetches, self.host_cache)
            ):
                self.swapper.on_transferred(replica, transferred)
        self.moves.pauses.on_result(replica, result, self.now)
        replica.advance(result.advances)
        for group in result.groups:
            replica.advance_group(group)
        for revoked in result.revoked:
            self.counters["blocks revoked"] += replica.take_back(revoked)
        for stopped in result.stopped:
            self._on_stopped(replica, stopped)
        self.admission.wake_waiters(replica)

    def _on_stopped(self, replica: Replica, stopped: Stopped) -> None:
        sequence = replica.residents.get(stopped.seq)
        if sequence is None:
            replica.num_stale += 1
            return
        request = sequence.request
        self._check_stopped(sequence, stopped)
        if not request.width or stopped.reason is not Reason.DROPPED:
            # A beam group that was dropped starts again from its prompt: nothing of it has gone out.
            sequence.outputs.extend(stopped.ids)
        request.tenant.charge(len(stopped.ids))
        replica.fill(sequence, stopped.position, stopped.hashes)
        if sequence.reason is Reason.NONE and stopped.reason is not Reason.DROPPED:
            sequence.reason = stopped.reason
            sequence.ended_on = replica
        if request.is_adopted and sequence.is_ended:
            self.recovery.replay(request, sequence)
        goes_on = request.host is not None or self.moves.is_stopping(request)
        if goes_on and not sequence.is_ended and not request.is_cancelled:
            sequence.has_stopped = True
            if stopped.search:
                sequence.group = (stopped.position, stopped.tables, stopped.search)
        else:
            self.detach(replica, sequence)
        if stopped.reason is Reason.FAILED:
            self._fail(request, stopped.detail)
        on_replica = [other for other in request.sequences if other.seq]
        if on_replica and all(other.has_stopped for other in on_replica):
            if request.host is not None:
                self.swapper.write_out(request)
            elif self.moves.is_stopping(request):
                self.moves.finish(request)
            else:
                # Its move was given up between two of its sequences' last words.
                self.swapper.give_up(request, replica)
        elif not on_replica:
            self.off_replica(replica, request)

    def _check_stopped(self, sequence: TokenSequence, stopped: Stopped) -> None:
        request = sequence.request
        most = (request.width or 1) * request.max_tokens
        if stopped.reason is Reason.NONE or request.state is State.RESTORING:
            raise ProtocolError(
                f"{sequence} is told to have stopped ({stopped.reason.name}), but {request} had not begun"
            )
        if not 0 <= stopped.position <= sequence.lease_end or len(sequence.outputs) + len(stopped.ids) > most:
            raise ProtocolError(
                f"{sequence} is told to have stopped at {stopped.position} with {len(stopped.ids)} more"
            )
        alien = {block for table in stopped.tables for block in table}.difference(sequence.table)
        if alien or len(stopped.tables) > request.width:
            raise ProtocolError(
                f"{sequence}: {len(stopped.tables)} beams hold blocks {sorted(alien)}, never given to it"
            )

    def detach(self, replica: Replica, sequence: TokenSequence) -> None:
        """The attempt is over: blocks are released, and who waited for its prefix looks again."""
        request = sequence.request
        self.index.end_computing(sequence)
        waiters, sequence.waiters = sequence.waiters, ()
        if request.pin_until is not None and sequence.reason in (Reason.LENGTH, Reason.STOP):
            self.pins.hold(replica, sequence)
        if request.forked_from is sequence and not request.has_forks_waiting:
            request.forked_from = None
        replica.leave(sequence)
        for _, waiter in waiters:
            self.admission.unpark(waiter)

    def off_replica(self, replica: Replica, request: Request) -> None:
        """No sequence of the request is on the replica any more: it has ended, or it waits to start again."""
        self.moves.cancel(request)
        del replica.requests[request.request_id]
        if request.state in (State.STOPPING, State.SWAPPING):
            replica.num_stopping -= 1
        request.replica = None
        if request.is_cancelled:
            for sequence in request.live:
                sequence.reason = Reason.DROPPED
        if not request.live:
            self.finish(request)
        elif request.is_partial:
            self.recovery.seal(request)
        else:
            self.admission.queue(request)

    def _fail(self, request: Request, detail: str) -> None:
        self.counters["failed"] += 1
        self.break_off(request, "INTERNAL", detail, Reason.FAILED)

    def break_off(self, request: Request, code: str, detail: str, reason: Reason) -> None:
        """It ends before its time; who adopts it later is told the same."""
        request.refusal = (code, detail)
        self.notes.add(self.now, f"ended {code}", request.request_id, detail)
        self.tell(Refused(request.gateway, request.route, request.request_id, code, detail))
        self.abort(request, reason)

    # -- replicas, pools and models

    def _on_host_pool_joined(self, joined: HostPoolJoined) -> None:
        self.num_pools += 1
        ledger = Ledger(self.num_pools, joined.num_blocks, "lru", self.index, self.clock)
        self.swapper.add(joined, ledger)

    def _on_host_pool_lost(self, lost: HostPoolLost) -> None:
        host = self.swapper.pools.get(lost.pool)
        if host is not None and host.incarnation == lost.incarnation:
            self.swapper.lose(host)

    def _on_drain(self, drain: Drain) -> None:
        replica = self.replicas.get(drain.replica)
        if replica is None:
            return
        replica.is_draining = drain.on
        replica.drained_from = self.now
        replica.write()

    def _on_close_model(self, close: CloseModel) -> None:
        """What is accepted of this model ends; nothing new is taken."""
        if close.on and self.admission.replicas_of(close.model):
            self.admission.closed.add(close.model)
        elif not close.on:
            self.admission.closed.discard(close.model)

    def unload(self, model: str) -> None:
        """A closed model has lost its last replica: who still waits for it is told."""
        for request in [one for one in self.requests.values() if one.model == model and not one.is_cancelled]:
            detail = f"model {model} was unloaded before the request could end"
            self.break_off(request, "UNAVAILABLE", detail, Reason.DROPPED)
        self.admission.forget_model(model)

    # -- proof

    def check(self) -> None:
        """Proves the rules of the ledgers and of every request; raises AssertionError with the figures."""
        for replica in self.replicas.values():
            replica.check()
        self.swapper.check()
        self.moves.check()
        for request in self.requests.values():
            on_replica = [sequence for sequence in request.sequences if sequence.seq]
            assert bool(on_replica) == (request.state in (State.RUNNING, State.STOPPING, State.RESTORING)), (
                f"{request}: {on_replica}"
            )
            assert request.state is not State.PARKED or request.parked_on is not None, f"{request} waits for nobody"
