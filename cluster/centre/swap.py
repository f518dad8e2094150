"""Preemption into host memory: which way out is cheapest, and the two transfers that take a request there and back.

A request goes out whole (blocks that its sequences share go once) and comes back whole. Host room is reserved before
anything is dropped. A table names the new place only after its transfer has committed; until then the source is kept,
and whatever goes wrong ends in recompute.

What a way costs is time that the replica loses: recomputing costs `tokens / prefill rate`, swapping `2 * bytes / road`
of which the copy engine takes most, so that only `swap_share` of it stalls the others, what a road takes to begin, and
the wait of the others until its blocks are free. A way whose rate is not known is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.centre.books import Books
from cluster.centre.host_memory import HostMemory
from cluster.centre.leaving import Leaving
from cluster.centre.move import HeldBlocks, blocks_of, can_go_on
from cluster.centre.nouns import HostPool, Replica, Request, State
from cluster.centre.starts import Starts
from cluster.centre.transfers import Transfers
from cluster.messages import Road, Transferred


@dataclass(frozen=True, slots=True)
class WayOut:
    """A way out for a request and what it was estimated to cost. `host` None: recompute. `lacks`: it would rather have
    gone to host memory, and why it could not."""

    host: HostPool | None
    seconds: float
    lacks: str = ""


@dataclass(slots=True, eq=False)
class Swap:
    """One transfer under way. `blocks` are the device's, `host_blocks` the host's, pair by pair."""

    replica: Replica
    request: Request
    host: HostPool
    road: Road
    blocks: list[int]
    host_blocks: list[int]

    @property
    def held_up(self) -> Request:
        return self.request


class Swaps:
    """The two ways of host memory. Whom to preempt is `cluster/centre/pressure.py`'s choice; this says how, and sees it
    through."""

    def __init__(
        self, books: Books, host_memory: HostMemory, transfers: Transfers, leaving: Leaving, starts: Starts
    ) -> None:
        self._books = books
        self._settings = books.settings
        self._host_memory = host_memory
        self._transfers = transfers
        self._leaving = leaving
        self._starts = starts

    # -- the choice

    def way_out(self, request: Request, replica: Replica) -> WayOut:
        """The cheapest way for this request to leave its replica now, by the policy of the settings."""
        policy = self._settings.preemption
        rate = replica.prefill_tokens_per_s
        # What a beam group has written it writes again, every beam of it.
        tokens = sum(sequence.position for sequence in request.live)
        tokens += max(0, tokens - len(request.prompt)) * max(0, request.width - 1)
        recompute = WayOut(None, tokens / rate if rate else 0.0)
        if policy == "recompute" or request.pin_until is not None or request.is_partial:
            return recompute
        if request.tenant.is_cleared:
            return recompute  # host memory is not cleared
        blocks = blocks_of(request, whole=True)
        host = self._host_for(replica, len(blocks))
        if host is None:
            return WayOut(None, recompute.seconds, self._what_lacks(replica, len(blocks)))
        size_bytes = len(blocks) * replica.joined.block_bytes
        node = host.joined.node
        seconds = self._transfers.leaving_s(replica, node, size_bytes)
        seconds += self._transfers.lost_s(replica, node, size_bytes)
        if policy == "swap" or (rate and seconds < recompute.seconds):
            return WayOut(host, seconds)
        return recompute

    def _host_for(self, replica: Replica, num_blocks: int) -> HostPool | None:
        """The pool of the same node if it has room, else the roomiest; only pools of the same layout count."""
        fits = [
            host
            for host in self._books.pools.values()
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
            for host in self._books.pools.values()
            if host.joined.fingerprint == replica.joined.fingerprint
        ]
        return f"out of host memory: {num_blocks:,} blocks are needed, {', '.join(left)}" if left else ""

    # -- out

    def reserve(self, request: Request, host: HostPool) -> None:
        """Takes the room in host memory before the request is dropped."""
        self._host_memory.reserve(request, host, len(blocks_of(request, whole=True)))

    def write_out(self, request: Request) -> None:
        """All its sequences have stopped: their blocks go to the reserved room, in one transfer."""
        replica, host = request.replica, request.host
        assert replica is not None and host is not None
        held = [HeldBlocks.of(sequence, replica.block_size) for sequence in request.live]
        blocks = list(dict.fromkeys([block for one in held for block in one.table]))
        goes_on = all(map(can_go_on, request.live)) and not request.has_forks_waiting
        if not blocks or request.is_cancelled or not goes_on or _holds_judged(request):
            # Nobody wants it, or no step has written anything. Or its forks still wait for the prompt and their blocks
            # mean nothing, or one of them has not begun: it would have no token to go on with. Or its worker alone
            # knows what it has judged of the prompt.
            self._leaving.give_up(replica, request)
            return
        reserved, request.reserved = request.reserved, []
        targets, excess = reserved[: len(blocks)], reserved[len(blocks) :]
        request.host_block_seconds += host.ledger.release(excess)
        place_of = dict(zip(blocks, targets, strict=True))
        seen: set[int] = set()
        for sequence, had in zip(request.live, held, strict=True):
            sequence.host_table = [place_of[block] for block in had.table]
            request.host_paid += host.ledger.share([block for block in sequence.host_table if block in seen])
            seen.update(sequence.host_table)
            sequence.saved = had.position
        replica.ledger.begin_moving(blocks)
        live = request.live
        self._leaving.detach_all(replica, request)
        for sequence, had in zip(live, held, strict=True):
            sequence.group = had.group_at(place_of)
        request.state = State.SWAPPING
        self._order(Swap(replica, request, host, Road.WRITE, blocks, targets))

    def _order(self, swap: Swap) -> int:
        return self._transfers.order(swap, swap.road, swap.host, swap.blocks, swap.host_blocks)

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
        return self._order(Swap(replica, request, host, Road.READ, list(pairs), list(pairs.values())))

    def forget(self, request: Request) -> None:
        """It starts where nobody could read it: it is computed again."""
        self._host_memory.forget(request)

    # -- how a transfer ended

    def ended(self, swap: Swap, told: Transferred) -> None:
        books, request, replica = self._books, swap.request, swap.replica
        outcome = "done" if told.ok else "failed"
        books.counters[f"transfer {swap.road.name.lower()} {outcome}"] += 1
        if told.ok:
            self._transfers.rates.note(replica.joined.node, swap.host.joined.node, told.size_bytes, told.seconds)
            way = "out" if swap.road is Road.WRITE else "in"
            books.counters[f"swapped {way} bytes"] += told.size_bytes
            books.counters[f"swapped {way} microseconds"] += int(told.seconds * 1e6)
        else:
            books.note("transfer failed", request.request_id, told.detail)
        if swap.road is Road.WRITE:
            self._written(told.transfer, swap, told.ok)
        elif told.ok:
            self._starts.restored(request)
        else:
            self._leaving.give_up(replica, request)

    def _written(self, number: int, swap: Swap, ok: bool) -> None:
        request, is_here = swap.request, self._books.is_here(swap.host)
        swap.replica.ledger.end_moving(swap.blocks)
        if not ok and is_here:
            self._quarantine(number, swap)
        elif not ok or not is_here or request.is_cancelled:
            self._host_memory.forget(request)
        self._leaving.off_replica(swap.replica, request)

    def _quarantine(self, number: int, swap: Swap) -> None:
        """The request gives up what was being written for it, and nobody gets the room until its pool says so."""
        host, blocks = swap.host, swap.host_blocks
        host.ledger.begin_moving(blocks)
        self._host_memory.forget(swap.request)
        self._host_memory.quarantine(host, number, blocks)

    # -- when one end is lost

    def lose_pool(self, host: HostPool) -> None:
        """What lay there is computed again; what is on the way is given up at once, because its worker would look for
        the pool for seconds more while the blocks wait."""
        for number, swap in self._transfers.all(Swap):
            if swap.host is host:
                swap.replica.write().aborts.append(number)

    def lose_replica(self, replica: Replica) -> list[Request]:
        """Transfers with a lost replica: targets in host memory are quarantined, sources there stay good.

        Returns the requests that were coming back from host memory: their content there is still whole.
        """
        kept = []
        for number, swap in self._transfers.lose(replica, Swap):
            if swap.road is Road.WRITE:
                self._quarantine(number, swap)
                replica.ledger.end_moving(swap.blocks)
            elif not swap.request.is_cancelled:
                kept.append(swap.request)
        return kept


def _holds_judged(request: Request) -> bool:
    """Logprobs of the prompt that were asked for are told with the first token, or with the beams at their end."""
    sampling, first = request.sampling, request.sequences[0]
    is_asked_for = sampling is not None and sampling.prompt_logprobs is not None
    return is_asked_for and (bool(request.width) or not (first.outputs or first.is_ended))
