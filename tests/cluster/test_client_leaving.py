"""A client that leaves before the end ends what it asked for; a batch is read and answered as there is room."""

import asyncio
from collections.abc import Iterator

from cluster import Client
from cluster.client import stream as streams
from cluster.client.asynchronous import AsyncClient
from cluster.client.request import Options
from cluster.errors import InvalidRequest, QuireError
from cluster.gateway.settings import GatewaySettings
from cluster.lifecycle.ports import free_port
from cluster.messages import GatewayLost
from cluster.offline.outputs import RequestOutput
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from tests.cluster.front_door import PROMPT, Door, at_the_door, expected, open_server, slow
from tests.links.proxies import PortProxy

LONG = SamplingParams(max_tokens=1_900, ignore_eos=True)
OPTIONS = Options(resume_grace_s=30.0)


def test_what_a_client_leaves_ends_though_it_could_be_resumed():
    """Of one stream, of many on one stream, of a call that is cancelled: long before the grace of 30 s."""

    async def story(door: Door) -> None:
        def leave(many: bool) -> None:
            with Client(door.address) as client:
                news = client.stream_many([PROMPT] * 5, LONG, OPTIONS) if many else client.stream(PROMPT, LONG, OPTIONS)
                next(news)
                # The iterator is still there when the client is closed, as after a Ctrl-C.

        for many in (False, True):
            await asyncio.to_thread(leave, many)
            await door.settled(3.0)
        async with AsyncClient(door.address) as client:
            asking = asyncio.create_task(client.generate(PROMPT, LONG, OPTIONS))
            await door.until(lambda: door.gateway.num_open == 1)
            asking.cancel()
            await door.settled(3.0)
            async for _ in client.stream(PROMPT, LONG, OPTIONS):
                break
            await door.settled(3.0)

    at_the_door(story, shapes=[slow()])


def test_a_client_that_is_closed_leaves_nothing_on_its_loop():
    """gRPC's own tasks end after their calls have, like this one; Python would say at exit that they were destroyed."""

    async def story(door: Door) -> None:
        def leave() -> set[asyncio.Task]:
            with Client(door.address) as client:
                assert client.generate(PROMPT, max_tokens=2).outputs
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), client._loop)
            return asyncio.all_tasks(client._loop)

        assert not await asyncio.to_thread(leave)

    at_the_door(story)


def test_each_answer_of_a_batch_comes_when_it_is_there(monkeypatch):
    """A slow one holds none back, wrong ones are told in their places, and no more is read than there is room for."""
    monkeypatch.setattr(streams, "WINDOW", 4)
    read: list[int] = []

    def asked() -> Iterator[tuple[object, SamplingParams, Options]]:
        for number in range(20):
            read.append(number)
            prompt = [-1] if number == 7 else [4, 5, number + 1]
            length = 400 if number == 0 else 5
            yield prompt, SamplingParams(max_tokens=length, seed=2, ignore_eos=True), OPTIONS

    async def story(door: Door) -> None:
        found: dict[int, RequestOutput | QuireError] = {}
        async for number, result in door.client.try_each(asked()):
            found[number] = result
            assert len(read) <= len(found) + 4
        order = list(found)
        assert sorted(order) == list(range(20)) and order[-1] == 0
        assert isinstance(found.pop(7), InvalidRequest)
        for number, result in found.items():
            assert isinstance(result, RequestOutput)
            length = 400 if number == 0 else 5
            assert result.outputs[0].token_ids == expected([4, 5, number + 1], 2, length, ends=False)

    at_the_door(story, shapes=[slow(0.005)])


def test_a_batch_goes_on_over_a_connection_that_breaks_while_the_queue_is_full():
    """What waits to be asked again is asked once, not by its timer too."""

    async def story(door: Door) -> None:
        proxy = PortProxy(door.server.port)
        await proxy.start()
        params = SamplingParams(max_tokens=30, seed=2, ignore_eos=True)
        found: dict[int, RequestOutput | QuireError] = {}
        async with AsyncClient(f"127.0.0.1:{proxy.port}") as client:

            async def cut() -> None:
                for _ in range(3):
                    await asyncio.sleep(0.15)
                    proxy.cut()

            cutting = asyncio.create_task(cut())
            async for number, result in client.try_each(([9, number + 1], params, OPTIONS) for number in range(24)):
                assert number not in found
                found[number] = result
            await cutting
        await proxy.stop()
        for number, result in found.items():
            assert isinstance(result, RequestOutput), result
            assert result.outputs[0].token_ids == expected([9, number + 1], 2, 30, ends=False)
        assert len(found) == 24

    at_the_door(story, shapes=[slow(0.01, max_batch=4)], scheduler=SchedulerSettings(max_queue=6))


def test_one_address_is_enough_to_outlive_its_gateway():
    """The client has learned of the other door before its own dies without a word, and streams go on there."""

    async def story(door: Door) -> None:
        first, second = free_port(), free_port()
        doors = (("gateway-1", f":{first}"), ("gateway-2", f":{second}"))
        one = await open_server(door.cluster, GatewaySettings(name="gateway-1", port=first, doors=doors))
        two = await open_server(door.cluster, GatewaySettings(name="gateway-2", port=second, doors=doors))
        params = SamplingParams(max_tokens=300, seed=2, ignore_eos=True)
        async with AsyncClient(f"localhost:{first}") as client:
            asking = asyncio.create_task(client.generate(PROMPT, params, OPTIONS))
            many = asyncio.create_task(client.generate_many([[9, 1], [9, 2]], params, OPTIONS))
            await door.until(lambda: one.gateway.num_open == 3 and len(client._connection.addresses) == 2)
            assert client._connection.addresses == [f"localhost:{first}", f"localhost:{second}"]
            await one._server.stop(None)
            door.cluster.feeds.pop("gateway-1")
            door.cluster.host.gateway_links.pop("gateway-1")
            door.cluster.host.post(GatewayLost("gateway-1"))
            assert (await asking).outputs[0].token_ids == expected(PROMPT, 2, 300, ends=False)
            for prompt, output in zip(([9, 1], [9, 2]), await many, strict=True):
                assert output.outputs[0].token_ids == expected(prompt, 2, 300, ends=False)
        await two.stop(0.1)

    at_the_door(story, shapes=[slow()], timeout_s=60)
