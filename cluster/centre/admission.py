"""Who starts next and where: refusal, the waiting queues, prefix hits, parking behind a prefix, and Start itself.

Admission is exact. What could never fit is refused with the figures; what fits starts in order of the queue; what does
not fit now waits, and nothing overtakes it. Two requests that share a prompt compute it once: the later one parks until
the earlier has filled the blocks that both need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.centre.beginnings import MIN_SLOTS
from cluster.centre.fairness import WaitingQueue
from cluster.centre.fits import size_of
from cluster.centre.move import renumbered
from cluster.centre.placement import Board, Need, Place
from cluster.centre.prefix import Hits
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, Sequence, State
from cluster.hashing import HASH_BYTES
from cluster.messages import Beams, Copy, Drop, Fork, Reason, ReplicaJoined, Start, Started, ids

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler

Refusal = tuple[str, str, float]


class Admission:
    """The waiting side of the scheduler. It starts requests on replicas; it never takes one off."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self._queues: dict[str, WaitingQueue] = {}
        self._boards: dict[str, Board] = {}
        # Models that take nothing new: they are being unloaded.
        self.closed: set[str] = set()
        # Requests that came before any replica of their model had reported to this new scheduler.
        self._unheard: list[Request] = []
        # Requests that fit no replica which is here, and one that may come back: others go on without them. When they
        # are looked at again, and until when replicas that this new scheduler has never heard of may still come.
        self._aside: dict[int, Request] = {}
        self._look_at = float("inf")
        self._unknown_until = 0.0

    # -- replicas

    def add(self, replica: Replica) -> None:
        self._boards.setdefault(replica.joined.model, Board(self._settings)).add(replica)
        self._look_at = self._scheduler.now

    def why_not(self, joined: ReplicaJoined) -> str:
        """Why a replica can't join those of its model; empty if it can."""
        board = self._boards.get(joined.model)
        return "" if board is None else board.why_not(joined)

    def remove(self, replica: Replica) -> None:
        """It is lost: what fits there alone waits a while for it to come back."""
        until = self._scheduler.now + self._settings.replica_return_s
        self._boards[replica.joined.model].remove(replica, until)

    @property
    def next_due(self) -> float | None:
        """When those that were set aside are looked at again."""
        return self._look_at if self._aside else None

    def expire(self, now: float) -> None:
        """At the beginning of a turn: who has not come back in time is counted no more."""
        for board in self._boards.values():
            board.sizes.expire(now)
        if self._scheduler.rebuild.ends_at is not None:
            self._unknown_until = self._scheduler.rebuild.ends_at + self._settings.replica_return_s

    def forget_model(self, model: str) -> None:
        """It was closed and its last replica is gone: it is as if it had never been here."""
        self.closed.discard(model)
        self._boards.pop(model, None)

    def replicas_of(self, model: str) -> list[Replica]:
        board = self._boards.get(model)
        return board.replicas if board is not None else []

    def refresh(self, replica: Replica) -> None:
        """What this replica has free changed while others are being placed."""
        self._boards[replica.joined.model].refresh(replica)

    def models(self) -> list[list[Replica]]:
        """The replicas of each model."""
        return [board.replicas for board in self._boards.values()]

    def block_size(self, model: str) -> int:
        """Slots of a block, the same on all replicas of a model; 1 while none has joined."""
        board = self._boards.get(model)
        return board.block_size if board is not None else 1

    def pin_limit(self, model: str) -> int:
        replicas = self.replicas_of(model)
        return min((int(replica.ledger.num_blocks * self._settings.max_pinned) for replica in replicas), default=0)

    # -- the queue

    def refusal(self, request: Request) -> Refusal | None:
        """Why this request can never be served, or not now; None if it may wait."""
        if request.model in self.closed:
            return "NOT_FOUND", f"model {request.model} is being unloaded; ask for another", 0.0
        if self._scheduler.rebuild.ends_at is None:
            board = self._boards.get(request.model)
            if board is None:
                return "NOT_FOUND", self._not_served(request.model), 0.0
            detail = board.sizes.refusal(request, board.block_size)
            if detail:
                return "INVALID_ARGUMENT", detail, 0.0
        num_waiting = self.num_waiting(request.model)
        if num_waiting >= self._settings.max_queue:
            return "RESOURCE_EXHAUSTED", f"{num_waiting:,} requests wait, which is the bound of the queue", 1.0
        return None

    def _not_served(self, model: str) -> str:
        known = ", ".join(sorted(self._boards)) or "none"
        return f"no model {model} is served here; there is {known}"

    def accept(self, request: Request) -> str:
        """It waits from now on; returns what its client is told of that."""
        self.queue(request)
        if request.model in self._boards:
            return ""
        self._unheard.append(request)
        return f"the scheduler has just started, and no replica of {request.model} has reported yet"

    def refuse_unheard(self) -> None:
        """Every replica had time to report to this new scheduler: whose model none of them serves is refused now."""
        unheard, self._unheard = self._unheard, []
        for request in unheard:
            if request.model not in self._boards and request.state is State.QUEUED:
                self._scheduler.break_off(request, "NOT_FOUND", self._not_served(request.model), Reason.DROPPED)

    def num_waiting(self, model: str) -> int:
        queue = self._queues.get(model)
        num_aside = sum(request.model == model for request in self._aside.values())
        return num_aside + (len(queue) if queue is not None else 0)

    def waiting(self) -> list[Request]:
        return [*self._aside.values(), *(request for queue in self._queues.values() for request in queue)]

    def heads(self) -> list[Request]:
        """Who goes next, of each model."""
        return [head for queue in self._queues.values() if (head := queue.head()) is not None]

    def queue(self, request: Request) -> None:
        """It waits from now on; one that ran before goes ahead of new work."""
        request.state = State.QUEUED
        request.queued_at = self._scheduler.now
        if request.attempt:
            request.tenant.charge_memory(request, self._settings.tokens_per_block_second)
        if request.preemptions:
            for sequence in request.live:
                sequence.safe_end = min(sequence.limit, sequence.num_written - 1 + self.block_size(request.model))
        self._queues.setdefault(request.model, WaitingQueue()).push(request, returns=request.attempt > 0)

    def withdraw(self, request: Request) -> None:
        """It waits no more, in whichever way it did."""
        if request.state is State.QUEUED:
            if self._aside.pop(request.arrival, None) is None:
                self._queues[request.model].remove(request)
        elif request.state is State.PARKED:
            self._leave_parking(request)

    # -- parking behind a prefix

    def _park(self, request: Request, owner: Sequence, until: int) -> None:
        request.state = State.PARKED
        request.parked_on = owner
        owner.waiters = [*owner.waiters, (until, request)]
        assert owner.request.replica is not None
        owner.request.replica.awaited[owner.seq] = owner
        self._scheduler.counters["parked on a prefix"] += 1

    def _leave_parking(self, request: Request) -> None:
        owner = request.parked_on
        assert owner is not None
        owner.waiters = [waiter for waiter in owner.waiters if waiter[1] is not request]
        request.parked_on = None

    def unpark(self, request: Request) -> None:
        """What it waited for is filled, or never will be: it takes its old place in the queue."""
        request.parked_on = None
        request.state = State.QUEUED
        self._queues[request.model].push(request, returns=True)

    def wake_waiters(self, replica: Replica) -> None:
        for sequence in list(replica.awaited.values()):
            ready = [waiter for until, waiter in sequence.waiters if until <= sequence.position]
            sequence.waiters = [waiter for waiter in sequence.waiters if waiter[0] > sequence.position]
            if not sequence.waiters:
                del replica.awaited[sequence.seq]
            for request in ready:
                self.unpark(request)

    # -- starting

    def admit(self, now: float, touched: Iterable[Replica]) -> None:
        """Starts what fits, in order of each model's queue. Figures of `touched` replicas have changed."""
        for replica in touched:
            self._boards[replica.joined.model].refresh(replica)
        if self._look_at <= now:
            self._look_again()
        for model, queue in self._queues.items():
            board = self._boards.get(model)
            while board is not None:
                request = queue.head()
                if request is None:
                    break
                if board.replicas and request.digest != board.digest and not self._goes_on(request, board):
                    continue
                if request.measured != board.sizes.version and not self._measure(request, board, queue):
                    continue
                names = self._matchable(request, board)
                hits = self._scheduler.index.match(names)
                owner = self._prefix_owner(request, names, hits)
                if owner is not None:
                    queue.remove(request)
                    self._park(request, *owner)
                    continue
                place = board.choose(self._need(request, board.block_size), hits)
                if place is None and self._give_up_pin(board):
                    continue
                if place is None:
                    break
                queue.remove(request)
                request.queue_seconds += now - request.queued_at
                self._start(request, place, hits)
                board.refresh(place.replica)

    def _measure(self, request: Request, board: Board, queue: WaitingQueue) -> bool:
        """Whether a replica that is here could hold it alone. What fits only one that may come back is set aside, and
        what fits none is refused: it was accepted while larger ones were here, or none."""
        if board.sizes.are_here(size_of(request, board.block_size)):
            request.measured = board.sizes.version
            return True
        rebuild_ends_at, now = self._scheduler.rebuild.ends_at, self._scheduler.now
        due = [board.sizes.next_due, rebuild_ends_at, self._unknown_until if request.is_inherited else None]
        later = [when for when in due if when is not None and when > now]
        detail = board.sizes.refusal(request, board.block_size)
        if detail and (rebuild_ends_at is None and not (request.is_inherited and now < self._unknown_until)):
            self._scheduler.break_off(request, "INVALID_ARGUMENT", detail, Reason.DROPPED)
        else:
            queue.remove(request)
            self._aside[request.arrival] = request
            self._look_at = min([self._look_at, *(later or [now])])
        return False

    def _look_again(self) -> None:
        aside, self._aside, self._look_at = self._aside, {}, float("inf")
        for request in aside.values():
            self._queues[request.model].push(request, returns=True)

    def _goes_on(self, request: Request, board: Board) -> bool:
        """Another model has its model's name by now: all replicas went, and then came others. Nothing that is known of
        its blocks counts there; an answer that has begun, and what was to be kept, end here (False)."""
        if request.pin_until is not None or any(sequence.outputs for sequence in request.sequences):
            digests = f"digest {request.digest.hex()} before and {board.digest.hex()} now"
            detail = f"model {request.model} was replaced by another of this name before the end ({digests}); ask again"
            self._scheduler.break_off(request, "CANCELLED", detail, Reason.DROPPED)
            return False
        self._scheduler.swapper.forget(request)
        request.forget_names()
        request.digest = board.digest
        return True

    def _give_up_pin(self, board: Board) -> bool:
        """Nothing runs on a replica and still the head does not fit: pins give way to work."""
        for replica in board.replicas:
            if replica.pins and not replica.requests and self._scheduler.pins.give_up_one(replica):
                board.refresh(replica)
                return True
        return False

    def _prefix_owner(self, request: Request, names: bytes, hits: Hits) -> tuple[Sequence, int] | None:
        """Who computes the next block that this request lacks, and up to where it should wait for that."""
        index = self._scheduler.index
        if not names or not index.num_computing:
            return None
        held = hits.longest
        owner = index.computing(names[held * HASH_BYTES : (held + 1) * HASH_BYTES])
        if owner is None or not owner.seq or owner.request is request or owner.request.state is not State.RUNNING:
            return None
        assert owner.request.replica is not None
        size = owner.request.replica.block_size
        if owner.position // size > held:
            return None
        depth = held + 1
        while index.computing(names[depth * HASH_BYTES : (depth + 1) * HASH_BYTES]) is owner:
            depth += 1
        return owner, depth * size

    def _matchable(self, request: Request, board: Board) -> bytes:
        """The names that a hit may cover: full blocks of the first live sequence, all but its last token at most."""
        if not board.replicas or not self._uses_cache(request):
            return b""
        sequence = request.live[0]
        return sequence.names[: sequence.length // board.block_size * HASH_BYTES]

    def _need(self, request: Request, block_size: int) -> Need:
        live = request.live
        ends = [sequence.first_end(self._settings.ahead) for sequence in live]
        num_places, num_positions = sum(sequence.num_places for sequence in live), live[0].limit + 1
        return Need(live[0].length, request.num_blocks(block_size, ends), num_places, num_positions)

    def _uses_cache(self, request: Request) -> bool:
        """Logprobs of a prompt are known only to who computes it."""
        sampling = request.sampling
        return request.is_cacheable and (sampling is None or sampling.prompt_logprobs is None)

    def why_waiting(self, request: Request) -> str:
        """The reason why a request waits, for people."""
        if request.parked_on is not None:
            return f"{request.parked_on.request.request_id} computes its prefix"
        board = self._boards.get(request.model)
        if request.arrival in self._aside:
            return "no replica that is here could hold it, and one that could may come back"
        if board is None or not board.replicas:
            more = "" if self._scheduler.rebuild.ends_at is None else " yet: the scheduler has just started"
            return f"no replica of {request.model} is here{more}"
        return board.why_none(self._need(request, board.block_size))

    def _start(self, request: Request, place: Place, hits: Hits) -> None:
        """Builds the tables of all sequences and orders the first of them; forks ride along. `hits`: cached blocks that
        begin the request, by pool."""
        replica, scheduler = place.replica, self._scheduler
        request.attempt += 1
        request.replica = request.last_replica = replica
        request.state = State.RUNNING
        parent, *others = request.live
        self._fill_table(parent, place)
        forks = tuple(self._fork(parent, sequence, replica) for sequence in others)
        request.forked_from = parent if forks else None
        if request.host is not None:
            self._start_from_host(request)
            return
        fetch = scheduler.fetches.begin(request, hits)
        position = max(parent.position, parent.saved)
        if fetch:
            request.state = State.RESTORING
        if request.attempt == 1:
            request.cached_tokens = position
        scheduler.index.begin_computing(parent, position // replica.block_size)
        # What forks have written already each of them computes again.
        request.tenant.charge(max(1, parent.length - position + sum(len(fork.outputs) for fork in forks)))
        replica.prefill_waiting += parent.length - position
        self.order_start(parent, forks, fetch)

    def _start_from_host(self, request: Request) -> None:
        """Every sequence goes on by itself where it stood, as soon as its blocks are back from host memory."""
        request.state = State.RESTORING
        request.forked_from = None
        request.tenant.charge(len(request.live))
        transfer = self._scheduler.swapper.read_back(request)
        for sequence in request.live:
            self.order_start(sequence, (), transfer)
        if not transfer:
            self.restored(request)

    def restored(self, request: Request) -> None:
        """Its blocks are all where its tables say, and its worker begins it: positions are as they were."""
        replica = request.replica
        assert replica is not None and request.state is State.RESTORING
        for sequence in request.live:
            if sequence.position < sequence.saved:
                replica.fill(sequence, sequence.saved, b"")
                sequence.position = sequence.saved
        self._scheduler.swapper.forget(request)
        request.state = State.RUNNING
        if request.is_cancelled:
            self._scheduler.drop(request)
            return
        for sequence in request.sequences:
            if sequence.seq and sequence.is_ended:
                # Its gateway cut it meanwhile.
                replica.write().drops.append(Drop(sequence.seq))

    def order_start(self, sequence: Sequence, forks: tuple[Fork, ...], after: int = 0) -> None:
        request, scheduler = sequence.request, self._scheduler
        replica = request.replica
        assert replica is not None
        tokens = ids(request.prompt)
        tokens.extend(sequence.outputs)
        replica.write().starts.append(
            Start(
                seq=sequence.seq,
                request_id=request.request_id,
                index=sequence.index,
                attempt=request.attempt,
                gateway=request.gateway,
                route=request.route,
                tokens=tokens,
                num_prompt=len(request.prompt),
                position=max(sequence.position, sequence.saved),
                table=ids(sequence.table[: len(sequence.table) - sequence.purse]),
                lease_end=sequence.lease_end,
                precedence=request.precedence,
                sampling=request.sampling if request.sampling is not None else scheduler.pin_sampling,
                salt=request.salt,
                chain=request.names[-HASH_BYTES:],
                forks=forks,
                beams=self._beams(sequence),
                trace=request.trace,
                after=after,
            )
        )
        position, name = sequence.position, replica.name
        scheduler.tell(Started(request.gateway, request.route, request.request_id, position, name))

    def _beams(self, sequence: Sequence) -> Beams | None:
        if not sequence.request.width:
            return None
        _, tables, search = sequence.group or (0, (), b"")
        if sequence.request.host is not None:
            tables = renumbered(tables, dict(zip(sequence.host_table, sequence.table, strict=False)))
        return Beams(
            sequence.request.width, ids(sequence.table[len(sequence.table) - sequence.purse :]), tables, search
        )

    def _fill_table(self, sequence: Sequence, place: Place) -> None:
        """The table of a sequence that starts: the full blocks of a cached prefix shared, the rest new. Where the
        prefix ends inside a block, its slots are copied."""
        replica, size = place.replica, place.replica.block_size
        ledger, seq = replica.ledger, self._scheduler.next_seq()
        sequence.seq = seq
        last = (sequence.length - 1) // size
        shared = place.hit[:last]
        sequence.paid = ledger.share(shared, seq)
        source, num_slots = self._to_copy(sequence, place, len(shared))
        if num_slots:
            ledger.share([source], seq)
            replica.hold_for_copy(source)
        sequence.lease_end = replica.first_lease(sequence)
        group = sequence.group
        length = -(-sequence.lease_end // size) if group is None else len(sequence.host_table)
        blocks = ledger.allocate(length - len(shared), seq, shared[-1] if shared else -1)
        assert blocks is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.table = ids(shared + blocks)
        if sequence.request.width:
            self._fill_purse(sequence, replica)
        sequence.position = len(shared) * size
        if num_slots:
            replica.write().copies.append(Copy(source, blocks[0], num_slots))
            sequence.position += num_slots
        replica.enter(sequence)

    def _to_copy(self, sequence: Sequence, place: Place, num_shared: int) -> tuple[int, int]:
        """A block behind the shared ones that begins as this sequence goes on, and how many of its slots do. A hit
        covers all but the last token at most, which is computed again: logits are needed from it."""
        replica, request, size = place.replica, sequence.request, place.replica.block_size
        first = num_shared * size
        num_known = min(size, sequence.length - 1 - first)
        if len(place.hit) > num_shared:
            return place.hit[num_shared], num_known
        if num_known < MIN_SLOTS or request.host is not None or not self._uses_cache(request):
            return -1, 0
        tokens = request.prompt[first : first + num_known]
        found = replica.beginnings.find(place.hit[:num_shared], sequence.names, request.salt, tokens)
        if found is None:
            return -1, 0
        # The source is held until it is copied: that must not take the room that was just found.
        if replica.ledger.num_available <= self._need(request, size).num_blocks:
            return -1, 0
        return found

    def _fill_purse(self, sequence: Sequence, replica: Replica) -> None:
        """A beam group starts with what its beams need to write up to the end of their first lease."""
        request, size, end = sequence.request, replica.block_size, sequence.lease_end
        if sequence.group is None:
            num_spare = request.num_group_blocks(size, end) - len(sequence.table)
        else:
            num_spare = request.num_purse(size, sequence.group[0], len(sequence.group[1]), end)
        purse = replica.ledger.allocate(num_spare, sequence.seq)
        assert purse is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.purse = len(purse)
        sequence.table.extend(purse)

    def _fork(self, parent: Sequence, sequence: Sequence, replica: Replica) -> Fork:
        """A further sequence of the request: the parent's full prompt blocks, and blocks of its own behind them."""
        ledger, seq = replica.ledger, self._scheduler.next_seq()
        sequence.seq = seq
        num_prompt = len(sequence.request.prompt)
        shared = list(parent.table[: num_prompt // replica.block_size])
        sequence.paid = ledger.share(shared, seq)
        sequence.lease_end = replica.first_lease(sequence)
        count = -(-sequence.lease_end // replica.block_size) - len(shared)
        blocks = ledger.allocate(count, seq, -1)
        assert blocks is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.table = ids(shared + blocks)
        sequence.position = num_prompt
        replica.enter(sequence)
        return Fork(seq, sequence.index, ids(sequence.table), sequence.lease_end, ids(sequence.outputs))
