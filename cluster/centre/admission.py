"""Who starts next and where: heads of the queues, prefix hits, parking behind a prefix, and the choice of a replica.

Admission is exact. What fits starts in order of the queue; what does not fit now waits, and nothing overtakes it. Two
requests that share a prompt compute or fetch it once: the later one parks until the earlier has filled the blocks that
both need. It starts requests on replicas; it never takes one off.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.endings import Endings
from cluster.centre.fairness import WaitingQueue
from cluster.centre.fetch import Fetches
from cluster.centre.nouns import Replica, Request, Sequence, State
from cluster.centre.pins import Pins
from cluster.centre.placement import Board, Place
from cluster.centre.prefix import Hits
from cluster.centre.sealing import Sealing
from cluster.centre.starts import Starts, uses_cache
from cluster.centre.swap import Swaps
from cluster.centre.waiting import Waiting
from cluster.hashing import HASH_BYTES
from cluster.messages import Reason


class Admission:
    """The way from the queues onto replicas."""

    def __init__(
        self,
        books: Books,
        boards: Boards,
        waiting: Waiting,
        endings: Endings,
        pins: Pins,
        starts: Starts,
        swaps: Swaps,
        fetches: Fetches,
        sealing: Sealing,
    ) -> None:
        self._books = books
        self._settings = books.settings
        self._boards = boards
        self._waiting = waiting
        self._endings = endings
        self._pins = pins
        self._starts = starts
        self._swaps = swaps
        self._fetches = fetches
        self._sealing = sealing

    def admit(self, touched: Iterable[Replica]) -> None:
        """Starts what fits, in order of each model's queue. Figures of `touched` replicas have changed."""
        for replica in touched:
            self._boards.refresh(replica)
        self._waiting.expire()
        for model, queue in self._waiting.queues.items():
            board = self._boards.find(model)
            while board is not None:
                request = queue.head()
                if request is None:
                    break
                if board.replicas and request.digest != board.digest:
                    self._sealing.meet_other_weights(request, board.digest)
                    continue
                if request.measured != board.sizes.version and not self._measure(request, board):
                    continue
                names = _matchable(request, board)
                hits = self._books.index.match(names)
                known = hits.longest
                owner = self._prefix_owner(request, names, known)
                if owner is not None:
                    queue.remove(request)
                    self._waiting.park(request, *owner)
                    continue
                place = board.choose(board.need(request), hits)
                if place is None and self._give_up_pin(board):
                    continue
                if place is None:
                    break
                host = request.host
                if host is not None and host.joined.fingerprint != place.replica.joined.fingerprint:
                    # Nobody there could read what lies in host memory: it is computed again.
                    self._swaps.forget(request)
                    continue
                if len(place.hit) < known and request.host is None:
                    owner = self._owner_there(request, names, hits, place)
                if owner is not None:
                    queue.remove(request)
                    self._waiting.park(request, *owner)
                    continue
                self._take(request, queue)
                self._start(request, place, hits)
                board.refresh(place.replica)

    def _take(self, request: Request, queue: WaitingQueue) -> None:
        queue.remove(request)
        request.queue_seconds += self._books.now - request.queued_at

    def _measure(self, request: Request, board: Board) -> bool:
        """Whether a replica that is here could hold it alone. What fits only one that may come back is set aside, and
        what fits none is refused: it was accepted while larger ones were here, or none."""
        if board.fits_here(request):
            request.measured = board.sizes.version
            return True
        hearing, now = self._books.hearing, self._books.now
        later = [when for when in (board.sizes.next_due, hearing.replicas_until) if when is not None and when > now]
        detail = board.why_never(request)
        if detail and not hearing.may_join(now):
            self._endings.break_off(request, "INVALID_ARGUMENT", detail, Reason.DROPPED)
        else:
            self._waiting.set_aside(request, min(later, default=now))
        return False

    def _give_up_pin(self, board: Board) -> bool:
        """Nothing runs on a replica and still the head does not fit: pins give way to work."""
        for replica in board.replicas:
            if replica.pins and not replica.requests and self._pins.give_up_one(replica):
                board.refresh(replica)
                return True
        return False

    def _prefix_owner(
        self, request: Request, names: bytes, held: int, there: Replica | None = None
    ) -> tuple[Sequence, int] | None:
        """Who computes the next block behind the `held` ones, `there` if it is given, and up to where this request
        should wait for that."""
        computing = self._books.computing
        if not names or not computing:
            return None
        owner = computing.owner(names, held)
        if owner is None or not owner.seq or owner.request is request or owner.request.state is not State.RUNNING:
            return None
        assert owner.request.replica is not None
        size = owner.request.replica.block_size
        if owner.position // size > held or there not in (None, owner.request.replica):
            return None
        return owner, computing.reach(owner, names, held) * size

    def _owner_there(self, request: Request, names: bytes, hits: Hits, place: Place) -> tuple[Sequence, int] | None:
        """Of what other pools hold: who brings it to this place already, or computes it there if this request would."""
        coming = self._fetches.coming(request, place)
        owner = self._prefix_owner(request, names, len(place.hit), place.replica)
        if coming is None and owner is None:
            return None
        # Looks at all pools, and seldom has to.
        return coming if self._fetches.would_begin(request, place, hits) else owner

    def why_waiting(self, request: Request) -> str:
        """The reason why a request waits, for people."""
        if request.parked_on is not None:
            owner = request.parked_on.request
            return f"{owner.request_id} {'fetches' if owner.state is State.RESTORING else 'computes'} its prefix"
        if self._waiting.is_aside(request):
            return "no replica that is here could hold it, and one that could may come back"
        board = self._boards.find(request.model)
        if board is None or not board.replicas:
            return self._waiting.nobody_is_here(request.model)
        return board.why_none(board.need(request))

    # -- starting

    def _start(self, request: Request, place: Place, hits: Hits) -> None:
        """Builds the tables of all sequences and orders the first of them; forks ride along. `hits`: cached blocks that
        begin the request, by pool."""
        replica = place.replica
        request.attempt += 1
        request.replica = replica
        request.state = State.RUNNING
        parent, *others = request.live
        self._starts.fill_table(parent, place)
        forks = tuple(self._starts.fork(parent, sequence, replica) for sequence in others)
        request.forked_from = parent if forks else None
        if request.host is not None:
            self._start_from_host(request)
            return
        fetch = self._fetches.begin(request, hits)
        position = max(parent.position, parent.saved)
        if fetch:
            request.state = State.RESTORING
        if request.attempt == 1:
            request.cached_tokens = position
        self._books.computing.begin(parent, position // replica.block_size)
        # What forks have written already each of them computes again.
        request.tenant.charge(max(1, parent.length - position + sum(len(fork.outputs) for fork in forks)))
        replica.prefill_waiting += parent.length - position
        self._starts.order(parent, forks, fetch)

    def _start_from_host(self, request: Request) -> None:
        """Every sequence goes on by itself where it stood, as soon as its blocks are back from host memory."""
        request.state = State.RESTORING
        request.forked_from = None
        request.tenant.charge(len(request.live))
        transfer = self._swaps.read_back(request)
        for sequence in request.live:
            self._starts.order(sequence, (), transfer)
        if not transfer:
            self._starts.restored(request)


def _matchable(request: Request, board: Board) -> bytes:
    """The names that a hit may cover: full blocks of the first live sequence, all but its last token at most."""
    if not board.replicas or not uses_cache(request):
        return b""
    sequence = request.live[0]
    return sequence.names[: sequence.length // board.block_size * HASH_BYTES]
