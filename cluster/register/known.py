"""The transfers that one pool knows, found by whatever asks for them: by name, by caller, by what is due, by age.

Only finds and forgets; what becomes of a transfer is decided by `cluster/register/register.py`, its only user. Nothing
here looks at all transfers, so that one costs as much in a pool that has thousands as in a pool that has ten.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from cluster.register.moving import Moving
from cluster.register.states import TransferKey

# Times of transfers that have ended stay in the heap until as many are in it for nothing, and these more.
_SPARE = 64


class Known:
    """A transfer is live, then perhaps in quarantine, then over: remembered for a while, in the order of the ends."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._all: dict[TransferKey, Moving] = {}
        self.live: dict[TransferKey, Moving] = {}
        self._over: dict[TransferKey, None] = {}
        # Epoch and number of a transfer, to its parts that are live or in quarantine.
        self._open: dict[tuple[int, int], dict[TransferKey, Moving]] = {}
        # Of each caller that has live transfers: how many, and their bytes.
        self._loads: dict[str, tuple[int, int]] = {}
        # When a live transfer may be due, not after it is: a heap, with a number that tells equal times apart.
        self._times: list[tuple[float, int, Moving]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Moving]:
        """In the order in which they came."""
        return iter(self._all.values())

    def get(self, key: TransferKey) -> Moving | None:
        return self._all.get(key)

    def parts(self, epoch: int, transfer: int) -> list[Moving]:
        """Those of this transfer that are live or in quarantine."""
        return list(self._open.get((epoch, transfer), {}).values())

    def load(self, caller: str) -> tuple[int, int]:
        """How many transfers of this caller are live, and their bytes."""
        return self._loads.get(caller, (0, 0))

    def add(self, moving: Moving, max_remembered: int) -> None:
        """A live one is new here; of too many the one whose end is longest ago is forgotten."""
        key = moving.key
        self._all[key] = self.live[key] = moving
        self._open.setdefault((key.epoch, key.transfer), {})[key] = moving
        self._weigh(moving, 1)
        self._note_time(moving)
        if len(self._all) > max_remembered and self._over:
            self._forget(next(iter(self._over)))

    def end(self, moving: Moving) -> None:
        """It is not live any more."""
        if self.live.pop(moving.key, None) is not None:
            self._weigh(moving, -1)

    def rest(self, moving: Moving, now: float) -> bool:
        """Nothing can touch its blocks any more, from now on; False if that was known."""
        key = moving.key
        parts = self._open.get((key.epoch, key.transfer), {})
        if parts.pop(key, None) is None:
            return False
        if not parts:
            del self._open[key.epoch, key.transfer]
        moving.ended_at = now
        self._over[key] = None
        return True

    def due(self, now: float) -> Iterator[Moving]:
        """Live ones whose time may have come; each is to be ended if it has."""
        popped: list[Moving] = []
        while self._times and self._times[0][0] <= now:
            popped.append(heapq.heappop(self._times)[2])
        for moving in popped:
            if moving.live:
                yield moving
            if moving.live:
                self._note_time(moving)

    def forget(self, since: float) -> None:
        """Those that were over then, or before."""
        while self._over and self._all[key := next(iter(self._over))].ended_at <= since:
            self._forget(key)

    def _forget(self, key: TransferKey) -> None:
        del self._over[key], self._all[key]

    def _weigh(self, moving: Moving, count: int) -> None:
        caller = moving.key.caller
        number, size = self.load(caller)
        self._loads[caller] = number + count, size + count * moving.size_bytes
        if not self._loads[caller][0]:
            del self._loads[caller]

    def _note_time(self, moving: Moving) -> None:
        self._count += 1
        heapq.heappush(self._times, (moving.due_at(self._idle_s), self._count, moving))
        if len(self._times) > 2 * len(self.live) + _SPARE:
            self._times = [each for each in self._times if each[2].live]
            heapq.heapify(self._times)

    def check(self) -> None:
        live = [key for key, moving in self._all.items() if moving.live]
        assert list(self.live) == live
        held = set(live).union([key for key, moving in self._all.items() if moving.quarantined])
        assert held == {key for parts in self._open.values() for key in parts}
        assert held.isdisjoint(self._over) and len(held) + len(self._over) == len(self._all)
        assert all(self._open.values())
        ends = [self._all[key].ended_at for key in self._over]
        assert ends == sorted(ends)
        loads = dict.fromkeys((key.caller for key in self.live), (0, 0))
        for key, moving in self.live.items():
            number, size = loads[key.caller]
            loads[key.caller] = number + 1, size + moving.size_bytes
        assert loads == self._loads
        timed = {moving.key: at for at, _, moving in self._times if moving.live}
        assert timed.keys() == self.live.keys()
        assert all(at <= self.live[key].due_at(self._idle_s) for key, at in timed.items())
