"""Gateway, scheduler and workers over real gRPC streams that break, stall and change ends: no token lost or doubled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.client.asynchronous import AsyncClient
from cluster.errors import Unavailable
from cluster.gateway.front import MAX_EVENTS
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.gateway.front_tokens import TokenIntake
from cluster.gateway.gateway import Gateway
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.links.security import ClusterSecurity
from cluster.messages import Cancel, Submit, Tokens, ids
from cluster.sampling import SamplingParams
from cluster.serving.front_server import FrontServer
from cluster.serving.inside import Inside
from cluster.sim.live import LiveCluster
from cluster.wire.frames import framed
from cluster.wire.plans import parsed
from cluster.wire.tokens import fill_tokens
from protos.quire.v1 import front_pb2 as pb
from protos.quire.v1.front_pb2_grpc import add_FrontServiceServicer_to_server
from tests.cluster.front_door import PROMPT, Proxy, expected, slow, text_model
from worker.frame_link import TOKENS, FrameLink, connect
from worker.token_push import TokenPusher

SILENCE_S = 0.8
SECURITY = ClusterSecurity("the secret of these tests")


@dataclass
class Wired:
    """One of everything, with a proxy on the way to the scheduler and one on the way of the tokens."""

    cluster: LiveCluster
    front: FrontServer
    scheduler_proxy: Proxy
    token_proxy: Proxy
    gateway: Gateway
    client: AsyncClient
    link: FrontLink
    intake: TokenIntake
    pushers: dict[str, TokenPusher] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    servers: list[grpc.aio.Server] = field(default_factory=list)
    # The gateway's public one.
    port: int = 0

    async def serve_front(self) -> None:
        """The front server of the scheduler that there is now; gateways find it behind the proxy."""
        front = FrontServer(self.cluster.host, self.cluster.served, hash_key=b"key", silence_s=SILENCE_S)
        server = grpc.aio.server(interceptors=[SECURITY.aio_interceptor()])
        add_FrontServiceServicer_to_server(front, server)
        self.scheduler_proxy.target = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.front = front
        self.servers.append(server)
        self.tasks.append(asyncio.get_running_loop().create_task(front.watch()))

    async def meet_scheduler(self) -> None:
        """Gateways find the scheduler that there is now, and leave the one that they knew."""
        await self.serve_front()
        self.scheduler_proxy.cut()


@contextlib.asynccontextmanager
async def wired(num_workers: int = 1, step_s: float = 0.01) -> AsyncIterator[Wired]:
    cluster = LiveCluster()
    scheduler_proxy, token_proxy = Proxy(0), Proxy(0)
    await scheduler_proxy.start()
    await token_proxy.start()

    async def find() -> str:
        return f"127.0.0.1:{scheduler_proxy.port}"

    link = FrontLink(LinkSettings("gateway-0", 1, f"127.0.0.1:{token_proxy.port}", "", find, SECURITY))
    gateway = Gateway(GatewaySettings(port=0), link, {"m": text_model()})
    intake = TokenIntake(gateway.feed)
    server = GatewayServer(gateway)
    parts: dict[str, Any] = {"front": None, "client": None}
    one = Wired(cluster, parts["front"], scheduler_proxy, token_proxy, gateway, parts["client"], link, intake)
    try:
        await one.serve_front()
        address = await intake.listen(Inside("127.0.0.1", SECURITY))
        token_proxy.target = int(address.rpartition(":")[2])
        for number in range(num_workers):
            worker = cluster.add_worker(f"r{number}", slow(step_s))
            pusher = one.pushers[worker.name] = TokenPusher(
                worker.name, worker.incarnation, SECURITY, asyncio.get_running_loop()
            )
            pusher.direct({"gateway-0": f"127.0.0.1:{token_proxy.port}"})
            worker.outlets.tokens = pusher.push
        await server.start()
        one.port = server.port
        one.client = AsyncClient(f"127.0.0.1:{server.port}")
        await one.client.wait_ready(5.0)
        yield one
    finally:
        if one.client is not None:
            await one.client.close()
        await server.stop(0.1)
        for pusher in one.pushers.values():
            await pusher.close()
        intake.close()
        await cluster.close()
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
        await scheduler_proxy.stop()
        await token_proxy.stop()
        for listening in one.servers:
            await listening.stop(None)


def over_the_wire(story: Callable[[Wired], Awaitable[None]], **how: Any) -> None:
    async def run() -> None:
        async with wired(**how) as one:
            await story(one)

    asyncio.run(asyncio.wait_for(run(), 40))


async def check_streams(one: Wired, disturb: Callable[[], Awaitable[None]], num: int = 8) -> None:
    """Requests of all kinds under way while something goes wrong; each says what it would have said undisturbed."""
    prompts = [[6, 7, number + 1] for number in range(num)]
    calls = [
        one.client.generate(prompt, seed=3, max_tokens=90, n=1 + number % 3, ignore_eos=True)
        for number, prompt in enumerate(prompts)
    ]
    working = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0.2)
    await disturb()
    for prompt, output in zip(prompts, await asyncio.gather(*working), strict=True):
        for sequence in output.outputs:
            assert sequence.token_ids == expected(prompt, 3, 90, sequence.index, ends=False)
            assert sequence.finish_reason == "length"


async def settled(one: Wired) -> None:
    async with asyncio.timeout(10):
        while one.gateway.num_open or one.cluster.host.scheduler.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    one.cluster.host.scheduler.check()


def test_the_whole_way_over_grpc():
    async def story(one: Wired) -> None:
        async def nothing() -> None:
            assert one.gateway.is_connected

        await check_streams(one, nothing)
        assert await one.client.cache_prefix(list(range(1, 40)), 5.0) == 32
        await settled(one)

    over_the_wire(story, num_workers=2)


def test_the_stream_to_the_scheduler_breaks_again_and_again():
    async def story(one: Wired) -> None:
        async def disturb() -> None:
            for _ in range(6):
                one.scheduler_proxy.cut()
                # What is asked meanwhile waits, and is not lost.
                output = await one.client.generate(PROMPT, seed=1, max_tokens=4, ignore_eos=True)
                assert output.outputs[0].token_ids == expected(PROMPT, 1, 4, ends=False)

        await check_streams(one, disturb)
        assert one.scheduler_proxy.num_cut >= 6
        assert one.front.sessions["gateway-0"].incarnation == 1
        await settled(one)

    over_the_wire(story)


def test_the_stream_of_tokens_breaks_again_and_again():
    async def story(one: Wired) -> None:
        async def disturb() -> None:
            for _ in range(6):
                one.token_proxy.cut()
                await asyncio.sleep(0.1)

        await check_streams(one, disturb)
        assert one.token_proxy.num_cut >= 6
        await settled(one)

    over_the_wire(story, num_workers=2)


def test_tokens_flow_while_a_new_scheduler_has_not_met_the_gateway():
    """Its directory lacks the gateway then; the streams that run must not stop for that."""

    async def story(one: Wired) -> None:
        async def disturb() -> None:
            for pusher in one.pushers.values():
                pusher.direct({})
            output = await one.client.generate(PROMPT, seed=1, max_tokens=4, ignore_eos=True)
            assert output.outputs[0].token_ids == expected(PROMPT, 1, 4, ends=False)

        await check_streams(one, disturb)
        assert one.token_proxy.num_cut == 0
        await settled(one)

    over_the_wire(story, num_workers=2)


def test_a_new_scheduler_takes_over():
    async def story(one: Wired) -> None:
        async def disturb() -> None:
            await one.cluster.replace_scheduler()
            await asyncio.sleep(0.1)
            await one.meet_scheduler()
            output = await one.client.generate(PROMPT, seed=1, max_tokens=4, ignore_eos=True)
            assert output.outputs[0].token_ids == expected(PROMPT, 1, 4, ends=False)

        await check_streams(one, disturb)
        assert one.cluster.host.scheduler.epoch == 2
        await settled(one)

    over_the_wire(story, num_workers=2)


def test_a_gateway_that_was_given_up_takes_its_requests_up_again():
    """Both streams stall for longer than the scheduler waits; then everything goes on where it was."""

    async def story(one: Wired) -> None:
        async def disturb() -> None:
            one.scheduler_proxy.flows.clear()
            waiting = asyncio.ensure_future(one.client.generate(PROMPT, seed=1, max_tokens=4, ignore_eos=True))
            async with asyncio.timeout(5):
                while "gateway-0" in one.front.sessions:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            one.scheduler_proxy.cut()
            one.scheduler_proxy.flows.set()
            assert (await waiting).outputs[0].token_ids == expected(PROMPT, 1, 4, ends=False)

        await check_streams(one, disturb)
        await settled(one)

    over_the_wire(story)


def test_readiness_comes_from_the_scheduler():
    async def story(one: Wired) -> None:
        one.cluster.kill_worker("r0")
        async with asyncio.timeout(5):
            while await one.client.models():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(Unavailable, match="no model is served"):
            await one.client.wait_ready(0.3)
        one.cluster.add_worker("r0", slow(0.01))
        await one.client.wait_ready(5.0)

    over_the_wire(story)


def test_a_message_of_a_dead_incarnation_is_refused():
    async def story(one: Wired) -> None:
        def batch(number: int) -> pb.ToGateway:
            message = pb.ToGateway(number=number)
            fill_tokens(message.batch, [Tokens(1, 0, 1, 0, ids([4]))])
            return message

        async def push(incarnation: int, *messages: pb.ToGateway, is_polite: bool = True) -> tuple[list[int], str]:
            """What the gateway says that it has taken, at first and at last, and how it ended the stream."""
            link, heard = FrameLink("the gateway"), list[pb.FromGateway]()
            address = f"127.0.0.1:{one.token_proxy.port}"
            connection = await asyncio.to_thread(connect, address, SECURITY, TOKENS)
            words = [pb.ToGateway(hello=pb.TokenHello(replica="r9", incarnation=incarnation))] if is_polite else []
            words += messages
            link.open(connection, b"".join(map(framed, words)))
            last = messages[-1].number if messages else 0
            async with asyncio.timeout(5):
                while link.is_open and not (len(heard) > 1 and heard[-1].taken == last):
                    await asyncio.to_thread(link.wait, 0.05)
                    heard += [parsed(pb.FromGateway, raw) for raw in link.read()]
            ending = "open" if link.is_open else "".join(message.refusal for message in heard) or "cut off"
            link.close()
            return [message.taken for message in heard if not message.refusal], ending

        # A batch that comes twice is taken once; a worker that met an earlier gateway goes on with its numbers.
        assert await push(2, batch(7), batch(8), batch(8), batch(9)) == ([0, 9], "open")
        assert one.intake.num_stale == 1
        assert await push(2, batch(9), batch(10)) == ([9, 10], "open")
        assert one.intake.num_stale == 2
        assert await push(2, batch(12)) == ([10], "cut off")
        assert await push(3, batch(1)) == ([0, 1], "open")
        refused, why = await push(2, batch(11))
        assert not refused and why == "replica r9 runs as incarnation 3; this is 2"
        broken = pb.ToGateway(number=2, batch=pb.TokenBatch(routes=b"123"))
        assert await push(3, broken) == ([1], "cut off")
        assert await push(3, batch(2), is_polite=False) == ([], "cut off")
        assert one.intake.port is not None and one.intake.port.refused == {"undecodable": 3}

    over_the_wire(story)


def test_new_work_is_refused_when_too_much_waits():
    async def run() -> None:
        async def find() -> str:
            return "127.0.0.1:1"

        link = FrontLink(LinkSettings("gateway-0", 1, "", "", find, SECURITY))
        for number in range(MAX_EVENTS):
            link.send(Cancel(str(number)))
        submit = Submit("a/b", "gateway-0", 1, "m", "a", ids([1]), (), SamplingParams())
        with pytest.raises(Unavailable, match="20,000 events wait"):
            link.send(submit)
        # What belongs to work under way is taken all the same.
        link.send(Cancel("one more"))

    asyncio.run(run())


def test_an_older_start_of_a_gateway_is_refused():
    async def story(one: Wired) -> None:
        async def find() -> str:
            return f"127.0.0.1:{one.scheduler_proxy.port}"

        old = FrontLink(LinkSettings("gateway-0", 0, "", "", find, SECURITY))
        async for orders in old.orders():
            assert "runs as incarnation 1" in getattr(orders[0], "detail", "")
            break
        assert one.gateway.is_connected

    over_the_wire(story)
