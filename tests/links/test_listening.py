"""The end that is called, over a real socket: the order of what it says."""

from __future__ import annotations

import asyncio

from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd
from cluster.links.listener import Listener
from cluster.links.listening import ListeningEnd
from cluster.links.security import ClusterSecurity
from cluster.links.sockets import connect
from cluster.links.terms import Heard, Order, Terms

SECURITY = ClusterSecurity("the secret of these tests")
TERMS = Terms(1, 1, silence_s=20.0, window_bytes=200)
GREETING = b"QTST"


class Answering:
    """Says something to whatever it hears, at once."""

    def __init__(self) -> None:
        self.end = ListeningEnd(Listener("l", 1, TERMS, bytes, lambda name, life, raw: raw), self)

    def take(self, order: Order) -> None:
        if isinstance(order, Heard):
            self.end.say("d", b"the answer to " + order.message)


def test_an_answer_goes_behind_what_waited_for_the_window() -> None:
    """It was sent before the frames of smaller numbers that the question's own acknowledgement had set free."""

    async def story() -> list[bytes]:
        owner, heard = Answering(), list[bytes]()
        address = await owner.end.listen("127.0.0.1", SECURITY, GREETING, "links of this test")
        end = DialingEnd(Dialer("d", 1, "l", TERMS, bytes))
        end.open(await asyncio.to_thread(connect, address, SECURITY, GREETING), b"")

        async def hear(count: int) -> None:
            while len(heard) < count:
                await asyncio.to_thread(end.wait, 0.05)
                heard.extend(order.message for order in end.read() if isinstance(order, Heard))
                assert end.is_open, end.why

        await asyncio.sleep(0.1)
        for number in range(5):
            owner.end.say("d", bytes([number]) * 50)
        async with asyncio.timeout(10):
            await hear(3)
            end.say(b"a question")
            await hear(6)
        end.close()
        owner.end.close()
        return heard

    heard = asyncio.run(story())
    assert heard == [bytes([number]) * 50 for number in range(5)] + [b"the answer to a question"]
