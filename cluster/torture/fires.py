"""Kills and stops of the processes of a cluster, drawn from a seed: which, when, how many at once, for how long.

Processes are ended by their ids. Between two fires everybody who died is waited for, so that a stream is never without
all of its workers or gateways for longer than a start takes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import grpc

from cluster.errors import QuireError
from cluster.torture.house import House, missing

BACK_S = 90.0
"""Everybody who was killed is back within this, or the torture has failed."""
STOPS_S = (0.5, 1.5, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Fire:
    """What befell whom, and when (`time.monotonic`). `stopped_s` 0: killed."""

    at: float
    victims: tuple[str, ...]
    stopped_s: float

    @property
    def name(self) -> str:
        how = f"stopped for {self.stopped_s:g} s" if self.stopped_s else "killed"
        return f"{' and '.join(self.victims)} {how}"


class Fires:
    """Burns one cluster, on a thread of its own."""

    def __init__(
        self,
        house: House,
        seed: int,
        every_s: float,
        say: Callable[[str], None],
        stops_s: Sequence[float] = STOPS_S,
    ) -> None:
        self.fires: list[Fire] = []
        self.failure = ""
        self._house = house
        self._random = Random(f"fires/{seed}")
        self._every_s = every_s
        self._say = say
        self._stops_s = stops_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._burn, name="fires", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(BACK_S + 60)

    def _burn(self) -> None:
        for kinds, stopped_s in self._plan():
            if self._is_over.wait(self._every_s):
                break
            try:
                self._strike(kinds, stopped_s)
                self.wait_for_all()
            except Exception as error:
                # Whatever it is: a torture whose fires went out has shown nothing.
                self.failure = f"the fires went out: {type(error).__name__}: {error}"
                return

    def _plan(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Every kind in turn, killed and stopped, then two at once, in a new order each time."""
        kinds, random = [kind for kind, wanted in self._house.wanted.items() if wanted], self._random
        while True:
            round_: list[tuple[tuple[str, ...], float]] = [((kind,), 0.0) for kind in kinds]
            round_ += [((kind,), random.choice(self._stops_s)) for kind in random.sample(kinds, 2)]
            round_ += [(tuple(random.sample(kinds, 2)), 0.0)]
            random.shuffle(round_)
            yield from round_

    def _strike(self, kinds: tuple[str, ...], stopped_s: float) -> None:
        victims = []
        for kind in kinds:
            pids = self._house.pids(kind)
            assert pids, f"no process of a {kind} is there"
            victims.append(self._random.choice(pids))
        fire = Fire(time.monotonic(), kinds, stopped_s)
        for pid in victims:
            os.kill(pid, signal.SIGSTOP if stopped_s else signal.SIGKILL)
        self.fires.append(fire)
        self._say(fire.name)
        if stopped_s:
            time.sleep(stopped_s)
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass  # it was given up and ended meanwhile

    def wait_for_all(self) -> None:
        """Returns when all that the house wants are there; AssertionError if not in time."""
        until, lacking = time.monotonic() + BACK_S, ""
        while time.monotonic() < until:
            try:
                lacking = missing(self._house)
            except (grpc.RpcError, QuireError):
                lacking = "the scheduler does not answer"
            if not lacking:
                return
            time.sleep(0.1)
        raise AssertionError(f"after {BACK_S:g} s {lacking}")
