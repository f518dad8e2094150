"""Settings of the deciding part as frozen dataclasses. Derived values are computed before they are built.

The command line and the environment are read elsewhere (cluster/cli); nothing here reads the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AllocatorName = Literal["fifo", "lru", "buddy"]
PreemptionName = Literal["cheapest", "recompute", "swap"]
PlacementName = Literal["scored", "round_robin", "least_loaded"]


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How the scheduler decides. The defaults serve; each option says what it trades."""

    # Slots before a lease's end at which a worker reports: covers the round trip of a renewal in steps.
    ahead: int = 4
    prefix_caching: bool = True
    allocator: AllocatorName = "lru"
    preemption: PreemptionName = "cheapest"
    placement: PlacementName = "scored"
    # Requests that may wait; one more is refused with a time to try again.
    max_queue: int = 10_000
    # Admission leaves this share of a pool free while others run, so that running sequences can grow (hysteresis:
    # what was preempted does not come back into a pool that is still full).
    admit_reserve: float = 0.02
    # Below this share of free and cached blocks a replica is under pressure: leases are not renewed ahead.
    pressure: float = 0.02
    seal_timeout_s: float = 5.0
    # A request of a dead gateway waits this long for its client to come back through another one.
    orphan_grace_s: float = 10.0
    # Blocks that pins may keep, as a share of a pool.
    max_pinned: float = 0.25
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    # What a block-second costs a tenant beside a token, in tokens.
    tokens_per_block_second: float = 4.0
