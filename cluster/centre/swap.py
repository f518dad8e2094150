"""Preemption into host memory: which way out is cheapest, and the two transfers that take a request there and back.

Owns the host pools' ledgers and every transfer under way. A request goes out whole (blocks that its sequences share go
once) and comes back whole. Host room is reserved before anything is dropped. A table names the new place only after
its transfer has committed; until then the source is kept, and whatever goes wrong ends in recompute.

What a way costs is time that the replica loses: recomputing costs `tokens / prefill rate`, swapping `2 * bytes / road`
of which the copy engine takes most, so that only `swap_share` of it stalls the others, what a road takes to begin, and
the wait of the others until its blocks are free. A way whose rate is not known is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.centre.ledger import Ledger
from cluster.centre.move import Held, can_go_on
from cluster.centre.rates import Rates, standing_s
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, State
from cluster.messages import EPOCH_BITS, GiveUp, HostPoolJoined, HostPoolSettled, Road, Transfer, Transferred, ids

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler


class HostPool:
    """One node's host memory as the scheduler sees it."""

    def __init__(self, joined: HostPoolJoined, ledger: Ledger) -> None:
        self.name = joined.pool
        self.incarnation = joined.incarnation
        self.joined = joined
        self.ledger = ledger
        # Requests whose blocks lie here or are on the way.
        self.requests: dict[str, Request] = {}


@dataclass(frozen=True, slots=True)
class Way:
    """A way out for a request and what it was estimated to cost. `host` None: recompute. `lacks`: it would rather have
    gone to host memory, and why it could not."""

    host: HostPool | None
    seconds: float
    lacks: str = ""


@dataclass(slots=True)
class Moving:
    """One transfer under way. `blocks` are the device's, `host_blocks` the host's, pair by pair."""

    request: Request
    replica: Replica
    host: HostPool
    road: Road
    blocks: list[int]
    host_blocks: list[int]


class Swapper:
    """The host side of the scheduler. The scheduler says whom to preempt; this says how, and sees it through."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        self.pools: dict[str, HostPool] = {}
        # The last incarnation of each pool that was here: only a higher one joins.
        self._incarnations: dict[str, int] = {}
        self.transfers: dict[int, Moving] = {}
        self.rates = Rates(scheduler.settings.network_bytes_per_s)
        # By pool and transfer: blocks that a writer could still touch, until the pool says that it cannot.
        self.quarantined: dict[tuple[str, int], list[int]] = {}
        self.inherited: dict[tuple[str, int], list[int]] = {}
        # Numbers are not used twice, whatever an earlier scheduler gave.
        self._num_transfers = scheduler.epoch << EPOCH_BITS

    # -- pools come and go

    def add(self, joined: HostPoolJoined, ledger: Ledger) -> None:
        if self._incarnations.get(joined.pool, -1) >= joined.incarnation:
            self._scheduler.counters["stale joins"] += 1
            return
        known = self.pools.get(joined.pool)
        if known is not None:
            self.lose(known)
        self._incarnations[joined.pool] = joined.incarnation
        self.pools[joined.pool] = self._scheduler.fetches.owners[ledger.pool] = HostPool(joined, ledger)
        self.rates.at_start(joined.node, joined.bytes_per_s)

    def lose(self, host: HostPool) -> None:
        """Its memory is gone: what lay there is computed again; what is on the way is given up at once, because its
        worker would look for the pool for seconds more while the blocks wait."""
        del self.pools[host.name]
        self._scheduler.counters["host pools lost"] += 1
        for key in [key for key in self.quarantined if key[0] == host.name]:
            del self.quarantined[key]
        for request in list(host.requests.values()):
            if request.state in (State.QUEUED, State.SEALING):
                self.forget(request)
        self._scheduler.fetches.lose(host)
        host.ledger.close()
        for number, moving in self.transfers.items():
            if moving.host is host:
                moving.replica.write().aborts.append(number)

    # -- the choice

    def way_out(self, request: Request, replica: Replica) -> Way:
        """The cheapest way for this request to leave its replica now, by the policy of the settings."""
        policy = self._settings.preemption
        rate = replica.prefill_tokens_per_s
        # What a beam group has written it writes again, every beam of it.
        tokens = sum(sequence.position for sequence in request.live)
        tokens += max(0, tokens - len(request.prompt)) * max(0, request.width - 1)
        recompute = Way(None, tokens / rate if rate else 0.0)
        if policy == "recompute" or request.pin_until is not None or request.is_partial:
            return recompute
        if request.tenant.is_cleared:
            return recompute  # host memory is not cleared
        blocks = self.blocks_of(request, whole=True)
        host = self._host_for(replica, len(blocks))
        if host is None:
            return Way(None, recompute.seconds, self._what_lacks(replica, len(blocks)))
        size_bytes = len(blocks) * replica.joined.block_bytes
        node = host.joined.node
        seconds = self.leaving_s(replica, node, size_bytes) + self.lost_s(replica, node, size_bytes)
        if policy == "swap" or (rate and seconds < recompute.seconds):
            return Way(host, seconds)
        return recompute

    def lost_s(self, replica: Replica, other: str, size_bytes: int) -> float:
        """What the steps of a replica lose to one transfer from or to another node. Infinite: not known."""
        share, num_beside = self._settings.swap_share, len(replica.residents)
        return self.rates.lost_s(replica.joined.node, other, size_bytes, share, num_beside)

    def leaving_s(self, replica: Replica, other: str, size_bytes: int) -> float:
        """The same of one that makes room: its blocks are free only when it has ended, and that is told with the next
        step; what is computed again leaves at once."""
        wait_s = self.rates.seconds(replica.joined.node, other, size_bytes) + replica.step_seconds
        standing = standing_s(wait_s, replica.step_seconds, replica.block_size)
        return self.lost_s(replica, other, size_bytes) + standing

    def _host_for(self, replica: Replica, num_blocks: int) -> HostPool | None:
        """The pool of the same node if it has room, else the roomiest; only pools of the same layout count."""
        fits = [
            host
            for host in self.pools.values()
            if host.joined.fingerprint == replica.joined.fingerprint and host.ledger.num_available >= num_blocks
        ]
        return min(
            fits,
            key=lambda host: (host.joined.node != replica.joined.node, -host.ledger.num_available),
            default=None,
        )

    def _what_lacks(self, replica: Replica, num_blocks: int) -> str:
        """Out of host memory, with the figures; empty where there is no host memory for this replica at all."""
        left = [
            f"{host.name} has {host.ledger.num_available:,} of {host.ledger.num_blocks:,} left"
            for host in self.pools.values()
            if host.joined.fingerprint == replica.joined.fingerprint
        ]
        return f"out of host memory: {num_blocks:,} blocks are needed, {', '.join(left)}" if left else ""

    def blocks_of(self, request: Request, whole: bool) -> list[int]:
        """The distinct device blocks of a request in order: those with content, or (`whole`) all of its tables."""
        replica = request.replica
        assert replica is not None
        blocks: dict[int, None] = {}
        for sequence in request.live:
            count = len(sequence.table) if whole else -(-sequence.position // replica.block_size)
            blocks.update(dict.fromkeys(sequence.table[:count]))
        return list(blocks)

    # -- out

    def reserve(self, request: Request, host: HostPool) -> None:
        """Takes the room in host memory before the request is dropped."""
        num_blocks = len(self.blocks_of(request, whole=True))
        reserved = host.ledger.allocate(num_blocks, 0)
        assert reserved is not None, f"{request} was to go to {host.name}, which has no room"
        request.host, request.reserved = host, reserved
        host.requests[request.request_id] = request

    def write_out(self, request: Request) -> None:
        """All its sequences have stopped: their blocks go to the reserved room, in one transfer."""
        replica, host = request.replica, request.host
        assert replica is not None and host is not None
        held = [Held.of(sequence, replica.block_size) for sequence in request.live]
        blocks = list(dict.fromkeys([block for one in held for block in one.table]))
        goes_on = all(map(can_go_on, request.live)) and not request.has_forks_waiting
        if not blocks or request.is_cancelled or not goes_on:
            # Nobody wants it, or no step has written anything. Or its forks still wait for the prompt and their blocks
            # mean nothing, or one of them has not begun: it would have no token to go on with.
            self.give_up(request, replica)
            return
        reserved, request.reserved = request.reserved, []
        targets, excess = reserved[: len(blocks)], reserved[len(blocks) :]
        host.ledger.release(excess, 0)
        place_of = dict(zip(blocks, targets, strict=True))
        seen: set[int] = set()
        for sequence, had in zip(request.live, held, strict=True):
            sequence.host_table = [place_of[block] for block in had.table]
            request.host_paid += host.ledger.share([block for block in sequence.host_table if block in seen], 0)
            seen.update(sequence.host_table)
            sequence.saved = had.position
        replica.ledger.begin_moving(blocks)
        live = request.live
        self._detach_all(request, replica)
        for sequence, had in zip(live, held, strict=True):
            sequence.group = had.group_at(place_of)
        request.state = State.SWAPPING
        self._order(Moving(request, replica, host, Road.WRITE, blocks, targets))

    def give_up(self, request: Request, replica: Replica) -> None:
        self.forget(request)
        self._detach_all(request, replica)
        self._scheduler.off_replica(replica, request)

    def _detach_all(self, request: Request, replica: Replica) -> None:
        for sequence in request.sequences:
            if sequence.seq:
                self._scheduler.detach(replica, sequence)

    def order(
        self, replica: Replica, road: Road, peer: Replica | HostPool, mine: Sequence[int], theirs: Sequence[int]
    ) -> int:
        """Writes a transfer into the replica's plan of this turn; returns its number, never given before, in no epoch.
        Who orders it keeps it under that number until it is told as Transferred."""
        self._num_transfers += 1
        number, timeout_s = self._num_transfers, self._settings.transfer_timeout_s
        transfer = Transfer(number, road, peer.name, peer.incarnation, ids(mine), ids(theirs), timeout_s)
        replica.write().transfers.append(transfer)
        return number

    def _order(self, moving: Moving) -> int:
        number = self.order(moving.replica, moving.road, moving.host, moving.blocks, moving.host_blocks)
        self.transfers[number] = moving
        return number

    # -- back

    def read_back(self, request: Request) -> int:
        """Its new tables stand: what is not cached there is read from the host, by the transfer of this number. 0:
        nothing has to be read."""
        replica, host = request.replica, request.host
        assert replica is not None and host is not None
        pairs: dict[int, int] = {}
        for sequence in request.live:
            first = sequence.position // replica.block_size
            targets = sequence.table[first : len(sequence.host_table)]
            pairs.update(zip(targets, sequence.host_table[first:], strict=True))
        if not pairs:
            return 0
        return self._order(Moving(request, replica, host, Road.READ, list(pairs), list(pairs.values())))

    def forget(self, request: Request) -> None:
        """Releases what the request has in host memory, room or content; it would be computed again."""
        host = request.host
        for sequence in request.sequences:
            sequence.saved = 0
            sequence.group = None
        if host is None:
            return
        cost = host.ledger.release(request.reserved, 0)
        for sequence in request.sequences:
            cost += host.ledger.release(sequence.host_table, 0)
            sequence.host_table = []
        request.host_block_seconds += cost - request.host_paid
        request.host_paid = 0.0
        request.reserved = []
        request.host = None
        del host.requests[request.request_id]

    # -- how a transfer ended

    def on_transferred(self, replica: Replica, transferred: Transferred) -> None:
        inherited = self.inherited.pop((replica.name, transferred.transfer), None)
        if inherited is not None:
            replica.ledger.end_moving(inherited)
            if self._settings.clear_tenants:
                # Whose they were nobody knows any more.
                replica.write().clears.extend(block for block in inherited if replica.ledger.state(block) == "free")
            return
        moving = self.transfers.pop(transferred.transfer, None)
        if moving is None or moving.replica is not replica:
            self._scheduler.counters["stale transfers"] += 1
            return
        outcome = "done" if transferred.ok else "failed"
        self._scheduler.counters[f"transfer {moving.road.name.lower()} {outcome}"] += 1
        if transferred.ok:
            nodes = replica.joined.node, moving.host.joined.node
            self.rates.note(*nodes, transferred.size_bytes, transferred.seconds)
            way = "out" if moving.road is Road.WRITE else "in"
            self._scheduler.counters[f"swapped {way} bytes"] += transferred.size_bytes
            self._scheduler.counters[f"swapped {way} microseconds"] += int(transferred.seconds * 1e6)
        else:
            subject = moving.request.request_id
            self._scheduler.notes.add(self._scheduler.now, "transfer failed", subject, transferred.detail)
        if moving.road is Road.WRITE:
            self._written(transferred.transfer, moving, transferred.ok)
        else:
            self._read(moving, transferred.ok)

    def _written(self, number: int, moving: Moving, ok: bool) -> None:
        request = moving.request
        moving.replica.ledger.end_moving(moving.blocks)
        if not ok and self.pools.get(moving.host.name) is moving.host:
            # The worker writes no more, but the pool may not have heard so yet, and would refuse the next writer.
            self._quarantine(number, moving)
        elif not ok or moving.host.name not in self.pools or request.is_cancelled:
            self.forget(request)
        self._scheduler.off_replica(moving.replica, request)

    def take_over(self, replica: Replica, transfer: Transfer) -> None:
        """A transfer of a scheduler before this one: it is given up, and its blocks are free when it has ended."""
        self.inherited[replica.name, transfer.transfer] = list(dict.fromkeys(transfer.mine))
        replica.write().aborts.append(transfer.transfer)

    def _read(self, moving: Moving, ok: bool) -> None:
        if ok:
            self._scheduler.admission.restored(moving.request)
        else:
            self.give_up(moving.request, moving.replica)

    def on_settled(self, settled: HostPoolSettled) -> None:
        host = self.pools.get(settled.pool)
        if host is None or host.incarnation != settled.incarnation:
            return
        # It may be told twice, and of transfers that a scheduler before this one gave up.
        blocks = self.quarantined.pop((settled.pool, settled.transfer), None)
        if blocks is not None:
            host.ledger.end_quarantine(blocks)

    def abort(self, request: Request) -> None:
        """Nobody needs the request's transfer any more; it still ends with Transferred."""
        for number, moving in self.transfers.items():
            if moving.request is request:
                moving.replica.write().aborts.append(number)

    def lose_replica(self, replica: Replica) -> list[Request]:
        """Transfers with a lost replica: targets in host memory are quarantined, sources there stay good.

        Returns the requests that were coming back from host memory: their content there is still whole.
        """
        kept = []
        for key in [key for key in self.inherited if key[0] == replica.name]:
            del self.inherited[key]
        for number, moving in [item for item in self.transfers.items() if item[1].replica is replica]:
            del self.transfers[number]
            if moving.road is Road.WRITE:
                self._quarantine(number, moving)
                replica.ledger.end_moving(moving.blocks)
            elif not moving.request.is_cancelled:
                kept.append(moving.request)
        return kept

    def _quarantine(self, number: int, moving: Moving) -> None:
        """The request gives up what was being written for it, and nobody gets the room until its pool says so."""
        host, blocks = moving.host, moving.host_blocks
        host.ledger.begin_moving(blocks)
        self.forget(moving.request)
        self.end_in_quarantine(host, number, blocks)

    def end_in_quarantine(self, host: HostPool, number: int, blocks: list[int]) -> None:
        """These moving blocks, which nobody holds, are for nobody until their pool has settled the transfer."""
        host.ledger.end_moving(blocks, quarantine=True)
        if self.pools.get(host.name) is host:
            self.quarantined[host.name, number] = blocks
            self._scheduler.tell(GiveUp(host.name, host.incarnation, self._scheduler.epoch, (number,)))

    def check(self) -> None:
        for host in self.pools.values():
            tables = self._scheduler.host_cache.held(host)
            for request in host.requests.values():
                assert request.host is host
                tables.append(request.reserved)
                tables += [sequence.host_table for sequence in request.sequences]
            host.ledger.check(tables)
