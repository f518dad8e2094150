"""The roll of a cluster's workers: which there are to be, whatever has died. Kept by Ray.

Whoever creates a worker puts it on the roll, whoever ends one takes it off; the scheduler's process reads it, so that
one that is missing is seen to be.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from cluster.lifecycle.ray_state import RayState

log = logging.getLogger(__name__)

PREFIX = "worker "
READ_S = 1.0


def enrol(state: RayState, name: str, model: str) -> None:
    state.put(PREFIX + name, model)


def strike_off(state: RayState, name: str) -> None:
    state.remove(PREFIX + name)


class Roll:
    """Read once a second by a thread of its own: Ray may take long to answer, and the scheduler waits for nobody."""

    def __init__(self, state: RayState) -> None:
        self._state = state
        self._models: dict[str, str] = {}
        threading.Thread(target=self._read_on, name="quire-roll", daemon=True).start()

    def workers(self) -> Mapping[str, str]:
        """Models by worker, as last read."""
        return self._models

    def _read_on(self) -> None:
        while True:
            try:
                names = self._state.names(PREFIX)
                known = self._models
                self._models = {name: known.get(name) or self._state.get(PREFIX + name) for name in names}
            except Exception as error:
                log.debug("the roll cannot be read now: %s", error)
            time.sleep(READ_S)
