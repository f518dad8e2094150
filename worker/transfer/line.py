"""A line beside a handover: what a writer of shared memory has copied is checked by the pool while it copies on.

gRPC takes a millisecond to bring a small message to a waiting thread; the unix socket of the handover takes a tenth of
that, so the check follows the copy closely enough for both to be done at nearly the same time. The writer
(`worker/transfer/run.py`) opens one per transfer; the pool's handover serves it on a thread. Nothing depends on it:
what was not checked when a line broke is missing at the commit, and sent again.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from google.protobuf.message import DecodeError

from protos.quire.v1 import transfer_pb2 as pb
from worker.transfer.frames import Lost
from worker.transfer.states import OF_A_CHUNK, Refusal, Refused

MAX_MESSAGE = 64 << 10
# Sums that were told and not yet answered: the check is never far behind, and neither end fills the other's socket.
_MAX_OPEN = 4
_TICK_S = 0.25

_sched_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None)

T = TypeVar("T")
TakeSums = Callable[[pb.ChunkSums], object]


class SumsLine:
    """The writer's end. Every call may raise Refused, Lost, or what `go_on` raises while it waits."""

    def __init__(self, server: str, hello: pb.HandoverRequest, timeout_s: float, go_on: Callable[[], None]) -> None:
        self._go_on = go_on
        self._num_told = self._num_taken = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(f"\0{server}")
            self._socket.send(hello.SerializeToString())
            answer = pb.HandoverResponse.FromString(self._socket.recv(MAX_MESSAGE))
        except (OSError, DecodeError) as error:
            self._socket.close()
            raise Lost(f"no line to the pool's memory: {error}") from error
        if answer.session != hello.session:
            self._socket.close()
            raise Lost(f"no line to the pool's memory: {answer.detail or 'no answer'}")
        self._socket.settimeout(_TICK_S)

    def __enter__(self) -> SumsLine:
        return self

    def __exit__(self, *problem: object) -> None:
        self._socket.close()

    def tell(self, sums: pb.ChunkSums) -> None:
        """These chunks lie in the pool's memory."""
        self._answers(_MAX_OPEN - 1)
        self._patiently(lambda: self._socket.send(sums.SerializeToString()))
        self._num_told += 1

    def settle(self) -> None:
        """Returns once all that was told was looked at."""
        self._answers(0)

    def _answers(self, most_open: int) -> None:
        while self._num_told - self._num_taken > most_open:
            raw = self._patiently(lambda: self._socket.recv(MAX_MESSAGE))
            if not raw:
                raise Lost("the pool closed the line to its memory")
            taken = pb.SumsTaken.FromString(raw)
            if taken.refusal:
                raise Refused(Refusal(taken.refusal), taken.detail)
            self._num_taken = taken.number

    def _patiently(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except TimeoutError:
                self._go_on()
            except OSError as error:
                raise Lost(f"the line to the pool's memory broke: {error}") from error


def current_processor() -> int:
    """Where this thread runs, counted from 1; 0: the system does not say."""
    return 1 + int(_sched_getcpu()) if _sched_getcpu is not None else 0


def serve_line(connection: socket.socket, take: TakeSums, processor: int = 0) -> None:
    """The pool's end: until the writer closes it, or says something that is refused as a whole. Its thread keeps off
    the writer's processor: the system puts a thread that a message wakes beside the sender, as if that had nothing more
    to do, and the check would wait for a processor that copies with another one idle."""
    others = os.sched_getaffinity(0) - {processor - 1}
    if others:
        with suppress(OSError):
            os.sched_setaffinity(0, others)
    with connection:
        connection.settimeout(None)
        answer = pb.SumsTaken()
        while not answer.refusal:
            try:
                raw = connection.recv(MAX_MESSAGE)
                if not raw:
                    return
                answer = _look_at(raw, answer.number + 1, take)
                connection.send(answer.SerializeToString())
            except (OSError, DecodeError):
                return


def _look_at(raw: bytes, number: int, take: TakeSums) -> pb.SumsTaken:
    try:
        take(pb.ChunkSums.FromString(raw))
    except Refused as refused:
        if refused.refusal not in OF_A_CHUNK:
            return pb.SumsTaken(number=number, refusal=refused.refusal.value, detail=refused.detail)
        # Counted; the commit says that they are missing.
    return pb.SumsTaken(number=number)
