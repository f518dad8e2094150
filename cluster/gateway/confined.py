"""Work on what strangers wrote, in a process that has little memory and little time.

A program, a pattern or a grammar of a stranger can loop for ever or ask for all memory, and no thread could be stopped
in that. So a gateway has such work done by a child that answers one question after the other: it is ended when an
answer takes too long, and started again at the next question. A question is about a subject (a template, a tokenizer),
of which a child is told once. Tenants take turns: who sends many hard questions waits behind everybody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from struct import Struct
from typing import Any, BinaryIO, TypeAlias

from cluster.errors import QueueFull, Unavailable

START_S = 60.0
"""For a child to start, or to read a subject."""
MAX_WAITING, MAX_WAITING_OF_TENANT = 1_024, 64
_SIZE = Struct("<I")

Words: TypeAlias = dict[str, Any]
"""What is said between a gateway and its child, as JSON."""


class _Turn:
    """A tenant's questions, of which one is asked and the others wait."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num = 0


class Confined:
    """One child, which runs `module`. Belongs to one event loop."""

    def __init__(self, module: str, answer_s: float, what: str) -> None:
        """`what` the questions are, for those who come when too many wait."""
        self._module = module
        self._answer_s = answer_s
        self._what = what
        self._child: asyncio.subprocess.Process | None = None
        # Subjects that this child was told of, by `id`, and their numbers. They are kept, so that no other has the id.
        self._known: dict[int, tuple[object, int]] = {}
        self._turn = asyncio.Lock()
        self._turns: dict[str, _Turn] = {}
        self._num_waiting = 0
        self.num_ended = 0

    async def ask(self, tenant: str, subject: object, words: Callable[[], Words], question: Words) -> Words:
        """The child's answer; `words` say what the subject is. Raises `QueueFull`; `TimeoutError` when it takes too
        long; `EOFError` when the child ended, for want of memory or stack."""
        turn = self._turns.get(tenant)
        if turn is not None and turn.num >= MAX_WAITING_OF_TENANT:
            raise QueueFull(f"{MAX_WAITING_OF_TENANT} {self._what} of this tenant wait here", 1.0)
        if self._num_waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING:,} {self._what} wait here", 1.0)
        self._num_waiting += 1
        try:
            async with self._turn_of(tenant), self._turn:
                return await self._ask(subject, words, question)
        finally:
            self._num_waiting -= 1

    @asynccontextmanager
    async def _turn_of(self, tenant: str) -> AsyncIterator[None]:
        """One question of a tenant at a time waits for the child."""
        turn = self._turns.setdefault(tenant, _Turn())
        turn.num += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.num -= 1
            if not turn.num:
                del self._turns[tenant]

    async def _ask(self, subject: object, words: Callable[[], Words], question: Words) -> Words:
        known = self._known.get(id(subject)) if self._child is not None else None
        new = await asyncio.to_thread(words) if known is None else None
        done = False
        try:
            try:
                child = await self._started()
                number = await self._introduce(child, subject, new) if known is None else known[1]
            except (OSError, EOFError) as error:
                # What was asked has nothing to do with it.
                raise Unavailable(f"the process for {self._what} did not begin: {error}"[:300], 1.0) from error
            async with asyncio.timeout(self._answer_s):
                answer = await self._exchange(child, {"subject": number, "question": question})
            done = True
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise EOFError(str(error)) from error
        finally:
            # Also when nobody waits for the answer any more: the next one must not get it.
            if not done:
                await self._end()
        return answer

    async def _introduce(self, child: asyncio.subprocess.Process, subject: object, words: Words | None) -> int:
        number = len(self._known)
        async with asyncio.timeout(START_S):
            await self._exchange(child, {"subject": number, "words": words})
        self._known[id(subject)] = subject, number
        return number

    async def _exchange(self, child: asyncio.subprocess.Process, said: Words) -> Words:
        assert child.stdin is not None and child.stdout is not None
        raw = json.dumps(said).encode()
        child.stdin.write(_SIZE.pack(len(raw)) + raw)
        await child.stdin.drain()
        (size,) = _SIZE.unpack(await child.stdout.readexactly(_SIZE.size))
        answer: Words = json.loads(await child.stdout.readexactly(size))
        return answer

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is None:
            self._known = {}
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
            )
            try:
                async with asyncio.timeout(START_S):
                    assert self._child.stdout is not None
                    await self._child.stdout.readexactly(_SIZE.size)
            except BaseException:
                await self._end()
                raise
        return self._child

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            self.num_ended += 1
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def close(self) -> None:
        """Nothing may be asked any more."""
        async with self._turn:
            await self._end()


Subject: TypeAlias = Callable[[Mapping[str, Any]], Words]
"""What a child makes of a subject's words: a function that answers questions about it."""


def serve(read: Callable[[Words], Subject], memory_bytes: int) -> None:
    """The child: answers until nobody asks any more, with so much memory beyond what it has now."""
    # What anybody prints must not get among the answers.
    with os.fdopen(os.dup(1), "wb") as answers, contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        os.dup2(2, 1)
        _bound(memory_bytes)
        _serve(read, sys.stdin.buffer, answers)


def _serve(read: Callable[[Words], Subject], questions: BinaryIO, answers: BinaryIO) -> None:
    subjects: dict[int, Subject] = {}
    answers.write(_SIZE.pack(0))
    answers.flush()
    while size := questions.read(_SIZE.size):
        said = json.loads(questions.read(*_SIZE.unpack(size)))
        answer: Words = {}
        if "words" in said:
            subjects[said["subject"]] = read(said["words"])
        else:
            answer = subjects[said["subject"]](said["question"])
        raw = json.dumps(answer).encode()
        answers.write(_SIZE.pack(len(raw)) + raw)
        answers.flush()


def _bound(memory_bytes: int) -> None:
    """This process can do little harm, and ends with who started it."""
    import ctypes
    import resource
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    with open("/proc/self/statm", encoding="ascii") as figures:
        own = int(figures.read().split()[0]) * resource.getpagesize()
    for what, most in ((resource.RLIMIT_AS, own + memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(what, (most, most))
