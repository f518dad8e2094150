"""What comes of one HTTP request's questions at the gateway, as batches of the wire's responses.

The same outlet, cursors and leaving as on the gRPC door: a reader that goes away before the end leaves its requests to
the gateway, which aborts them, or keeps them for their grace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cluster.gateway.answer import Answer, Cursor, Outlet
from cluster.gateway.errors import resumed_elsewhere
from cluster.gateway.gateway import Gateway
from cluster.gateway.intake import Question
from cluster.messages import Ids, Submit
from protos.quire.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Again:
    """A request that was found, and how far its client has come with each sequence."""

    submit: Submit
    positions: tuple[int, ...]


Asking: TypeAlias = Question | Again


class HttpReader:
    """`begin`, then `batches`, then `leave`, whatever happened between."""

    def __init__(self, gateway: Gateway, tenant: str) -> None:
        self._gateway = gateway
        self.tenant = tenant
        self._outlet = Outlet(gateway.pace)
        self._open: dict[int, tuple[Answer, Cursor]] = {}

    async def begin(self, asked: Sequence[Asking]) -> None:
        """Asks or resumes each. Raises `QuireError`; what was asked before it is left."""
        for tag, one in enumerate(asked):
            if isinstance(one, Again):
                submit = one.submit
                answer = self._gateway.go_on(submit, one.positions, submit.grace_s, self._outlet, tag)
            else:
                answer = await self._gateway.begin(self.tenant, one, self._outlet, tag)
            assert answer.cursor is not None
            self._open[tag] = (answer, answer.cursor)

    @property
    def prompt(self) -> Ids:
        """Of the first question."""
        return self._open[0][0].submit.prompt

    @property
    def prompt_tokens(self) -> list[int]:
        """Of each question, once all are asked."""
        return [len(answer.submit.prompt) for answer, _ in self._open.values()]

    async def batches(self) -> AsyncIterator[list[pb.GenerateResponse]]:
        """Until all have ended. Raises the first failure."""
        while self._open:
            await self._outlet.news()
            # First tokens wait for nothing.
            if any(answer.first_token is not None for answer in self._outlet.ready.values()):
                self._outlet.pace.writes()
            batch: list[pb.GenerateResponse] = []

            def add(batch: list[pb.GenerateResponse] = batch) -> pb.GenerateResponse:
                batch.append(pb.GenerateResponse())
                return batch[-1]

            for answer in self._outlet.take():
                cursor = answer.cursor
                held = self._open.get(cursor.tag) if cursor is not None else None
                if cursor is None or held is None or held[1] is not cursor:
                    raise resumed_elsewhere()
                cursor.fill(add)
                if cursor.has_more:
                    self._outlet.wake(answer)
                elif cursor.is_told:
                    if answer.failure is not None:
                        raise answer.failure
                    del self._open[cursor.tag]
                    self._gateway.leave(answer, cursor, is_final=False)
            if batch:
                yield batch

    def leave(self, *, is_final: bool) -> None:
        self._outlet.pace.rests()
        for answer, cursor in self._open.values():
            self._gateway.leave(answer, cursor, is_final=is_final)
        self._open.clear()
