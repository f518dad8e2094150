"""Tells peers until they hear it that a transfer was given up and nothing of this process writes any more.

A peer that stood still when the agent gave up keeps the blocks in quarantine; hearing this frees them. The agent hands
over what was not heard at once; one thread says it again about once a second, for as long as the settings say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.transfer.peer import PeerPool
from worker.transfer.states import TransferName

_PAUSE_S = 1.0
_CALL_S = 0.5
_MAX_UNHEARD = 4096


@dataclass(slots=True)
class _Unheard:
    peer: PeerPool
    name: TransferName
    reason: str
    until: float


class Settler:
    """`let_go(peer)` is called for each `add` once its peer has heard, or will not be told any more."""

    def __init__(self, settle_s: float, let_go: Callable[[PeerPool], None]) -> None:
        self._settle_s = settle_s
        self._let_go = let_go
        self._unheard: list[_Unheard] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, peer: PeerPool, name: TransferName, reason: str) -> None:
        with self._lock:
            refused = len(self._unheard) >= _MAX_UNHEARD or self._closing.is_set()
            if not refused:
                self._unheard.append(_Unheard(peer, name, reason, time.monotonic() + self._settle_s))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="quire-transfer-settle", daemon=True)
                    self._thread.start()
        if refused:
            self._let_go(peer)

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        for unheard in self._unheard:
            self._let_go(unheard.peer)
        self._unheard.clear()

    def _run(self) -> None:
        while not self._closing.wait(_PAUSE_S):
            with self._lock:
                telling = list(self._unheard)
            for unheard in telling:
                if self._closing.is_set():
                    return
                heard = unheard.peer.abort(unheard.name, unheard.reason, _CALL_S)
                if heard or time.monotonic() >= unheard.until:
                    with self._lock:
                        self._unheard.remove(unheard)
                    self._let_go(unheard.peer)
