"""Who starts next and where: refusal, the waiting queues, prefix hits, parking behind a prefix, and Start itself.

Admission is exact. What could never fit is refused with the figures; what fits starts in order of the queue; what does
not fit now waits, and nothing overtakes it. Two requests that share a prompt compute it once: the later one parks until
the earlier has filled the blocks that both need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.fairness import WaitingQueue
from cluster.messages import Copy, Fork, Start, Started, ids
from cluster.placement import Candidate, choose
from cluster.replica import Replica
from cluster.sequences import Request, Sequence, State

if TYPE_CHECKING:
    from cluster.scheduler import Scheduler

Refusal = tuple[str, str, float]


class Admission:
    """The waiting side of the scheduler. It starts requests on replicas; it never takes one off."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self._queues: dict[str, WaitingQueue] = {}
        self._replicas: dict[str, list[Replica]] = {}
        self._num_placed = 0
        self._num_parked = 0

    # -- replicas

    def add(self, replica: Replica) -> None:
        self._replicas.setdefault(replica.joined.model, []).append(replica)

    def remove(self, replica: Replica) -> None:
        self._replicas[replica.joined.model].remove(replica)

    def replicas_of(self, model: str) -> list[Replica]:
        return self._replicas.get(model, [])

    def pin_limit(self, model: str) -> int:
        replicas = self.replicas_of(model)
        return min((int(replica.ledger.num_blocks * self._settings.max_pinned) for replica in replicas), default=0)

    # -- the queue

    def refusal(self, request: Request) -> Refusal | None:
        """Why this request can never be served, or not now; None if it may wait."""
        if request.model not in self._replicas:
            known = ", ".join(sorted(self._replicas)) or "none"
            return "NOT_FOUND", f"no model {request.model} is served here; there is {known}", 0.0
        length = len(request.prompt) + request.max_tokens - 1
        replicas = self.replicas_of(request.model)
        roomiest = max(replicas, key=lambda replica: replica.ledger.num_blocks, default=None)
        if roomiest is not None:
            needed = request.num_blocks(roomiest.block_size, [length] * len(request.sequences))
            if needed > roomiest.ledger.num_blocks:
                detail = (
                    f"a prompt of {len(request.prompt):,} tokens with max_tokens {request.max_tokens:,} and "
                    f"{len(request.sequences)} sequence(s) needs {needed:,} blocks of {roomiest.block_size} tokens; "
                    f"the largest pool has {roomiest.ledger.num_blocks:,}; lower max_tokens or n, or raise kv_memory"
                )
                return "INVALID_ARGUMENT", detail, 0.0
            longest = max(replica.joined.max_model_len for replica in replicas)
            if length + 1 > longest:
                detail = (
                    f"a prompt of {len(request.prompt):,} tokens with max_tokens {request.max_tokens:,} is longer than "
                    f"the {longest:,} tokens that the model takes; shorten the prompt or lower max_tokens"
                )
                return "INVALID_ARGUMENT", detail, 0.0
        num_waiting = self.num_waiting(request.model)
        if num_waiting >= self._settings.max_queue:
            return "RESOURCE_EXHAUSTED", f"{num_waiting:,} requests wait, which is the bound of the queue", 1.0
        return None

    def num_waiting(self, model: str) -> int:
        queue = self._queues.get(model)
        return len(queue) if queue is not None else 0

    def waiting(self) -> list[Request]:
        return [request for queue in self._queues.values() for request in queue]

    def queue(self, request: Request) -> None:
        """It waits from now on; one that ran before goes ahead of new work."""
        request.state = State.QUEUED
        request.queued_at = self._scheduler.now
        self._queues.setdefault(request.model, WaitingQueue()).push(request, returns=request.attempt > 0)

    def withdraw(self, request: Request) -> None:
        """It waits no more, in whichever way it did."""
        if request.state is State.QUEUED:
            self._queues[request.model].remove(request)
        elif request.state is State.PARKED:
            self._leave_parking(request)

    # -- parking behind a prefix

    def _park(self, request: Request, owner: Sequence, until: int) -> None:
        request.state = State.PARKED
        request.parked_on = owner
        request.reason_waiting = f"{owner.request.request_id} computes its prefix"
        owner.waiters.append((until, request))
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

    def admit(self, now: float) -> None:
        """Starts what fits, in order of each model's queue."""
        for model, queue in self._queues.items():
            while True:
                request = queue.head()
                if request is None:
                    break
                owner = self._prefix_owner(request)
                if owner is not None:
                    queue.pop(request)
                    self._park(request, *owner)
                    continue
                candidate = self._place(request, self.replicas_of(model))
                if candidate is None:
                    break
                queue.pop(request)
                request.queue_seconds += now - request.queued_at
                self._start(request, candidate)

    def _prefix_owner(self, request: Request) -> tuple[Sequence, int] | None:
        """Who computes the next block that this request lacks, and up to where it should wait for that."""
        if not request.is_cacheable or not request.hashes:
            return None
        index = self._scheduler.index
        replicas = self.replicas_of(request.model)
        names = self._matchable(request, replicas[0].block_size) if replicas else []
        held = max(map(len, index.match(names).values()), default=0)
        if held >= len(names):
            return None
        owner = index.computing(names[held])
        if owner is None or not owner.seq or owner.request is request or owner.request.state is not State.RUNNING:
            return None
        if owner.position // replicas[0].block_size > held:
            return None
        depth = held
        while depth < len(names) and index.computing(names[depth]) is owner:
            depth += 1
        return owner, depth * replicas[0].block_size

    def _matchable(self, request: Request, block_size: int) -> list[bytes]:
        """The names that a hit may cover: full blocks of the first live sequence, all but its last token at most."""
        sequence = request.live[0]
        if not request.is_cacheable or (request.sampling is not None and request.sampling.prompt_logprobs is not None):
            return []
        return sequence.names[: sequence.length // block_size]

    def _place(self, request: Request, replicas: list[Replica]) -> Candidate | None:
        """The best replica that has room for all sequences of the request now; None: it has to wait."""
        open_replicas = [replica for replica in replicas if not replica.is_draining]
        if not open_replicas:
            request.reason_waiting = f"no replica of {request.model} takes work"
            return None
        names = self._matchable(request, open_replicas[0].block_size)
        found = self._scheduler.index.match(names) if names else {}
        candidates = []
        for replica in open_replicas:
            candidate = self._room(request, replica, found.get(replica.ledger.pool, []))
            if candidate is not None:
                candidates.append(candidate)
        if not candidates:
            return None
        self._num_placed += 1
        return choose(candidates, request.live[0].length, self._settings.placement, self._num_placed)

    def _room(self, request: Request, replica: Replica, hit: list[int]) -> Candidate | None:
        live = request.live
        if len(replica.residents) + len(live) > replica.joined.max_batch:
            request.reason_waiting = f"{len(replica.residents)} sequences run, of {replica.joined.max_batch} at most"
            return None
        if replica.wanting:
            request.reason_waiting = "running requests grow first"
            return None
        lengths = [replica.first_lease(sequence.length, sequence.limit) for sequence in live]
        needed = request.num_blocks(replica.block_size, lengths)
        ledger = replica.ledger
        # A full-prompt hit keeps its last block out: that one is copied, so it takes a new block.
        num_new = needed - min(len(hit), (live[0].length - 1) // replica.block_size)
        idle_hits = sum(1 for block in hit if not ledger.holders(block))
        reserve = int(ledger.num_blocks * self._settings.admit_reserve) if replica.requests else 0
        if num_new + idle_hits + reserve > ledger.num_available:
            if replica.pins and not replica.requests and self._scheduler.unpin_one(replica):
                return self._room(request, replica, [])
            request.reason_waiting = (
                f"needs {num_new} blocks and {reserve} in reserve, {ledger.num_available - idle_hits} are free"
            )
            return None
        return Candidate(replica, hit, num_new)

    def _start(self, request: Request, candidate: Candidate) -> None:
        """Builds the tables of all sequences and orders the first of them; forks ride along."""
        replica, scheduler = candidate.replica, self._scheduler
        request.attempt += 1
        request.replica = request.last_replica = replica
        request.state = State.RUNNING
        request.reason_waiting = ""
        parent, *others = request.live
        self._fill_table(parent, candidate)
        forks = tuple(self._fork(parent, sequence, replica) for sequence in others)
        if request.attempt == 1:
            request.cached_tokens = parent.position
        scheduler.index.begin_computing(parent.names[parent.position // replica.block_size :], parent)
        request.tenant.charge(parent.length - parent.position, 0.0, 0.0)
        replica.prefill_waiting += parent.length - parent.position
        tokens = ids(request.prompt)
        tokens.extend(parent.outputs)
        sampling = request.sampling if request.sampling is not None else scheduler.pin_sampling
        replica.write().starts.append(
            Start(
                seq=parent.seq,
                request_id=request.request_id,
                index=parent.index,
                attempt=request.attempt,
                gateway=request.gateway,
                route=request.route,
                tokens=tokens,
                num_prompt=len(request.prompt),
                position=parent.position,
                table=ids(parent.table),
                lease_end=parent.lease_end,
                precedence=request.precedence,
                sampling=sampling,
                salt=request.salt,
                chain=request.hashes[-1] if request.hashes else b"",
                forks=forks,
            )
        )
        scheduler.tell(Started(request.gateway, request.route, request.request_id, parent.position, replica.name))

    def _fill_table(self, sequence: Sequence, candidate: Candidate) -> None:
        """The table of a sequence that starts: the cached prefix shared, the rest new; a whole hit's last copied."""
        replica, size = candidate.replica, candidate.replica.block_size
        ledger, seq = replica.ledger, self._scheduler.rows.enter(sequence)
        last = (sequence.length - 1) // size
        shared = candidate.hit[:last]
        sequence.paid = ledger.share(shared, seq)
        whole = candidate.hit[last] if len(candidate.hit) > last and size > 1 else None
        if whole is not None:
            ledger.share([whole], seq)
            replica.hold_for_copy(whole)
        sequence.lease_end = replica.first_lease(sequence.length, sequence.limit)
        count = -(-sequence.lease_end // size) - len(shared)
        blocks = ledger.allocate(count, seq, shared[-1] if shared else -1)
        assert blocks is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.table = ids(shared + blocks)
        sequence.position = len(shared) * size
        if whole is not None:
            # The hit covers all but the last token, which is computed again: logits are needed from it.
            num_slots = sequence.length - 1 - sequence.position
            replica.write().copies.append(Copy(whole, blocks[0], num_slots))
            sequence.position += num_slots
        replica.enter(sequence)

    def _fork(self, parent: Sequence, sequence: Sequence, replica: Replica) -> Fork:
        """A further sequence of the request: the parent's full prompt blocks, and blocks of its own behind them."""
        ledger, seq = replica.ledger, self._scheduler.rows.enter(sequence)
        num_prompt = len(sequence.request.prompt)
        shared = list(parent.table[: num_prompt // replica.block_size])
        sequence.paid = ledger.share(shared, seq)
        sequence.lease_end = replica.first_lease(sequence.length, sequence.limit)
        count = -(-sequence.lease_end // replica.block_size) - len(shared)
        blocks = ledger.allocate(count, seq, -1)
        assert blocks is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.table = ids(shared + blocks)
        sequence.position = num_prompt
        replica.enter(sequence)
        return Fork(seq, sequence.index, ids(sequence.table), sequence.lease_end, ids(sequence.outputs))
