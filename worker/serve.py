"""The worker's process in a cluster: a step loop on a thread of its own, and an event loop that keeps streams open.

The step loop's thread owns the Worker, and reads and writes the control stream and writes the streams of tokens itself;
the event loop connects them, and pulses while steps run. The control stream is kept open for as long as the process
lives: when it breaks, steps go on as far as leases reach, and after a reconnect both sides send what the other lacks.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from cluster.links.dialing import keep_open
from cluster.links.security import ClusterSecurity
from cluster.messages import Tokens
from cluster.wire.control import GREETING
from worker.replica_stream import ReplicaStream
from worker.spans import AttemptSpans
from worker.step_loop import HANG_S, Served, StepLoop
from worker.token_push import TokenPusher

if TYPE_CHECKING:
    from worker.swap import Swapper

SWITCH_S = 0.0005


class WorkerServer:
    """One replica in the cluster. `find` gives the scheduler's address whenever it is asked; it may change."""

    def __init__(
        self,
        worker: Served,
        find: Callable[[], Awaitable[str]],
        security: ClusterSecurity,
        *,
        spans: AttemptSpans | None = None,
        hang_s: float = HANG_S,
        swap: Swapper | None = None,
    ) -> None:
        """`swap`: what moves its blocks (`swap_of`); None: they go nowhere."""
        self._find = find
        self._security = security
        self._swap = swap
        address = swap.address if swap is not None else ""
        self._stream = ReplicaStream(worker, address, self._push, self._direct, self._unreached)
        self._steps = StepLoop(worker, self._stream, self._swap, spans, hang_s)
        self._identity = worker.replica, worker.incarnation
        self._pusher: TokenPusher | None = None

    async def run(self) -> None:
        """Serves until cancelled."""
        self._pusher = TokenPusher(*self._identity, self._security, asyncio.get_running_loop())
        # Between the loop's thread and the steps' the interpreter is handed over this soon, so that tokens leave while
        # steps run.
        sys.setswitchinterval(SWITCH_S)
        # Python's collector need not look again at all that was loaded: steps would wait while it did.
        gc.collect()
        gc.freeze()
        self._steps.start()
        stream = self._stream
        try:
            await keep_open(stream.end, GREETING, self._find, self._security, stream.card, stream.note)
        finally:
            self._steps.close()
            if self._swap is not None:
                self._swap.close()
            await self._pusher.close()

    # -- from the step loop's thread

    def _push(self, tokens: dict[str, list[Tokens]]) -> None:
        assert self._pusher is not None
        for gateway, batch in tokens.items():
            self._pusher.push(gateway, batch)

    def _direct(self, entries: dict[str, str]) -> None:
        assert self._pusher is not None
        self._pusher.direct(entries)
        if self._swap is not None:
            self._swap.direct(entries)

    def _unreached(self) -> tuple[str, ...]:
        assert self._pusher is not None
        return self._pusher.unreached(time.monotonic())
