"""The tenants: what each has been given, and what it owes.

`service` decides whose request goes next (`cluster/centre/fairness.py`); the other figures are a tenant's bill. Nothing
here knows a request: whoever does says what it took.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Tenant:
    """What one tenant has been given."""

    name: str
    weight: float
    # Nothing of it may stay anywhere: its blocks are overwritten when they are free, never cached or swapped.
    is_cleared: bool = False
    service: float = 0.0
    num_active: int = 0
    num_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    block_seconds: float = 0.0
    host_block_seconds: float = 0.0

    def charge(self, tokens: float) -> None:
        """Work done for it, in tokens."""
        self.service += tokens / self.weight


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
