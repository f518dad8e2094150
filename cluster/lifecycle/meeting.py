"""How the ranks of a tensor-parallel replica find each other at each of its starts.

Rank 0 calls a meeting, a new one whenever it starts; the others come to it, each to a meeting once. A replica lives and
dies as a whole: who sees that another meeting was called, or that its own cannot be held, ends its process, and Ray
starts it again. The ranks of a replica are on one machine (`cluster/lifecycle/placing.py`).
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.lifecycle.ray_state import RayState
    from worker.ranks.team import RankPlace

POLL_S = 0.5


class Meeting:
    """Of one replica with `size` ranks."""

    def __init__(self, state: RayState, replica: str, size: int) -> None:
        self._state = state
        self._replica = replica
        self._size = size
        self._key = f"meeting {replica}"

    def call(self, incarnation: int) -> RankPlace:
        """Rank 0 starts. The place is a file that does not exist yet, in the folder that goes with Ray's session."""
        from worker.ranks.team import RankPlace

        folder = session_folder()
        for old in folder.glob(f"quire-meeting-{self._replica}-*"):
            with contextlib.suppress(OSError):
                old.unlink()
        meeting = f"file://{folder}/quire-meeting-{self._replica}-{incarnation}"
        self._state.put(self._key, meeting)
        return RankPlace(0, self._size, meeting)

    def join(self, rank: int) -> RankPlace:
        """Waits for a meeting to which this rank has not been yet."""
        from worker.ranks.team import RankPlace

        mine = f"{self._key} rank {rank}"
        while True:
            meeting = self._state.get(self._key)
            if meeting and meeting != self._state.get(mine):
                self._state.put(mine, meeting)
                return RankPlace(rank, self._size, meeting)
            time.sleep(POLL_S)

    def is_over(self, place: RankPlace) -> bool:
        """Another one was called since."""
        return self._state.get(self._key) != place.meeting


def session_folder() -> Path:
    """Of the Ray session that this process belongs to, on this machine."""
    import ray._private.worker

    return Path(ray._private.worker._global_node.get_session_dir_path())
