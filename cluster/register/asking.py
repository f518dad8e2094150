"""All errands of one worker: which may begin, which are to end, which answers are out, what peers have yet to hear.

`(event, now) -> errands, answers, words for peers`: whoever runs it takes an errand from `begin`, carries out its
steps, and takes the answers for the scheduler. Every order is answered exactly once, whatever happens.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from cluster.messages import Transfer, Transferred
from cluster.register.errand import Errand, ErrandSettings
from cluster.register.register import Register
from cluster.register.states import TransferName


@dataclass(frozen=True, slots=True)
class AskingSettings:
    """Bounds of one worker's errands."""

    errand: ErrandSettings = field(default_factory=ErrandSettings)
    max_per_peer: int = 2
    max_running: int = 8
    # How long and how often a peer is told that a transfer was given up, one try of it, and how many such there can be.
    settle_s: float = 600.0
    settle_pause_s: float = 1.0
    settle_call_s: float = 0.5
    max_unheard: int = 4096
    # Orders that are known again.
    max_seen: int = 65_536


@dataclass(slots=True, eq=False)
class Unheard:
    """A peer has yet to hear that nothing of this process can touch its blocks for this transfer. It keeps them in
    quarantine until then, if it stood still when it was told."""

    peer: str
    name: TransferName
    reason: str
    until: float
    next_at: float


class Asking:
    """`name` is how peers and the scheduler call the pool of `register`."""

    def __init__(self, name: str, register: Register, settings: AskingSettings) -> None:
        self.settings = settings
        self.epoch = 0
        self.answers: deque[Transferred] = deque()
        self._name = name
        self._register = register
        self._waiting: list[Errand] = []
        self._running: list[Errand] = []
        # Epoch and number of orders seen, so that one that comes again is not run again.
        self._seen: dict[tuple[int, int], None] = {}
        self._unheard: deque[Unheard] = deque()

    # -- what the scheduler wants

    def order(self, order: Transfer, epoch: int, now: float) -> Errand | None:
        """Takes an order; None: it came before."""
        key = epoch, order.transfer
        if key in self._seen:
            return None
        self._seen[key] = None
        if len(self._seen) > self.settings.max_seen:
            del self._seen[next(iter(self._seen))]
        errand = Errand(order, epoch, self._name, self._register, self.settings.errand, now)
        if epoch < self.epoch:
            errand.problem = f"epoch {self.epoch} began"
        self._waiting.append(errand)
        return errand

    def abort(self, transfer: int, why: str = "aborted by the scheduler") -> None:
        """Nobody wants more of this transfer; it is answered as every other."""
        for errand in (*self._waiting, *self._running):
            if errand.order.transfer == transfer:
                errand.problem = errand.problem or why

    def adopt_epoch(self, epoch: int, now: float) -> None:
        """A new scheduler: what older ones ordered and did not see committed is given up."""
        self.epoch = max(self.epoch, epoch)
        for errand in (*self._waiting, *self._running):
            if errand.epoch < self.epoch:
                errand.problem = errand.problem or f"epoch {self.epoch} began"
        self._register.adopt_epoch(epoch, now)

    def under_way(self) -> list[Transfer]:
        """What has not been answered, for a scheduler that rebuilds."""
        return [errand.order for errand in (*self._running, *self._waiting)]

    # -- errands

    @property
    def num_wanted(self) -> int:
        """Errands that could run now if there were a peer for each."""
        return min(self.settings.max_running, len(self._waiting) + len(self._running))

    def begin(self, now: float) -> Errand | None:
        """The first waiting errand whose peer has room: it runs from now on."""
        self.sweep(now)
        if len(self._running) >= self.settings.max_running:
            return None
        busy = Counter(errand.order.peer for errand in self._running)
        for errand in self._waiting:
            if busy[errand.order.peer] < self.settings.max_per_peer:
                self._waiting.remove(errand)
                self._running.append(errand)
                return errand
        return None

    def sweep(self, now: float) -> None:
        """Answers what waits and is to be given up: nothing was begun of it."""
        for errand in list(self._waiting):
            problem = errand.why_stop(now)
            if problem:
                self._waiting.remove(errand)
                self.answers.append(errand.outcome(False, problem, now))

    def answer(self, errand: Errand, transferred: Transferred, now: float) -> None:
        """An errand has come to its answer: there is room for another one."""
        self._running.remove(errand)
        self.answers.append(transferred)
        if errand.unheard is not None and len(self._unheard) < self.settings.max_unheard:
            name, reason = errand.unheard
            settings = self.settings
            until, next_at = now + settings.settle_s, now + settings.settle_pause_s
            self._unheard.append(Unheard(errand.order.peer, name, reason, until, next_at))

    # -- what peers have yet to hear

    def next_word(self, now: float) -> Unheard | None:
        """What a peer is to be told now; `told` must follow."""
        if not self._unheard or self._unheard[0].next_at > now:
            return None
        return self._unheard.popleft()

    def told(self, word: Unheard, heard: bool, now: float) -> None:
        if not heard and now < word.until:
            word.next_at = now + self.settings.settle_pause_s
            self._unheard.append(word)

    @property
    def is_due(self) -> bool:
        """Whether something may be to be done when time passes alone."""
        return bool(self._waiting or self._unheard)

    def check(self) -> None:
        busy = Counter(errand.order.peer for errand in self._running)
        assert len(self._running) <= self.settings.max_running
        assert max(busy.values(), default=0) <= self.settings.max_per_peer, busy
        assert not any(errand.answered for errand in (*self._waiting, *self._running))
        numbers = [errand.order.transfer for errand in (*self._waiting, *self._running)]
        assert len(numbers) == len(set(numbers)), numbers
        stale = [errand for errand in (*self._waiting, *self._running) if errand.epoch < self.epoch]
        assert all(errand.problem for errand in stale), stale
        assert len(self._unheard) <= self.settings.max_unheard
        self._register.check()
