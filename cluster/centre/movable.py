"""Which requests can move, and which replicas have room for them: moves under way by request and by target.

`cluster/centre/balance.py` and `drains.py` ask before they choose; `moves.py` notes here what it has begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cluster.centre.fits import size_of
from cluster.centre.move import Move, num_needed
from cluster.centre.nouns import Replica, Request, State
from cluster.centre.placement import Need
from cluster.settings import SchedulerSettings

# Requests on their way to one replica at a time.
MAX_INCOMING = 4


class Movable:
    """Moves whose source has not let go of its request yet, and what may be added to them."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        # By the request itself: one that is given up while it moves bears another name.
        self.by_request: dict[Request, Move] = {}
        # By the target's life.
        self._incoming: dict[tuple[str, int], dict[Request, Move]] = {}

    def incoming(self, target: Replica) -> list[Move]:
        """Requests that are on their way there and still run elsewhere."""
        return list(self._incoming.get(_life(target), {}).values())

    def add(self, move: Move) -> None:
        self.by_request[move.request] = move
        self._incoming.setdefault(_life(move.target), {})[move.request] = move
        move.target.num_places += move.num_places

    def remove(self, move: Move) -> None:
        life = _life(move.target)
        del self.by_request[move.request], self._incoming[life][move.request]
        if not self._incoming[life]:
            del self._incoming[life]
        move.target.num_places -= move.num_places

    def can_move(self, request: Request) -> bool:
        """Whether it is of a kind that moves, and far enough to be moved."""
        live = request.live
        if request.state is not State.RUNNING or request in self.by_request or not live:
            return False
        if request.pin_until is not None or request.sampling is None or request.is_partial:
            return False
        if request.wants_logprobs:
            return False  # what two workers tell at once could reach the gateway without its logprobs
        if request.tenant.is_cleared or request.has_forks_waiting:
            return False
        # A fork that has not begun has no token to go on with.
        return bool(request.width) or all(one.position < one.length for one in live)

    def need(self, request: Request) -> Need:
        """What it takes at a target."""
        source, live = request.replica, request.live
        assert source is not None
        most = size_of(live, source.block_size)
        return Need(live[0].length, num_needed(request, source, self._settings.ahead), most.num_places, most)

    def with_room(self, request: Request, targets: Iterable[Replica], margin: float = 0.0) -> Iterator[Replica]:
        """Which of these could take it now and keep their reserve, and this share of their pool beside it."""
        source, need = request.replica, self.need(request)
        assert source is not None
        share = self._settings.admit_reserve + margin

        def has_room(target: Replica) -> bool:
            ledger, joined = target.ledger, target.joined
            reserve = int(ledger.num_blocks * share) if target.requests else 0
            holds = joined.max_model_len >= need.most.num_tokens and ledger.num_blocks >= need.most.num_blocks
            fits = holds and ledger.num_available - reserve >= need.num_blocks
            return fits and target.num_places + need.num_places <= joined.max_batch and self._is_open(source, target)

        return filter(has_room, targets)

    def _is_open(self, source: Replica, target: Replica) -> bool:
        """Whether anything could move from one to the other now."""
        num_incoming = len(self._incoming.get(_life(target), ()))
        if target is source or target.is_draining or target.wanting or num_incoming >= MAX_INCOMING:
            return False
        if not target.joined.bytes_per_s or not source.joined.bytes_per_s:
            return False  # its pool serves no peers
        return target.joined.fingerprint == source.joined.fingerprint and target.block_size == source.block_size


def _life(replica: Replica) -> tuple[str, int]:
    return replica.name, replica.incarnation
