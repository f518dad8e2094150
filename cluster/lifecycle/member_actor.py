"""A further rank of a tensor-parallel replica as a Ray actor: one accelerator that does what rank 0 says.

Placed with the rank 0 of its replica (`WorkerActor`) in one placement group. It speaks with nobody in the cluster but
its own ranks; it ends when the replica ends, and Ray starts it again for the next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from cluster.lifecycle.actor import Observed, bound_threads, node_and_pid
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.meeting import POLL_S, Meeting
from cluster.lifecycle.served import ModelToServe

if TYPE_CHECKING:
    from worker.ranks.team import RankPlace

log = logging.getLogger(__name__)


class MemberActor:
    """Rank 1 or higher."""

    def __init__(self, settings: ClusterSettings, namespace: str, replica: str, model: ModelToServe, rank: int) -> None:
        from cluster.lifecycle.ray_state import RayState

        bound_threads(settings)
        state = RayState(namespace)
        self._observed = Observed(settings, state, f"{replica}.{rank}")
        self._settings = settings.worker(model, state.key("hash key"))
        self._meeting = Meeting(state, replica, settings.tp)
        self._rank = rank
        threading.Thread(target=self._run, name="quire-member", daemon=True).start()

    def _run(self) -> None:
        from worker.ranks import member
        from worker.ranks.team import is_broken

        try:
            place = self._meeting.join(self._rank)
            threading.Thread(target=self._watch, args=(place,), name="quire-meeting", daemon=True).start()
            member.run(self._settings, place)
        except BaseException as error:
            if is_broken(error):
                # Whichever rank died, rank 0 says so; the others only end with it.
                log.info("rank %d ends with its replica", self._rank)
            else:
                log.critical("the process ends: %s: %s", type(error).__name__, error, exc_info=error)
        os._exit(73)

    def _watch(self, place: RankPlace) -> None:
        """Rank 0 that has started anew waits for ranks that come to its own meeting."""
        while not self._meeting.is_over(place):
            time.sleep(POLL_S)
        os._exit(74)

    def end(self) -> None:
        """The replica has drained, and is about to be ended by order."""
        self._observed.end()

    def where(self) -> tuple[str, int]:
        return node_and_pid()
