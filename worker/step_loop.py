"""The step loop: obeys what has come, runs a step, tells what came of it; one thread owns the worker and all of that.

What it hears and says goes through a `Link`: in a cluster the control stream, which it reads and writes itself, so that
no other thread has to wake up between a plan and its result. A watchdog on a thread of its own ends the process when a
step hangs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from cluster.errors import QuireError
from cluster.messages import Plan, ReplicaJoined, ReplicaState, Result, Tokens
from worker.spans import AttemptSpans

if TYPE_CHECKING:
    from worker.swap import Swapper

log = logging.getLogger(__name__)

PROOF_S = 5.0
HANG_S = 60.0
# Plans and ends of transfers end the wait at once.
IDLE_S = 0.25
# Steps of a small model cost less in one go, which ends once there is something to read. For so long tokens wait for
# each other, which no reader sees.
AT_ONCE_S = 0.025


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """Another scheduler has taken over: tell it what is held, obey only it from now on."""

    epoch: int
    wants_state: bool


@dataclass(frozen=True, slots=True)
class Unreached:
    """These gateways take no tokens from here at the moment, and all others do."""

    gateways: tuple[str, ...]


Inbound: TypeAlias = Plan | NewEpoch | Unreached
Outbound: TypeAlias = Result | ReplicaState | dict[str, list[Tokens]]


class Link(Protocol):
    """Where plans come from and results go. `wake` may be called from any thread, the others from the loop's."""

    def read(self) -> Sequence[Inbound]:
        """What has come, without waiting."""

    def fileno(self) -> int:
        """Can be read from whenever `wait` would return at once."""

    def wait(self, timeout_s: float) -> None:
        """Until there is something to read, somebody wakes it, or the time is over."""

    def wake(self) -> None: ...

    def say(self, word: Outbound) -> None: ...


class Served(Protocol):
    """What a step loop runs: a `Worker`, or one whose tokens are made up (`cluster/torture/made_up.py`)."""

    @property
    def replica(self) -> str: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    def joined(self) -> ReplicaJoined: ...

    def wake_by(self, wake: Callable[[], None]) -> None:
        """`wake` is to be called, from any thread, when a step that could not run can run now, and no plan says so."""

    def watch(self, descriptor: int) -> None:
        """Of several steps in one go the next one is not run once this can be read."""

    def begin_epoch(self, epoch: int) -> None: ...

    def hold_for(self, epoch: int) -> ReplicaState: ...

    def obey(self, plan: Plan) -> None: ...

    def step_within(self, seconds: float) -> int: ...

    def prove(self) -> bool: ...

    def cannot_reach(self, gateways: tuple[str, ...]) -> None: ...

    def take_result(self) -> Result | None: ...

    def take_tokens(self) -> dict[str, list[Tokens]]: ...


class StepLoop:
    """Runs the worker on one thread until closed."""

    def __init__(
        self,
        worker: Served,
        link: Link,
        swap: Swapper | None = None,
        spans: AttemptSpans | None = None,
        hang_s: float = HANG_S,
    ) -> None:
        self.worker = worker
        self._link = link
        self._spans = spans
        self._swap = swap
        if swap is not None:
            # A transfer has ended.
            swap.wake = link.wake
        worker.wake_by(link.wake)
        worker.watch(link.fileno())
        self.retired_at = self.stepped_at = time.monotonic()
        self.is_busy = False
        self._hang_s = hang_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quire-steps", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="quire-watchdog", daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()
        self._watchdog.start()

    @property
    def native_id(self) -> int:
        """The loop's thread as the kernel calls it."""
        return self._thread.native_id or 0

    def close(self) -> None:
        self._closing.set()
        self._link.wake()
        self._thread.join(5.0)

    def _run(self) -> None:
        link, worker = self._link, self.worker
        try:
            while not self._closing.is_set():
                # Whoever has woken us is heard: nothing is left that would cut the steps ahead short.
                link.wait(0.0)
                for word in link.read():
                    self._obey(word)
                if self._swap is not None:
                    self._swap.step()
                # What the last step gave, and that these plans are obeyed: neither waits for another step.
                self._report()
                self.is_busy = True
                progressed = worker.step_within(AT_ONCE_S) or self._prove()
                self.retired_at, self.is_busy = time.monotonic(), False
                if progressed:
                    self.stepped_at = self.retired_at
                else:
                    link.wait(IDLE_S)
        except BaseException as error:
            # An error of ours says all in its one line.
            trace = None if isinstance(error, QuireError) else error
            log.critical("the step loop ended: %s: %s", type(error).__name__, error, exc_info=trace)
            self.error = error
            # Without its loop a worker is dead: the process goes, and is started again with its next incarnation.
            os._exit(70)

    def _prove(self) -> bool:
        """An idle worker steps all the same now and then, so that who watches it knows that it could."""
        return time.monotonic() - self.stepped_at > PROOF_S and self.worker.prove()

    def _obey(self, word: Inbound) -> None:
        if isinstance(word, Plan):
            self.worker.obey(word)
            if self._spans is not None:
                self._spans.obeyed(word)
        elif isinstance(word, Unreached):
            self.worker.cannot_reach(word.gateways)
        else:
            if self._swap is not None:
                self._swap.begin_epoch(word.epoch)
            if word.wants_state:
                self._link.say(self.worker.hold_for(word.epoch))
            else:
                self.worker.begin_epoch(word.epoch)

    def _report(self) -> None:
        tokens = self.worker.take_tokens()
        if tokens:
            self._link.say(tokens)
        result = self.worker.take_result()
        if result is not None:
            self._link.say(result)
            if self._spans is not None:
                self._spans.reported(result)

    def _watch(self) -> None:
        """Outside the loop: a device or a step that hangs can't report itself. A call that hangs without letting go of
        the interpreter stops this thread too; then the timer of faulthandler, which needs no interpreter, ends it."""
        while not self._closing.wait(min(1.0, self._hang_s / 4)):
            if self.is_busy and time.monotonic() - self.retired_at > self._hang_s:
                log.critical("a step has hung for %.0f s: the worker ends", time.monotonic() - self.retired_at)
                os._exit(71)
            faulthandler.dump_traceback_later(2 * self._hang_s, exit=True)
        faulthandler.cancel_dump_traceback_later()
