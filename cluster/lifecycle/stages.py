"""Waits until actors serve, all of them at once, and says of each when it does.

`create.py` and `fleet.py` call it in a process that is connected to Ray. Whatever does not come up within its time is
one line that says what it waited for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.errors import Unavailable
from cluster.lifecycle.ray_head import free_mib

START_S = 120.0
LOOK_S = 0.2
LAST_S = 5.0

Say = Callable[[str], None]


def wait_until_ready(actor: Any, what: str) -> str:
    """The actor's address. Raises `Unavailable` with the cause."""
    return wait_for_all({what: actor}, lambda line: None)[what]


def wait_for_all(actors: Mapping[str, Any], say: Say, follow: str = "") -> dict[str, str]:
    """Addresses by name, once all serve. `follow`: the worker whose steps are said as it takes them. Raises
    `Unavailable` with the cause."""
    import ray

    pending = {actor.ready.remote(START_S): what for what, actor in actors.items()}
    steps = _Steps(actors[follow], follow, say) if follow else None
    found: dict[str, str] = {}
    died: set[str] = set()
    until = time.monotonic() + START_S + 5
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_S)
        if steps is not None:
            steps.look()
        for reference in done:
            what = pending.pop(reference)
            try:
                found[what] = str(ray.get(reference))
            except ray.exceptions.RayActorError as error:
                # Ray starts it again, as it does at any later time: a machine so busy that the scheduler took the
                # process for silent, say. A cause that stays ends it a second time.
                if what in died:
                    raise Unavailable(_of_death(what, error)) from error
                died.add(what)
                pending[actors[what].ready.remote(START_S)] = what
                until = time.monotonic() + START_S + 5
            except ray.exceptions.RayTaskError as error:
                raise Unavailable(f"{what} did not start: {' '.join(str(error.cause).split())[:500]}") from error
            else:
                say(f"{what} serves")
        if pending and time.monotonic() > until:
            available = ray.available_resources()
            # Of placement groups, nodes and bytes there is more, which helps nobody.
            free = ", ".join(f"{available[name]:g} {name}" for name in ("CPU", "GPU") if available.get(name))
            names = ", ".join(pending.values())
            raise Unavailable(
                f"{names} was not placed or did not answer within {START_S:g} s; Ray has free: {free or 'nothing'}"
            )
    if steps is not None:
        # What had been asked before it served may have been answered before its last words.
        for _ in range(2):
            steps.look(wait_s=LAST_S)
    return found


def _of_death(what: str, error: Exception) -> str:
    """Ray gives a traceback of the actor with colours; what matters is how it ends."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", str(error).strip().splitlines()[-1]).strip()
    return f"{what} did not start: {line[:500]} ({free_mib():,} MiB of memory are free here; `quire logs` has more)"


class _Steps:
    """What a worker tells of its start, line by line, each said once."""

    def __init__(self, worker: Any, name: str, say: Say) -> None:
        self._worker, self._name, self._say = worker, name, say
        self._num_said = 0
        self._asked = worker.report.remote()

    def look(self, wait_s: float = 0.0) -> None:
        import ray

        if not ray.wait([self._asked], timeout=wait_s)[0]:
            return
        try:
            lines = ray.get(self._asked)
        except ray.exceptions.RayError:
            # It died, and whoever waits for it says so; the next life begins anew.
            lines, self._num_said = [], 0
        for line in lines[self._num_said :]:
            self._say(f"{self._name} {line}")
        self._num_said = max(self._num_said, len(lines))
        self._asked = self._worker.report.remote()
