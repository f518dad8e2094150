"""The gateway's intake of tokens: workers call it by its name, on a link each, and what they send is fed as it comes.

`worker/token_push.py` is the other end. What is taken once, in order, and sent again is the link's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cluster.errors import ProtocolError
from cluster.links.listener import Listener
from cluster.links.listening import ListeningEnd
from cluster.links.terms import Heard, Order
from cluster.messages import Tokens
from cluster.serving.inside import Inside
from cluster.wire import tokens as wire


class TokenIntake:
    """All links of workers to one start of a gateway."""

    def __init__(self, gateway: str, incarnation: int, feed: Callable[[Sequence[Tokens]], None]) -> None:
        self._feed = feed
        self.end = ListeningEnd(Listener(gateway, incarnation, wire.terms(), wire.read_batch, _no_card), self)
        self._watch: asyncio.Task[None] | None = None

    async def listen(self, inside: Inside) -> str:
        """Where workers find it."""
        self._watch = asyncio.get_running_loop().create_task(self.end.watch())
        return await self.end.listen(inside.host, inside.security, wire.GREETING, "links for tokens")

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self.end.close()

    def take(self, order: Order) -> None:
        """Of the link."""
        if isinstance(order, Heard):
            self._feed(order.message)


def _no_card(name: str, life: int, raw: bytes) -> None:
    if raw:
        raise ProtocolError(f"{len(raw):,} bytes of a card, and none is known here")
