"""The waiting queue of one model: priorities, then fairness by tenant, then arrival.

A tenant pays for what it gets: tokens computed and block-seconds held (`Tenant.service`, divided by its weight). Among
requests of one priority the tenant that has got least goes first; a tenant that was idle starts level with the least
served of the active ones, so that nobody saves up. What was preempted, or must start again, keeps its arrival and goes
before new work of its priority.

Bound on waiting: while a request waits at the head of its tenant's queue, every other active tenant of its priority is
served at most one request more than what makes its service exceed the waiter's. So with T equal tenants of requests
that cost at most C, it waits for at most (T - 1) * C of service beyond the difference at its arrival.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping

from cluster.centre.sequences import Request


class Tenant:
    """What one tenant has been given: `service` decides who goes next, the other figures are its bill."""

    __slots__ = (
        "block_seconds",
        "cached_tokens",
        "host_block_seconds",
        "name",
        "num_active",
        "num_requests",
        "output_tokens",
        "prompt_tokens",
        "service",
        "weight",
    )

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
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

    def bill(self, request: Request, tokens_per_block_second: float) -> None:
        """A request has ended: its memory is charged, and everything that it used is noted."""
        self.charge(request.block_seconds * tokens_per_block_second)
        self.num_requests += 1
        self.prompt_tokens += len(request.prompt)
        self.cached_tokens += request.cached_tokens
        self.output_tokens += sum(len(sequence.outputs) for sequence in request.sequences)
        self.block_seconds += request.block_seconds
        self.host_block_seconds += request.host_block_seconds


class Tenants:
    """All tenants that were ever seen; new ones get the weight of the settings, or 1."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._tenants: dict[str, Tenant] = {}

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def get(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name, self._weights.get(name, 1.0))
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


class WaitingQueue:
    """Requests that wait for blocks. `head` is the one to start next; nothing starts before it can."""

    def __init__(self) -> None:
        # By priority: those that come back (a heap by arrival), and the new ones of each tenant in order of arrival.
        self._returning: dict[int, list[tuple[int, Request]]] = {}
        self._new: dict[int, dict[str, deque[Request]]] = {}
        self._removed: set[int] = set()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, request: Request, returns: bool) -> None:
        """`returns`: it goes before new requests, in the order in which all of them first came."""
        self._size += 1
        if returns:
            heapq.heappush(self._returning.setdefault(request.priority, []), (request.arrival, request))
        else:
            tenants = self._new.setdefault(request.priority, {})
            tenants.setdefault(request.tenant.name, deque()).append(request)

    def remove(self, request: Request) -> None:
        """It waits no more (cancelled). Its entry is passed over when it comes to the front."""
        self._removed.add(request.arrival)
        self._size -= 1

    def head(self) -> Request | None:
        for priority in sorted({*self._returning, *self._new}):
            returning = self._returning.get(priority)
            while returning and returning[0][0] in self._removed:
                self._removed.discard(heapq.heappop(returning)[0])
            if returning:
                return returning[0][1]
            self._returning.pop(priority, None)
            request = self._least_served(self._new.get(priority, {}))
            if request is not None:
                return request
            self._new.pop(priority, None)
        return None

    def _least_served(self, tenants: dict[str, deque[Request]]) -> Request | None:
        best: Request | None = None
        for name in list(tenants):
            waiting = tenants[name]
            while waiting and waiting[0].arrival in self._removed:
                self._removed.discard(waiting.popleft().arrival)
            if not waiting:
                del tenants[name]
            elif best is None or waiting[0].tenant.service < best.tenant.service:
                best = waiting[0]
        return best

    def pop(self, request: Request) -> None:
        """Takes the head out; `request` must be what `head` gave."""
        returning = self._returning.get(request.priority)
        if returning and returning[0][1] is request:
            heapq.heappop(returning)
        else:
            taken = self._new[request.priority][request.tenant.name].popleft()
            assert taken is request, f"{request} is not the head of its queue"
        self._size -= 1

    def __iter__(self) -> Iterator[Request]:
        """All that wait, in no promised order (for reports)."""
        for heap in self._returning.values():
            yield from (request for arrival, request in heap if arrival not in self._removed)
        for tenants in self._new.values():
            for waiting in tenants.values():
                yield from (request for request in waiting if request.arrival not in self._removed)
