"""The scheduler's figures as families, gathered from its state when somebody asks: nothing is counted for them.

Runs in the scheduler's loop between two turns, so that every scrape is of one moment. A thousand pools take a few
milliseconds, whatever their size.
"""

from __future__ import annotations

import time
from collections import Counter

from cluster import __version__
from cluster.centre.ledger import Ledger
from cluster.centre.pauses import BOUNDS
from cluster.centre.scheduler import Scheduler
from cluster.serving.admin import Wanted
from cluster.serving.control_server import ControlServer
from cluster.serving.shell import SchedulerShell
from cluster.watching.metrics import Families, Family, Histogram
from cluster.watching.metrics_names import SCHEDULER

# Counters of the scheduler that have a metric of their own.
_REFUSED, _TRANSFER, _PREEMPTED, _SWAPPED = "refused ", "transfer ", "preempted ", "swapped "


def scheduler_families(shell: SchedulerShell, control: ControlServer, wanted: Wanted) -> list[Family]:
    """All families but `up`, which the one who scrapes adds."""
    found, scheduler = Families(SCHEDULER), shell.scheduler
    found["build_info"].add(1, version=__version__)
    found["scheduler_epoch"].add(scheduler.epoch)
    found["scheduler_uptime_seconds"].add(time.monotonic() - shell.started_at)
    found["scheduler_turn_seconds"].add_histogram(shell.turns)
    found["scheduler_longest_turn_seconds"].add(shell.longest_turn_s)
    _events(found, scheduler)
    _requests(found, scheduler)
    for replica in scheduler.replicas.values():
        _pool(found, replica.name, "device", replica.joined.block_bytes, replica.ledger)
    for pool in scheduler.pools.values():
        _pool(found, pool.name, "host", pool.joined.block_bytes, pool.ledger)
    _workers(found, shell, control, wanted)
    for why, count in control.end.port.refused.items() if control.end.port is not None else ():
        found["control_refused_total"].add(count, why=why)
    for tenant in scheduler.tenants:
        found["block_seconds_total"].add(tenant.block_seconds, tenant=tenant.name, kind="device")
        found["block_seconds_total"].add(tenant.host_block_seconds, tenant=tenant.name, kind="host")
    return found.in_use()


def _events(found: Families, scheduler: Scheduler) -> None:
    for name, count in scheduler.counters.items():
        if name.startswith(_REFUSED):
            found["refused_total"].add(count, code=name.removeprefix(_REFUSED))
        elif name.startswith(_TRANSFER):
            road, _, outcome = name.removeprefix(_TRANSFER).rpartition(" ")
            found["transfers_total"].add(count, road=road, outcome=outcome)
        elif name.startswith(_SWAPPED):
            way, _, what = name.removeprefix(_SWAPPED).partition(" ")
            if what == "bytes":
                found["swapped_bytes_total"].add(count, way=way)
            else:
                found["swap_seconds_total"].add(count / 1e6, way=way)
        elif not name.startswith(_PREEMPTED):
            found["scheduler_events_total"].add(count, event=name)
    for (way, reason), count in scheduler.notes.preemptions.items():
        found["preemptions_total"].add(count, way=way, reason=reason)
    pauses = Histogram(BOUNDS)
    pauses.counts, pauses.total = scheduler.pauses.counts, scheduler.pauses.total
    found["move_pause_steps"].add_histogram(pauses)


def _requests(found: Families, scheduler: Scheduler) -> None:
    counts = Counter((request.model, request.state) for request in scheduler.requests.values())
    for (model, state), count in counts.items():
        found["requests"].add(count, model=model, state=state.name.lower())


def _pool(found: Families, name: str, kind: str, block_bytes: int, ledger: Ledger) -> None:
    counts = ledger.counts()
    for state in ("free", "held", "cached", "moving", "quarantined"):
        found["pool_blocks"].add(getattr(counts, state), pool=name, kind=kind, state=state)
    found["pool_shared_blocks"].add(ledger.num_shared, pool=name)
    found["pool_block_bytes"].add(block_bytes, pool=name)
    found["evictions_total"].add(ledger.num_evictions, pool=name)


def _workers(found: Families, shell: SchedulerShell, control: ControlServer, wanted: Wanted) -> None:
    states: Counter[tuple[str, str]] = Counter()
    for replica in shell.scheduler.replicas.values():
        model, peer = replica.joined.model, control.peers.get(replica.name)
        states[model, "draining" if replica.is_draining else "serving"] += 1
        at = {"worker": replica.name, "model": model}
        found["worker_sequences"].add(len(replica.residents), **at)
        found["worker_max_batch"].add(replica.joined.max_batch, **at)
        found["worker_prefill_waiting_tokens"].add(replica.prefill_waiting, **at)
        found["dry_leases_total"].add(replica.num_dry, **at)
        if peer is not None:
            found["worker_steps_total"].add(peer.step, **at)
            found["worker_step_seconds"].add(peer.step_seconds, **at)
            found["worker_silent_seconds"].add(control.silent_s(replica.name), **at)
    for _, model in wanted.missing_workers(shell.scheduler.replicas):
        states[model, "missing"] += 1
    for (model, state), count in states.items():
        found["workers"].add(count, model=model, state=state)
