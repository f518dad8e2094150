"""Gateway, scheduler and workers over real links that break, stall and change ends: no token lost or doubled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.client.asynchronous import AsyncClient
from cluster.errors import Unavailable
from cluster.gateway.front import MAX_EVENTS
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.gateway.front_tokens import TokenIntake
from cluster.gateway.gateway import Gateway
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd
from cluster.links.security import ClusterSecurity
from cluster.links.sockets import connect
from cluster.links.terms import Met, RefusedByPeer
from cluster.messages import Cancel, GatewayState, OpenRequest, Reason, Submit, Tokens, ids
from cluster.sampling import SamplingParams
from cluster.serving import front_server
from cluster.serving.front_server import FrontServer
from cluster.serving.inside import Inside
from cluster.watching.metrics import Family
from cluster.wire import gateways
from cluster.wire import tokens as wire
from cluster.wire.gateways import LIVES
from tests.cluster.front_door import PROMPT, expected, slow, text_model
from tests.cluster.live import LiveCluster
from tests.links.proxies import LinkProxy
from worker.token_push import TokenPusher

SILENCE_S = 2.0
SECURITY = ClusterSecurity("the secret of these tests")


@dataclass
class Wired:
    """One of everything, with a proxy on the way to the scheduler and one on the way of the tokens."""

    cluster: LiveCluster
    front: FrontServer
    scheduler_proxy: LinkProxy
    token_proxy: LinkProxy
    gateway: Gateway
    client: AsyncClient
    link: FrontLink
    intake: TokenIntake
    pushers: dict[str, TokenPusher] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    fronts: list[FrontServer] = field(default_factory=list)
    # The gateway's public one.
    port: int = 0
    silence_s: float = SILENCE_S

    async def serve_front(self) -> None:
        """The front server of the scheduler that there is now; gateways find it behind the proxy."""
        front = FrontServer(self.cluster.host, self.cluster.served, hash_key=b"key", silence_s=self.silence_s)
        self.scheduler_proxy.target = await front.listen(Inside("127.0.0.1", SECURITY))
        self.front = front
        self.fronts.append(front)
        self.tasks.append(asyncio.get_running_loop().create_task(front.watch()))

    async def meet_scheduler(self) -> None:
        """Gateways find the scheduler that there is now, and leave the one that they knew."""
        await self.serve_front()
        self.scheduler_proxy.cut()


@contextlib.asynccontextmanager
async def wired(num_workers: int = 1, step_s: float = 0.01, silence_s: float = SILENCE_S) -> AsyncIterator[Wired]:
    cluster = LiveCluster()
    scheduler_proxy, token_proxy = LinkProxy(), LinkProxy()
    await scheduler_proxy.start()
    await token_proxy.start()

    async def find() -> str:
        return scheduler_proxy.address

    def figures() -> list[Family]:
        return gateway.watch.metrics.families(gateway.num_open, gateway.is_connected, gateway.num_stale)

    link = FrontLink(LinkSettings("gateway-0", 2, token_proxy.address, find, SECURITY, figures))
    gateway = Gateway(GatewaySettings(port=0), link, {"m": text_model()})
    intake = TokenIntake("gateway-0", 2, gateway.feed)
    server = GatewayServer(gateway)
    parts: dict[str, Any] = {"front": None, "client": None}
    one = Wired(cluster, parts["front"], scheduler_proxy, token_proxy, gateway, parts["client"], link, intake)
    one.silence_s = silence_s
    try:
        await one.serve_front()
        token_proxy.target = await intake.listen(Inside("127.0.0.1", SECURITY))
        for number in range(num_workers):
            worker = cluster.add_worker(f"r{number}", slow(step_s))
            pusher = one.pushers[worker.name] = TokenPusher(
                worker.name, worker.incarnation, SECURITY, asyncio.get_running_loop()
            )
            pusher.direct({"gateway-0": token_proxy.address})
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
        for front in one.fronts:
            front.close()


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


def test_the_whole_way_over_links():
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
        assert one.front.sessions["gateway-0"].life == 2 * LIVES
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


@pytest.mark.parametrize("is_early", [False, True])
def test_tokens_flow_while_a_new_scheduler_has_not_met_the_gateway(is_early: bool):
    """Its directory lacks the gateway then; the streams that run must not stop for that, nor those (`is_early`) that
    had not said a token before."""

    async def story(one: Wired) -> None:
        async def disturb() -> None:
            for pusher in one.pushers.values():
                pusher.direct({})
            output = await one.client.generate(PROMPT, seed=1, max_tokens=4, ignore_eos=True)
            assert output.outputs[0].token_ids == expected(PROMPT, 1, 4, ends=False)

        if is_early:
            await disturb()
        await check_streams(one, disturb)
        assert one.token_proxy.num_cut == 0
        await settled(one)

    over_the_wire(story, num_workers=2)


@pytest.mark.parametrize("part_bytes", [gateways.STATE_PART_BYTES, 100])
def test_a_new_scheduler_takes_over(monkeypatch: pytest.MonkeyPatch, part_bytes: int):
    """It is told all that is under way, in as many parts as that takes."""
    monkeypatch.setattr(gateways, "STATE_PART_BYTES", part_bytes)

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


def test_what_was_asked_before_is_asked_of_a_new_scheduler_however_much_it_is_told(monkeypatch: pytest.MonkeyPatch):
    """All that is under way may be more than may wait before new work is refused: that ends nothing but new work."""

    async def story(one: Wired) -> None:
        async def disturb() -> None:
            one.scheduler_proxy.flows.clear()
            pinned = asyncio.ensure_future(one.client.cache_prefix(list(range(1, 40)), 5.0))
            async with asyncio.timeout(5):
                while not one.gateway.door.pins:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            monkeypatch.setattr(gateways, "MAX_WAITING_BYTES", 1)
            await one.cluster.replace_scheduler()
            await one.meet_scheduler()
            one.scheduler_proxy.flows.set()
            assert await pinned == 32

        await check_streams(one, disturb)
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


def test_who_joined_or_left_is_known_at_once_and_not_at_the_next_look():
    async def story(one: Wired) -> None:
        async def until(num_replicas: int) -> None:
            async with asyncio.timeout(5):
                while [m.num_replicas for m in await one.client.models()] != [num_replicas]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        one.cluster.add_worker("r1", slow(0.01))
        await until(2)
        one.cluster.kill_worker("r1")
        await until(1)

    over_the_wire(story, silence_s=400.0)


def test_tokens_of_a_dead_incarnation_and_for_another_gateway_are_refused():
    async def story(one: Wired) -> None:
        fed: list[int] = []
        one.intake._feed = lambda batch: fed.extend(tokens.route for tokens in batch)

        async def push(incarnation: int, *routes: int, gateway: str = "gateway-0", raw: bytes = b"") -> str:
            """Sends a batch for each route; returns how the gateway answered."""
            end = DialingEnd(Dialer("r9", incarnation, gateway, wire.terms(), wire.read_down))
            end.open(await asyncio.to_thread(connect, one.token_proxy.address, SECURITY, wire.GREETING), b"")
            for route in routes:
                end.say(wire.batch_to([Tokens(route, 0, 1, 0, ids([4]))]))
            if raw:
                end.say(raw)
            answer, before = "", len(fed)
            async with asyncio.timeout(5):
                while end.is_open and (not answer or len(fed) < before + len(routes) or raw):
                    await asyncio.to_thread(end.wait, 0.05)
                    for order in end.read():
                        if isinstance(order, RefusedByPeer):
                            answer = order.detail
                        elif isinstance(order, Met):
                            answer = "met"
            answer += "" if end.is_open or answer != "met" else ", cut off"
            end.close()
            return answer

        assert await push(2, 7, 8) == "met" and fed == [7, 8]
        assert await push(3, 9) == "met" and fed == [7, 8, 9]
        assert "life 2 of r9 was declared lost" in await push(2, 11)
        # Whoever has the address of another gateway's port finds out before it says a token.
        assert await push(4, 12, gateway="gateway-1") == "r9 calls gateway-1, and here is gateway-0"
        assert await push(5, 13, raw=b"\x0a\x03123") == "met, cut off"
        assert fed == [7, 8, 9, 13]
        assert one.intake.end.port is not None and one.intake.end.port.refused == {"undecodable": 1}

    over_the_wire(story)


def test_what_an_earlier_start_of_a_gateway_has_not_taken_goes_to_the_next():
    async def story() -> None:
        fed: list[list[int]] = [[], []]
        pusher = TokenPusher("r0", 1, SECURITY, asyncio.get_running_loop())
        for life in (1, 2):
            for route in range(3):
                pusher.push("gateway-0", [Tokens(10 * life + route, 0, 1, 0, ids([4]))])
            intake = TokenIntake(
                "gateway-0", life, lambda batch, life=life: fed[life - 1].extend(tokens.route for tokens in batch)
            )
            pusher.direct({"gateway-0": await intake.listen(Inside("127.0.0.1", SECURITY))})
            async with asyncio.timeout(5):
                while len(fed[life - 1]) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            intake.close()
            await asyncio.sleep(0.05)
        await pusher.close()
        assert fed[0] == [10, 11, 12]
        # How far the first had come it had no time to say: attempts and positions tell the next one what is old.
        assert fed[1] == [10, 11, 12, 20, 21, 22]

    asyncio.run(asyncio.wait_for(story(), 20))


def test_new_work_is_refused_when_too_much_waits():
    async def run() -> None:
        async def find() -> str:
            return "127.0.0.1:1"

        link = FrontLink(LinkSettings("gateway-0", 1, "", find, SECURITY))
        for number in range(MAX_EVENTS):
            link.check_open()
            link.send(Cancel(str(number)))
        with pytest.raises(Unavailable, match=r"20,000 events of .* bytes wait"):
            link.check_open()
        # What belongs to work under way is taken all the same.
        link.send(Cancel("one more"))

    asyncio.run(run())


def test_new_work_is_refused_when_too_many_bytes_wait():
    async def run() -> None:
        async def find() -> str:
            return "127.0.0.1:1"

        link = FrontLink(LinkSettings("gateway-0", 1, "", find, SECURITY))
        submit = Submit("a/b", "gateway-0", 1, "m", "a", ids([1] * 131_072), (), SamplingParams())
        for _ in range(128):
            link.check_open()
            link.send(submit)
        with pytest.raises(Unavailable, match=r"128 events of .* bytes wait"):
            link.check_open()
        link.send(Cancel("one more"))
        assert link.end.dialer.numbers.kept_bytes < gateways.MAX_WAITING_BYTES + (1 << 20)

    asyncio.run(run())


def test_a_state_of_any_size_is_told_in_parts_of_bounded_size():
    """More than 400 requests of 128 K tokens were more than one message may have."""
    outputs, submit = (ids([5] * 9),), Submit("a/b", "g", 1, "m", "a", ids([1] * 131_072), (), SamplingParams())
    state = GatewayState("g", tuple(OpenRequest(submit, 1, outputs, (Reason.NONE,), 3) for _ in range(450)))
    told: list[OpenRequest] = []
    ends: list[bool] = []
    for raw in gateways.state_parts(state, 7.0):
        assert len(raw) < gateways.STATE_PART_BYTES + 600_000
        part = gateways.read_up(raw, 7.0)
        assert isinstance(part, gateways.StatePart) and part.state.gateway == "g"
        told += part.state.requests
        ends.append(part.is_last)
    assert len(told) == 450 and [one.turn for one in told] == [3] * 450 and told[449].submit.prompt == submit.prompt
    assert len(ends) > 50 and ends[-1] and not any(ends[:-1])
    (empty,) = gateways.state_parts(GatewayState("g", ()), 7.0)
    assert gateways.read_up(empty, 7.0) == gateways.StatePart(GatewayState("g", ()), is_last=True)


def test_figures_of_gateways_come_over_their_links(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(front_server, "FIGURES_S", 0.2)

    async def story(one: Wired) -> None:
        await one.client.generate(PROMPT, seed=1, max_tokens=4, ignore_eos=True)
        (families,) = (await one.front.figures()).values()
        counted = {family.name: sum(sample.value for sample in family.samples) for family in families}
        assert counted["output_tokens_total"] == 4
        # One that hangs costs nobody else their figures.
        one.scheduler_proxy.flows.clear()
        assert await one.front.figures() == {"gateway-0": []}
        one.scheduler_proxy.flows.set()
        assert not one.front.sessions["gateway-0"].wishes and not one.front.end.listener.peers["gateway-0"].broken_at

    over_the_wire(story)


def test_an_older_start_of_a_gateway_is_refused():
    async def story(one: Wired) -> None:
        async def find() -> str:
            return one.scheduler_proxy.address

        old = FrontLink(LinkSettings("gateway-0", 1, "", find, SECURITY))
        async for orders in old.orders():
            assert f"gateway-0 lives as {2 * LIVES}" in getattr(orders[0], "detail", "")
            break
        assert one.gateway.is_connected

    over_the_wire(story)
