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
from collections.abc import Collection, Iterator, Mapping

from cluster.centre.sequences import Request


class Tenant:
    """What one tenant has been given: `service` decides who goes next, the other figures are its bill."""

    __slots__ = (
        "block_seconds",
        "cached_tokens",
        "host_block_seconds",
        "is_cleared",
        "name",
        "num_active",
        "num_requests",
        "output_tokens",
        "prompt_tokens",
        "service",
        "weight",
    )

    def __init__(self, name: str, weight: float, is_cleared: bool = False) -> None:
        self.name = name
        self.weight = weight
        # Nothing of it may stay anywhere: its blocks are overwritten when they are free, never cached or swapped.
        self.is_cleared = is_cleared
        self.service = 0.0
        self.num_active = 0
        self.num_requests = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.block_seconds = 0.0
        self.host_block_seconds = 0.0

    def charge(self, tokens: float) -> None:
        """Work done for it, in tokens."""
        self.service += tokens / self.weight

    def charge_memory(self, request: Request, tokens_per_block_second: float) -> None:
        """It holds no device memory now: what it has held since the last time is charged."""
        self.charge((request.block_seconds - request.charged_seconds) * tokens_per_block_second)
        request.charged_seconds = request.block_seconds

    def bill(self, request: Request) -> None:
        """A request has ended: everything that it used is noted."""
        self.num_requests += 1
        self.prompt_tokens += len(request.prompt)
        self.cached_tokens += request.cached_tokens
        self.output_tokens += sum(sequence.num_billed for sequence in request.sequences)
        self.block_seconds += request.block_seconds
        self.host_block_seconds += request.host_block_seconds


class Tenants:
    """All tenants that were ever seen; new ones get the weight of the settings, or 1."""

    def __init__(self, weights: Mapping[str, float], cleared: Collection[str] = ()) -> None:
        self._weights = weights
        self._cleared = cleared
        self._tenants: dict[str, Tenant] = {}

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def get(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            # Whose a request is that only a worker has told of is not known yet: it may be one of those.
            is_cleared = name in self._cleared or (not name and bool(self._cleared))
            tenant = self._tenants[name] = Tenant(name, self._weights.get(name, 1.0), is_cleared)
        return tenant

    def enter(self, tenant: Tenant) -> None:
        """A request of this tenant is under way; an idle tenant starts level with the least served active one."""
        if not tenant.num_active:
            others = [other.service for other in self._tenants.values() if other.num_active]
            if others:
                tenant.service = max(tenant.service, min(others))
        tenant.num_active += 1

    def leave(self, tenant: Tenant) -> None:
        tenant.num_active -= 1
        assert tenant.num_active >= 0, f"tenant {tenant.name} left more often than it came"


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
        line = self._lines.setdefault(request.priority, {}).setdefault(request.tenant.name, _Line())
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
        for name in list(lines):
            head = lines[name].head(self._tickets)
            if head is None:
                del lines[name]
            elif best is None or (head.tenant.service, head.arrival) < (best.tenant.service, best.arrival):
                best = head
        return best

    def __iter__(self) -> Iterator[Request]:
        """All that wait, in no promised order (for reports)."""
        for lines in self._lines.values():
            for line in lines.values():
                for arrival, ticket, request in (*line.returning, *line.new):
                    if self._tickets.get(arrival) == ticket:
                        yield request
