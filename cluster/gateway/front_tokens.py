"""The gateway's intake of tokens: workers send batches on one stream each, numbered, acknowledged, taken once.

Its port is a `FramePort` on the internal side; `worker/token_push.py` is the other end. Tokens go to `feed` as they
come. A batch that was taken before is passed over, a gap ends the stream, so that the worker sends again from the last
taken. What was taken is said of many batches at once: a worker only has to know it in time to forget them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import ProtocolError
from cluster.messages import Tokens
from cluster.serving.frame_stream import FramePort, FrameStream
from cluster.serving.inside import Inside
from cluster.wire.frames import framed
from cluster.wire.plans import parsed
from cluster.wire.tokens import tokens_from
from protos.quire.v1 import front_pb2 as pb
from worker.frame_link import TOKENS

log = logging.getLogger(__name__)

TAKEN_S = 0.05
"""So long after a batch its worker is told at the latest that it was taken."""


@dataclass
class Source:
    """A worker, on the stream that it has opened."""

    replica: str
    incarnation: int
    timer: asyncio.TimerHandle | None = None


class TokenIntake:
    """The owner of the streams of tokens."""

    def __init__(self, feed: Callable[[Sequence[Tokens]], None]) -> None:
        self._feed = feed
        # By replica: its incarnation, and the last batch taken from it.
        self._taken: dict[str, tuple[int, int]] = {}
        self._sources: dict[FrameStream, Source] = {}
        self.port: FramePort | None = None
        self.num_stale = 0

    async def listen(self, inside: Inside) -> str:
        """Where workers find it."""
        self.port = FramePort(inside, self, TOKENS, "streams of tokens")
        return await self.port.listen()

    def close(self) -> None:
        if self.port is not None:
            self.port.close()

    # -- of the port

    def heard(self, stream: FrameStream, raw: bytes) -> None:
        message = parsed(pb.ToGateway, raw)
        source = self._sources.get(stream)
        if source is None:
            self._greet(stream, message)
            return
        self._take(source, message)
        if source.timer is None:
            source.timer = asyncio.get_running_loop().call_later(TAKEN_S, self._tell, stream, source)

    def ended(self, stream: FrameStream) -> None:
        source = self._sources.pop(stream, None)
        if source is not None and source.timer is not None:
            source.timer.cancel()

    def _greet(self, stream: FrameStream, message: pb.ToGateway) -> None:
        if not message.HasField("hello"):
            raise ProtocolError("the first message of a stream of tokens must be a hello")
        replica, incarnation = message.hello.replica, message.hello.incarnation
        known = self._taken.get(replica)
        if known is not None and known[0] > incarnation:
            refusal = f"replica {replica} runs as incarnation {known[0]}; this is {incarnation}"
            stream.send(framed(pb.FromGateway(refusal=refusal)))
            stream.close()
            return
        source = self._sources[stream] = Source(replica, incarnation)
        self._tell(stream, source)

    def _take(self, source: Source, message: pb.ToGateway) -> None:
        """Feeds a batch that is new."""
        number, replica, incarnation = message.number, source.replica, source.incarnation
        known = self._taken.get(replica)
        # A worker that met an earlier start of this gateway goes on with its numbers.
        last = known[1] if known is not None and known[0] == incarnation else number - 1
        if known is not None and known[0] > incarnation:
            raise ProtocolError(f"incarnation {incarnation} of {replica} was followed by {known[0]}")
        if number <= last:
            self.num_stale += 1
            return
        if number > last + 1:
            raise ProtocolError(f"batches of {replica} jump from {last} to {number}")
        tokens = tokens_from(message.batch)
        self._taken[replica] = (incarnation, number)
        self._feed(tokens)

    def _tell(self, stream: FrameStream, source: Source) -> None:
        source.timer = None
        known = self._taken.get(source.replica)
        taken = known[1] if known is not None and known[0] == source.incarnation else 0
        stream.send(framed(pb.FromGateway(taken=taken)))
