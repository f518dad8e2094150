"""A replica's side of the control stream: which plans are obeyed, which results the scheduler has, whose epoch it is.

The step loop reads and says everything here, on its thread; only `hello` is called from another one. Plans and results
are numbered: what comes twice is left alone, what the scheduler has not taken is sent again when a broken stream comes
back. A new scheduler (another epoch) makes both numberings begin anew. It obeys nothing itself.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable

from cluster.errors import ProtocolError
from cluster.messages import Result, Tokens
from cluster.wire.frames import framed
from cluster.wire.plans import fill_result, parsed, plan_from
from cluster.wire.state import fill_replica_joined, fill_replica_state
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb
from worker.frame_link import LOST_EXIT, REFUSED_RETRY_S, FrameLink
from worker.step_loop import Inbound, NewEpoch, Outbound
from worker.worker import Worker

log = logging.getLogger(__name__)


class ReplicaStream:
    """The `Link` of a step loop in a cluster."""

    def __init__(
        self,
        worker: Worker,
        transfer_address: str,
        push: Callable[[dict[str, list[Tokens]]], object],
        direct: Callable[[dict[str, str]], object],
    ) -> None:
        """`push` takes tokens for gateways, `direct` where everybody is; both are called on the step loop's thread."""
        self.link = FrameLink()
        self._worker = worker
        self._transfer_address = transfer_address
        self._push = push
        self._direct = direct
        # The epoch, and the last plan that was obeyed in it.
        self._stand = (0, 0)
        # Why it was last refused; said once, however often it asks.
        self._refusal = ""
        # Results that the scheduler may not have: number and frame, oldest first.
        self._untaken: deque[tuple[int, bytes]] = deque()

    def hello(self) -> bytes:
        message = pb.ToScheduler()
        hello = message.hello
        fill_replica_joined(hello.replica, self._worker.joined())
        hello.epoch, hello.plan = self._stand
        hello.transfer_address = self._transfer_address
        hello.oldest_protocol, hello.newest_protocol = OLDEST_PROTOCOL, NEWEST_PROTOCOL
        return framed(message)

    def pulse(self) -> bytes:
        return framed(pb.ToScheduler(pulse=pb.Pulse(step=self._worker.num_steps)))

    # -- the step loop's

    def read(self) -> list[Inbound]:
        words: list[Inbound] = []
        try:
            for raw in self.link.read():
                self._take(parsed(pb.FromScheduler, raw), words)
        except ProtocolError as error:
            self.link.undecodable(error)
        return words

    def wait(self, timeout_s: float) -> None:
        self.link.wait(timeout_s)

    def wake(self) -> None:
        self.link.wake()

    def say(self, word: Outbound) -> None:
        if isinstance(word, dict):
            self._push(word)
            return
        message = pb.ToScheduler()
        if isinstance(word, Result):
            if word.epoch != self._stand[0]:
                return
            fill_result(message.result, word)
            frame = framed(message)
            self._untaken.append((word.number, frame))
        else:
            fill_replica_state(message.state, word)
            frame = framed(message)
        self.link.send(frame)

    def _take(self, message: pb.FromScheduler, words: list[Inbound]) -> None:
        kind = message.WhichOneof("message")
        if kind == "plan":
            plan = plan_from(message.plan)
            epoch, number = self._stand
            if plan.epoch == epoch and plan.number == number + 1:
                self._stand = epoch, plan.number
                self._forget(plan.result)
                words.append(plan)
        elif kind == "welcome":
            self._welcome(message.welcome, words)
        elif kind == "directory":
            self._direct({entry.name: entry.address for entry in message.directory.entries})
        elif kind == "refusal":
            self.link.retry_s = REFUSED_RETRY_S
            if message.refusal.detail != self._refusal:
                self._refusal = message.refusal.detail
                log.error("%s", self._refusal)
            if message.refusal.is_lost:
                # Declared lost while it was away. What it holds means nothing any more, so it starts anew.
                os._exit(LOST_EXIT)

    def _welcome(self, welcome: pb.Welcome, words: list[Inbound]) -> None:
        self.link.silence_s = welcome.silence_s
        if welcome.epoch != self._stand[0]:
            self._stand = welcome.epoch, 0
            self._untaken.clear()
            words.append(NewEpoch(welcome.epoch, welcome.wants_state))
            return
        self._forget(welcome.result)
        for _, frame in self._untaken:
            self.link.send(frame)

    def _forget(self, number: int) -> None:
        while self._untaken and self._untaken[0][0] <= number:
            self._untaken.popleft()
