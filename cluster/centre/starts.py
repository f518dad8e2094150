"""Starts: the tables of a request on its replica, and the orders with which its worker begins it.

Admission has found the room; here it is taken. The full blocks of a cached prefix are shared, the rest is new; where
the prefix ends inside a block, its slots are copied. Forks ride along with the first sequence. What comes back from
host memory, from another replica or with a fetched prefix has its Start wait for that transfer, and is `restored` then.
"""

from __future__ import annotations

from cluster.centre.beginnings import MIN_SLOTS
from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.endings import Endings
from cluster.centre.host_memory import HostMemory
from cluster.centre.leases import Leases
from cluster.centre.move import renumbered
from cluster.centre.needs import num_group_blocks, num_purse
from cluster.centre.nouns import Replica, Request, Sequence, State
from cluster.centre.placement import Place
from cluster.centre.residents import enter, hold_for_copy
from cluster.hashing import HASH_BYTES
from cluster.messages import Beams, Copy, Drop, Fork, Start, Started, ids
from cluster.sampling import SamplingParams

# Of any model: what a pin computes is thrown away but for its blocks.
PIN_SAMPLING = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, seed=0).resolve(
    {}, vocab_size=2**31 - 1, max_model_len=2**31 - 1
)


def uses_cache(request: Request) -> bool:
    """Logprobs of a prompt are known only to who computes it."""
    sampling = request.sampling
    return request.is_cacheable and (sampling is None or sampling.prompt_logprobs is None)


class Starts:
    """Builds tables and orders Starts. It never takes a request off a replica."""

    def __init__(self, books: Books, boards: Boards, host_memory: HostMemory, endings: Endings, leases: Leases) -> None:
        self._books = books
        self._boards = boards
        self._host_memory = host_memory
        self._endings = endings
        self._leases = leases

    # -- tables

    def fill_table(self, sequence: Sequence, place: Place) -> None:
        """The table of a sequence that starts: the full blocks of a cached prefix shared, the rest new. Where the
        prefix ends inside a block, its slots are copied."""
        replica, size = place.replica, place.replica.block_size
        ledger, seq = replica.ledger, self._books.next_seq()
        sequence.seq = seq
        last = (sequence.length - 1) // size
        shared = place.hit[:last]
        sequence.paid = ledger.share(shared, seq)
        source, num_slots = self._to_copy(sequence, place, len(shared))
        if num_slots:
            ledger.share([source], seq)
            hold_for_copy(replica, source)
        num_reserved = self._boards.of(sequence.request.model).num_reserved(sequence.request)
        sequence.lease_end = sequence.limit if num_reserved else self._leases.first(replica, sequence)
        group = sequence.group
        length = -(-sequence.lease_end // size) if group is None else len(sequence.host_table)
        blocks: list[int] | None
        if num_reserved:
            blocks = ledger.allocate_run(num_reserved, seq)
        else:
            blocks = ledger.allocate(length - len(shared), seq, shared[-1] if shared else -1)
        assert blocks is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.table = ids(shared + blocks)
        if sequence.request.width:
            self._fill_purse(sequence, replica)
        sequence.position = len(shared) * size
        if num_slots:
            replica.write().copies.append(Copy(source, blocks[0], num_slots))
            sequence.position += num_slots
        enter(replica, sequence)

    def _to_copy(self, sequence: Sequence, place: Place, num_shared: int) -> tuple[int, int]:
        """A block behind the shared ones that begins as this sequence goes on, and how many of its slots do. A hit
        covers all but the last token at most, which is computed again: logits are needed from it."""
        replica, request, size = place.replica, sequence.request, place.replica.block_size
        first = num_shared * size
        num_known = min(size, sequence.length - 1 - first)
        if len(place.hit) > num_shared:
            return place.hit[num_shared], num_known
        if num_known < MIN_SLOTS or request.host is not None or not uses_cache(request):
            return -1, 0
        tokens = request.prompt[first : first + num_known]
        found = replica.beginnings.find(place.hit[:num_shared], sequence.names, request.salt, tokens)
        if found is None:
            return -1, 0
        # The source is held until it is copied: that must not take the room that was just found.
        if replica.ledger.num_available <= self._boards.of(request.model).need(request).num_blocks:
            return -1, 0
        return found

    def _fill_purse(self, sequence: Sequence, replica: Replica) -> None:
        """A beam group starts with what its beams need to write up to the end of their first lease."""
        request, size, end = sequence.request, replica.block_size, sequence.lease_end
        if sequence.group is None:
            num_spare = num_group_blocks(request, size, end) - len(sequence.table)
        else:
            num_spare = num_purse(request, size, sequence.group[0], end)
        purse = replica.ledger.allocate(num_spare, sequence.seq)
        assert purse is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.purse = len(purse)
        sequence.table.extend(purse)

    def fork(self, parent: Sequence, sequence: Sequence, replica: Replica) -> Fork:
        """A further sequence of the request: the parent's full prompt blocks, and blocks of its own behind them."""
        ledger, seq = replica.ledger, self._books.next_seq()
        sequence.seq = seq
        num_prompt = len(sequence.request.prompt)
        shared = list(parent.table[: num_prompt // replica.block_size])
        sequence.paid = ledger.share(shared, seq)
        sequence.lease_end = self._leases.first(replica, sequence)
        count = -(-sequence.lease_end // replica.block_size) - len(shared)
        blocks = ledger.allocate(count, seq, -1)
        assert blocks is not None, f"{sequence} was admitted to {replica.name} without room"
        sequence.table = ids(shared + blocks)
        sequence.position = num_prompt
        enter(replica, sequence)
        return Fork(seq, sequence.index, ids(sequence.table), sequence.lease_end, ids(sequence.outputs))

    # -- orders

    def order(self, sequence: Sequence, forks: tuple[Fork, ...], after: int = 0) -> None:
        """Its worker begins it, as soon as the transfer `after` has ended if there is one."""
        request = sequence.request
        replica = request.replica
        assert replica is not None
        num_told = len(sequence.table) - sequence.purse
        if self._books.settings.reserve != "none":
            # What is reserved behind the end is nobody's to write.
            num_told = -(-sequence.lease_end // replica.block_size)
        replica.write().starts.append(
            Start(
                seq=sequence.seq,
                request_id=request.request_id,
                index=sequence.index,
                attempt=request.attempt,
                gateway=request.gateway,
                route=request.route,
                tokens=request.prompt + sequence.outputs,
                num_prompt=len(request.prompt),
                position=max(sequence.position, sequence.saved),
                table=sequence.table[:num_told],
                lease_end=sequence.lease_end,
                precedence=request.precedence,
                sampling=request.sampling if request.sampling is not None else PIN_SAMPLING,
                salt=request.salt,
                chain=request.names[-HASH_BYTES:],
                forks=forks,
                beams=_beams(sequence),
                trace=request.trace,
                after=after,
                grace_s=request.grace_s,
            )
        )
        position, name = sequence.position, replica.name
        self._books.tell(Started(request.gateway, request.route, request.request_id, position, name))

    def restored(self, request: Request) -> None:
        """Its blocks are all where its tables say, and its worker begins it: positions are as they were."""
        replica = request.replica
        assert replica is not None and request.state is State.RESTORING
        for sequence in request.live:
            if sequence.position < sequence.saved:
                self._leases.fill(replica, sequence, sequence.saved, b"")
                sequence.position = sequence.saved
        self._host_memory.forget(request)
        request.state = State.RUNNING
        if request.is_cancelled:
            self._endings.drop(request)
            return
        for sequence in request.sequences:
            if sequence.seq and sequence.is_ended:
                # Its gateway cut it meanwhile.
                replica.write().drops.append(Drop(sequence.seq))


def _beams(sequence: Sequence) -> Beams | None:
    if not sequence.request.width:
        return None
    _, tables, search = sequence.group or (0, (), b"")
    if sequence.request.host is not None:
        tables = renumbered(tables, dict(zip(sequence.host_table, sequence.table, strict=False)))
    purse = ids(sequence.table[len(sequence.table) - sequence.purse :])
    return Beams(sequence.request.width, purse, tables, search)
