"""State machines of what orders work: the batcher, the waiting queue with its tenants, and the tables of a replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from cluster.centre import residents
from cluster.centre.books import Books
from cluster.centre.fairness import WaitingQueue
from cluster.centre.leases import Leases
from cluster.centre.nouns import Request, Sequence, State
from cluster.centre.tenants import Tenants
from cluster.desk.batcher import Batcher
from cluster.messages import ReplicaJoined, Submit, ids
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from tests.cluster.machines import Counted


@dataclass
class Row:
    position: int
    length: int
    lease_end: int
    precedence: int
    paused: bool = False
    width: int = 1
    passed_over: int = 0


class BatcherMachine(Counted):
    """The batcher beside a dict of rows that are gone through one by one."""

    NUM_ROWS = 6

    @initialize(budget=st.integers(4, 24), bound=st.integers(1, 4))
    def begin(self, budget: int, bound: int) -> None:
        self.budget, self.bound = budget, bound
        self.batcher = Batcher(self.NUM_ROWS, budget, max_passed_over=bound)
        self.rows: dict[int, Row] = {}

    @rule(
        row=st.integers(0, NUM_ROWS - 1),
        position=st.integers(0, 30),
        more=st.integers(1, 40),
        leave=st.integers(0, 50),
        precedence=st.integers(0, 1000),
        paused=st.booleans(),
    )
    def add(self, row: int, position: int, more: int, leave: int, precedence: int, paused: bool) -> None:
        if row in self.rows or any(other.precedence == precedence for other in self.rows.values()):
            return
        self.rows[row] = Row(position, position + more, position + leave, precedence, paused)
        self.batcher.add(row, position, position + more, position + leave, precedence, paused=paused)

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 99))
    def remove(self, which: int) -> None:
        row = sorted(self.rows)[which % len(self.rows)]
        del self.rows[row]
        self.batcher.remove(row)

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 99), more=st.integers(0, 16), paused=st.booleans(), width=st.integers(1, 4))
    def change(self, which: int, more: int, paused: bool, width: int) -> None:
        """Leave is extended; a fork wakes up or sleeps; a beam group widens."""
        row = sorted(self.rows)[which % len(self.rows)]
        mine = self.rows[row]
        mine.lease_end += more
        mine.paused, mine.width = paused, width
        self.batcher.lease_end[row] = mine.lease_end
        self.batcher.paused[row] = paused
        self.batcher.widen(row, width)

    def expected(self) -> tuple[list[tuple[int, int, int]], int, int]:
        """Rows with start and count in order, the decodes among them, and the rows that stand at the end of a lease."""
        awake = {row: each for row, each in self.rows.items() if not each.paused}
        dry = sum(1 for each in awake.values() if min(each.length, each.lease_end) <= each.position)
        ready = {row: each for row, each in awake.items() if min(each.length, each.lease_end) > each.position}
        decodes = sorted(row for row, each in ready.items() if each.length - each.position == 1)
        budget = self.budget
        prefills = [row for row, each in ready.items() if each.length - each.position > 1]
        wanted = sum(self.rows[row].width for row in decodes)
        is_late = any(self.rows[row].passed_over >= self.bound for row in prefills)
        most = budget - max(1, budget // 2) if wanted >= budget and is_late else budget
        if wanted > most:
            decodes = self.fewest(decodes, most)
        budget -= sum(self.rows[row].width for row in decodes)
        chosen = [(row, self.rows[row].position, 1) for row in decodes]
        prefills.sort(key=lambda row: (self.rows[row].passed_over < self.bound, self.rows[row].precedence))
        for row in prefills:
            each = self.rows[row]
            count = min(min(each.length, each.lease_end) - each.position, budget)
            budget -= count
            each.passed_over = 0 if count else each.passed_over + 1
            if count:
                chosen.append((row, each.position, count))
        return chosen, len(decodes), dry

    def fewest(self, decodes: list[int], budget: int) -> list[int]:
        order = sorted(decodes, key=lambda row: (-self.rows[row].passed_over, self.rows[row].precedence))
        chosen, used = [], 0
        for row in order:
            used += self.rows[row].width
            if used > budget:
                break
            chosen.append(row)
        for row in decodes:
            self.rows[row].passed_over = 0 if row in chosen else self.rows[row].passed_over + 1
        return sorted(chosen)

    @rule(draws=st.booleans())
    def step(self, draws: bool) -> None:
        expected, num_decodes, dry = self.expected()
        batch = self.batcher.next()
        got = list(zip(batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True))
        assert (got, batch.num_decodes, batch.num_dry) == (expected, num_decodes, dry)
        assert batch.num_tokens <= self.budget
        drawn = self.batcher.issue(batch)
        in_flight = self.batcher.in_flight
        assert all(in_flight[row] for row, _, _ in expected) and len(expected) == np.count_nonzero(in_flight)
        in_flight[:] = 0
        assert drawn.tolist() == [row for row, start, count in expected if start + count == self.rows[row].length]
        for row, start, count in expected:
            mine = self.rows[row]
            mine.position = start + count
            # Where all is computed a token is drawn, and there is one more to compute.
            if mine.position == mine.length:
                mine.length += 1

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "rows"):
            return
        for row, mine in self.rows.items():
            assert int(self.batcher.position[row]) == mine.position
            assert int(self.batcher.passed_over[row]) == mine.passed_over
        assert sorted(np.flatnonzero(self.batcher.resident).tolist()) == sorted(self.rows)


def submit(number: int, tenant: str, prompt: int, max_tokens: int, priority: int = 0) -> Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Submit(f"r{number}", "g", number, "m", tenant, ids(range(prompt)), (), sampling, priority)


class FairnessMachine(Counted):
    """Waiting queue and tenants beside a list that is searched through for who goes next."""

    WEIGHTS: ClassVar = {"a": 2.0, "b": 1.0, "c": 0.5}

    def __init__(self) -> None:
        super().__init__()
        self.tenants = Tenants(self.WEIGHTS)
        self.queue = WaitingQueue()
        self.waiting: list[tuple[Request, bool]] = []
        self.active: dict[str, int] = dict.fromkeys(self.WEIGHTS, 0)
        self.service = dict.fromkeys(self.WEIGHTS, 0.0)
        self.running: list[Request] = []
        self.number = 0

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(0, 2))
    def arrive(self, tenant: str, priority: int) -> None:
        self.number += 1
        request = Request(submit(self.number, tenant, 1, 1, priority), self.number, self.tenants.get(tenant), 0.0)
        busy = [self.service[name] for name, count in self.active.items() if count]
        if not self.active[tenant] and busy:
            self.service[tenant] = max(self.service[tenant], min(busy))
        self.active[tenant] += 1
        self.tenants.enter(request.tenant)
        self.queue.push(request, returns=False)
        self.waiting.append((request, False))

    def next_one(self) -> Request | None:
        """Priority first; of each tenant what comes back before what is new; the tenant that was served least."""
        if not self.waiting:
            return None
        first = min(request.priority for request, _ in self.waiting)
        heads = []
        for tenant in self.WEIGHTS:
            mine = [each for each in self.waiting if each[0].priority == first and each[0].tenant.name == tenant]
            if mine:
                heads.append(min(mine, key=lambda each: (not each[1], each[0].arrival))[0])
        return min(heads, key=lambda request: (self.service[request.tenant.name], request.arrival))

    @rule(cost=st.integers(1, 100))
    def start(self, cost: int) -> None:
        expected, head = self.next_one(), self.queue.head()
        assert head is expected
        if head is None:
            return
        self.queue.remove(head)
        self.waiting = [(request, returns) for request, returns in self.waiting if request is not head]
        head.tenant.charge(cost)
        self.service[head.tenant.name] += cost / self.WEIGHTS[head.tenant.name]
        self.running.append(head)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), ends=st.booleans())
    def end_or_come_back(self, which: int, ends: bool) -> None:
        request = self.running.pop(which % len(self.running))
        if ends:
            self.tenants.leave(request.tenant)
            self.active[request.tenant.name] -= 1
        else:
            self.queue.push(request, returns=True)
            self.waiting.append((request, True))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        request, _ = self.waiting.pop(which % len(self.waiting))
        self.queue.remove(request)
        self.tenants.leave(request.tenant)
        self.active[request.tenant.name] -= 1

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert {request.arrival for request in self.queue} == {request.arrival for request, _ in self.waiting}
        for name, service in self.service.items():
            assert abs(self.tenants.get(name).service - service) < 1e-9


@dataclass
class Written:
    """What a sequence has written, as the model has it: every position in a slot of its own."""

    sequence: Sequence
    slots: dict[int, tuple[int, int]] = field(default_factory=dict)


class TableMachine(Counted):
    """Tables and leases of a replica beside a map of slots: who writes where, and that nobody else ever does."""

    NUM_BLOCKS = 16

    @initialize(size=st.sampled_from([1, 2, 4, 8]), ahead=st.integers(0, 6))
    def begin(self, size: int, ahead: int) -> None:
        self.size = size
        joined = ReplicaJoined("r", 1, "n", "m", self.NUM_BLOCKS, size, 64, "f", 8, 512)
        settings = SchedulerSettings(ahead=ahead, pressure=0.0)
        self.replica = residents.new_replica(joined, Books(settings, 1))
        self.settings = settings
        self.leases = Leases(settings)
        self.tenants = Tenants({})
        self.live: list[Written] = []
        self.number = 0

    def slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        """Logical to physical: the block and the slot that hold this token position."""
        return sequence.table[position // self.size], position % self.size

    @rule(prompt=st.integers(1, 20), max_tokens=st.integers(1, 40))
    def enter(self, prompt: int, max_tokens: int) -> None:
        self.number += 1
        request = Request(submit(self.number, "t", prompt, max_tokens), self.number, self.tenants.get("t"), 0.0)
        (sequence,) = request.sequences
        lease_end = self.leases.first(self.replica, sequence)
        blocks = self.replica.ledger.allocate(-(-lease_end // self.size), self.number)
        if blocks is None:
            return
        request.state, request.replica = State.RUNNING, self.replica
        sequence.seq, sequence.table, sequence.lease_end = self.number, ids(blocks), lease_end
        residents.enter(self.replica, sequence)
        self.live.append(Written(sequence))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), count=st.integers(1, 12))
    def write(self, which: int, count: int) -> None:
        """The worker writes as far as it has leave, and tells; then leave is extended if there is room."""
        written = self.live[which % len(self.live)]
        sequence = written.sequence
        end = min(sequence.lease_end, sequence.position + count)
        for position in range(sequence.position, end):
            written.slots[position] = self.slot(sequence, position)
        self.leases.fill(self.replica, sequence, end, b"")
        room, waited = self.replica.ledger.num_available, bool(self.replica.wanting)
        before = sequence.lease_end
        self.leases.renew(self.replica, sequence)
        assert before <= sequence.lease_end <= sequence.limit
        if sequence.seq in self.replica.wanting:
            assert waited or room * self.size < sequence.limit, "it waits though there was room"
        elif end < sequence.limit:
            assert sequence.lease_end > end, "it has no leave and does not wait for any"

    @rule()
    def serve(self) -> None:
        starving = self.leases.serve_wanting(self.replica)
        wanting = list(self.replica.wanting.values())
        assert (starving is None) == (not wanting)
        if starving is not None:
            assert starving.request.precedence == min(each.request.precedence for each in wanting)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        residents.leave(self.replica, self.live.pop(which % len(self.live)).sequence)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "replica"):
            return
        residents.check(self.replica, [], self.settings, 0)
        taken: set[tuple[int, int]] = set()
        for written in self.live:
            for position, slot in written.slots.items():
                assert self.slot(written.sequence, position) == slot, "a written position has moved"
                assert slot not in taken, f"two positions share slot {slot}"
                taken.add(slot)
        held = {block for written in self.live for block in written.sequence.table}
        assert self.replica.ledger.num_available == self.NUM_BLOCKS - len(held)
