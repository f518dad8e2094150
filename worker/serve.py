"""The worker's process in a cluster: a step loop on a thread of its own, and the streams that feed it.

The loop's thread owns the Worker; plans come to it through a queue, and results and tokens leave through the event
loop's thread, which owns all streams. The control stream is kept open for as long as the process lives: when it breaks,
steps go on as far as leases reach, and after a reconnect both sides send what the other lacks. A new scheduler (a
higher epoch) is told all that is held. A watchdog ends the process when a step hangs.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import grpc.aio

from cluster.messages import Plan, ReplicaState, Result, Tokens
from cluster.wire.plans import fill_result, plan_from
from cluster.wire.state import fill_replica_joined, fill_replica_state
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb
from protos.quire.v1.control_pb2_grpc import ControlServiceAsyncStub
from worker.spans import AttemptSpans
from worker.swap import Swap
from worker.token_push import TokenPusher
from worker.transfer.security import TransferSecurity
from worker.transfer.server import Listening
from worker.worker import Worker

log = logging.getLogger(__name__)

RETRY_S = 0.2
PROOF_S = 5.0
SWITCH_S = 0.0005
HANG_S = 60.0
# Plans and ends of transfers end the wait at once.
IDLE_S = 0.25
MAX_PLANS = 10_000


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """Said to the step loop when another scheduler has taken over: tell it what is held, obey only it from now on."""

    epoch: int
    wants_state: bool


Inbound = Plan | NewEpoch
Outbound = Result | ReplicaState | dict[str, list[Tokens]]


class StepLoop:
    """Runs the worker on one thread. `say` is called there with everything that is to be sent."""

    def __init__(
        self,
        worker: Worker,
        say: Callable[[Outbound], None],
        swap: Swap | None = None,
        spans: AttemptSpans | None = None,
        hang_s: float = HANG_S,
    ) -> None:
        self.worker = worker
        self._spans = spans
        self._swap = swap
        if swap is not None:
            swap.wake = lambda: self.inbox.put(None)
        # None: a transfer has ended, which ends a wait.
        self.inbox: queue.SimpleQueue[Inbound | None] = queue.SimpleQueue()
        self.retired_at = self.stepped_at = time.monotonic()
        self.is_busy = False
        self._say = say
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
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._obey_all()
                if self._swap is not None:
                    self._swap.step()
                if self.worker.reporter.has_ends:
                    # Who was taken off here may go on elsewhere: that must not wait for another step.
                    self._report()
                self.is_busy = True
                progressed = self.worker.step() or self._prove()
                self.retired_at, self.is_busy = time.monotonic(), False
                if progressed:
                    self.stepped_at = self.retired_at
                self._report()
                if not progressed:
                    self._wait()
        except BaseException as error:
            log.critical("the step loop ended: %s: %s", type(error).__name__, error, exc_info=error)
            self.error = error
            # Without its loop a worker is dead: the process goes, and is started again with its next incarnation.
            os._exit(70)

    def _prove(self) -> bool:
        """An idle worker steps all the same now and then, so that who watches it knows that it could."""
        return time.monotonic() - self.stepped_at > PROOF_S and self.worker.prove()

    def _obey_all(self) -> None:
        while not self.inbox.empty():
            self._obey(self.inbox.get_nowait())

    def _wait(self) -> None:
        """Nothing can run: the next word from the scheduler ends the wait at once."""
        try:
            self._obey(self.inbox.get(timeout=IDLE_S))
        except queue.Empty:
            return

    def _obey(self, word: Inbound | None) -> None:
        if word is None:
            return
        if isinstance(word, Plan):
            self.worker.obey(word)
            if self._spans is not None:
                self._spans.obeyed(word)
        else:
            if self._swap is not None:
                self._swap.begin_epoch(word.epoch)
            if word.wants_state:
                self._say(self.worker.hold_for(word.epoch))
            else:
                self.worker.begin_epoch(word.epoch)

    def _report(self) -> None:
        tokens = self.worker.take_tokens()
        if tokens:
            self._say(tokens)
        result = self.worker.take_result()
        if result is not None:
            self._say(result)
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


class WorkerServer:
    """One replica in the cluster. `find` gives the scheduler's address whenever it is asked; it may change."""

    def __init__(
        self,
        worker: Worker,
        find: Callable[[], Awaitable[str]],
        security: TransferSecurity,
        *,
        channel_options: list[tuple[str, int]] | None = None,
        spans: AttemptSpans | None = None,
        hang_s: float = HANG_S,
        listening: Listening | None = None,
    ) -> None:
        """`listening`: where peers of its pool reach it; None: on this machine only."""
        self.worker = worker
        self._find = find
        self._security = security
        self._options = channel_options or []
        # Slices of blocks go nowhere: what a tensor-parallel replica preempts is computed again.
        self._swap = Swap(worker, security, listening) if worker.parts.team is None else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._steps = StepLoop(worker, self._say, self._swap, spans, hang_s)
        self._outgoing: asyncio.Queue[pb.ConnectRequest | None] | None = None
        self._unsent: deque[Result] = deque()
        self._pusher = TokenPusher(worker.replica, worker.incarnation, security, self._options)
        self._epoch = 0
        self._plan = 0
        self.is_connected = False

    async def run(self) -> None:
        """Serves until cancelled."""
        self._loop = asyncio.get_running_loop()
        # Between the loop's thread and the steps' the interpreter is handed over this soon, so that plans are read and
        # tokens leave while steps run.
        sys.setswitchinterval(SWITCH_S)
        self._steps.start()
        try:
            while True:
                try:
                    await self._connect()
                except (grpc.RpcError, OSError, TimeoutError) as error:
                    log.info("no scheduler: %s", _one_line(error))
                self.is_connected = False
                await asyncio.sleep(RETRY_S)
        finally:
            self._steps.close()
            if self._swap is not None:
                self._swap.close()
            await self._pusher.close()

    # -- from the step loop's thread

    def _say(self, word: Outbound) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._send, word)

    def _send(self, word: Outbound) -> None:
        if isinstance(word, dict):
            for gateway, tokens in word.items():
                self._pusher.push(gateway, tokens)
        elif isinstance(word, ReplicaState):
            message = pb.ConnectRequest()
            fill_replica_state(message.state, word)
            self._put(message)
        elif word.epoch == self._epoch:
            self._unsent.append(word)
            self._put(_result_message(word))

    def _put(self, message: pb.ConnectRequest) -> None:
        if self._outgoing is not None:
            self._outgoing.put_nowait(message)

    # -- the control stream

    async def _connect(self) -> None:
        address = await self._find()
        async with self._security.aio_channel(address, self._options) as channel:
            outgoing: asyncio.Queue[pb.ConnectRequest | None] = asyncio.Queue()
            outgoing.put_nowait(self._hello())
            stream = ControlServiceAsyncStub(channel).Connect(_drain(outgoing), metadata=self._security.metadata())
            pulse: asyncio.Task[None] | None = None
            try:
                async for message in stream:
                    kind = message.WhichOneof("message")
                    if kind == "welcome":
                        self._welcome(message.welcome, outgoing)
                        pulse = asyncio.create_task(self._pulse(outgoing, message.welcome.silence_s / 4))
                    elif kind == "plan":
                        self._take(plan_from(message.plan))
                    elif kind == "directory":
                        self._direct({entry.name: entry.address for entry in message.directory.entries})
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    # Declared lost while it was away. What it holds means nothing any more, so it starts anew.
                    log.error("%s", error.details())
                    os._exit(72)
                raise
            finally:
                self._outgoing = None
                outgoing.put_nowait(None)
                if pulse is not None:
                    pulse.cancel()

    def _hello(self) -> pb.ConnectRequest:
        message = pb.ConnectRequest()
        hello = message.hello
        fill_replica_joined(hello.replica, self.worker.joined())
        hello.epoch, hello.plan = self._epoch, self._plan
        hello.transfer_address = self._swap.address if self._swap is not None else ""
        hello.oldest_protocol, hello.newest_protocol = OLDEST_PROTOCOL, NEWEST_PROTOCOL
        return message

    def _welcome(self, welcome: pb.Welcome, outgoing: asyncio.Queue[pb.ConnectRequest | None]) -> None:
        self._outgoing = outgoing
        self.is_connected = True
        if welcome.epoch != self._epoch:
            self._epoch, self._plan = welcome.epoch, 0
            self._unsent.clear()
            self._steps.inbox.put(NewEpoch(welcome.epoch, welcome.wants_state))
            return
        while self._unsent and self._unsent[0].number <= welcome.result:
            self._unsent.popleft()
        for result in self._unsent:
            outgoing.put_nowait(_result_message(result))

    def _take(self, plan: Plan) -> None:
        if plan.epoch != self._epoch or plan.number != self._plan + 1:
            return
        self._plan = plan.number
        while self._unsent and self._unsent[0].number <= plan.result:
            self._unsent.popleft()
        self._steps.inbox.put(plan)

    def _direct(self, entries: dict[str, str]) -> None:
        self._pusher.direct(entries)
        if self._swap is not None:
            self._swap.direct(entries)

    async def _pulse(self, outgoing: asyncio.Queue[pb.ConnectRequest | None], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            outgoing.put_nowait(pb.ConnectRequest(pulse=pb.Pulse(step=self.worker.num_steps)))


async def _drain(outgoing: asyncio.Queue[pb.ConnectRequest | None]) -> AsyncIterator[pb.ConnectRequest]:
    while True:
        message = await outgoing.get()
        if message is None:
            return
        yield message


def _result_message(result: Result) -> pb.ConnectRequest:
    message = pb.ConnectRequest()
    fill_result(message.result, result)
    return message


def _one_line(error: BaseException) -> str:
    detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return " ".join((detail or type(error).__name__).split())
