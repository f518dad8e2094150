"""What a new scheduler takes over from replicas: their residents go on where they are, with their tables and leases.

Streams never notice. What replicas hold and nobody wants any more, because a later attempt of it is known, is dropped;
blocks that no table names are free, and transfers of the scheduler before are given up. Names of blocks that are cached
are taken over as well, so that there are hits at once.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.centre.books import Books
from cluster.centre.confirming import Confirming
from cluster.centre.endings import Endings
from cluster.centre.leases import Leases
from cluster.centre.nouns import Replica, Request, Sequence, State
from cluster.centre.recall import Recall, told_by
from cluster.centre.recovery import Recovery
from cluster.centre.residents import enter
from cluster.centre.sealing import Sealing
from cluster.centre.transfers import Transfers
from cluster.centre.waiting import Waiting
from cluster.messages import EPOCH_BITS, Drop, Reason, ReplicaJoined, ReplicaState, Reroute, Resident, Start, ids

ARRIVAL_MASK = (1 << 40) - 1


class Takeover:
    """Reads the states of replicas."""

    def __init__(
        self,
        books: Books,
        waiting: Waiting,
        transfers: Transfers,
        endings: Endings,
        leases: Leases,
        sealing: Sealing,
        confirming: Confirming,
        recovery: Recovery,
        recall: Recall,
    ) -> None:
        self._books = books
        self._waiting = waiting
        self._transfers = transfers
        self._endings = endings
        self._leases = leases
        self._sealing = sealing
        self._confirming = confirming
        self._recovery = recovery
        self._recall = recall
        # Arrivals that residents brought: no two requests that wait may have one.
        self._arrivals: set[int] = set()

    def on_replica_state(self, state: ReplicaState) -> None:
        books = self._books
        self._recovery.on_replica_joined(state.joined)
        replica = books.replicas.get(state.joined.replica)
        if replica is None:
            return  # turned away
        books.hearing.begin(books.now)
        ledger = replica.ledger
        # A second one may come when its residents are gone, and pins or transfers still hold what was theirs.
        is_first = not replica.residents and ledger.counts().free == ledger.num_blocks
        if replica.incarnation != state.joined.incarnation or not is_first:
            books.counters["stale states"] += 1
            return
        first_seq = books.epoch << EPOCH_BITS
        if any(resident.seq >= first_seq for resident in state.residents):
            self._recovery.expel(replica, f"it has attempts from {first_seq:#x} on, which this scheduler has not given")
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
        is_clearing = bool(books.settings.clear_tenants)
        if is_clearing or not books.settings.prefix_caching:
            # Where tenants are cleared, nobody knows any more whose content that is.
            names = {}
        replica.ledger.restore(holders, moving, names)
        if is_clearing:
            unheld = set(range(replica.ledger.num_blocks)).difference(holders, moving)
            replica.write().clears.extend(sorted(unheld))
        for transfer in state.transfers:
            self._transfers.take_over(replica, transfer)
        self._recall.hear(state.departed, state.joined)
        by_request: dict[str, list[Resident]] = {}
        for resident in state.residents:
            by_request.setdefault(resident.start.request_id, []).append(resident)
        for request_id, residents in by_request.items():
            flaw = self._flaw(request_id, residents)
            if flaw:
                books.counters["events refused"] += 1
                self._recovery.expel(replica, f"its residents of {request_id}: {flaw}")
                return
            self._claim(replica, request_id, residents)

    def _flaw(self, request_id: str, residents: list[Resident]) -> str:
        """Why these cannot be sequences of one request, or not of the one that is known by this name."""
        start = residents[0].start
        shape = _shape(start)
        if any(_shape(other.start) != shape for other in residents):
            return "they are of several requests"
        if len({resident.index for resident in residents}) != len(residents):
            return "two of them are one sequence"
        known = self._books.hearing.unplaced.get(request_id) or self._books.requests.get(request_id)
        if known is None or known.sampling is None or known.state is State.ENDED:
            return ""
        others = len(known.prompt), known.width or len(known.sequences), bool(known.width), known.max_tokens
        return "" if others == shape else f"{others} of it are known, and not {shape}"

    def _claim(self, replica: Replica, request_id: str, residents: list[Resident]) -> None:
        """The residents of one request go on, unless a later attempt of it is known: then they are dropped."""
        books, unplaced = self._books, self._books.hearing.unplaced
        start = residents[0].start
        request = unplaced.pop(request_id, None)
        fits = request is None or all(resident.index < len(request.sequences) for resident in residents)
        if request is not None and (request.attempt > start.attempt or not fits):
            unplaced[request_id] = request
            request = None
        if request is not None and request.state in (State.QUEUED, State.PARKED):
            # Its gateway died after it had told of it, so that it was not sealed any more.
            self._waiting.withdraw(request)
        elif request is not None and request.state is not State.SEALING:
            request = None  # ended, or started anew meanwhile
        older = books.requests.get(request_id) if request is None else None
        if older is not None and (older.state is not State.RUNNING or older.attempt >= start.attempt):
            older = None
        if older is not None:
            self.disown(older)
        known = request is None and (request_id in books.requests or request_id in books.unclosed)
        if request is None:
            request = self._from_start(residents[0], replica.joined)
            if older is not None:
                self._succeed(older, request)
            elif known:
                # It may share a replica with the attempt that goes on.
                request.request_id += f" (attempt {start.attempt}, given up)"
            else:
                books.requests[request_id] = request
        request.state, request.replica = State.RUNNING, replica
        request.attempt = start.attempt
        for resident in residents:
            self._settle(request.sequences[resident.index], resident)
            enter(replica, request.sequences[resident.index])
            if request.sequences[resident.index].is_ended and not request.width:
                # Its gateway cut it at a stop string while nobody could pass that on.
                replica.write().drops.append(Drop(resident.seq))
            elif not known and not request.width:
                # It may have told the old scheduler that its lease runs out, and says so once.
                self._leases.renew(replica, request.sequences[resident.index])
        self._stop_cut(request)
        self._fill(replica, request, start)
        # Who of them are forks is not told: until the first has its prompt, others may wait for that.
        request.forked_from = next(sequence for sequence in request.sequences if sequence.seq)
        if not known:
            self.reroute(request, start.gateway, start.route)
        if request.width and not known:
            # What the beams are is known to the worker only: the group starts again from its prompt.
            request.sequences[0].outputs = ids()
            self._endings.drop(request)
        if known:
            request.is_cancelled = True
            request.state = State.STOPPING
            replica.write().drops.extend(Drop(resident.seq) for resident in residents)
            books.counters["stale residents"] += 1

    def _stop_cut(self, request: Request) -> None:
        """A stop string was found before the replica had told of what it is in."""
        for sequence in request.live:
            if sequence.seq and sequence.cut is not None:
                self._endings.stop(request, sequence, Reason.STOP, sequence.cut)

    def _fill(self, replica: Replica, request: Request, start: Start) -> None:
        """Some of its sequences may have left this replica already, which then remembers them."""
        if not request.width and not request.wants_logprobs:
            for sequence in self._recall.fill(request, start, replica.ledger.pool):
                # Its gateway, if that is known, lacks at least the end, and may have come to it later.
                if sequence.is_ended and request.is_confirmed:
                    self._sealing.replay(request, sequence)
        request.is_partial = not all(sequence.seq or sequence.is_ended for sequence in request.sequences)

    def disown(self, request: Request) -> None:
        """A replica that was given up before told of it, and there is a later attempt: this one is dropped."""
        replica = request.replica
        assert replica is not None
        del self._books.requests[request.request_id], replica.requests[request.request_id]
        request.request_id += f" (attempt {request.attempt}, given up)"
        replica.requests[request.request_id] = request
        request.is_cancelled = True
        self._endings.drop(request)
        self._books.counters["stale residents"] += 1

    def _succeed(self, older: Request, request: Request) -> None:
        """The later attempt of a request takes over what was known of it."""
        books, request_id = self._books, request.request_id
        books.requests[request_id] = request
        if not older.is_confirmed:
            return
        # What is due of it comes up under its arrival.
        request.arrival = older.arrival
        self._confirming.told(request, replace(older.as_asked(), deadline=older.deadline))
        request.gateway, request.route, request.turn = older.gateway, older.route, older.turn
        request.witnesses, request.heard, request.is_adopted = older.witnesses, older.heard, older.is_adopted
        request.orphaned_until = older.orphaned_until

    def _from_start(self, resident: Resident, joined: ReplicaJoined) -> Request:
        """A request as far as a Start tells of it; its gateway will tell the rest."""
        books, start = self._books, resident.start
        arrival = start.precedence & ARRIVAL_MASK
        if arrival in self._arrivals or not books.is_before_this_epoch(arrival):
            arrival = books.next_arrival()
        self._arrivals.add(arrival)
        request = Request(told_by(start, joined), arrival, books.tenants.get(""), books.now)
        books.tenants.enter(request.tenant)
        # Whoever says that it is told to is believed.
        request.turn, request.is_confirmed, request.state = -1, False, State.RUNNING
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

    def reroute(self, request: Request, gateway: str, route: int) -> None:
        """The client may have come back through another gateway while nobody could tell its replica."""
        if request.replica is None or (request.gateway, request.route) == (gateway, route):
            return
        request.is_adopted = True
        for sequence in request.sequences:
            if sequence.seq:
                request.replica.write().reroutes.append(Reroute(sequence.seq, request.gateway, request.route))


def _shape(start: Start) -> tuple[int, int, bool, int]:
    """What must be alike of a request wherever it is told of: its prompt, its sequences, and how long they can get."""
    width = start.sampling.width
    return start.num_prompt, width or start.sampling.n, bool(width), start.sampling.max_tokens or 1
