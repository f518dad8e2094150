"""Settings of the deciding part as frozen dataclasses. Derived values are computed before they are built.

The command line and the environment are read elsewhere (cluster/cli); nothing here reads the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from cluster.errors import ConfigError

AllocatorName = Literal["fifo", "lru", "buddy"]
PreemptionName = Literal["cheapest", "recompute", "swap"]
PlacementName = Literal["scored", "round_robin", "least_loaded"]
ReserveName = Literal["none", "oracle", "power_of_two", "longest"]


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How the scheduler decides. The defaults serve; each option says what it trades."""

    # Slots before a lease's end at which a worker reports: covers the round trip of a renewal in steps.
    ahead: int = 4
    prefix_caching: bool = True
    allocator: AllocatorName = "lru"
    # What paging is measured against: one run of adjacent blocks for all that a request may write, taken when it
    # starts. For max_tokens ("oracle", where that is the true length), the next power of two of it, or the longest
    # that the model takes.
    reserve: ReserveName = "none"
    preemption: PreemptionName = "cheapest"
    placement: PlacementName = "scored"
    # Requests that may wait; one more is refused with a time to try again.
    max_queue: int = 10_000
    # Admission leaves this share of a pool free while others run, so that running sequences can grow (hysteresis:
    # what was preempted does not come back into a pool that is still full).
    admit_reserve: float = 0.02
    # Below this share of free and cached blocks a replica is under pressure: leases reach only over the next step.
    pressure: float = 0.02
    # The part of a swap's time that the replica's steps lose; the copy engine takes the rest.
    swap_share: float = 0.5
    transfer_timeout_s: float = 10.0
    # Bytes/s between nodes until a transfer has measured them.
    network_bytes_per_s: float = 1e9
    # Prefixes that another pool has are fetched where that is cheaper than computing them, and blocks that are about
    # to fall out of a device pool are copied to host memory, a few each time.
    fetch_prefixes: bool = True
    host_cache: bool = True
    host_cache_every_s: float = 0.05
    # A request moves to the emptiest replica of its model where the fullest is fuller by this share of a pool or batch.
    balance_gap: float = 0.3
    # How often replicas are compared, and how long a request that moved stays where it is (hysteresis).
    balance_every_s: float = 0.5
    balance_rest_s: float = 5.0
    # What a draining replica could not hand to another one within this time is preempted.
    drain_s: float = 2.0
    seal_timeout_s: float = 5.0
    # A new scheduler waits this long for replicas and gateways to tell what they hold.
    rebuild_s: float = 2.0
    # What fits only a replica that is lost waits this long for it to come back; then it is refused.
    replica_return_s: float = 30.0
    # A request of a dead gateway waits this long for its client to come back through another one.
    orphan_grace_s: float = 10.0
    # Blocks that pins may keep, as a share of a pool.
    max_pinned: float = 0.25
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    # Tenants whose freed blocks are overwritten before anybody else gets them; nothing of theirs is cached or swapped.
    clear_tenants: tuple[str, ...] = ()
    # What a block-second costs a tenant beside a token, in tokens.
    tokens_per_block_second: float = 4.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int | float) and not 0 <= value <= 1e15:
                raise ConfigError(f"{one.name} is {value}; give a number from 0 on")
        if self.reserve != "none" and (self.allocator != "buddy" or self.prefix_caching):
            raise ConfigError(
                f"reserve is {self.reserve!r}, which takes whole runs of blocks: set allocator to 'buddy' and "
                "prefix_caching to False"
            )


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What one worker runs and with how much memory. Exactly one of kv_blocks and kv_memory may be given."""

    model: str
    # What clients call it; empty: as `model` says.
    served_name: str = ""
    # "auto": the checkpoint's own on a GPU, float32 on a CPU.
    dtype: str = "auto"
    # "auto": the first GPU, else the CPU.
    device: str = "auto"
    block_size: int = 16
    kv_blocks: int | None = None
    # Bytes, or a text such as "2GiB".
    kv_memory: int | str | None = None
    # Share of the memory that is free after weights and working space which the pool takes when neither is given.
    kv_share: float = 0.9
    # Instead: the share of all of a card's memory that weights, working space and pool take together, as in vLLM.
    gpu_memory_utilization: float | None = None
    max_batch: int = 256
    # Tokens of one step: decodes and prefill chunks together. None: what suits the device.
    token_budget: int | None = None
    # None: what the model was trained for.
    max_model_len: int | None = None
    # None: the kernels that belong to the device.
    kernels: str | None = None
    # Blocks without content are filled with NaN and kernels check their arguments.
    debug: bool = False
    # Names of generated blocks are made with this key; one per cluster.
    hash_key: bytes = b""
    prefix_caching: bool = True
    # Other workers of the node may map the pool, where that costs steps nothing: moves between them are quicker.
    share_pool: bool = False
    # Fused modules in place of the model's own where that is faster.
    fuse: bool = True
    # A step is issued before the one before it has been looked at. None: on a GPU.
    overlap: bool | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, object, float, float], ...] = (
            ("block_size", self.block_size, 1, 256),
            ("kv_blocks", self.kv_blocks, 1, 2**31 - 1),
            ("max_batch", self.max_batch, 1, 4096),
            ("token_budget", self.token_budget, 1, 2**20),
            ("max_model_len", self.max_model_len, 2, 2**27),
            ("kv_share", self.kv_share, 0.01, 1.0),
            ("gpu_memory_utilization", self.gpu_memory_utilization, 0.01, 1.0),
        )
        for name, value, low, high in checks:
            if value is None:
                continue
            # 1.5 blocks, or "16" out of a script's arguments, would only fail somewhere deep inside.
            if isinstance(value, bool) or not isinstance(value, int if isinstance(low, int) else int | float):
                kind = "whole number" if isinstance(low, int) else "number"
                raise ConfigError(f"{name} is {value!r}, which is not a {kind}; give {low} to {high:,}")
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; give {low} to {high:,}")
        if self.kv_blocks is not None and self.kv_memory is not None:
            raise ConfigError("kv_blocks and kv_memory are both given; give one of them")

    @property
    def name(self) -> str:
        return self.served_name or self.model
