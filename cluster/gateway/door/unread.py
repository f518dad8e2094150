"""What clients have not read yet, in bytes: of each request, each tenant and in all; who goes when it is too much.

The door tells it of every change. A client that reads nothing is the one whose answer ends; others never pay for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.errors import QueueFull
from cluster.gateway.door.entry import Entry

RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class UnreadBounds:
    """Bytes of this process's memory, as `entry.py` counts them."""

    request: int = 32 << 20
    tenant: int = 128 << 20
    total: int = 512 << 20


class Unread:
    """The sums over all entries of one door."""

    def __init__(self, bounds: UnreadBounds) -> None:
        self.bounds = bounds
        self.by_tenant: dict[str, int] = {}
        self.total = 0
        self._limits: dict[str, int] = {}

    def limit(self, tenant: str, size: int) -> None:
        """The tenant's own bound; 0: none but that of every tenant."""
        if size:
            self._limits[tenant] = size
        else:
            self._limits.pop(tenant, None)

    def set(self, entry: Entry, size: int) -> None:
        more = size - entry.unread
        if more:
            entry.unread = size
            self.total += more
            tenant = entry.submit.tenant
            left = self.by_tenant.get(tenant, 0) + more
            if left:
                self.by_tenant[tenant] = left
            else:
                del self.by_tenant[tenant]

    def too_much(self, entry: Entry, entries: Iterable[Entry]) -> tuple[Entry, QueueFull] | None:
        """What has to end because this entry has grown: itself, or where a tenant or all have too much, what has most
        unread of that tenant, or of the tenant that has most."""
        bounds, tenant = self.bounds, entry.tenant
        if entry.unread > bounds.request:
            return entry, _error(f"{entry.unread:,} bytes of this answer are unread", bounds.request)
        most = min(bounds.tenant, self._limits.get(tenant, bounds.tenant))
        if self.by_tenant.get(tenant, 0) > most:
            detail = f"{self.by_tenant[tenant]:,} bytes of this tenant's answers are unread"
            return _largest(tenant, entries), _error(detail, most)
        if self.total > bounds.total:
            tenant = max(self.by_tenant, key=lambda name: self.by_tenant[name])
            detail = f"{self.total:,} bytes of all answers here are unread, most of them of this tenant"
            return _largest(tenant, entries), _error(detail, bounds.total)
        return None


def _largest(tenant: str, entries: Iterable[Entry]) -> Entry:
    return max((one for one in entries if one.tenant == tenant), key=lambda one: one.unread)


def _error(detail: str, bound: int) -> QueueFull:
    return QueueFull(f"{detail}, and {bound:,} is the bound: read faster, or ask for less at once", RETRY_S)
