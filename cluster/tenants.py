"""What one tenant may ask of a gateway: settings that stand in the token file beside the tenant's tokens.

`cluster/serving/auth.py` reads them, the gateway and its door hold them (`cluster/gateway/door/quotas.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from cluster.errors import ConfigError, InvalidRequest, NeverFits
from cluster.limits import MAX_PRIORITY


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Of one tenant at one gateway. 0: no bound but the gateway's own."""

    open_requests: int = 0
    # Each also counts prompts that are only tokenized, and clients that come back beyond all that can be open.
    requests_per_s: float = 0.0
    # Of prompts, and of answers as long as they were asked for; what was not written is given back.
    tokens_per_s: float = 0.0
    # Prefixes that are being warmed or kept.
    pins: int = 0
    # GenerateMany streams at once. What is half sent on each takes memory, up to the largest message.
    streams: int = 0
    # Lower goes first.
    least_priority: int = -MAX_PRIORITY
    most_priority: int = MAX_PRIORITY
    # Of one prompt as it was sent.
    request_bytes: int = 0
    unread_bytes: int = 0

    @classmethod
    def read(cls, given: object) -> TenantLimits:
        """From what stands in a file. Raises `ConfigError`."""
        if not isinstance(given, Mapping):
            raise ConfigError(f"limits: {given!r} is no object of names and numbers")
        known = {one.name: type(one.default) for one in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"limits: there is no {name}; there are {', '.join(known)}")
            is_number = isinstance(value, int) or (known[name] is float and isinstance(value, float))
            is_signed = name.endswith("priority")
            if isinstance(value, bool) or not is_number or (value < 0 and not is_signed) or abs(value) > 1 << 53:
                raise ConfigError(f"limits: {name} is {value!r}; give a number from 0 on")
        return cls(**given)

    def check(self, priority: int, num_bytes: int) -> None:
        """Before any work is done for a request. Raises `InvalidRequest`."""
        if not self.least_priority <= priority <= self.most_priority:
            remedy = f"this tenant may give {self.least_priority:,} to {self.most_priority:,}"
            raise InvalidRequest("priority", f"is {priority:,}", remedy)
        self.check_bytes(num_bytes)

    def check_bytes(self, num_bytes: int) -> None:
        """Before a prompt is read. Raises `NeverFits`."""
        if self.request_bytes and num_bytes > self.request_bytes:
            raise NeverFits("prompt", num_bytes, self.request_bytes, "bytes", "this tenant may send no more at once")


NO_LIMITS = TenantLimits()
