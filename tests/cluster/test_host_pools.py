"""Host pools and the scheduler over the real control stream: what was given up is settled, whatever got lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.links.security import ClusterSecurity
from cluster.messages import (
    Drain,
    Event,
    Plan,
    Reason,
    ReplicaJoined,
    ReplicaLost,
    Result,
    Start,
    Stopped,
    Transfer,
    ids,
)
from cluster.serving.control_server import ControlServer
from cluster.serving.inside import Inside
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from tests.cluster.test_scheduler import submit
from tests.links.proxies import LinkProxy
from worker.host_pool import HostPoolServer, HostPoolSettings
from worker.host_pool_serve import serve_host_pool

BLOCK_BYTES, NUM_BLOCKS = 4096, 16
SILENCE_S = 4.0
SECURITY = ClusterSecurity("the secret of this test")


class Centre:
    """A scheduler with its control port, a host pool that joins through a proxy, and a replica that is only told of."""

    def __init__(self) -> None:
        self.host = SchedulerShell(SchedulerSettings(preemption="swap"), 1)
        self.control = ControlServer(self.host, SILENCE_S)
        self.plans: list[Plan] = []
        settings = HostPoolSettings("h0", "node", NUM_BLOCKS * BLOCK_BYTES, BLOCK_BYTES, "f")
        self.pool = HostPoolServer(settings, SECURITY)

    async def tell(self, *events: Event) -> None:
        for event in events:
            self.host.post(event)
        turns = self.host.num_turns
        await self.until(lambda: self.host.num_turns > turns)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def a_transfer_that_never_comes(self) -> Transfer:
        """A replica is ordered to write to the pool, and dies before it has said a word to it."""
        self.host.replica_links["r0"] = self.plans.append
        await self.tell(ReplicaJoined("r0", 1, "node", "m", 64, 16, BLOCK_BYTES, "f", 8, 2048))
        await self.tell(submit("q", range(40), 40))
        await self.tell(Drain("r0"))
        (start,) = [start for plan in self.plans for start in plan.starts]
        await self.tell(Result("r0", 1, 1, 1, self.plans[-1].number, 1, stopped=(self.stopped(start),)))
        (out,) = [transfer for plan in self.plans for transfer in plan.transfers]
        return out

    def stopped(self, start: Start) -> Stopped:
        return Stopped(start.seq, Reason.DROPPED, 41, ids([7, 7]), b"")

    def quarantined(self) -> int:
        return self.host.scheduler.pools["h0"].ledger.counts().quarantined


def at_the_centre(story: Callable[[Centre, LinkProxy], Awaitable[None]]) -> None:
    async def run() -> None:
        centre = Centre()
        address = await centre.control.listen(Inside("127.0.0.1", SECURITY))
        proxy = LinkProxy(address)
        await proxy.start()

        async def find() -> str:
            return proxy.address

        forever = (centre.host.run(), centre.control.watch(), serve_host_pool(centre.pool, find, SECURITY))
        tasks = [asyncio.create_task(each) for each in forever]
        try:
            await centre.until(lambda: "h0" in centre.host.scheduler.pools)
            await story(centre, proxy)
            centre.host.scheduler.check()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await proxy.stop()
            centre.control.close()
            centre.pool.close()

    asyncio.run(asyncio.wait_for(run(), 40))


def test_blocks_of_a_transfer_that_never_came_are_free_again_soon() -> None:
    async def story(centre: Centre, proxy: LinkProxy) -> None:
        await centre.a_transfer_that_never_comes()
        # The pool answers at once: its answer is held up until the quarantine was seen.
        proxy.flows.clear()
        await centre.tell(ReplicaLost("r0", 1))
        assert centre.quarantined() == 3
        proxy.flows.set()
        await centre.until(lambda: centre.quarantined() == 0)

    at_the_centre(story)


def test_what_is_given_up_while_the_stream_is_broken_is_said_again() -> None:
    async def story(centre: Centre, proxy: LinkProxy) -> None:
        await centre.a_transfer_that_never_comes()
        proxy.flows.clear()
        await centre.tell(ReplicaLost("r0", 1))
        await asyncio.sleep(0.5)
        assert centre.quarantined() == 3, "the pool cannot have heard"
        # What was on its way is lost with the stream.
        proxy.cut()
        proxy.flows.set()
        await centre.until(lambda: centre.quarantined() == 0)
        assert centre.control.peers["h0"].incarnation == centre.pool.incarnation

    at_the_centre(story)
