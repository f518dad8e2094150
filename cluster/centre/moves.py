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

from functools import partial

from cluster.centre.arrivals import Arrivals
from cluster.centre.books import Books
from cluster.centre.endings import Endings
from cluster.centre.leaving import Leaving
from cluster.centre.movable import Movable
from cluster.centre.move import HeldBlocks, Move, MovePhase, blocks_of, can_go_on, num_full, num_needed, without_rest
from cluster.centre.nouns import Replica, Request, State
from cluster.centre.pauses import Pauses
from cluster.centre.starts import Starts
from cluster.centre.transfers import Transfers
from cluster.hashing import HASH_BYTES
from cluster.messages import Road, Transferred

# A round that leaves no more than so many full blocks per sequence is followed by the stop.
FEW_BLOCKS = 1
MAX_ROUNDS = 4
# How many requests on their way to one replica may stand still at a time: they would wait for each other.
MAX_STANDING = 2
# How long a read of so few blocks takes, until some have told: most of it are calls and not bytes.
SMALL_READ = 8
SMALL_READ_S = 0.005


class Moves:
    """Sees moves through. Others ask for one (`begin`), and tell what happens to the request meanwhile."""

    def __init__(
        self,
        books: Books,
        movable: Movable,
        transfers: Transfers,
        endings: Endings,
        leaving: Leaving,
        starts: Starts,
        arrivals: Arrivals,
        pauses: Pauses,
    ) -> None:
        self._books = books
        self._settings = books.settings
        self._movable = movable
        self._transfers = transfers
        self._endings = endings
        self._leaving = leaving
        self._starts = starts
        self._arrivals = arrivals
        self._pauses = pauses
        self._small_read_s = SMALL_READ_S
        # Those that run on with nothing being copied: they are looked at again in every turn.
        self._held_up: list[Move] = []

    # -- the first phase

    def begin(self, request: Request, target: Replica, in_a_hurry: bool = False) -> None:
        """Lends blocks at the target and copies what is full; `Movable` has said yes. In a hurry it
        is stopped at once, because its blocks are needed."""
        source = request.replica
        assert source is not None
        move = Move(request, source, target, sum(sequence.num_places for sequence in request.live))
        self._movable.add(move)
        target.write()
        self._books.counters["moves begun"] += 1
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
        full = num_full(sequence, move.source.block_size)
        names = sequence.names[: full * HASH_BYTES]
        hit = self._books.index.match(names).blocks(move.target.ledger.pool)
        if hit:
            move.target.ledger.share(hit)
            sources = list(sequence.table[: len(hit)])
            move.source.ledger.begin_moving(sources)
            move.place_of.update(zip(sources, hit, strict=True))
            move.num_hit = len(hit)

    def _lend(self, move: Move) -> bool:
        """Room at the target for all that its tables can need; False: there is not so much."""
        covered = sum(block in move.place_of for block in blocks_of(move.request, whole=True))
        lacking = num_needed(move.request, move.source, self._settings.ahead) - covered - len(move.spare)
        if lacking > 0:
            blocks = move.target.ledger.allocate(lacking)
            if blocks is None:
                return False
            move.spare += blocks
            # It has less room than admission knows of.
            move.target.write()
        return True

    def _next_round(self, move: Move) -> None:
        """Copies what has become full, or stops the request if that is little."""
        blocks = move.full_blocks()
        is_last = move.num_rounds >= MAX_ROUNDS or len(blocks) <= FEW_BLOCKS * len(move.request.live)
        if not is_last and self._lend(move):
            move.num_rounds += 1
            self._read(move, blocks)
        elif self._num_standing(move.target) < MAX_STANDING:
            self.stop(move)
        if move.is_waiting and not move.is_given_up:
            self._held_up.append(move)

    def _num_standing(self, target: Replica) -> int:
        under_way = [*self._movable.incoming(target), *(move for _, move in self._transfers.of(target, Move))]
        return sum(move.phase is not MovePhase.COPYING for move in under_way)

    def turn(self) -> None:
        """Called in every turn: those of which all but a little is copied run on until fewer others stand still."""
        held_up, self._held_up = self._held_up, []
        for move in held_up:
            if move.is_waiting and not move.is_given_up:
                self._next_round(move)

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
        move.transfer = self._transfers.order(move, Road.READ, move.source, mine, theirs)

    # -- the second phase

    def is_stopping(self, request: Request) -> bool:
        """Whether it was dropped at its source to go on elsewhere."""
        move = self._movable.by_request.get(request)
        return move is not None and move.phase is MovePhase.STOPPING

    def stop(self, move: Move) -> None:
        """Takes it off the source at the next step boundary, if the target has room for all that it can be by then."""
        request = move.request
        if request.state is not State.RUNNING:
            return
        if not request.live or not self._lend(move):
            self.cancel(request)
            return
        move.phase = MovePhase.STOPPING
        self._endings.drop(request)

    def finish(self, request: Request) -> None:
        """The source has stopped all of its sequences: their tables are built anew at the target."""
        move = self._movable.by_request[request]
        source, target = move.source, move.target
        move.stopped_at = self._books.now
        if not request.live or request.is_cancelled or not all(map(can_go_on, request.live)):
            self._give_up(move)
            return
        if move.transfer:
            return  # it was stopped in a hurry: what is on its way comes first
        held = [HeldBlocks.of(sequence, source.block_size) for sequence in request.live]
        content = dict.fromkeys([block for one in held for block in one.table])
        rest = [block for block in content if block not in move.place_of]
        kept = self._written_again(move, held) if rest else held
        source.ledger.begin_moving(rest)
        self._leaving.detach_all(source, request)
        del source.requests[request.request_id]
        self._movable.remove(move)
        places = [move.spare.pop() for _ in rest]
        move.place_of.update(zip(rest, places, strict=True))
        move.phase = MovePhase.FINISHING
        request.attempt += 1
        request.replica = target
        request.state = State.RESTORING
        request.forked_from = None
        self._arrivals.settle_in(move, held if kept is None else kept)
        if kept is None:
            self._order(move, rest, places)
        for sequence in request.live:
            self._starts.order(sequence, (), move.transfer)
        if kept is not None:
            self._pauses.begin(target, move.stopped_at, source.step_seconds)
            self._books.counters["moves without a last read"] += 1
            self._moved(move)

    def _written_again(self, move: Move, held: list[HeldBlocks]) -> list[HeldBlocks] | None:
        """Its sequences as they go on without a last read, the rest of their tokens written again; None if the read is
        quicker, or needed."""
        kept = without_rest(held, move.place_of, move.source.block_size)
        if kept is None:
            return None
        num_tokens = sum(one.position for one in held) - sum(one.position for one in kept)
        return kept if num_tokens <= self._small_read_s * move.target.prefill_tokens_per_s else None

    # -- how a read ended

    def ended(self, move: Move, told: Transferred) -> None:
        target = move.target
        self._books.counters[f"transfer move {'done' if told.ok else 'failed'}"] += 1
        if told.ok:
            nodes = target.joined.node, move.source.joined.node
            self._transfers.rates.note(*nodes, told.size_bytes, told.seconds)
            if len(move.landing) <= SMALL_READ:
                self._small_read_s += 0.2 * (told.seconds - self._small_read_s)
        target.ledger.end_moving(move.landing)
        move.landing, move.transfer = [], 0
        if move.is_given_up:
            self._let_go(move)
        elif move.phase is MovePhase.FINISHING:
            if told.ok:
                self._pauses.end(move.stopped_at, move.source.step_seconds, self._books.now)
                self._moved(move)
            else:
                self._let_go(move)
                move.request.may_fetch = False  # by the same road
                self._leaving.give_up(target, move.request)
        elif not told.ok:
            self.cancel(move.request)
        elif move.phase is MovePhase.COPYING:
            self._next_round(move)
        elif move.has_stopped:
            self.finish(move.request)

    def _moved(self, move: Move) -> None:
        """The target needs nothing more: its tables count from now on, and the source is free of it."""
        self._let_go(move)
        self._books.counters["moved"] += 1
        move.request.moved_at = self._books.now
        self._starts.restored(move.request)

    def _let_go(self, move: Move) -> None:
        """The source's blocks may be used again."""
        source = move.source
        source.ledger.end_moving(list(move.place_of))
        move.place_of = {}
        if self._books.is_here(source):
            # Whoever waits for blocks there looks again in this turn.
            source.write()

    # -- when it cannot go on

    def cancel(self, request: Request) -> None:
        """It stays where it is, or is gone: the target gets its blocks back as soon as nothing is written to them."""
        move = self._movable.by_request.get(request)
        if move is None:
            return
        target = move.target
        self._movable.remove(move)
        target.ledger.release(move.kept())
        move.is_given_up = True
        target.write()
        self._books.counters["moves given up"] += 1
        if move.transfer:
            target.write().aborts.append(move.transfer)
        else:
            self._let_go(move)
        if move.phase is MovePhase.STOPPING and move.has_stopped:
            self._leaving.give_up(move.source, request)

    def _give_up(self, move: Move) -> None:
        """Its source has stopped it, and it can't go on elsewhere."""
        request, source = move.request, move.source
        self._leaving.let_go(source, request)
        self.cancel(request)
        self._leaving.off_replica(source, request)

    def lose_replica(self, replica: Replica) -> None:
        """Before its residents are taken away: moves from it and to it end here, but for last reads from it, which
        succeed or fail by themselves."""
        self._pauses.lose_replica(replica)
        for move in list(self._movable.by_request.values()):
            if replica in (move.source, move.target):
                self.cancel(move.request)
        for _, move in self._transfers.lose(replica, Move):
            replica.ledger.end_moving(move.landing)
            if move.phase is MovePhase.FINISHING:
                self._endings.when_deaf(move.request, partial(self._let_go, move))
            else:
                self._let_go(move)
        for _, move in self._transfers.all(Move):
            if move.source is replica:
                self._let_go(move)

    def give_up_one(self, target: Replica) -> bool:
        """Its residents need the blocks that it lends to a request that still runs elsewhere."""
        for move in self._movable.incoming(target):
            if move.phase is MovePhase.COPYING:
                self.cancel(move.request)
                return True
        return False

    # -- proof

    def check(self) -> None:
        for move in self._movable.by_request.values():
            assert move.request.replica is move.source and not move.is_given_up, f"{move.request} does not leave"
            assert move in self._movable.incoming(move.target)
            assert move.phase is not MovePhase.FINISHING
            # Each goes on by itself: a read ends, a source answers, or others that stand still let it go on.
            is_held_up = not move.is_waiting or self._num_standing(move.target) >= MAX_STANDING
            assert is_held_up, f"the move of {move.request} stands still"
        for number, move in self._transfers.all(Move):
            assert move.transfer == number and move.landing, f"read {number:#x} of {move.request} has no blocks"
