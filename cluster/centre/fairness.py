"""The waiting queue of one model: priorities, then fairness by tenant, then arrival.

A tenant pays for what it gets, divided by its weight (`Tenant.service`): tokens computed, when they begin to be
computed, those of what comes back among them; tokens written, as they are told; memory, whenever a request leaves it.
Among requests of one priority the tenant that has got least goes first; a tenant that was idle starts level with the
least served of the active ones, so that nobody saves up. What comes back (preempted, recovered, parked) heads its own
tenant's queue, in the order in which it first came, and overtakes nobody else.

Bound on waiting: while a request heads its tenant's queue, no request of another tenant of its priority starts once
that tenant has got more. Every start costs at least a token, so of T equal tenants whose starts cost at most C the
others start at most (T - 1) * C beyond what they had got less. What runs already is not taken away for it: the head
starts, at the latest, when all that ran has ended.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from cluster.centre.nouns import Request


class _Line:
    """What waits of one tenant: those that come back (a heap by arrival), and behind them the new ones. Each entry has
    a ticket: one that its request holds no more is passed over."""

    __slots__ = ("new", "returning")

    def __init__(self) -> None:
        self.returning: list[tuple[int, int, Request]] = []
        self.new: deque[tuple[int, int, Request]] = deque()

    def head(self, tickets: dict[int, int]) -> Request | None:
        returning, new = self.returning, self.new
        while returning and tickets.get(returning[0][0]) != returning[0][1]:
            heapq.heappop(returning)
        if returning:
            return returning[0][2]
        while new and tickets.get(new[0][0]) != new[0][1]:
            new.popleft()
        return new[0][2] if new else None


class WaitingQueue:
    """Requests that wait for blocks. `head` is the one to start next; nothing starts before it can."""

    def __init__(self) -> None:
        # By priority and tenant; and by arrival the ticket of each that waits.
        self._lines: dict[int, dict[str, _Line]] = {}
        self._tickets: dict[int, int] = {}
        self._num_tickets = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def push(self, request: Request, returns: bool) -> None:
        """`returns`: it goes before new requests of its tenant, in the order in which they first came."""
        assert request.arrival not in self._tickets, f"{request} waits already"
        self._num_tickets += 1
        self._tickets[request.arrival] = self._num_tickets
        lines, name = self._lines.setdefault(request.priority, {}), request.tenant.name
        line = lines.get(name)
        if line is None:
            line = lines[name] = _Line()
        entry = request.arrival, self._num_tickets, request
        if returns:
            heapq.heappush(line.returning, entry)
        else:
            line.new.append(entry)

    def remove(self, request: Request) -> None:
        """It waits no more: it was taken, or withdrawn. Its entry is passed over when it comes to the front."""
        del self._tickets[request.arrival]

    def head(self) -> Request | None:
        for priority in sorted(self._lines):
            request = self._least_served(self._lines[priority])
            if request is not None:
                return request
            del self._lines[priority]
        return None

    def _least_served(self, lines: dict[str, _Line]) -> Request | None:
        """The head of the tenant that has got least; of several that are level the one that came first."""
        best: Request | None = None
        least = 0.0
        tickets, gone = self._tickets, []
        for name, line in lines.items():
            head: Request | None = None
            if line.new and not line.returning:
                # Nearly all waits for the first time, and is still there.
                arrival, ticket, first = line.new[0]
                head = first if tickets.get(arrival) == ticket else None
            if head is None:
                head = line.head(tickets)
            if head is None:
                gone.append(name)
                continue
            service = head.tenant.service
            if best is None or service < least or (service == least and head.arrival < best.arrival):
                best, least = head, service
        for name in gone:
            del lines[name]
        return best

    def check(self) -> None:
        """The head is of the first priority, and of those that go next there it has got least, or came first."""
        waiting, head = list(self), self.head()
        assert (head is None) == (not waiting), f"{len(waiting)} wait, and {head} is the first of them"
        if head is None:
            return
        assert head.priority == min(one.priority for one in waiting), f"{head} goes before its betters"
        mine = head.tenant.service, head.arrival
        for line in self._lines[head.priority].values():
            other = line.head(self._tickets)
            assert other is None or mine <= (other.tenant.service, other.arrival), f"{head} goes before {other}"

    def __iter__(self) -> Iterator[Request]:
        """All that wait, in no promised order (for reports)."""
        for lines in self._lines.values():
            for line in lines.values():
                for arrival, ticket, request in (*line.returning, *line.new):
                    if self._tickets.get(arrival) == ticket:
                        yield request
