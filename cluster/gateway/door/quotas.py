"""What one tenant may have under way at a door: requests, their rate and that of their tokens, prefixes, priorities.

The door asks before it takes a request or a prefix, and says when one has left. What is too much is refused by name,
with the figure and when to try again. A rate is a bucket that fills by the second, up to `BURST_S` of it.
"""

from __future__ import annotations

from cluster.errors import QueueFull
from cluster.messages import Submit
from cluster.tenants import TenantLimits

BURST_S = 10.0
RETRY_S = 1.0


class _Bucket:
    """How much of a rate is left. It may be overdrawn, so that what is larger than a burst gets through as well."""

    __slots__ = ("filled_at", "left")

    def __init__(self) -> None:
        self.left = float("inf")
        self.filled_at = 0.0

    def wait_s(self, rate: float, now: float, burst: float = 0.0) -> float:
        """How long until something can be taken; 0: now. `burst`: so much can be at once, if it is more than usual."""
        most = max(1.0, rate * BURST_S, burst)
        self.left = min(most, self.left + rate * (now - self.filled_at))
        self.filled_at = now
        return 0.0 if self.left >= 1.0 else (1.0 - self.left) / rate


class _Tenant:
    __slots__ = ("num_open", "num_streams", "pins", "requests", "returns", "tokens")

    def __init__(self) -> None:
        self.num_open = self.num_streams = 0
        # Until when each prefix is kept, by route.
        self.pins: dict[int, float] = {}
        self.requests, self.tokens, self.returns = _Bucket(), _Bucket(), _Bucket()


class Quotas:
    """All tenants that a door has seen."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}

    def num_open(self) -> dict[str, int]:
        """By tenant."""
        return {name: tenant.num_open for name, tenant in self._tenants.items() if tenant.num_open}

    @property
    def num_streams(self) -> int:
        """Of all tenants."""
        return sum(tenant.num_streams for tenant in self._tenants.values())

    def check(self, tenant: str, limits: TenantLimits, now: float) -> None:
        """Raises QueueFull where this tenant gets nothing more now."""
        known = self._tenants.get(tenant)
        if known is None:
            return
        _check_open(known, limits.open_requests)
        for rate, bucket, name in (
            (limits.requests_per_s, known.requests, "requests"),
            (limits.tokens_per_s, known.tokens, "tokens"),
        ):
            if rate:
                _check_rate(bucket.wait_s(rate, now), f"may ask for {rate:,g} {name} a second")

    def enter(self, submit: Submit, limits: TenantLimits, now: float) -> None:
        """Raises QueueFull."""
        self.check(submit.tenant, limits, now)
        tenant = self._tenants.setdefault(submit.tenant, _Tenant())
        tenant.num_open += 1
        for rate, bucket, amount in (
            (limits.requests_per_s, tenant.requests, 1),
            (limits.tokens_per_s, tenant.tokens, num_asked(submit)),
        ):
            if rate:
                bucket.wait_s(rate, now)
                bucket.left -= amount

    def read(self, tenant: str, limits: TenantLimits, now: float) -> None:
        """Work for this gateway alone, such as to tokenize a prompt: it counts as a request. Raises QueueFull."""
        rate = limits.requests_per_s
        if rate:
            bucket = self._tenants.setdefault(tenant, _Tenant()).requests
            _check_rate(bucket.wait_s(rate, now), f"may ask for {rate:,g} requests a second")
            bucket.left -= 1.0

    def come_back(self, tenant: str, limits: TenantLimits, most_open: int, now: float) -> None:
        """A client names a request that it has. All `most_open` that there can be may come back at once, and further
        ones as fast as requests may come. Raises QueueFull."""
        rate = limits.requests_per_s
        if rate:
            bucket = self._tenants.setdefault(tenant, _Tenant()).returns
            _check_rate(bucket.wait_s(rate, now, most_open), f"may come back for {rate:,g} requests a second")
            bucket.left -= 1.0

    def adopt(self, submit: Submit, most_open: int = 0) -> None:
        """It was taken elsewhere, and costs nothing here. Raises QueueFull where the tenant has `most_open`; 0: any
        number may come."""
        tenant = self._tenants.setdefault(submit.tenant, _Tenant())
        _check_open(tenant, most_open)
        tenant.num_open += 1

    def leave(self, submit: Submit, num_unwritten: int) -> None:
        tenant = self._tenants[submit.tenant]
        tenant.num_open -= 1
        tenant.tokens.left += num_unwritten

    def begin_stream(self, tenant: str, limits: TenantLimits, most: int) -> None:
        """On which many requests may come; `most` streams unless the tenant's own bound is lower. Raises QueueFull."""
        known = self._tenants.setdefault(tenant, _Tenant())
        are = "open here, each for many requests"
        _check_count(known.num_streams, min(most, limits.streams or most), "GenerateMany streams", are)
        known.num_streams += 1

    def end_stream(self, tenant: str) -> None:
        self._tenants[tenant].num_streams -= 1

    def pin(self, tenant: str, route: int, until: float, limits: TenantLimits, now: float) -> None:
        """A prefix is to be kept until then. Raises QueueFull."""
        known = self._tenants.setdefault(tenant, _Tenant())
        known.pins = {one: kept for one, kept in known.pins.items() if kept > now}
        first_s = min(known.pins.values(), default=now) - now
        _check_count(len(known.pins), limits.pins, "prefixes", "kept", max(RETRY_S, first_s))
        known.pins[route] = until

    def unpin(self, tenant: str, route: int) -> None:
        """It is not kept after all."""
        self._tenants[tenant].pins.pop(route, None)


def _check_rate(wait_s: float, what: str) -> None:
    if wait_s > 0:
        raise QueueFull(f"this tenant {what}, and has had them", wait_s)


def _check_open(tenant: _Tenant, most: int) -> None:
    _check_count(tenant.num_open, most, "requests", "under way here")


def _check_count(count: int, most: int, things: str, are: str, wait_s: float = RETRY_S) -> None:
    """`most` 0: any number."""
    if most and count >= most:
        raise QueueFull(f"{count:,} {things} of this tenant are {are}, and {most:,} is its bound", wait_s)


def num_asked(submit: Submit) -> int:
    """Tokens of the prompt, and of the answer if it is as long as it may be."""
    sampling = submit.sampling
    return len(submit.prompt) + sampling.n * (sampling.max_tokens or 1)
