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
    GatewayLost,
    Ids,
    Reason,
    Replay,
    ReplicaJoined,
    ReplicaLost,
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
        for request in list(scheduler.unclosed.values()):
            if request.last_replica is replica or any(one.ended_on is replica for one in request.sequences):
                self.ask_seal(request)
        # So may those of single sequences, whose siblings went on elsewhere: to ask would stop these.
        for request in list(scheduler.requests.values()):
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
        request.is_sealing = True
        if request.orphaned_until is None:
            owner = request.gateway, request.route
            if owner not in request.witnesses:
                request.witnesses.append(owner)
            self._scheduler.tell(Seal(*owner, request.request_id, request.attempt))
        elif not request.witnesses:
            # Nobody is left to say what was sent.
            self._go_on(request)

    def seal_is_late(self, request: Request) -> None:
        """Who has handed its client over and does not say what it has is waited for once; the owner is asked again."""
        owner = request.gateway, request.route
        request.witnesses = [place for place in request.witnesses if place == owner]
        if request.witnesses:
            self.ask_seal(request)
        elif request.is_sealing:
            self._go_on(request)

    def on_sealed(self, sealed: Sealed) -> None:
        scheduler = self._scheduler
        request = scheduler.requests.get(sealed.request_id) or scheduler.unclosed.get(sealed.request_id)
        place = sealed.gateway, sealed.route
        if request is None or place not in request.witnesses:
            scheduler.counters["stale seals"] += 1
            return
        is_owner = place == (request.gateway, request.route)
        if is_owner and sealed.attempt != request.attempt:
            scheduler.counters["stale seals"] += 1
            return
        flaw = _flaw(request, sealed)
        if flaw:
            scheduler.counters["events refused"] += 1
            if request.state is State.SEALING:
                scheduler.break_off(request, "ABORTED", f"{sealed.request_id}: {flaw}", Reason.DROPPED)
            return
        request.witnesses.remove(place)
        self.hear(request, place, sealed.outputs, sealed.finished)
        if request.is_sealing and not request.witnesses:
            self._go_on(request)

    def hear(
        self, request: Request, place: tuple[str, int], outputs: tuple[Ids, ...], finished: tuple[Reason, ...]
    ) -> None:
        """A gateway's word on what it has sent of each sequence; the longest counts. Nothing is heard of one that does
        not know the request. Beams come whole or not at all: only what their owner has can be shown."""
        if not outputs or (request.width and place != (request.gateway, request.route)):
            return
        told = list(zip(outputs, finished, strict=True))
        known = request.heard or [(ids(), Reason.NONE)] * len(told)
        request.heard = [
            max(pair, key=lambda one: (len(one[0]), one[1] is not Reason.NONE))
            for pair in zip(known, told, strict=True)
        ]

    def _go_on(self, request: Request) -> None:
        """All who may know have said what was sent: an attempt that was lost starts again from there."""
        scheduler = self._scheduler
        request.is_sealing = False
        self.deaf(request)
        heard, request.heard = request.heard, None
        if heard is not None:
            if request.width:
                self._seal_group(request, heard)
            else:
                self._take_outputs(request, heard)
        if request.state is State.SEALING:
            request.is_partial = False
            if request.live:
                scheduler.admission.queue(request)
            else:
                scheduler.finish(request)

    def _take_outputs(self, request: Request, heard: list[tuple[Ids, Reason]]) -> None:
        # Only the worker that drew a token knows its logprobs: what the gateway lacks of it is drawn again.
        sampling = request.sampling
        draws_again = sampling is not None and sampling.logprobs is not None and not request.is_cancelled
        for sequence, (known, finished) in zip(request.sequences, heard, strict=True):
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
            self._scheduler.revive(request)

    def _draw_again(self, request: Request, sequence: Sequence, known: Ids) -> None:
        """The sequence goes on behind what its gateway has, also if it had ended."""
        self._scheduler.swapper.forget(request)
        sequence.outputs, sequence.reason = ids(known), Reason.NONE
        sequence.names = request.names

    def _seal_group(self, request: Request, heard: list[tuple[Ids, Reason]]) -> None:
        """Beams go out whole at the end: the gateway has all of them, or the search is made again."""
        group = request.sequences[0]
        if all(reason is not Reason.NONE for _, reason in heard):
            group.reason = heard[0][1]
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

    def on_gateway_lost(self, lost: GatewayLost) -> None:
        """Its requests run on for a grace in which their clients can come back through another gateway."""
        scheduler = self._scheduler
        scheduler.adoption.give_up(lost.gateway)
        for request in [*scheduler.requests.values(), *scheduler.unclosed.values()]:
            if request.gateway == lost.gateway and request.pin_until is None:
                grace_s = max(scheduler.settings.orphan_grace_s, request.grace_s)
                request.orphaned_until = scheduler.now + grace_s
                scheduler.deadlines.wake_at(request.orphaned_until, request)
            if any(gateway == lost.gateway for gateway, _ in request.witnesses):
                # What it had sent nobody can say now. What the workers reported is a prefix of it, and the same draws
                # give the same tokens again.
                request.witnesses = [place for place in request.witnesses if place[0] != lost.gateway]
                if request.is_sealing and not request.witnesses:
                    self._go_on(request)


def _flaw(request: Request, sealed: Sealed) -> str:
    """Why a gateway cannot have of this request what it says. One that does not know the route says nothing."""
    assert request.sampling is not None
    longest = max(map(len, sealed.outputs), default=0)
    if len(sealed.outputs) not in (0, request.sampling.n) or longest > request.max_tokens:
        count = f"{len(sealed.outputs)} of {request.sampling.n} sequences, of {longest} tokens at most"
        return f"its gateway has {count}; {request.max_tokens} were asked for"
    return ""
