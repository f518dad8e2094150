"""How a new scheduler learns what its dead predecessor knew: from what replicas hold and gateways have.

Replicas list their residents (ReplicaState), gateways their open requests (GatewayState), in any order. A resident goes
on where it is: its table, position and lease are taken over as they stand, so streams never notice. When both sides had
`rebuild_s` to report, what nobody runs is sealed and starts again as a new attempt, what no gateway knows is dropped
after the grace of an orphan, and every block that no table names is free. What lay in host memory is computed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.centre.flaws import flaw_of_open
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, Sequence, State
from cluster.messages import (
    ATTEMPT_BITS,
    EPOCH_BITS,
    Accepted,
    Drop,
    GatewayState,
    HandOver,
    Ids,
    OpenRequest,
    Reason,
    Refused,
    ReplicaJoined,
    ReplicaState,
    Reroute,
    Resident,
    Start,
    Submit,
    ids,
)
from cluster.messages.resume import difference

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler

ARRIVAL_MASK = (1 << 40) - 1


class Rebuild:
    """Takes over residents and open requests. Active from the first turn of a later epoch, or from a late report,
    until `rebuild_s` later; meanwhile nothing is refused for what is not known yet."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_due = scheduler.epoch > 1
        self._ends_at: float | None = None
        # Until then a gateway may still come that has not told what it holds.
        self._hears_until: float | None = None
        # Requests that a gateway knows and no replica has claimed yet, and those of which only a replica has told.
        self._unplaced: dict[str, Request] = {}
        self._unconfirmed: dict[str, Request] = {}
        # Arrivals that residents brought: no two requests that wait may have one.
        self._arrivals: set[int] = set()

    @property
    def ends_at(self) -> float | None:
        return self._ends_at

    @property
    def time_to_hear_s(self) -> float:
        """How long it is worth to wait for word of a request that is not known."""
        scheduler = self._scheduler
        if self._hears_until is None or scheduler.now > self._hears_until:
            return 0.0
        rest_s = 0.0 if self._ends_at is None else self._ends_at - scheduler.now
        return max(rest_s, scheduler.settings.rebuild_s)

    def begin_if_due(self) -> None:
        """Called in every turn, before its events: the first one of a scheduler that has a predecessor begins it."""
        if self._is_due:
            self._begin()

    def _begin(self) -> None:
        self._is_due = False
        if self._ends_at is None:
            settings = self._scheduler.settings
            self._ends_at = self._scheduler.now + settings.rebuild_s
            self._hears_until = self._ends_at + settings.orphan_grace_s

    # -- what replicas hold

    def on_replica_state(self, state: ReplicaState) -> None:
        scheduler = self._scheduler
        scheduler.recovery.on_replica_joined(state.joined)
        replica = scheduler.replicas.get(state.joined.replica)
        if replica is None:
            return  # turned away
        self._begin()
        if replica.incarnation != state.joined.incarnation or replica.residents:
            scheduler.counters["stale states"] += 1
            return
        first_seq = scheduler.epoch << EPOCH_BITS
        if any(resident.seq >= first_seq for resident in state.residents):
            scheduler.expel(replica, f"it has attempts from {first_seq:#x} on, which this scheduler has not given")
            return
        moving = [block for transfer in state.transfers for block in dict.fromkeys(transfer.mine)]
        holders: dict[int, int] = {}
        unwritten = set(moving)
        for resident in state.residents:
            for block in resident.table:
                holders[block] = holders.get(block, 0) + 1
            written = resident.position if resident.start.beams is None else resident.start.num_prompt
            unwritten.update(resident.table[min(resident.position, written) // replica.block_size :])
        # A worker knows a block by what was last written there; its new holder may be about to write something else.
        names = {block: name for block, name in state.cached if block not in unwritten}
        is_clearing = bool(scheduler.settings.clear_tenants)
        if is_clearing or not scheduler.settings.prefix_caching:
            # Where tenants are cleared, nobody knows any more whose content that is.
            names = {}
        replica.ledger.restore(holders, moving, names)
        if is_clearing:
            unheld = set(range(replica.ledger.num_blocks)).difference(holders, moving)
            replica.write().clears.extend(sorted(unheld))
        for transfer in state.transfers:
            scheduler.swapper.take_over(replica, transfer)
        by_request: dict[str, list[Resident]] = {}
        for resident in state.residents:
            by_request.setdefault(resident.start.request_id, []).append(resident)
        for request_id, residents in by_request.items():
            flaw = self._flaw(request_id, residents)
            if flaw:
                scheduler.counters["events refused"] += 1
                scheduler.expel(replica, f"its residents of {request_id}: {flaw}")
                return
            self._claim(replica, request_id, residents)

    def _flaw(self, request_id: str, residents: list[Resident]) -> str:
        """Why these cannot be sequences of one request, or not of the one that is known by this name."""
        scheduler, start = self._scheduler, residents[0].start
        shape = _shape(start)
        if any(_shape(other.start) != shape for other in residents):
            return "they are of several requests"
        if len({resident.index for resident in residents}) != len(residents):
            return "two of them are one sequence"
        known = self._unplaced.get(request_id) or scheduler.requests.get(request_id)
        if known is None or known.sampling is None or known.state is State.ENDED:
            return ""
        others = len(known.prompt), known.width or len(known.sequences), bool(known.width), known.max_tokens
        return "" if others == shape else f"{others} of it are known, and not {shape}"

    def _claim(self, replica: Replica, request_id: str, residents: list[Resident]) -> None:
        """The residents of one request go on, unless a later attempt of it is known: then they are dropped."""
        scheduler = self._scheduler
        start = residents[0].start
        request = self._unplaced.pop(request_id, None)
        fits = request is None or all(resident.index < len(request.sequences) for resident in residents)
        if request is not None and (request.attempt > start.attempt or not fits):
            self._unplaced[request_id] = request
            request = None
        if request is not None and request.state in (State.QUEUED, State.PARKED):
            # Its gateway died after it had told of it, so that it was not sealed any more.
            scheduler.admission.withdraw(request)
        elif request is not None and request.state is not State.SEALING:
            request = None  # ended, or started anew meanwhile
        older = scheduler.requests.get(request_id) if request is None else None
        if older is not None and (older.state is not State.RUNNING or older.attempt >= start.attempt):
            older = None
        if older is not None:
            self._disown(older)
        known = request is None and (request_id in scheduler.requests or request_id in scheduler.unclosed)
        if request is None:
            request = self._from_start(residents[0], replica.joined)
            if older is not None:
                self._succeed(older, request)
            elif known:
                # It may share a replica with the attempt that goes on.
                request.request_id += f" (attempt {start.attempt}, given up)"
            else:
                scheduler.requests[request_id] = request
                self._unconfirmed[request_id] = request
        request.state, request.replica, request.last_replica = State.RUNNING, replica, replica
        request.attempt = start.attempt
        request.is_inherited = True
        request.is_partial = len(residents) < len(request.sequences)
        for resident in residents:
            self._settle(request.sequences[resident.index], resident)
            replica.enter(request.sequences[resident.index])
            if request.sequences[resident.index].is_ended and not request.width:
                # Its gateway cut it at a stop string while nobody could pass that on.
                replica.write().drops.append(Drop(resident.seq))
            elif not known and not request.width:
                # It may have told the old scheduler that its lease runs out, and says so once.
                replica.renew(request.sequences[resident.index])
        # Who of them are forks is not told: until the first has its prompt, others may wait for that.
        request.forked_from = next(sequence for sequence in request.sequences if sequence.seq)
        if not known:
            self._reroute(request, start.gateway, start.route)
        if request.width and not known:
            # What the beams are is known to the worker only: the group starts again from its prompt.
            request.sequences[0].outputs = ids()
            scheduler.drop(request)
        if known:
            request.is_cancelled = True
            replica.num_stopping += 1
            request.state = State.STOPPING
            replica.write().drops.extend(Drop(resident.seq) for resident in residents)
            scheduler.counters["stale residents"] += 1

    def _disown(self, request: Request) -> None:
        """A replica that was given up before told of it, and there is a later attempt: this one is dropped."""
        replica = request.replica
        assert replica is not None
        del self._scheduler.requests[request.request_id], replica.requests[request.request_id]
        request.request_id += f" (attempt {request.attempt}, given up)"
        replica.requests[request.request_id] = request
        request.is_cancelled = True
        self._scheduler.drop(request)
        self._scheduler.counters["stale residents"] += 1

    def _succeed(self, older: Request, request: Request) -> None:
        """The later attempt of a request takes over what was known of it."""
        scheduler, request_id = self._scheduler, request.request_id
        scheduler.requests[request_id] = request
        if self._unconfirmed.pop(request_id, None) is not None:
            self._unconfirmed[request_id] = request
            return
        scheduler.tenants.leave(request.tenant)
        request.tenant = older.tenant
        scheduler.tenants.enter(request.tenant)
        request.model, request.deadline, request.grace_s = older.model, older.deadline, older.grace_s
        request.gateway, request.route, request.turn = older.gateway, older.route, older.turn
        request.witnesses, request.heard, request.is_adopted = older.witnesses, older.heard, older.is_adopted
        request.orphaned_until = older.orphaned_until

    def _from_start(self, resident: Resident, joined: ReplicaJoined) -> Request:
        """A request as far as a Start tells of it; its gateway will tell the rest."""
        scheduler, start = self._scheduler, resident.start
        submit = Submit(
            start.request_id,
            start.gateway,
            start.route,
            joined.model,
            "",
            ids(start.tokens[: start.num_prompt]),
            (),
            start.sampling,
            start.precedence >> 40,
            start.salt,
            digest=joined.digest,
        )
        arrival = start.precedence & ARRIVAL_MASK
        if arrival in self._arrivals or not scheduler.is_before_this_epoch(arrival):
            arrival = scheduler.next_arrival()
        self._arrivals.add(arrival)
        request = Request(submit, arrival, scheduler.tenants.get(""), scheduler.now)
        scheduler.tenants.enter(request.tenant)
        # Whoever says that it is told to is believed.
        request.turn = -1
        return request

    def _settle(self, sequence: Sequence, resident: Resident) -> None:
        sequence.seq = resident.seq
        sequence.table = ids(resident.table)
        sequence.position = resident.position
        sequence.lease_end = resident.lease_end
        if sequence.is_ended:
            # Its gateway cut it at a stop string while nobody could pass that on.
            sequence.cut = len(sequence.outputs)
        sequence.outputs = ids(resident.tokens[resident.start.num_prompt :])

    # -- what gateways have

    def on_gateway_state(self, state: GatewayState) -> None:
        self._begin()
        for open_request in state.requests:
            submit = open_request.submit
            known = self._scheduler.requests.get(submit.request_id) or self._scheduler.unclosed.get(submit.request_id)
            if self._is_flawed(state.gateway, open_request):
                continue
            if known is None:
                request = self._unplaced[submit.request_id] = self._from_gateway(open_request)
                # Its Submit may have been on its way when the old scheduler died.
                scheduler = self._scheduler
                scheduler.tell(Accepted(submit.gateway, submit.route, submit.request_id, 0, "", request.turn))
            elif known.sampling is None or _differs(submit, known):
                self._refuse(submit)
            else:
                self._hear(known, open_request)
        named = {open_request.submit.request_id for open_request in state.requests}
        for request in list(self._scheduler.unclosed.values()):
            # It closed this one while it was cut off, and its word of that was lost.
            if request.gateway == state.gateway and request.orphaned_until and request.request_id not in named:
                del self._scheduler.unclosed[request.request_id]

    def _is_flawed(self, gateway: str, told: OpenRequest) -> bool:
        """What a gateway tells of one request cannot be so: it is counted, and the others are taken."""
        request_id, num_outputs = told.submit.request_id, len(told.outputs)
        flaw = flaw_of_open(told.submit, told.attempt, num_outputs, len(told.finished))
        if not flaw and not told.submit.sampling.width:
            longest, most = max(map(len, told.outputs)), told.submit.sampling.max_tokens or 1
            flaw = f"{longest} tokens are told of at most {most}" if longest > most else ""
        if flaw:
            self._scheduler.counters["events refused"] += 1
            self._scheduler.notes.add(self._scheduler.now, "refused", request_id, f"what {gateway} told: {flaw}")
        return bool(flaw)

    def _refuse(self, submit: Submit) -> None:
        """Another request runs under this id."""
        self._scheduler.counters["events refused"] += 1
        detail = f"a request {submit.request_id} with other parameters is under way"
        self._scheduler.tell(Refused(submit.gateway, submit.route, submit.request_id, "ALREADY_EXISTS", detail))

    def _hear(self, request: Request, open_request: OpenRequest) -> None:
        """A gateway tells of a request that a replica or another gateway has told of, or that it was thought to have
        left: it is the owner unless another one is since."""
        scheduler, submit = self._scheduler, open_request.submit
        place, known = (submit.gateway, submit.route), (request.gateway, request.route)
        is_first = self.told(request, submit)
        if not is_first and place != known and open_request.turn <= request.turn:
            scheduler.recovery.hear(request, place, open_request.outputs, open_request.finished)
            scheduler.tell(HandOver(*place, submit.request_id))
            return
        # What was sent to one that was given up has not arrived.
        is_behind = not is_first and (place != known or request.orphaned_until is not None)
        if is_first:
            request.gateway, request.route, request.turn = *place, open_request.turn
        elif place != known:
            scheduler.adoption.own(request, *place, open_request.turn)
        request.orphaned_until = None
        if request.state is State.ENDED:
            self._tell_end(request)
        elif is_first and request.state is State.RUNNING and request.attempt < open_request.attempt:
            self._disown(request)
            self._unplaced[submit.request_id] = self._from_gateway(open_request)
        else:
            self._confirm(request, open_request)
            if is_behind:
                scheduler.adoption.tell_all(request)
            else:
                scheduler.tell(Accepted(*place, submit.request_id, 0, "", request.turn))
                self._reroute(request, *known)

    def _tell_end(self, request: Request) -> None:
        """It ended before its gateway was heard of, which may not have heard of the end."""
        for sequence in request.sequences:
            self._scheduler.recovery.replay(request, sequence)
        self._scheduler.tell_done(request)

    def _confirm(self, request: Request, open_request: OpenRequest) -> None:
        """A running request is known to its gateway: the two reports are of one."""
        scheduler = self._scheduler
        self._take_outputs(request, open_request)
        if request.state is State.SEALING and request.request_id not in self._unplaced:
            scheduler.recovery.ask_seal(request)
        elif request.state in (State.QUEUED, State.PARKED) and not request.live:
            # Its gateway had ended it.
            scheduler.admission.withdraw(request)
            scheduler.finish(request)

    def told(self, request: Request, submit: Submit) -> bool:
        """A gateway tells of a request; True: it is the first, and knows what no replica could tell."""
        scheduler = self._scheduler
        if self._unconfirmed.pop(request.request_id, None) is None:
            return False
        if request.state is State.ENDED:
            return True
        waits = request.state is State.QUEUED
        if waits:
            # It left its replica before its gateway was heard of: it waits among its own tenant's requests from now on.
            scheduler.admission.withdraw(request)
        scheduler.tenants.leave(request.tenant)
        request.tenant = scheduler.tenants.get(submit.tenant)
        scheduler.tenants.enter(request.tenant)
        request.model, request.deadline, request.grace_s = submit.model, submit.deadline, submit.grace_s
        if submit.deadline is not None:
            scheduler.deadlines.wake_at(submit.deadline, request)
        if waits:
            scheduler.admission.queue(request)
        return True

    def _reroute(self, request: Request, gateway: str, route: int) -> None:
        """The client may have come back through another gateway while nobody could tell its replica."""
        if request.replica is None or (request.gateway, request.route) == (gateway, route):
            return
        request.is_adopted = True
        for sequence in request.sequences:
            if sequence.seq:
                request.replica.write().reroutes.append(Reroute(sequence.seq, request.gateway, request.route))

    def _from_gateway(self, open_request: OpenRequest) -> Request:
        request = self._scheduler.enter(open_request.submit)
        request.state = State.SEALING
        request.attempt = open_request.attempt
        request.is_inherited = True
        request.turn = open_request.turn
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
                self._scheduler.stop_sequence(request, sequence, reason, len(outputs))

    # -- the end

    def expire(self, now: float) -> None:
        """Everybody had time to report: what nobody runs starts again, what no gateway knows is an orphan."""
        if self._ends_at is None or now < self._ends_at:
            return
        self._ends_at = None
        scheduler = self._scheduler
        scheduler.admission.refuse_unheard()
        unplaced, self._unplaced = list(self._unplaced.values()), {}
        before = (scheduler.epoch - 1) << ATTEMPT_BITS
        for request in unplaced:
            if request.state is State.SEALING:
                # The old scheduler may have started it where nobody has reported yet, under a number nobody knows.
                request.attempt = max(request.attempt, before)
                scheduler.recovery.ask_seal(request)
        unconfirmed, self._unconfirmed = list(self._unconfirmed.values()), {}
        for request in unconfirmed:
            request.orphaned_until = now + scheduler.settings.orphan_grace_s
            scheduler.deadlines.wake_at(request.orphaned_until, request)


def _shape(start: Start) -> tuple[int, int, bool, int]:
    """What must be alike of a request wherever it is told of: its prompt, its sequences, and how long they can get."""
    width = start.sampling.width
    return start.num_prompt, width or start.sampling.n, bool(width), start.sampling.max_tokens or 1


def _differs(submit: Submit, request: Request) -> bool:
    assert request.sampling is not None
    return bool(difference(submit, request.model, request.prompt, request.sampling, request.priority)[0])
