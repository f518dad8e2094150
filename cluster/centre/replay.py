"""Replays a journal through the scheduler and shows tables and ledgers as they stood after any turn.

The scheduler is pure, so the same events at the same times give the same orders; each turn's digest proves it. Used by
`quire replay` and by whoever hunts an incident; it changes nothing.
"""

from __future__ import annotations

from cluster.centre.journal import Journal, digest
from cluster.centre.scheduler import Scheduler
from cluster.errors import ProtocolError


def replay(journal: Journal, at: int | None = None) -> Scheduler:
    """The scheduler as it stood after turn `at`, by default the last that was decided to its end. A different decision
    is a ProtocolError. A turn in which the scheduler stopped is decided again when it is asked for, and what stopped it
    then stops this."""
    scheduler = Scheduler(journal.settings, journal.epoch)
    for turn in journal.turns[: journal.num_whole if at is None else at]:
        orders = scheduler.turn(turn.events, turn.now)
        if turn.digest and digest(orders) != turn.digest:
            raise ProtocolError(
                f"turn {turn.number} decides otherwise than when it was written ({digest(orders)}, not {turn.digest}): "
                "this is another version of the scheduler"
            )
    return scheduler


def describe(scheduler: Scheduler) -> str:
    """Ledgers and tables as text: one line a pool, one a request, one a sequence with its table."""
    lines: list[str] = []
    for replica in scheduler.replicas.values():
        counts = replica.ledger.counts()
        lines.append(
            f"replica {replica.name}: {replica.ledger.num_blocks} blocks of {replica.block_size}: {counts.held} held, "
            f"{counts.cached} cached, {counts.moving} moving, {counts.quarantined} quarantined, {counts.free} free; "
            f"{len(replica.residents)} sequences"
        )
    for host in scheduler.pools.values():
        counts = host.ledger.counts()
        lines.append(f"host pool {host.name}: {host.ledger.num_blocks} blocks: {counts.held} held, {counts.free} free")
    for request in scheduler.requests.values():
        where = request.replica.name if request.replica is not None else scheduler.admission.why_waiting(request)
        lines.append(f"request {request.request_id}: {request.state.name.lower()}, attempt {request.attempt}; {where}")
        for sequence in request.sequences:
            table = " ".join(map(str, sequence.table)) or "-"
            lines.append(
                f"  [{sequence.index}] {sequence.length} tokens, {sequence.position} written, leave to "
                f"{sequence.lease_end}; table {table}"
            )
    return "\n".join(lines) or "nothing has joined and nothing runs"
