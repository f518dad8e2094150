"""The gateway's intake of tokens: workers push batches on one stream each, numbered, acknowledged, taken once.

Served on the gateway's internal port; `worker/token_push.py` is the other end. Tokens go to `feed` as they come. A
batch that was taken before is passed over, a gap ends the stream, so that the worker sends again from the last taken.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cluster.errors import ProtocolError
from cluster.messages import Tokens
from cluster.wire.tokens import tokens_from
from protos.quire.v1 import front_pb2 as pb

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TokenIntake:
    """Implements quire.v1.TokenService."""

    def __init__(self, feed: Callable[[Sequence[Tokens]], None]) -> None:
        self._feed = feed
        # By replica: its incarnation, and the last batch taken from it.
        self._taken: dict[str, tuple[int, int]] = {}
        self.num_stale = 0

    async def Push(
        self, request_iterator: AsyncIterator[pb.PushRequest], context: Context
    ) -> AsyncIterator[pb.PushResponse]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello")
        assert first is not None
        replica, incarnation = first.hello.replica, first.hello.incarnation
        known = self._taken.get(replica)
        if known is not None and known[0] > incarnation:
            detail = f"replica {replica} runs as incarnation {known[0]}; this is {incarnation}"
            await context.abort(grpc.StatusCode.ABORTED, detail)
        try:
            async for request in request_iterator:
                yield pb.PushResponse(taken=self._take(replica, incarnation, request))
        except ProtocolError as error:
            log.error("tokens of replica %s: %s", replica, error)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    def _take(self, replica: str, incarnation: int, request: pb.PushRequest) -> int:
        """Feeds a batch that is new; returns the last number taken."""
        number = request.number
        known = self._taken.get(replica)
        # A worker that met an earlier start of this gateway goes on with its numbers.
        last = known[1] if known is not None and known[0] == incarnation else number - 1
        if known is not None and known[0] > incarnation:
            raise ProtocolError(f"incarnation {incarnation} of {replica} was followed by {known[0]}")
        if number <= last:
            self.num_stale += 1
            return last
        if number > last + 1:
            raise ProtocolError(f"batches jump from {last} to {number}")
        tokens = tokens_from(request.batch)
        self._taken[replica] = (incarnation, number)
        self._feed(tokens)
        return number
