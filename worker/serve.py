"""The worker's process in a cluster: a step loop on a thread of its own, and an event loop that keeps streams open.

The step loop's thread owns the Worker, and reads and writes the control stream and writes the streams of tokens itself;
the event loop connects them, and pulses while steps run. The control stream is kept open for as long as the process
lives: when it breaks, steps go on as far as leases reach, and after a reconnect both sides send what the other lacks.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from cluster.links.dialing import keep_open
from cluster.links.security import ClusterSecurity
from cluster.messages import Tokens
from cluster.wire.control import GREETING
from worker.replica_stream import ReplicaStream
from worker.spans import AttemptSpans
from worker.step_loop import HANG_S, StepLoop
from worker.swap import Swap
from worker.token_push import TokenPusher
from worker.transfer.server import Listening
from worker.worker import Worker

SWITCH_S = 0.0005


class WorkerServer:
    """One replica in the cluster. `find` gives the scheduler's address whenever it is asked; it may change."""

    def __init__(
        self,
        worker: Worker,
        find: Callable[[], Awaitable[str]],
        security: ClusterSecurity,
        *,
        spans: AttemptSpans | None = None,
        hang_s: float = HANG_S,
        listening: Listening | None = None,
    ) -> None:
        """`listening`: where peers of its pool reach it; None: on this machine only."""
        self._find = find
        self._security = security
        # Slices of blocks go nowhere: what a tensor-parallel replica preempts is computed again.
        self._swap = Swap(worker, security, listening) if worker.parts.team is None else None
        address = self._swap.address if self._swap is not None else ""
        self._stream = ReplicaStream(worker, address, self._push, self._direct)
        self._steps = StepLoop(worker, self._stream, self._swap, spans, hang_s)
        self._identity = worker.replica, worker.incarnation
        self._pusher: TokenPusher | None = None

    async def run(self) -> None:
        """Serves until cancelled."""
        self._pusher = TokenPusher(*self._identity, self._security, asyncio.get_running_loop())
        # Between the loop's thread and the steps' the interpreter is handed over this soon, so that tokens leave while
        # steps run.
        sys.setswitchinterval(SWITCH_S)
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
