"""Moves running requests from one replica to another of the same model, with most of their blocks copied beforehand.

The target reads, the source is read: a writer can only ever touch its own pool, so a late one harms nobody. In the
first phase the request runs on while its full blocks, which nobody writes any more, are copied in rounds; what a round
missed is small. Then it is dropped at the source (a step boundary). Where the rest is a few tokens, the target writes
them again itself in its next step; else the rest is ordered in one last read, and its Starts ride on that same plan:
the target begins them by itself once the read has committed.

Who owns what: until the source has stopped, the request is the source's and the target only lends blocks (`Move.kept`,
counted by its ledger). From then on its tables are the target's, and the source keeps every block that was named as
moving until the last read has ended. So a block of the source is never reused while a move knows it, and whatever goes
wrong leaves a request that is computed again. All sequences of a request go together, shared blocks once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from cluster.centre.move import Held, Move, Phase, can_go_on, num_needed, without_rest
from cluster.centre.pauses import Pauses
from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, Sequence, State
from cluster.hashing import HASH_BYTES
from cluster.messages import Road, Transferred, ids

if TYPE_CHECKING:
    from cluster.centre.scheduler import Scheduler

# A round that leaves no more than so many full blocks per sequence is followed by the stop.
FEW_BLOCKS = 1
MAX_ROUNDS = 4
# Requests on their way to one replica at a time, and how many of those may stand still: they would wait for each other.
MAX_INCOMING = 4
MAX_STANDING = 2
# How long a read of so few blocks takes, until some have told: most of it are calls and not bytes.
SMALL_READ = 8
SMALL_READ_S = 0.005


class Moves:
    """All moves under way. The scheduler asks for one (`begin`) and tells what happens to the request meanwhile."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._settings = scheduler.settings
        # By the number of the read that each waits for, and by request until its source has let go of it.
        self.reads: dict[int, Move] = {}
        self.by_request: dict[str, Move] = {}
        self.pauses = Pauses(scheduler.counters)
        self._small_read_s = SMALL_READ_S

    # -- the first phase

    def can_move(self, request: Request) -> bool:
        """Whether it is of a kind that moves, and far enough to be moved."""
        sampling, live = request.sampling, request.live
        if request.state is not State.RUNNING or request.request_id in self.by_request or not live:
            return False
        if request.pin_until is not None or sampling is None or request.is_partial:
            return False
        if sampling.logprobs is not None or sampling.prompt_logprobs is not None:
            return False  # what two workers tell at once could reach the gateway without its logprobs
        if request.tenant.is_cleared or request.has_forks_waiting:
            return False
        # A fork that has not begun has no token to go on with.
        return bool(request.width) or all(one.position < one.length for one in live)

    def room_for(self, request: Request, target: Replica) -> bool:
        """Whether the target could take it now and keep its reserve."""
        return any(self.with_room(request, [target]))

    def with_room(self, request: Request, targets: Iterable[Replica], margin: float = 0.0) -> Iterator[Replica]:
        """Which of these could take it now and keep their reserve, and this share of their pool beside it."""
        source = request.replica
        assert source is not None
        places = sum(sequence.num_places for sequence in request.live)
        needed = num_needed(request, source, self._settings.ahead)
        longest = request.live[0].limit + 1
        share = self._settings.admit_reserve + margin

        def has_room(target: Replica) -> bool:
            ledger, joined = target.ledger, target.joined
            reserve = int(ledger.num_blocks * share) if target.requests else 0
            fits = ledger.num_available - reserve >= needed and joined.max_model_len >= longest
            return fits and target.num_places + places <= joined.max_batch and self._is_open(source, target)

        return filter(has_room, targets)

    def _is_open(self, source: Replica, target: Replica) -> bool:
        """Whether anything could move from one to the other now."""
        if target is source or target.is_draining or target.wanting or len(target.incoming) >= MAX_INCOMING:
            return False
        if not target.joined.bytes_per_s or not source.joined.bytes_per_s:
            return False  # its pool serves no peers
        return target.joined.fingerprint == source.joined.fingerprint and target.block_size == source.block_size

    def begin(self, request: Request, target: Replica, in_a_hurry: bool = False) -> None:
        """Lends blocks at the target and copies what is full; `can_move` and `room_for` have said yes. In a hurry it
        is stopped at once, because its blocks are needed."""
        source = request.replica
        assert source is not None
        places = sum(sequence.num_places for sequence in request.live)
        move = Move(request, source, target, places)
        self.by_request[request.request_id] = target.incoming[request.request_id] = move
        target.num_places += places
        target.write()
        self._scheduler.counters["moves begun"] += 1
        self._take_cached(move)
        if not self._lend(move):
            self.cancel(request)
        elif in_a_hurry:
            self.stop(move)
        else:
            self._next_round(move)

    def _take_cached(self, move: Move) -> None:
        """What the target has cached of the first sequence's blocks need not be copied."""
        sequence = move.request.live[0]
        full = self._num_full(sequence, move.source.block_size)
        names = sequence.names[: full * HASH_BYTES]
        hit = self._scheduler.index.match(names).blocks(move.target.ledger.pool)
        if hit:
            move.target.ledger.share(hit, 0)
            sources = list(sequence.table[: len(hit)])
            move.source.ledger.begin_moving(sources)
            move.place_of.update(zip(sources, hit, strict=True))
            move.num_hit = len(hit)

    def _lend(self, move: Move) -> bool:
        """Room at the target for all that its tables can need; False: there is not so much."""
        covered = sum(block in move.place_of for block in self._scheduler.swapper.blocks_of(move.request, whole=True))
        lacking = num_needed(move.request, move.source, self._settings.ahead) - covered - len(move.spare)
        if lacking > 0:
            blocks = move.target.ledger.allocate(lacking, 0)
            if blocks is None:
                return False
            move.spare += blocks
            # It has less room than admission knows of.
            move.target.write()
        return True

    def _full_blocks(self, move: Move) -> list[int]:
        """Full blocks of its sequences that were not sent yet, in order."""
        size = move.source.block_size
        blocks: dict[int, None] = {}
        for sequence in move.request.live:
            blocks.update(dict.fromkeys(sequence.table[: self._num_full(sequence, size)]))
        return [block for block in blocks if block not in move.place_of]

    def _num_full(self, sequence: Sequence, size: int) -> int:
        """How many blocks at the front of its table are full for good. Behind the prompt, beams' tables change."""
        end = sequence.position
        return (min(end, len(sequence.request.prompt)) if sequence.request.width else end) // size

    def _next_round(self, move: Move) -> None:
        """Copies what has become full, or stops the request if that is little."""
        blocks = self._full_blocks(move)
        is_last = move.num_rounds >= MAX_ROUNDS or len(blocks) <= FEW_BLOCKS * len(move.request.live)
        if not is_last and self._lend(move):
            move.num_rounds += 1
            self._read(move, blocks)
        elif self._num_standing(move.target) >= MAX_STANDING:
            move.waits = True
        else:
            self.stop(move)

    def _num_standing(self, target: Replica) -> int:
        under_way = [*self.by_request.values(), *self.reads.values()]
        return sum(move.target is target and move.phase is not Phase.COPYING for move in under_way)

    def _stop_next(self, target: Replica) -> None:
        """One stands still no more: the next one may."""
        for move in target.incoming.values():
            if move.waits:
                move.waits = False
                self._next_round(move)
                return

    def _read(self, move: Move, blocks: list[int]) -> None:
        """Orders a read of these blocks of the source. Both sides keep theirs until it has ended."""
        targets = move.spare[: len(blocks)]
        del move.spare[: len(blocks)]
        assert len(targets) == len(blocks), f"{move.request} lacks room for {len(blocks)} blocks at {move.target.name}"
        move.source.ledger.begin_moving(blocks)
        move.place_of.update(zip(blocks, targets, strict=True))
        self._order(move, blocks, targets)

    def _order(self, move: Move, theirs: list[int], mine: list[int]) -> None:
        move.target.ledger.begin_moving(mine)
        move.landing = mine
        move.transfer = self._scheduler.swapper.order(move.target, Road.READ, move.source, mine, theirs)
        self.reads[move.transfer] = move

    # -- the second phase

    def is_stopping(self, request: Request) -> bool:
        """Whether it was dropped at its source to go on elsewhere."""
        move = self.by_request.get(request.request_id)
        return move is not None and move.phase is Phase.STOPPING

    def stop(self, move: Move) -> None:
        """Takes it off the source at the next step boundary, if the target has room for all that it can be by then."""
        request = move.request
        if request.state is not State.RUNNING:
            return
        if not request.live or not self._lend(move):
            self.cancel(request)
            return
        move.phase = Phase.STOPPING
        self._scheduler.drop(request)

    def finish(self, request: Request) -> None:
        """The source has stopped all of its sequences: their tables are built anew at the target."""
        move = self.by_request[request.request_id]
        source, target = move.source, move.target
        move.stopped_at = self._scheduler.now
        if not request.live or request.is_cancelled or not all(map(can_go_on, request.live)):
            self._scheduler.swapper.give_up(request, source)
            return
        if move.transfer:
            return  # it was stopped in a hurry: what is on its way comes first
        held = [Held.of(sequence, source.block_size) for sequence in request.live]
        content = dict.fromkeys([block for one in held for block in one.table])
        rest = [block for block in content if block not in move.place_of]
        kept = self._written_again(move, held) if rest else held
        source.ledger.begin_moving(rest)
        for sequence in request.sequences:
            if sequence.seq:
                self._scheduler.detach(source, sequence)
        del source.requests[request.request_id], self.by_request[request.request_id]
        del target.incoming[request.request_id]
        source.num_stopping -= 1
        target.num_places -= move.num_places
        places = [move.spare.pop() for _ in rest]
        move.place_of.update(zip(rest, places, strict=True))
        move.phase = Phase.FINISHING
        request.attempt += 1
        request.replica = request.last_replica = target
        request.state = State.RESTORING
        request.forked_from = None
        self._settle_in(move, held if kept is None else kept)
        if kept is None:
            self._order(move, rest, places)
        for sequence in request.live:
            self._scheduler.admission.order_start(sequence, (), move.transfer)
        if kept is not None:
            self.pauses.begin(target, move.stopped_at, source.step_seconds)
            self._scheduler.counters["moves without a last read"] += 1
            self._moved(move)
            self._stop_next(target)

    def _written_again(self, move: Move, held: list[Held]) -> list[Held] | None:
        """Its sequences as they go on without a last read, the rest of their tokens written again; None if the read is
        quicker, or needed."""
        kept = without_rest(held, move.place_of, move.source.block_size)
        if kept is None:
            return None
        num_tokens = sum(one.position for one in held) - sum(one.position for one in kept)
        return kept if num_tokens <= self._small_read_s * move.target.prefill_tokens_per_s else None

    def _settle_in(self, move: Move, held: list[Held]) -> None:
        """Tables at the target: the copies take the places of what they are copies of, and the next lease behind."""
        target, ledger = move.target, move.target.ledger
        taken: set[int] = set()
        cached = set(list(move.place_of.values())[: move.num_hit])
        for sequence, had in zip(move.request.live, held, strict=True):
            sequence.seq = self._scheduler.next_seq()
            places = [move.place_of[block] for block in had.table]
            # A block that several sequences share came once; the first of them takes over the move's own hold.
            sequence.paid = ledger.share([block for block in places if block in taken], sequence.seq)
            taken.update(places)
            sequence.table = ids(places)
            sequence.group = had.group_at(move.place_of)
            num_new = self._lease(sequence, had, target)
            sequence.table.extend([move.spare.pop() for _ in range(num_new)])
            sequence.saved = had.position
            num_cached = next((i for i, block in enumerate(places) if block not in cached), len(places))
            sequence.position = num_cached * target.block_size
            target.enter(sequence)
        # Copies of blocks whose sequence has ended meanwhile, and room that was not needed.
        unused = [block for block in move.place_of.values() if block not in taken]
        ledger.release([*unused, *move.spare], 0)
        move.spare = []

    def _lease(self, sequence: Sequence, had: Held, target: Replica) -> int:
        """Its first lease at the target; returns how many blocks that takes beyond what it brings."""
        size, request = target.block_size, sequence.request
        sequence.lease_end = target.first_lease(sequence)
        if had.group is not None:
            sequence.purse = request.num_purse(size, had.position, len(had.group[1]), sequence.lease_end)
            return sequence.purse
        num_new = -(-sequence.lease_end // size) - len(had.table)
        if request.width:
            sequence.purse = request.num_group_blocks(size, sequence.lease_end) - len(had.table) - num_new
        return num_new + (sequence.purse if request.width else 0)

    # -- how a read ended

    def on_transferred(self, replica: Replica, transferred: Transferred) -> bool:
        """False: the transfer is none of a move."""
        move = self.reads.get(transferred.transfer)
        if move is None or move.target is not replica:
            return False
        del self.reads[transferred.transfer]
        outcome = "done" if transferred.ok else "failed"
        self._scheduler.counters[f"transfer move {outcome}"] += 1
        if transferred.ok:
            nodes = replica.joined.node, move.source.joined.node
            self._scheduler.swapper.rates.note(*nodes, transferred.size_bytes, transferred.seconds)
            if len(move.landing) <= SMALL_READ:
                self._small_read_s += 0.2 * (transferred.seconds - self._small_read_s)
        replica.ledger.end_moving(move.landing)
        move.landing, move.transfer = [], 0
        if move.is_given_up:
            self._let_go(move)
        elif move.phase is Phase.FINISHING:
            if transferred.ok:
                self.pauses.end(move.stopped_at, move.source.step_seconds, self._scheduler.now)
                self._moved(move)
            else:
                self._let_go(move)
                move.request.may_fetch = False  # by the same road
                self._scheduler.swapper.give_up(move.request, replica)
            self._stop_next(replica)
        elif not transferred.ok:
            self.cancel(move.request)
        elif move.phase is Phase.COPYING:
            self._next_round(move)
        elif self._has_stopped(move):
            self.finish(move.request)
        return True

    def _has_stopped(self, move: Move) -> bool:
        """Whether the source has answered for all of its sequences."""
        on_source = [sequence for sequence in move.request.sequences if sequence.seq]
        return bool(on_source) and all(sequence.has_stopped for sequence in on_source)

    def _moved(self, move: Move) -> None:
        """The target needs nothing more: its tables count from now on, and the source is free of it."""
        self._let_go(move)
        self._scheduler.counters["moved"] += 1
        move.request.moved_at = self._scheduler.now
        self._scheduler.admission.restored(move.request)

    def _let_go(self, move: Move) -> None:
        """The source's blocks may be used again."""
        source = move.source
        source.ledger.end_moving(list(move.place_of))
        move.place_of = {}
        if self._scheduler.replicas.get(source.name) is source:
            # Whoever waits for blocks there looks again in this turn.
            source.write()

    # -- when it cannot go on

    def cancel(self, request: Request) -> None:
        """It stays where it is, or is gone: the target gets its blocks back as soon as nothing is written to them."""
        move = self.by_request.pop(request.request_id, None)
        if move is None:
            return
        target = move.target
        del target.incoming[request.request_id]
        target.num_places -= move.num_places
        target.ledger.release(move.kept(), 0)
        move.is_given_up = True
        target.write()
        self._scheduler.counters["moves given up"] += 1
        if move.transfer:
            target.write().aborts.append(move.transfer)
        else:
            self._let_go(move)
        if move.phase is Phase.STOPPING:
            if self._has_stopped(move):
                self._scheduler.swapper.give_up(request, move.source)
            self._stop_next(target)

    def abort(self, request: Request) -> None:
        """Nobody wants what is on its way any more; the read still ends with Transferred."""
        for number, move in self.reads.items():
            if move.request is request and move.phase is Phase.FINISHING:
                move.target.write().aborts.append(number)

    def lose_replica(self, replica: Replica) -> None:
        """Before its residents are taken away: moves from it and to it end here, but for last reads from it, which
        succeed or fail by themselves."""
        self.pauses.lose_replica(replica)
        for move in replica.incoming.values():
            move.waits = False
        for move in list(self.by_request.values()):
            if replica in (move.source, move.target):
                self.cancel(move.request)
        for number, move in list(self.reads.items()):
            if move.target is replica:
                del self.reads[number]
                replica.ledger.end_moving(move.landing)
                if move.phase is Phase.FINISHING:
                    self._scheduler.recovery.when_deaf(move.request, partial(self._let_go, move))
                else:
                    self._let_go(move)
            elif move.source is replica:
                self._let_go(move)

    def give_up_one(self, target: Replica) -> bool:
        """Its residents need the blocks that it lends to a request that still runs elsewhere."""
        for move in target.incoming.values():
            if move.phase is Phase.COPYING:
                self.cancel(move.request)
                return True
        return False

    # -- proof

    def check(self) -> None:
        for request_id, move in self.by_request.items():
            assert move.request.replica is move.source and not move.is_given_up, f"{move.request} does not leave"
            assert move.target.incoming[request_id] is move
            assert move.phase is not Phase.FINISHING
        for number, move in self.reads.items():
            assert move.transfer == number and move.landing, f"read {number:#x} of {move.request} has no blocks"
