"""What happens when a process dies: replicas that are lost, gateways that are asked or lost, clients that come back.

Nothing that was accepted is lost and nothing that was sent changes. What ran on a lost replica is sealed: its gateway
says what it has of every sequence and is deaf to older attempts from then on, and the request starts again from there.
Ended requests are kept until their gateway says Closed, because their last tokens may have died with their worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, Sequence, State
from cluster.messages import (
    Accepted,
    Adopt,
    GatewayLost,
    Ids,
    Reason,
    Refused,
    Replay,
    ReplicaJoined,
    ReplicaLost,
    Reroute,
    Seal,
    Sealed,
    Tokens,
    TurnAway,
    ids,
)

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler


class Recovery:
    """The part of the scheduler that deals with the loss of replicas and gateways."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # What is kept for attempts that a lost replica may still be running, by request.
        self._until_deaf: dict[str, list[Callable[[], None]]] = {}
        # Incarnations of replicas that can't join as things are.
        self._turned_away: dict[str, int] = {}
        # The last incarnation of each replica that was here: only a higher one joins.
        self._incarnations: dict[str, int] = {}

    # -- replicas come and go

    def on_replica_joined(self, joined: ReplicaJoined) -> None:
        scheduler = self._scheduler
        if self._incarnations.get(joined.replica, -1) >= joined.incarnation:
            scheduler.counters["stale joins"] += 1
            return
        known = scheduler.replicas.get(joined.replica)
        if known is not None:
            self.lose(known)
        wrong = scheduler.admission.why_not(joined)
        if wrong:
            self.turn_away(joined, wrong)
            return
        self._turned_away.pop(joined.replica, None)
        self._incarnations[joined.replica] = joined.incarnation
        scheduler.num_pools += 1
        replica = Replica(
            joined,
            scheduler.num_pools,
            scheduler.settings,
            scheduler.index,
            scheduler.clock,
            scheduler.touched,
        )
        scheduler.replicas[joined.replica] = replica
        scheduler.fetches.owners[replica.ledger.pool] = replica
        scheduler.swapper.rates.at_start(joined.node, joined.bytes_per_s)
        scheduler.admission.add(replica)
        replica.write()

    def turn_away(self, joined: ReplicaJoined, why: str) -> None:
        """It asks again and again, and joins once those are gone that it can't stand beside; people are told once."""
        scheduler = self._scheduler
        scheduler.counters["replicas turned away"] += 1
        scheduler.tell(TurnAway(joined.replica, joined.incarnation, why))
        if self._turned_away.get(joined.replica) != joined.incarnation:
            self._turned_away[joined.replica] = joined.incarnation
            scheduler.notes.add(scheduler.now, "turned away", joined.replica, why)

    def on_replica_lost(self, lost: ReplicaLost) -> None:
        replica = self._scheduler.replicas.get(lost.replica)
        if replica is not None and replica.incarnation == lost.incarnation:
            detail = f"{lost.detail}; {len(replica.requests)} requests go on elsewhere"
            # One that has drained is gone because somebody wanted it so.
            kind = "left" if replica.is_draining and not replica.requests else "lost"
            self._scheduler.notes.add(self._scheduler.now, kind, lost.replica, detail)
            self.lose(replica)
            model = replica.joined.model
            if model in self._scheduler.admission.closed and not self._scheduler.admission.replicas_of(model):
                self._scheduler.unload(model)

    def lose(self, replica: Replica) -> None:
        """Its memory is gone. What ran there starts again from what the gateways have."""
        scheduler = self._scheduler
        # One that has drained is gone because somebody wanted it so.
        was_drained = replica.is_draining and not replica.requests
        scheduler.counters["replicas left" if was_drained else "replicas lost"] += 1
        del scheduler.replicas[replica.name]
        scheduler.admission.remove(replica)
        scheduler.moves.lose_replica(replica)
        scheduler.fetches.lose(replica)
        scheduler.host_cache.lose_replica(replica)
        kept = scheduler.swapper.lose_replica(replica)
        scheduler.pins.release_all(replica)
        for sequence in list(replica.residents.values()):
            scheduler.detach(replica, sequence)
        replica.close()
        scheduler.touched.pop(replica.name, None)
        for request in list(replica.requests.values()):
            request.replica = None
            if request not in kept:
                scheduler.swapper.forget(request)
            # Also what was only coming back from host memory: it may have been there, and gone on, unheard of.
            self.seal(request)
        # The tokens of requests that ended there may have died with it: their gateways are asked as well.
        for request in scheduler.unclosed.values():
            if request.last_replica is replica or any(one.ended_on is replica for one in request.sequences):
                self.ask_seal(request)
        # So may those of single sequences, whose siblings went on elsewhere: to ask would stop these.
        for request in scheduler.requests.values():
            if request.state is not State.SEALING and len(request.sequences) > 1:
                for sequence in request.sequences:
                    if sequence.ended_on is replica:
                        self.replay(request, sequence)

    def when_deaf(self, request: Request, then: Callable[[], None]) -> None:
        """Its replica is lost, and may have stood still only: calls `then` once its gateway takes nothing from that
        attempt any more. What the attempt was to read stays as it is until then: it would begin with other content."""
        self._until_deaf.setdefault(request.request_id, []).append(then)

    def deaf(self, request: Request) -> None:
        for then in self._until_deaf.pop(request.request_id, ()):
            then()

    def seal(self, request: Request) -> None:
        """Its gateway is asked what it has of the request, which starts again from there."""
        request.state = State.SEALING
        if request.pin_until is not None and not request.is_cancelled and request.live:
            # Nothing of it goes to anybody: it is computed again, and answered when that is done.
            self._scheduler.admission.queue(request)
            return
        if request.is_cancelled or request.pin_until is not None:
            for sequence in request.live:
                sequence.reason = Reason.DROPPED
            self._scheduler.finish(request)
            return
        self.ask_seal(request)

    def ask_seal(self, request: Request) -> None:
        request.seal_deadline = self._scheduler.now + self._scheduler.settings.seal_timeout_s
        self._scheduler.deadlines.wake_at(request.seal_deadline, request)
        self._scheduler.tell(Seal(request.gateway, request.route, request.request_id, request.attempt))

    def on_sealed(self, sealed: Sealed) -> None:
        scheduler = self._scheduler
        request = scheduler.requests.get(sealed.request_id) or scheduler.unclosed.get(sealed.request_id)
        if request is None or sealed.attempt != request.attempt:
            scheduler.counters["stale seals"] += 1
            return
        flaw = self._flaw(request, sealed)
        if flaw:
            scheduler.counters["events refused"] += 1
            if request.state is State.SEALING:
                scheduler.break_off(request, "ABORTED", f"{sealed.request_id}: {flaw}", Reason.DROPPED)
            return
        self.deaf(request)
        if request.width:
            self._seal_group(request, sealed)
        else:
            self._take_outputs(request, sealed)
        if request.state is State.SEALING:
            request.is_partial = False
            if request.live:
                scheduler.admission.queue(request)
            else:
                scheduler.finish(request)

    def _flaw(self, request: Request, sealed: Sealed) -> str:
        """Why a gateway cannot have of this request what it says."""
        longest = max(map(len, sealed.outputs), default=0)
        if request.width:
            return "" if sealed.finished else "its gateway says nothing of its beams"
        if len(sealed.outputs) != len(request.sequences) or longest > request.max_tokens:
            count = f"{len(sealed.outputs)} of {len(request.sequences)} sequences, of {longest} tokens at most"
            return f"its gateway has {count}; {request.max_tokens} were asked for"
        return ""

    def _take_outputs(self, request: Request, sealed: Sealed) -> None:
        # Only the worker that drew a token knows its logprobs: what the gateway lacks of it is drawn again.
        sampling = request.sampling
        draws_again = sampling is not None and sampling.logprobs is not None and not request.is_cancelled
        for sequence, known, finished in zip(request.sequences, sealed.outputs, sealed.finished, strict=True):
            if draws_again and finished is Reason.NONE and len(known) < len(sequence.outputs):
                self._draw_again(request, sequence, known)
            elif len(known) > len(sequence.outputs) and not sequence.is_ended:
                sequence.outputs = ids(known)
            if finished is not Reason.NONE and not sequence.is_ended:
                sequence.reason = finished
            if sequence.is_ended and finished is Reason.NONE:
                self.replay(request, sequence)
        if request.state is State.ENDED and request.live:
            self._scheduler.revive(request)

    def _draw_again(self, request: Request, sequence: Sequence, known: Ids) -> None:
        """The sequence goes on behind what its gateway has, also if it had ended."""
        self._scheduler.swapper.forget(request)
        sequence.outputs, sequence.reason = ids(known), Reason.NONE
        sequence.names = request.names

    def _seal_group(self, request: Request, sealed: Sealed) -> None:
        """Beams go out whole at the end: the gateway has all of them, or the search is made again."""
        group = request.sequences[0]
        if all(reason is not Reason.NONE for reason in sealed.finished):
            group.reason = sealed.finished[0]
        elif group.is_ended and not request.is_cancelled and request.state is State.ENDED:
            group.reason = Reason.NONE
            group.outputs = ids()
            self._scheduler.revive(request)

    def replay(self, request: Request, sequence: Sequence) -> None:
        if request.width:
            # Nobody but the worker had its beams: if they have not arrived, the search is made again.
            if sequence.is_ended:
                self.ask_seal(request)
            return
        # An attempt that runs is not sealed; of one that does not, the gateway may have been told to take no more.
        attempt = request.attempt + (request.state is not State.RUNNING)
        tokens = Tokens(request.route, sequence.index, attempt, 0, sequence.outputs, reason=sequence.reason)
        self._scheduler.tell(Replay(request.gateway, tokens))

    # -- gateways come and go

    def on_adopt(self, adopt: Adopt) -> None:
        """A client came back through another gateway: tokens go there from now on."""
        scheduler = self._scheduler
        request = scheduler.requests.get(adopt.request_id) or scheduler.unclosed.get(adopt.request_id)
        if request is None or request.tenant.name != adopt.tenant:
            detail = f"no request {adopt.request_id} of this tenant is under way"
            scheduler.tell(Refused(adopt.gateway, adopt.route, adopt.request_id, "NOT_FOUND", detail))
            return
        request.gateway, request.route = adopt.gateway, adopt.route
        request.orphaned_until = None
        request.is_adopted = True
        if request.refusal is not None:
            code, detail = request.refusal
            scheduler.tell(Refused(request.gateway, request.route, request.request_id, code, detail))
            if request.state is State.ENDED:
                scheduler.tell_done(request)
            return
        scheduler.tell(Accepted(request.gateway, request.route, request.request_id, 0, "resumed"))
        for sequence in request.sequences:
            if sequence.seq and request.replica is not None:
                request.replica.write().reroutes.append(Reroute(sequence.seq, adopt.gateway, adopt.route))
            elif sequence.outputs or sequence.is_ended:
                self.replay(request, sequence)
        if request.state is State.ENDED:
            # Its first gateway may have died before it could pass this on.
            scheduler.tell_done(request)

    def on_gateway_lost(self, lost: GatewayLost) -> None:
        """Its requests run on for a grace in which their clients can come back through another gateway."""
        scheduler = self._scheduler
        until = scheduler.now + scheduler.settings.orphan_grace_s
        for request in [*scheduler.requests.values(), *scheduler.unclosed.values()]:
            if request.gateway == lost.gateway and request.pin_until is None:
                request.orphaned_until = until
                scheduler.deadlines.wake_at(until, request)
                if request.state is State.SEALING:
                    # Nobody is left to say what was sent; what the workers reported is a prefix of it, and the same
                    # draws give the same tokens again.
                    self.on_sealed(self._own_word(request))

    def _own_word(self, request: Request) -> Sealed:
        outputs: tuple[Ids, ...] = tuple(sequence.outputs for sequence in request.sequences)
        return Sealed(request.request_id, request.attempt, outputs, tuple(s.reason for s in request.sequences))
