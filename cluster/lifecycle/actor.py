"""What every Ray actor of ours does: a server on a thread of its own, logs, a tracer, and telling where it is.

The actors themselves are in `actors.py`, `member_actor.py` and `scaler_actor.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.lifecycle.cluster_settings import ClusterSettings

if TYPE_CHECKING:
    from cluster.lifecycle.ray_state import RayState
    from cluster.watching.tracing import Tracer

log = logging.getLogger(__name__)

# What the processes of the centre are started with: they take no CPU that Ray books, and come back for ever.
CENTRE: dict[str, Any] = {"lifetime": "detached", "max_restarts": -1, "num_cpus": 0, "max_concurrency": 4}

CONTROL, FRONT = "control address", "front address"
"""Under which names Ray keeps where the scheduler is."""


def node_and_pid() -> tuple[str, int]:
    """Where this process is, for whoever has to see that it is gone."""
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


def bound_threads(settings: ClusterSettings) -> None:
    """As many as Ray booked CPUs. Read when torch and numba are imported, which is later."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(settings.booked_cpus)))


class Serving:
    """A server on a thread of its own. When it ends, the process ends, so that Ray starts it again."""

    def __init__(self, serve: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]]) -> None:
        self._address = ""
        self._is_ready = threading.Event()
        self._error = ""
        self._serve = serve
        self._thread = threading.Thread(target=self._run, name="quire-serve", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve(self._ready))
        except BaseException as error:
            self._error = f"{type(error).__name__}: {error}"
            log.critical("the process ends: %s", self._error, exc_info=error)
            self._is_ready.set()
            # Long enough for `ready` to tell why, if somebody asks.
            time.sleep(2.0)
        os._exit(73)

    def _ready(self, address: str) -> None:
        self._address = address
        self._is_ready.set()

    async def wait(self, timeout_s: float) -> str:
        """The address once it serves; raises RuntimeError with the cause when it does not come up. The actor answers
        other calls meanwhile."""
        if not await asyncio.to_thread(self._is_ready.wait, timeout_s):
            raise RuntimeError(f"not ready after {timeout_s:g} s")
        if self._error:
            raise RuntimeError(self._error)
        return self._address


class Observed:
    """What every actor does for whoever watches it: logs, and a tracer where spans are wanted."""

    def __init__(self, settings: ClusterSettings, state: RayState, process: str) -> None:
        from cluster.serving.connections import take_descriptors
        from cluster.watching.logs import begin_logs

        take_descriptors()
        self._settings, self._process, self._run = settings, process, state.key("run").hex()[:8]
        begin_logs(process, Path(settings.log_dir), settings.log_level, self._run)

    def tracer(self) -> Tracer | None:
        from cluster.watching.tracing import make_tracer

        return make_tracer(self._settings.trace, self._process, Path(self._settings.log_dir))

    def end(self) -> None:
        """The process is about to be ended by order."""
        from cluster.watching.logs import end_logs

        end_logs(self._process, Path(self._settings.log_dir), self._run)


async def find_scheduler(state: RayState, port: str) -> str:
    """Where this port of the scheduler is now; OSError while there is none."""
    address = await asyncio.to_thread(state.get, port)
    if not address:
        raise OSError("no scheduler has said where it is")
    return address
